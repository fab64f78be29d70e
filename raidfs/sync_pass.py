"""One node's passes over the array: announce a range, copy in it, move on.

A pass is made of ranges that have to be healed, one after the other; a range is gone over in pieces. The others are
told of a window [low, high), and the engine works inside it only after all have acknowledged. Windows are announced
ahead of the copying, so that the legs are never idle::

    announce [0, 2)   copy 0, 1     writes of others into 0 and 1 wait
    announce [1, 3)   copy 1, 2     those into 0 go on
    announce [2, 4)   copy 2, 3

Between ranges everything is copied first: chunks in the gap are not copied, and receivers must not take them for done.
While a maximum speed demands a rest, or metadata is written, nothing is suspended: the window is (low, low).
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections import deque
from collections.abc import Sequence

from raidfs._core import SyncAction as EngineAction
from raidfs.array.array import Array
from raidfs.array.port import SyncUnderWay
from raidfs.array.resync import (
    CHECKPOINT_S,
    CHECKPOINTS,
    Coverage,
    Pace,
    Progress,
    Span,
    SyncAction,
    WindowPolicy,
)
from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType
from raidfs.errors import MessageNotAcknowledged, MessageRefused, RaidfsError
from raidfs.mddev import Mddev
from raidfs.node_options import NodeOptions
from raidfs.remote_resync import resyncing_code
from raidfs.units import KIB, SECTOR_BYTES

log = logging.getLogger(__name__)

PIECES_AHEAD = 2  # that are announced and not finished

_ENGINE_ACTIONS = {
    SyncAction.RESYNC: EngineAction.HEAL,
    SyncAction.RECOVER: EngineAction.HEAL,
    SyncAction.CHECK: EngineAction.CHECK,
    SyncAction.REPAIR: EngineAction.REPAIR,
}


class SyncInterrupted(Exception):
    """The legs have changed: what has to be done is to be found out again."""


@dataclasses.dataclass
class Piece:
    """A part of the window that is being copied."""

    span: Span
    under_way: SyncUnderWay


class SyncPass:
    """What the holder of ``resync`` does to the array; ``progress`` and ``action`` are for the status."""

    def __init__(self, array: Array, mddev: Mddev, channel: Channel, options: NodeOptions) -> None:
        self._array = array
        self._engine = array.port.engine
        self._mddev = mddev
        self._channel = channel
        self._runtime = channel.runtime
        now = self._runtime.now()
        self.action = SyncAction.RESYNC
        self.progress = Progress(array.size_bytes, now)
        self._policy = WindowPolicy(
            options.sync_stall_ms,
            window_bytes_min=options.sync_window_bytes[0],
            window_bytes_max=options.sync_window_bytes[1],
            granule_bytes=max(array.block_bytes, SECTOR_BYTES),
        )
        self._pace = Pace(options.sync_speed_min * KIB, options.sync_speed_max * KIB, now)
        self._coverage = Coverage(array.layout.chunk_bytes)
        self._window = Span(0, 0)  # announced last
        self._announced = True  # RESYNCING_START was
        self._whole = False
        self._held: deque[tuple[int, float]] = deque()  # announced pieces: their end, since when
        self._pieces: deque[Piece] = deque()
        self._legs = self._legs_now()
        self._checkpoint_at = (0, now)  # of the recovery: where it was, and when
        self._requests_seen = 0

    def bits_found(self) -> None:
        """Bits were imported: chunks that we are at may differ again below the window."""
        if not self._coverage.is_empty:
            self._coverage.restart(self._window.start)

    # ---- passes ----------------------------------------------------------------------------------------------------

    async def heal(self, recovering: Sequence[int]) -> None:
        """Go over everything that has to be healed, until nothing is left, and call the legs in sync.

        ``recovering``: the device numbers of all legs that recover; what they have missed is NEEDED here already. A leg
        that has come since then has to be looked at first.
        """
        array = self._array
        self._legs = self._legs_now()
        if sorted(recovering) != sorted(leg.number for leg in array.recovering()):
            raise SyncInterrupted("the legs have changed")
        self._begin(SyncAction.RECOVER if recovering else SyncAction.RESYNC)
        self._checkpoint_at = (self._recovered_to(), self._runtime.now())
        at = 0
        while (found := self._engine.next_to_sync(at)) is not None:
            await self._go_over(Span(*found))
            at = found[1]
        if at:
            await self._announce(Span(at, at))
        self._engine.sync_end(0, array.size_bytes, aborted=True)  # what bits were found for meanwhile
        if not recovering:
            return
        if self._engine.statistics()["chunks_needed"]:
            await self._checkpoint(array.size_bytes)  # once more, for these chunks only
        else:
            await self._mddev.spares_in_sync(recovering)
            log.info("recovery is complete")

    async def compare(self, action: SyncAction) -> None:
        """Check or repair the whole array."""
        self._legs = self._legs_now()
        self._begin(action)
        self._engine.reset_mismatches()
        await self._go_over(Span(0, self._array.size_bytes))
        sectors = self._engine.mismatches()[0]
        log.info("%s is complete: %d sectors differ", action.word, sectors)

    async def end(self, *, leaving: bool) -> None:
        """Stop whatever is being copied; others get their writes back and their bits, unless the node leaves."""
        if self._pieces:
            self._engine.abort_sync()
            while self._pieces:
                await self._pieces.popleft().under_way.wait(what="the blocks of a sync that are in flight")
        if self._array.fenced or self._channel.lockspace.lost is not None:
            return
        self._engine.sync_end(0, self._array.size_bytes, aborted=True)
        try:
            if leaving:
                await self._checkpoint_on_leaving()
            while not leaving and self._announced and not self._array.fenced:
                await self._say_end()
        except (RaidfsError, OSError) as e:
            log.error("the end of the sync: %s", e)

    async def _say_end(self) -> None:
        """Tell the others that nothing is suspended any more; who does not hear it would wait for ever."""
        try:
            await self._announce(Span(0, 0))
            self._announced = False
        except MessageRefused as e:
            log.error("%s", e)
            self._announced = False
        except MessageNotAcknowledged as e:
            log.error("%s; it is told again", e)

    def _begin(self, action: SyncAction) -> None:
        if action is not self.action or self.progress.position_bytes:
            self.progress = Progress(self._array.size_bytes, self._runtime.now())
        self.action = action
        self._coverage.forget()
        log.info("%s begins", action.word)

    # ---- one range -------------------------------------------------------------------------------------------------

    async def _go_over(self, span: Span) -> None:
        self._whole = self._is_whole(span)
        self._coverage.restart(span.start)
        at = span.start
        while self._pieces or at < span.end:
            self._check_legs()
            may_start = at < span.end and len(self._pieces) < PIECES_AHEAD and not self._checkpoint_is_due()
            if may_start and not self._pace.rest_s(self._runtime.now()):
                at = await self._start_piece(at, span.end)
            elif self._pieces:
                await self._finish_piece()
            elif self._checkpoint_is_due():
                await self._checkpoint(at)
            else:
                await self._rest(at)

    async def _start_piece(self, at: int, end: int) -> int:
        piece = Span(at, min(at + self._policy.piece_bytes, end))
        low = self._pieces[0].span.start if self._pieces else at
        await self._announce(Span(low, piece.end))
        now = self._runtime.now()
        self._held.append((piece.end, now))
        self._pace.took(piece.end - piece.start, now)
        self._set_limits(now)
        if self.action in (SyncAction.RESYNC, SyncAction.RECOVER):
            self._engine.sync_start(piece.start, piece.end)
        under_way = self._array.port.begin_sync(_ENGINE_ACTIONS[self.action], piece.start, piece.end)
        self._pieces.append(Piece(piece, under_way))
        return piece.end

    async def _finish_piece(self) -> None:
        piece = self._pieces[0]
        try:
            await self._array.port.end_sync(piece.under_way)
        except OSError as e:
            if e.errno == errno.EAGAIN:
                raise SyncInterrupted("a leg has failed") from None
            raise
        finally:
            if piece.under_way.is_set():
                self._pieces.popleft()
        span = piece.span
        self.progress.moved(span.end, span.end - span.start, self._runtime.now())
        if self.action in (SyncAction.RESYNC, SyncAction.RECOVER):
            finished = self._coverage.reach(span.end, self._array.size_bytes)
            if finished is not None:
                self._engine.sync_end(finished.start, finished.end, aborted=False)

    async def _rest(self, at: int) -> None:
        if self._window.end > at or self._window.start < at:
            await self._announce(Span(at, at))
        await self._runtime.sleep(self._pace.rest_s(self._runtime.now()), what="the maximum speed of the sync")

    def _set_limits(self, now: float) -> None:
        counts = self._engine.statistics()
        requests = counts["reads"] + counts["writes"]
        blocks = self._pace.blocks_in_flight(
            self.progress.speed_bytes_s(now), users_active=requests != self._requests_seen
        )
        self._requests_seen = requests
        self._engine.set_sync_limits(self._policy.block_bytes, blocks)

    # ---- the others ------------------------------------------------------------------------------------------------

    async def _announce(self, window: Span) -> None:
        """Have all nodes suspend the window; a node that joins reads it from the value of our slot (6.4)."""
        channel = self._channel
        self._announced = True
        began = self._runtime.now()
        low, high = window.start // SECTOR_BYTES, -(-window.end // SECTOR_BYTES)
        await channel.publish(low=low, high=high)
        code = resyncing_code(self.action, whole=self._whole)
        await channel.sendmsg(Message(MessageType.RESYNCING, channel.slot, low=low, high=high, raid_slot=code), False)
        self._window = window
        now = self._runtime.now()
        self._policy.told(now - began)
        while self._held and (self._held[0][0] <= window.start or not window.end):
            self._policy.stalled(now - self._held.popleft()[1])

    def _is_whole(self, span: Span) -> bool:
        """Whether a heal of the range writes every leg: else the others' bits must not end with it."""
        offsets = [leg.recovery_offset for leg in self._array.recovering()]
        if all(offset >= span.end for offset in offsets):
            return True  # nothing but chunks that are NEEDED
        return self._array.only_one_in_sync() and all(offset <= span.start for offset in offsets)

    # ---- recovery --------------------------------------------------------------------------------------------------

    def _legs_now(self) -> tuple[object, ...]:
        return tuple((leg.index, leg.number, leg.state, leg.role) for leg in self._array.legs)

    def _check_legs(self) -> None:
        if self._legs_now() != self._legs:
            raise SyncInterrupted("the legs have changed")

    def _recovered_to(self) -> int:
        """Return how far the leg is recovered that is least so; the array's size when none recovers."""
        return min((leg.recovery_offset for leg in self._array.recovering()), default=self._array.size_bytes)

    def _checkpoint_is_due(self) -> bool:
        if self.action is not SyncAction.RECOVER:
            return False
        at, since = self._checkpoint_at
        done = self.progress.position_bytes
        if done <= max(at, self._recovered_to()):
            return False
        return done - at >= self._array.size_bytes // CHECKPOINTS or self._runtime.now() - since >= CHECKPOINT_S

    async def _checkpoint(self, done: int) -> None:
        """Record how far the recovery is, on disk: whoever goes on need not copy that again."""
        if self._window.end != self._window.start:
            await self._announce(Span(done, done))
        await self._array.port.flush()
        self._check_legs()
        if done > self._recovered_to():
            await self._mddev.checkpoint_recovery(done)
        self._checkpoint_at = (done, self._runtime.now())

    async def _checkpoint_on_leaving(self) -> None:
        done = self.progress.position_bytes
        if self.action is SyncAction.RECOVER and self._legs_now() == self._legs and done > self._recovered_to():
            await self._array.port.flush()
            await self._mddev.checkpoint_recovery(done)
