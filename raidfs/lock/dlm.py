"""The lock manager ``--lock dlm``: Linux's DLM, for nodes on several hosts.

`DlmManager` is the same `MemberHub` that speaks to the embedded server, over another carrier: events become calls of
libdlm, results that the kernel hands out become actions.

* Calls may hang in the kernel, uninterruptibly: while the lock space recovers (until fencing is done), and for
  ever when it was expelled. Each lock space has a thread that makes them, in order; nothing waits for the thread.
* Results are read on the event loop, from the lock space's device. A lock has one request under way at a time, so
  a result needs no other name than its lock's.
* A cancel has no answer of its own: the request ends as cancelled, or with what came first. A call right after that may
  find the kernel still busy with the cancel (EBUSY) and is made again.
* What is lost stays locked: the descriptor is closed when the node has closed its legs, or by the end of the process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from raidfs.errors import DlmFailed, LockProtocolError, LockSpaceOfMd, RaidfsError
from raidfs.lock import dlm_setup, events, libdlm, roster
from raidfs.lock.api import LockView, Mode
from raidfs.lock.libdlm import KernelLock, Libdlm
from raidfs.lock.member import DRAIN_S, MemberHub
from raidfs.lock.modes import LvbMove, lvb_move
from raidfs.lock.resource import NO_LVB
from raidfs.runtime import Runtime

log = logging.getLogger(__name__)

STALL_S = 1.0  # a call that takes longer waits for a recovery
STALL_LOOK_S = 1.0
LEAVE_S = 5.0  # for the kernel and dlm_controld to end a lock space that nothing holds up; they take 0.1 s
_BUSY_S = 0.002
_FIRST_TRIES = 10  # of a lock space that another process is just ending here

_LEFT_STUCK = f"the DLM has not answered for {DRAIN_S:.0f} s: a recovery, or fencing, is not done"


class DlmManager(MemberHub):
    """The hub of this process; made by `open_dlm`."""

    def __init__(self, runtime: Runtime, carrier: _DlmCarrier) -> None:
        super().__init__(runtime, carrier)
        self._dlm = carrier

    async def close(self) -> None:
        """See `LockManager.close`; the locks go as those of a dead client do."""
        await super().close()
        await self._dlm.end()

    async def flush(self) -> None:
        """Return when all that was asked so far has gone into the kernel."""
        await self._dlm.flush()


@contextlib.asynccontextmanager
async def open_dlm(runtime: Runtime, *, allow_unfenced: bool) -> AsyncIterator[DlmManager]:
    """Reach this machine's DLM for the length of the block.

    ``allow_unfenced`` accepts a cluster that does not stop a node which was cut off. The set-up is looked at when
    a lock space is opened, see `raidfs.lock.dlm_setup.check_setup` for what that raises.
    """
    async with trio.open_nursery() as nursery:
        carrier = _DlmCarrier(runtime, nursery, allow_unfenced)
        hub = carrier.hub = DlmManager(runtime, carrier)
        nursery.start_soon(carrier.watch_stalls)
        try:
            yield hub
        finally:
            with trio.CancelScope(shield=True):
                await hub.close()
            nursery.cancel_scope.cancel()


class _DlmCarrier:
    hub: DlmManager

    def __init__(self, runtime: Runtime, nursery: trio.Nursery, allow_unfenced: bool) -> None:
        self.runtime = runtime
        self._nursery = nursery
        self._allow_unfenced = allow_unfenced
        self._spaces: dict[int, _Space] = {}

    def send(self, event: events.Event) -> None:
        """See `raidfs.lock.member.Carrier`."""
        space = self._spaces.get(event.member)
        match event:
            case events.Open():
                space = self._spaces[event.member] = _Space(self, event)
                self._nursery.start_soon(self._open, space, event.tag)
            case events.Close():
                if space is None:
                    self.deliver(events.Done(event.member, event.tag))
                else:
                    space.close(event.tag)
            case events.Query() if space is not None:
                self._nursery.start_soon(self._query, space, event.tag)
            case events.Died():
                pass
            case _:
                if space is not None:
                    space.send(event)

    def close(self) -> None:
        """See `raidfs.lock.member.Carrier`; the kernel's locks stay until `end`."""

    def lifelines(self) -> tuple[int, ...]:
        """See `raidfs.lock.member.Carrier`: the kernel releases the locks with the last reference on the device."""
        return tuple(fd for space in self._spaces.values() if (fd := space.fileno()) >= 0)

    def stalled(self) -> bool:
        """See `raidfs.lock.member.Carrier`."""
        return any(space.stalled() for space in self._spaces.values())

    async def end(self) -> None:
        """Give up what is left of the lock spaces, as far as the kernel lets us."""
        for space in list(self._spaces.values()):
            space.release()
        with trio.move_on_after(LEAVE_S):
            for space in list(self._spaces.values()):
                await space.ended.wait()

    async def flush(self) -> None:
        """See `DlmManager.flush`."""
        for space in list(self._spaces.values()):
            await space.flush()

    async def watch_stalls(self) -> None:
        """Lose the lock spaces when their owner leaves and the DLM holds it up."""
        await self.hub.leaving_queue.wait_event(lambda: self.hub.leaving, what="this node to leave: being lost")
        since = self.runtime.now()
        while True:
            if not self.stalled():
                since = self.runtime.now()
            if self.runtime.now() - since > DRAIN_S:
                self.hub.lose(_LEFT_STUCK)
            await self.runtime.sleep(STALL_LOOK_S, what="the next look whether the DLM answers: being lost")

    def lose(self, reason: str) -> None:
        """End it all."""
        self.hub.lose(reason)

    def forget(self, space: _Space) -> None:
        """A lock space has been left."""
        self._spaces.pop(space.number, None)

    def deliver(self, action: events.Action) -> None:
        """Give an action to the hub."""
        try:
            self.hub.deliver(action)
        except LockProtocolError as error:
            self.hub.lose(str(error))

    async def _open(self, space: _Space, tag: int) -> None:
        try:
            await space.open(self._allow_unfenced)
        except (RaidfsError, OSError) as error:
            space.ended.set()
            failure = error if isinstance(error, RaidfsError) else _why_not_open(space.name, error)
            self._spaces.pop(space.number, None)
            self.deliver(events.Failed(space.number, tag, failure))
            return
        if not space.closing:
            self._nursery.start_soon(space.read)
            self.deliver(events.Done(space.number, tag))

    async def _query(self, space: _Space, tag: int) -> None:
        assert space.roster is not None
        views = await space.roster.query()
        self.deliver(events.Answer(space.number, tag, tuple(views)))


