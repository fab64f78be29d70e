"""The task of a node that heals the array and checks it (md: md_do_sync and the thread that starts it).

It sleeps until something is due: chunks of ours are NEEDED and there are two legs to make equal; a leg is recovering; a
spare can take a vacant position; the user asked for a check. Then

1. ``resync`` in EX, waiting for whoever has it; afterwards it looks again whether anything is still due (B8), and ends
   a resize that a dead node has left half-done (`raidfs.resize`);
2. a look at all slots: whoever had ``resync`` before us may have died with it (`raidfs.takeover`);
3. RESYNCING_START; spares are given positions, and what legs have missed that are back is gathered from all slots.
   Only the holder of ``resync`` does that, and only it ever calls a leg in sync, so none can be in sync that was not
   copied (B6);
4. passes over what `Engine.next_to_sync` names, until it names nothing (`raidfs.sync_pass`);
5. the legs are in sync: one metadata update; RESYNCING(0, 0); ``resync`` goes back to NL.

What the storage makes fail again and again is given up until the legs change or a user asks; ``failure`` says why, as
long as it lasts. Messages that are not answered are no such reason.

Left half-way it says (0, 0), so that the others' chunks count as NEEDED again; except when the node leaves: then it
says nothing (B15), ``resync`` goes with the lock space, and whoever takes our slot over goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from raidfs._core import LegState
from raidfs.array.array import Array
from raidfs.array.read_errors import SetAside
from raidfs.array.resync import Span, SyncAction
from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType
from raidfs.errors import LockError, MessageError, RaidfsError, SyncRuns, SyncStopped
from raidfs.lock.api import Mode
from raidfs.mddev import Mddev
from raidfs.node_options import NodeOptions
from raidfs.remote_resync import RemoteResync
from raidfs.resize import Resize
from raidfs.runtime import CancelScope
from raidfs.sync_pass import SyncInterrupted, SyncPass, TooMuchLost, legs_as_they_are
from raidfs.takeover import Takeover

log = logging.getLogger(__name__)

LEGS_CHANGED_S = 0.5  # after a sync that a change of the legs ended: failures are recorded meanwhile
RETRY_S = 2.0  # after a sync that an error ended
ASK_AGAIN_S = 0.2
RETRY_S_MAX = 60.0  # when it goes on like that: each time twice as long
TRIES_MAX = 5  # with the same legs, when it is the storage that fails: then something has to change first


class SyncThread:
    """The sync of one node. `run` it in the node's nursery; ``wake`` it when something may have become due."""

    def __init__(
        self, array: Array, mddev: Mddev, channel: Channel, takeover: Takeover, resize: Resize, options: NodeOptions
    ) -> None:
        self.frozen = False
        self.current: SyncPass | None = None
        self.last: tuple[SyncAction, bool] | None = None  # what was done last, and whether it came to its end
        self.failure = ""  # of the last try, until one comes to its end
        self._array = array
        self._mddev = mddev
        self._channel = channel
        self._takeover = takeover
        self._resize = resize
        self._resync = resize.resync
        self._options = options
        self._runtime = channel.runtime
        self._wanted: SyncAction | None = None  # check or repair
        self._queue = array.legs_changed
        self._scope: CancelScope | None = None
        self._stopping = False
        self._running = False
        self._aside = SetAside()
        self._tries = 0  # that the storage made fail, since something changed
        self._tried_with: object = None  # the legs as they were then
        takeover.on_bits_found = self._bits_found

    def wake(self) -> None:
        """Look again whether something is due."""
        self._queue.wake_up()

    @property
    def waiting(self) -> bool:
        """Whether it waits for ``resync``."""
        return self._resync.waiting

    def is_due(self) -> bool:
        """Whether there is something to do now."""
        return self._is_sync_due() or (self._resize.unfinished and not self._array.fenced)

    def _is_sync_due(self) -> bool:
        due = self.due_action() is not None or bool(self._array.read_errors)
        return due and not (self.frozen or self._array.fenced or self.has_failed())

    def has_failed(self) -> bool:
        """Whether what is due was tried in vain, and nothing has changed since; ``failure`` is the reason."""
        return self._tries >= TRIES_MAX and self._tried_with == legs_as_they_are(self._array)

    def _try_again(self) -> None:
        self._tries = 0
        self.failure = ""

    def _count_try(self, e: RaidfsError | OSError) -> None:
        self.failure = (e.strerror if isinstance(e, OSError) else "") or str(e)
        legs = legs_as_they_are(self._array)
        if legs != self._tried_with:
            self._tries, self._tried_with = 0, legs
        if not isinstance(e, MessageError | LockError):
            self._tries += 1

    def due_action(self) -> SyncAction | None:
        """Return what should be done next, stopped or not: legs made complete or equal, then what the user asks."""
        array = self._array
        if array.is_between_sizes:
            return None  # what nobody may address yet cannot be synced; `raidfs.resize` ends that
        if array.spares_to_activate() or (array.recovering() and not self._is_set_aside()):
            return SyncAction.RECOVER
        writable = sum(leg.state in (LegState.IN_SYNC, LegState.RECOVERING) for leg in array.legs)
        if writable > 1 and not array.recovering() and self._is_needed() and not self._is_set_aside():
            return SyncAction.RESYNC
        return self._wanted

    def _is_needed(self) -> bool:
        return bool(self._array.port.engine.statistics()["chunks_needed"])

    def _is_set_aside(self) -> bool:
        """Whether all that is to be healed has been tried already with the legs as they are, and cannot be read."""
        array = self._array
        if not self._aside.counts(legs_as_they_are(array), self._runtime.now()):
            return False
        # What a leg that recovers has not yet is not told by chunks; a pass has been to its end, so it is one of these.
        end = min((leg.recovery_offset for leg in array.recovering()), default=array.size_bytes)
        at = 0
        while (found := array.port.engine.next_to_sync(at)) is not None and found[0] < end:
            if not self._aside.has(array.chunks_of(Span(found[0], min(found[1], end)))):
                return False
            at = found[1]
        return True

    # ---- requests --------------------------------------------------------------------------------------------------

    async def request(self, action: SyncAction) -> None:
        """Check or repair, after what has to be healed is healed; raises SyncStopped, SyncRuns."""
        if self.frozen:
            raise SyncStopped()
        holder = await self._resync.holder()
        if holder is not None or self._wanted is not None:
            raise SyncRuns(who=holder or "this node")
        self._try_again()
        self._wanted = action
        self.wake()

    def freeze(self, *, frozen: bool) -> None:
        """Stop what runs here and begin nothing, or go on (md: ``frozen``); `wait_stopped` waits for the end."""
        self.frozen = frozen
        if not frozen:
            self._aside.clear()
            self._try_again()
        else:
            self._wanted = None
            if self._scope is not None:
                self._scope.cancel()
        self.wake()

    async def wait_stopped(self, remote: RemoteResync) -> None:
        """Return when nothing runs any more that was stopped, here or elsewhere."""
        await self._queue.wait_event(lambda: self._scope is None and remote.slot is None, what="the sync to stop")

    async def stop(self) -> None:
        """The node leaves: end, without a word to the others (B15); the lock space ends ``resync``."""
        self._stopping = True
        if self._scope is not None:
            self._scope.cancel()
        self.wake()
        await self._queue.wait_event(lambda: not self._running, what="the sync of this node to end")

    async def wait_idle(self, remote: RemoteResync) -> bool:
        """Return when no sync runs, here or elsewhere, and none is due here; returns whether there was one to wait for.

        What another node has not begun yet shows as its wait for ``resync``.
        """
        waited = False
        while True:
            if not (self._is_at_it(remote) or await self._is_asked_for()):
                return waited
            waited = True
            await self._queue.wait_event(lambda: not self._is_at_it(remote), what="all syncs to end")
            if await self._is_asked_for():
                await self._runtime.sleep(ASK_AGAIN_S, what="another node's sync to begin or end")

    def _is_at_it(self, remote: RemoteResync) -> bool:
        return self._scope is not None or self.is_due() or remote.slot is not None

    async def _is_asked_for(self) -> bool:
        return any(
            lock.granted is Mode.EX or lock.requested is Mode.EX
            for resource in await self._channel.lockspace.query()
            if resource.name == "resync"
            for lock in resource.locks
        )

    # ---- the task --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sync whatever becomes due, until `stop`."""
        self._running = True
        try:
            retry_s = RETRY_S
            while True:
                await self._queue.wait_event(lambda: self._stopping or self.is_due(), what="something to sync")
                if self._stopping:
                    return
                with self._runtime.cancel_scope() as self._scope:
                    try:
                        await self._turn()
                        retry_s = RETRY_S
                        self._try_again()
                    except SyncInterrupted as e:
                        log.info("the sync begins again: %s", e)
                        await self._runtime.sleep(LEGS_CHANGED_S, what="the time to sync again")
                    except (RaidfsError, OSError) as e:
                        self._count_try(e)
                        if not self._array.fenced:
                            then = "something has to change first" if self.has_failed() else "it will be tried again"
                            log.error("the sync was given up: %s; %s", e, then)
                        await self._runtime.sleep(retry_s, what="the time to sync again")
                        retry_s = min(2 * retry_s, RETRY_S_MAX)
                self._scope = None
                self._queue.wake_up()
        finally:
            self._scope = None
            self._running = False
            self._queue.wake_up()

    async def _turn(self) -> None:
        await self._resync.lock("the sync")
        try:
            if self._resize.unfinished:
                await self._resize.recover()
            if self._is_sync_due():
                await self._sync()
        finally:
            await self._resync.unlock(keep=self._stopping)  # then it goes with the lock space, our slot with it

    async def _sync(self) -> None:
        channel = self._channel
        await self._takeover.look()
        sync = self.current = SyncPass(self._array, self._mddev, channel, self._options, self._aside)
        try:
            # If this is cancelled some may have heard it: they have to hear the end as well.
            await channel.sendmsg(Message(MessageType.RESYNCING_START, channel.slot), False)
            await sync.rewrite()
            while (action := self.due_action()) is not None:
                self.last = (action, False)
                if action in (SyncAction.CHECK, SyncAction.REPAIR):
                    self._wanted = None
                    await sync.compare(action)
                else:
                    await sync.heal(await self._mddev.activate_spares() if action is SyncAction.RECOVER else ())
                    self._set_aside(frozenset(sync.lost))
                self.last = (action, True)
                await sync.rewrite()
        except TooMuchLost:
            log.error("too many blocks cannot be read from any leg in sync: the sync is given up for some time")
            self._set_aside(range(self._array.layout.bits))
        finally:
            with self._runtime.cancel_scope(shield=True):
                await sync.end(leaving=self._stopping)
            self.current = None

    def _set_aside(self, lost: Collection[int]) -> None:
        if lost:
            self._aside.put(lost, legs_as_they_are(self._array), self._runtime.now())
        else:
            self._aside.clear()

    def _bits_found(self) -> None:
        if self.current is not None:
            self.current.bits_found()
