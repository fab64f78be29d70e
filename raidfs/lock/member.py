"""The member's side of a lock machine: calls become events, actions become results, whatever carries them.

A `MemberHub` is a `LockManager` over a `Carrier`: a socket to the embedded server, or a machine in the same process.
It is written against `raidfs.runtime.Runtime` only, so that the simulator runs the text that production runs.

How a late answer never reaches another request: every event has its own tag, an answer is looked up by its tag
and by nothing else, and a conversion whose task is cancelled is *drained*: the cancel is sent, and its answer is
waited for with outer cancellation shut out. Carriers keep the order of answers and the machine answers the cancelled
conversion before the cancel, so when the cancel's answer is there the conversion's is too.

The time line of a drain: at 0 s the cancel is sent; a live server answers within a round trip, far below 1 ms on one
host. After DRAIN_S, in DRAIN_LOOKS looks, the server counts as stuck, the lock space is declared lost, and the
cancelled task goes on: a node that wants to leave is never held by a server that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from raidfs.errors import (
    LockBusy,
    LockCancelled,
    LockDeadlock,
    LockProtocolError,
    LockRefused,
    LockspaceLost,
)
from raidfs.lock import machine
from raidfs.lock.api import LVB_BYTES, Mode, ResourceView
from raidfs.lock.machine import check_name
from raidfs.lock.modes import LvbMove, compatible, lvb_move
from raidfs.lock.resource import NO_LVB
from raidfs.runtime import Future, Runtime

# Long against every scheduling delay of a loaded host, short against the patience of a person at a command line.
DRAIN_S = 10.0

# A process that was stopped for longer than DRAIN_S finds its deadline passed and the answer not yet read; it has the
# later looks to read it.
DRAIN_LOOKS = 10

_NOT_ANSWERED = f"the lock manager did not answer for {DRAIN_S:.0f} s"
_LEFT = "this node has left it"
_CLOSED = "the connection to the lock manager was closed by this node"


class Carrier(Protocol):
    """What brings events to the machine; it calls `MemberHub.deliver` and `MemberHub.lose` in turn."""

    def send(self, event: machine.Event) -> None:
        """Send an event, in order; when that is not possible any more the carrier calls `MemberHub.lose`."""

    def close(self) -> None:
        """End the connection; a second call does nothing."""

    def lifelines(self) -> tuple[int, ...]:
        """See `raidfs.lock.api.Lockspace.lifelines`."""

    def stalled(self) -> bool:
        """Tell whether the manager is known to answer nobody for a while, and to go on afterwards (recovery)."""


class MemberHub:
    """A lock manager (`raidfs.lock.api.LockManager`) reached through a carrier."""

    def __init__(self, runtime: Runtime, carrier: Carrier) -> None:
        self.runtime = runtime
        self.lost: str | None = None
        self.lost_queue = runtime.wait_queue()
        self.leaving = False
        self.leaving_queue = runtime.wait_queue()
        self._carrier = carrier
        self._tag = 0
        self._member = 0
        self._pending: dict[int, tuple[Future[machine.Action | None], MemberLock | None]] = {}
        self._spaces: dict[int, MemberLockspace] = {}

    async def open_lockspace(self, name: str, *, cluster_name: str, client: str) -> MemberLockspace:
        """See `LockManager.open_lockspace`."""
        check_name(name)
        self._member += 1
        space = MemberLockspace(self, self._member, name)
        self._spaces[space.number] = space
        event = machine.Open(space.number, self.next_tag(), name, cluster_name, client)
        try:
            action = await self.ask(space, event, what=f"lock space {name}: joining")
        except GeneratorExit:  # the frame is being thrown away, with the process or simulated node that it was in
            raise
        except BaseException:
            self.leave(space.number)
            self.undo(machine.Close(space.number, self.next_tag()))
            raise
        if isinstance(action, machine.Failed):
            self.leave(space.number)
            raise action.error
        return space

    async def close(self) -> None:
        """See `LockManager.close`."""
        self.lose(_CLOSED)

    def lose(self, reason: str) -> None:
        """End it all: every call that waits, and every later one, raises LockspaceLost."""
        if self.lost is not None:
            return
        self.lost = reason
        pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            future.set(None)
        self.lost_queue.wake_up()
        self._carrier.close()

    def deliver(self, action: machine.Action) -> None:
        """Take one action from the carrier; raises LockProtocolError for one that answers nothing."""
        if self.lost is not None:
            return
        if isinstance(action, machine.Blocking):
            space = self._spaces.get(action.member)
            if space is not None:
                space.blocking(action.lock, action.mode)
            return
        entry = self._pending.pop(action.tag, None)
        if entry is None:
            raise LockProtocolError(reason=f"{type(action).__name__} for request {action.tag}, which was answered")
        future, lock = entry
        if lock is not None and isinstance(action, machine.Granted):
            lock.granted(action)
        future.set(action)

    def next_tag(self) -> int:
        """Return a tag that was never used before."""
        self._tag += 1
        return self._tag

    def leave(self, number: int) -> None:
        """Forget a lock space that was left."""
        self._spaces.pop(number, None)

    def send(self, event: _Tagged, lock: MemberLock | None = None) -> Future[machine.Action | None]:
        """Send ``event`` and return its answer to come: an action, or None when the manager is lost meanwhile."""
        future = self.runtime.future()
        self._pending[event.tag] = (future, lock)
        self._carrier.send(event)
        return future

    async def ask(self, space: MemberLockspace, event: _Tagged, *, what: str) -> machine.Action:
        """Send an event that is answered at once and return its answer."""
        space.check()
        action = await self.send(event).wait(what=what)
        if action is None:
            raise space.loss()
        return action

    def undo(self, event: _Tagged) -> None:
        """Take back, by ``event``, what a cancelled task asked for; nobody waits for either answer."""
        if self.lost is None:
            self.send(event)

    async def drain(self, event: _Tagged, *, what: str) -> None:
        """Send ``event`` and wait for its answer with cancellation shut out, or lose the manager after DRAIN_S."""
        if self.lost is None:
            await self.drained(self.send(event), what=what)

    async def drained(self, future: Future[machine.Action | None], *, what: str) -> None:
        """Wait for an answer with cancellation shut out, or lose the manager after DRAIN_S in which it could answer."""
        looks = 0
        while looks < DRAIN_LOOKS:
            with self.runtime.cancel_scope(shield=True, deadline=self.runtime.now() + DRAIN_S / DRAIN_LOOKS):
                await future.wait(what=what)
            if future.is_set():
                return
            looks += self.leaving or not self.stalled
        self.lose(_NOT_ANSWERED)

    @property
    def stalled(self) -> bool:
        """See `Lockspace.stalled`."""
        return self._carrier.stalled()

    @property
    def lifelines(self) -> tuple[int, ...]:
        """See `Lockspace.lifelines`."""
        return self._carrier.lifelines()

    def leave_soon(self) -> None:
        """See `Lockspace.leave_soon`."""
        self.leaving = True
        self.leaving_queue.wake_up()


_Tagged = (
    machine.Open | machine.Request | machine.Convert | machine.Cancel | machine.Release | machine.Query | machine.Close
)


class MemberLockspace:
    """A lock space that this member has joined (`raidfs.lock.api.Lockspace`)."""

    def __init__(self, hub: MemberHub, number: int, name: str) -> None:
        self.name = name
        self.number = number
        self.hub = hub
        self._left = False
        self._lock_number = 0
        self._locks: dict[int, MemberLock] = {}

    async def lock(self, resource: str, *, on_blocking: Callable[[Mode], None] | None = None) -> MemberLock:
        """See `Lockspace.lock`."""
        self.check()
        check_name(resource)
        self._lock_number += 1
        lock = MemberLock(self, self._lock_number, resource, on_blocking)
        self._locks[lock.number] = lock
        event = machine.Request(
            self.number,
            self.hub.next_tag(),
            lock.number,
            resource,
            Mode.NL,
            noqueue=False,
            expedite=True,
            blocking=on_blocking is not None,
        )
        future = self.hub.send(event, lock)
        try:
            action = await future.wait(what=f"lock {resource}: being created")
        except GeneratorExit:  # see MemberHub.open_lockspace
            raise
        except BaseException:
            self.forget(lock.number)
            if not self._left:
                self.hub.undo(machine.Release(self.number, self.hub.next_tag(), lock.number))
            raise
        if action is None:
            raise self.loss()
        return lock

    async def query(self) -> list[ResourceView]:
        """See `Lockspace.query`."""
        event = machine.Query(self.number, self.hub.next_tag())
        action = await self.hub.ask(self, event, what=f"lock space {self.name}: who holds and who waits")
        assert isinstance(action, machine.Answer)
        return list(action.resources)

    async def wait_lost(self) -> str:
        """See `Lockspace.wait_lost`."""
        await self.hub.lost_queue.wait_event(lambda: self.lost is not None, what=f"lock space {self.name}: being lost")
        assert self.lost is not None
        return self.lost

    @property
    def left(self) -> bool:
        """Whether this member has left the lock space by `close`."""
        return self._left

    @property
    def lost(self) -> str | None:
        """See `Lockspace.lost`."""
        return None if self._left else self.hub.lost

    @property
    def stalled(self) -> bool:
        """See `Lockspace.stalled`."""
        return self.hub.stalled

    @property
    def lifelines(self) -> tuple[int, ...]:
        """See `Lockspace.lifelines`."""
        return self.hub.lifelines

    def leave_soon(self) -> None:
        """See `Lockspace.leave_soon`."""
        self.hub.leave_soon()

    async def close(self) -> None:
        """See `Lockspace.close`."""
        if self._left:
            return
        self._left = True
        await self.hub.drain(machine.Close(self.number, self.hub.next_tag()), what=f"lock space {self.name}: leaving")
        self.hub.leave(self.number)

    def check(self) -> None:
        """Raise LockspaceLost when the lock space is lost or was left."""
        if self._left or self.hub.lost is not None:
            raise self.loss()

    def loss(self) -> LockspaceLost:
        """Return the error that says why the lock space is of no use any more."""
        return LockspaceLost(name=self.name, reason=self.hub.lost or _LEFT)

    def blocking(self, number: int, mode: Mode) -> None:
        """Pass a blocking notice on to the lock that it names."""
        lock = self._locks.get(number)
        if lock is not None:
            lock.blocking(mode)

    def forget(self, number: int) -> None:
        """Forget a lock that was released."""
        self._locks.pop(number, None)


class MemberLock:
    """One lock of this member (`raidfs.lock.api.Lock`)."""

    def __init__(
        self, space: MemberLockspace, number: int, resource: str, on_blocking: Callable[[Mode], None] | None
    ) -> None:
        self.resource = resource
        self.mode = Mode.NL
        self.lvb = NO_LVB
        self.lvb_valid = True
        self.number = number
        self._space = space
        self._on_blocking = on_blocking
        self._released = False
        # The conversion under way: its tag, the mode asked for, and its answer to come.
        self._conversion: tuple[int, Mode, Future[machine.Action | None]] | None = None

    async def convert(self, mode: Mode, *, noqueue: bool = False) -> None:
        """See `Lock.convert`."""
        self._check()
        if self._conversion is not None:
            raise LockBusy(resource=self.resource, mode=self._conversion[1].name)
        if len(self.lvb) != LVB_BYTES:
            raise ValueError(f"a value block of {len(self.lvb)} bytes; it has {LVB_BYTES}")
        hub = self._space.hub
        lvb = self.lvb if lvb_move(self.mode, mode) is LvbMove.WRITE else None
        event = machine.Convert(self._space.number, hub.next_tag(), self.number, mode, noqueue, lvb)
        what = f"lock {self.resource}: {self.mode.name} to {mode.name}"
        future = hub.send(event, self)
        self._conversion = (event.tag, mode, future)
        try:
            action = await future.wait(what=what)
        except GeneratorExit:  # see MemberHub.open_lockspace
            raise
        except BaseException:
            if not future.is_set():
                await self._take_back(event.tag, mode, future)
            raise
        finally:
            self._conversion = None
        match action:
            case machine.Granted():
                return
            case machine.Refused():
                raise LockRefused(resource=self.resource, mode=mode.name)
            case machine.Deadlocked():
                raise LockDeadlock(resource=self.resource, mode=mode.name)
            case machine.Cancelled():
                raise LockCancelled(resource=self.resource, mode=mode.name)
            case _:
                raise self._space.loss()

    async def cancel(self) -> bool:
        """See `Lock.cancel`."""
        if self._released or self._conversion is None or self._conversion[2].is_set():
            return False
        self._space.check()
        tag, mode, future = self._conversion
        await self._take_back(tag, mode, future)
        answer = await future.wait(what=f"lock {self.resource}: the answer to {mode.name}")
        if answer is None:
            raise self._space.loss()
        return isinstance(answer, machine.Cancelled)

    async def release(self) -> None:
        """See `Lock.release`."""
        if self._released:
            return
        self._released = True
        hub = self._space.hub
        if not self._space.left:
            event = machine.Release(self._space.number, hub.next_tag(), self.number)
            await hub.drain(event, what=f"lock {self.resource}: being released")
        self._space.forget(self.number)
        self.mode = Mode.NL

    def granted(self, action: machine.Granted) -> None:
        """Take over what a grant says; called before the task that waits for it runs."""
        self.mode = action.mode
        self.lvb_valid = action.lvb_valid
        if action.lvb is not None:
            self.lvb = action.lvb

    def blocking(self, mode: Mode) -> None:
        """Tell the owner, unless the lock has given way while the notice was on its way (as fs/dlm/ast.c)."""
        if self._on_blocking is not None and not compatible(self.mode, mode):
            self._on_blocking(mode)

    # On return the conversion is answered, as granted or as cancelled, or the manager is lost.
    async def _take_back(self, tag: int, mode: Mode, future: Future[machine.Action | None]) -> None:
        hub = self._space.hub
        what = f"lock {self.resource}: taking back the request for {mode.name}"
        if self._released or self._space.left:  # what was sent for that answers the conversion too
            await hub.drained(future, what=what)
        else:
            await hub.drain(machine.Cancel(self._space.number, hub.next_tag(), self.number, tag), what=what)

    def _check(self) -> None:
        self._space.check()
        if self._released:
            raise LockProtocolError(reason=f"lock {self.resource} was released")