# Members that have a lock space with value blocks of another size make the recovery end so (fs/dlm/rcom.c).
def _why_not_open(name: str, error: OSError) -> RaidfsError:
    if error.errno == errno.EPROTO:
        return LockSpaceOfMd(name=name)
    return DlmFailed(name=name, reason=error.strerror)


class _Lock:
    """A lock, as this side knows it."""

    def __init__(self, number: int, resource: str, notices: bool) -> None:
        self.number = number
        self.resource = resource
        self.notices = notices
        self.kernel = KernelLock()
        self.mode: Mode | None = None  # None until it is granted for the first time
        self.lvb = NO_LVB
        self.lvb_valid = True
        self.pending: events.Request | events.Convert | None = None
        self.since = 0.0
        self.cancels: list[int] = []
        self.releases: list[int] = []
        self.releasing = False


class _Space:
    """A lock space that is open, with its thread."""

    def __init__(self, carrier: _DlmCarrier, event: events.Open) -> None:
        self.number = event.member
        self.name = event.name
        self.client = event.client
        self.roster: roster.Roster | None = None
        self.closing = False
        self.ended = trio.Event()
        self._carrier = carrier
        self._cluster_name = event.cluster_name
        self._locks: dict[int, _Lock] = {}
        self._close_tags: list[int] = []
        self._reading = trio.CancelScope()
        self._calls = _Calls(carrier.runtime, f"dlm {event.name}")
        self._library: Libdlm
        self._handle = self._share = 0
        self._fd = -1
        self._released = False

    # ---- joining and leaving ---------------------------------------------------------------------------------------

    async def open(self, allow_unfenced: bool) -> None:
        """Join; raises what `check_setup` raises, and OSError."""
        setup = await trio.to_thread.run_sync(
            lambda: dlm_setup.check_setup(self.name, self._cluster_name, allow_unfenced=allow_unfenced),
            abandon_on_cancel=True,
        )
        self._library = await trio.to_thread.run_sync(Libdlm)
        self._handle, self._share = await self._calls.result(lambda: self._library.join(self.name))
        self._fd = self._library.fd(self._handle)
        os.set_blocking(self._fd, False)
        self.roster = roster.enter(self.name, setup.controld_pid, self)
        if self.closing:
            self._finish()

    def close(self, tag: int) -> None:
        """Leave in good order: all locks released, and then the lock space."""
        self.closing = True
        self._close_tags.append(tag)
        for lock in list(self._locks.values()):
            self._unlock(lock)
        if not self._locks and self._fd >= 0:
            self._finish()

    def fileno(self) -> int:
        """Return the descriptor of the lock space's device; -1 when there is none."""
        return -1 if self._released else self._fd

    def release(self) -> None:
        """Leave without a word to anybody: closing the descriptor frees the locks as a death does."""
        if not self._released and self._fd >= 0:
            self._finish()
        elif self._fd < 0:
            self.ended.set()

    # The device is closed by the library, so nobody may wait for it any more.
    def _finish(self) -> None:
        if self._released:
            return
        self._released = True
        self.closing = True
        self._reading.cancel()
        trio.lowlevel.notify_closing(self._fd)
        roster.leave(self.name, self)
        self._calls.put(lambda: self._library.leave(self.name, self._handle, self._share), self._gone)
        self._calls.close()

    def _gone(self, outcome: object) -> None:
        if isinstance(outcome, OSError):
            log.warning("lock space %s was not released: %s", self.name, outcome.strerror)
        for tag in self._close_tags:
            self._carrier.deliver(events.Done(self.number, tag))
        self._carrier.forget(self)
        self.ended.set()

    async def flush(self) -> None:
        """See `DlmManager.flush`."""
        if not self._released:
            await self._calls.result(lambda: None)

    # ---- requests --------------------------------------------------------------------------------------------------

    def send(self, event: events.Event) -> None:
        """Carry out an event of this member."""
        match event:
            case events.Request():
                lock = self._locks[event.lock] = _Lock(event.lock, event.resource, event.blocking)
                flags = libdlm.VALBLK | (libdlm.EXPEDITE if event.expedite else 0)
                self._lock(lock, event, flags | (libdlm.NOQUEUE if event.noqueue else 0))
            case events.Convert():
                lock = self._locks[event.lock]
                flags = libdlm.VALBLK | libdlm.CONVERT
                self._lock(lock, event, flags | (libdlm.NOQUEUE if event.noqueue else 0))
            case events.Cancel():
                self._cancel(event)
            case events.Release():
                lock = self._locks[event.lock]
                lock.releases.append(event.tag)
                self._unlock(lock)
            case _:
                raise AssertionError(event)

    def _lock(self, lock: _Lock, event: events.Request | events.Convert, flags: int) -> None:
        lock.pending = event
        lock.since = self._carrier.runtime.now()
        # The kernel keeps what comes with every request as this lock's copy, from which a new master may restore it.
        lvb = event.lvb if isinstance(event, events.Convert) and event.lvb is not None else lock.lvb

        def call() -> None:
            lock.kernel.lvb.raw = lvb
            self._library.lock(self._handle, lock.kernel, event.mode, flags, lock.resource, lock.number, lock.notices)

        self._calls.put(lambda: _unless_busy(call), self._sent)

    def _cancel(self, event: events.Cancel) -> None:
        lock = self._locks.get(event.lock)
        if lock is None or lock.pending is None or lock.pending.tag != event.request:
            self._carrier.deliver(events.Done(self.number, event.tag))
            return
        lock.cancels.append(event.tag)
        lkid = self._library.lkid
        cookie = lock.number
        self._calls.put(lambda: libdlm.unlock(self._fd, lkid(lock.kernel), libdlm.CANCEL, cookie), self._sent_cancel)

    def _unlock(self, lock: _Lock) -> None:
        if lock.releasing:
            return
        lock.releasing = True
        # A holder in PW or EX writes the value block when it goes: what is in the resource already, valid or not.
        flags = libdlm.FORCEUNLOCK | (libdlm.VALBLK if lock.lvb_valid else libdlm.IVVALBLK)
        lvb = lock.lvb

        def call() -> None:
            libdlm.unlock(self._fd, self._library.lkid(lock.kernel), flags, lock.number, lvb)

        def sent(outcome: object) -> None:
            if isinstance(outcome, OSError) and outcome.errno == errno.ENOENT:
                self._unlocked(lock)
            else:
                self._sent(outcome)

        self._calls.put(lambda: _unless_busy(call), sent)

    def _sent(self, outcome: object) -> None:
        if isinstance(outcome, OSError):
            self._carrier.lose(f"the DLM refuses a request: {outcome.strerror}")

    def _sent_cancel(self, outcome: object) -> None:
        # EBUSY and ENOENT: there is nothing to cancel any more; what came first answers.
        if isinstance(outcome, OSError) and outcome.errno not in (errno.EBUSY, errno.ENOENT):
            self._sent(outcome)

    # ---- results ---------------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Take the results of the kernel, until the lock space is left."""
        with self._reading, contextlib.suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                try:
                    while True:
                        self._result(libdlm.parse_result(os.read(self._fd, libdlm.RESULT_BYTES_MAX)))
                except BlockingIOError:
                    continue
                except LockProtocolError as error:
                    self._carrier.lose(str(error))
                    return
                except OSError as error:
                    self._carrier.lose(f"the DLM's device cannot be read: {error.strerror}")
                    return

    def _result(self, result: libdlm.Result) -> None:
        lock = self._locks.get(result.cookie)
        if lock is None:
            return
        if result.blocking is not None:
            self._carrier.deliver(events.Blocking(self.number, lock.number, result.blocking))
        elif result.status == libdlm.EUNLOCK:
            self._unlocked(lock)
        elif lock.pending is not None:
            self._answer(lock, lock.pending, result)
        else:
            log.warning("lock %s: the DLM answers %d to nothing", lock.resource, result.status)

    def _answer(self, lock: _Lock, request: events.Request | events.Convert, result: libdlm.Result) -> None:
        member, tag = self.number, request.tag
        lock.pending = None
        action: events.Action
        match result.status:
            case 0:
                move = lvb_move(lock.mode, request.mode)
                lock.mode, lock.lvb_valid = request.mode, result.lvb_valid
                lvb = None
                if move is LvbMove.READ and result.lvb is not None:
                    lvb = lock.lvb = result.lvb
                elif move is LvbMove.WRITE and isinstance(request, events.Convert) and request.lvb is not None:
                    lock.lvb = request.lvb
                action = events.Granted(member, tag, lock.number, request.mode, lvb, result.lvb_valid)
            case errno.EAGAIN:
                action = events.Refused(member, tag, lock.number)
            case errno.EDEADLK:
                action = events.Deadlocked(member, tag, lock.number)
            case libdlm.ECANCEL:
                action = events.Cancelled(member, tag, lock.number)
            case status:
                self._carrier.lose(f"lock {lock.resource}: the DLM answers with {errno.errorcode.get(status, status)}")
                return
        if lock.mode is None:
            del self._locks[lock.number]  # a new lock that was refused leaves none behind
        self._carrier.deliver(action)
        self._cancelled(lock)

    def _cancelled(self, lock: _Lock) -> None:
        for tag in lock.cancels:
            self._carrier.deliver(events.Done(self.number, tag))
        lock.cancels.clear()

    def _unlocked(self, lock: _Lock) -> None:
        if self._locks.pop(lock.number, None) is None:
            return
        if lock.pending is not None:
            self._carrier.deliver(events.Cancelled(self.number, lock.pending.tag, lock.number))
            lock.pending = None
        self._cancelled(lock)
        for tag in lock.releases:
            self._carrier.deliver(events.Done(self.number, tag))
        if self.closing and not self._locks:
            self._finish()

    # ---- what others ask -------------------------------------------------------------------------------------------

    def held(self) -> list[roster.HeldLock]:
        """See `raidfs.lock.roster.Place`."""
        now = self._carrier.runtime.now()
        return [
            roster.HeldLock(
                lock.resource,
                LockView(
                    self.client,
                    lock.mode,
                    None if lock.pending is None else lock.pending.mode,
                    0.0 if lock.pending is None else now - lock.since,
                ),
                lock.lvb,
                lock.lvb_valid,
            )
            for lock in self._locks.values()
            if lock.mode is not None
        ]

    def lost(self, reason: str) -> None:
        """See `raidfs.lock.roster.Place`."""
        self._carrier.lose(reason)

    def stalled(self) -> bool:
        """Tell whether the DLM recovers, or hangs."""
        return self._calls.oldest_s() > STALL_S or libdlm.recovering(self.name)


# A conversion right after a cancel, or a release, may find the kernel busy with the other's reply for a moment.
def _unless_busy(call: Callable[[], None]) -> None:
    while True:
        try:
            call()
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(_BUSY_S)


class _Calls:
    """A thread that makes calls in turn; ``then(outcome)`` runs on the event loop, with a value or an OSError."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
        self._token = trio.lowlevel.current_trio_token()
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = queue.SimpleQueue()
        self._since: list[float] = []  # when the calls that are not done yet were put in
        self._started = self._runtime.now()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Make a call after all that were put in before."""
        self._since.append(self._runtime.now())
        self._queue.put((call, then))

    async def result(self, call: Callable[[], Any]) -> Any:
        """Make a call, wait for it, and return its value or raise its OSError."""
        future = self._runtime.future()
        self.put(call, future.set)
        outcome = await future.wait(what="the DLM: a call")
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def oldest_s(self) -> float:
        """Return how long the call that is being made has taken."""
        return self._runtime.now() - max(self._since[0], self._started) if self._since else 0.0

    def close(self) -> None:
        """End the thread after the calls that were put in."""
        self._queue.put(None)

    def _done(self, then: Callable[[Any], None], outcome: Any) -> None:
        self._since.pop(0)
        self._started = self._runtime.now()
        then(outcome)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            call, then = entry
            outcome: Any
            try:
                outcome = call()
            except OSError as error:
                outcome = error
            try:
                self._token.run_sync_soon(self._done, then, outcome)
            except trio.RunFinishedError:
                return
