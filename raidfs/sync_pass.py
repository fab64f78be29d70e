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
from collections.abc import Collection, Sequence
from typing import NoReturn

from raidfs._core import LegState
from raidfs._core import SyncAction as EngineAction
from raidfs.array.array import Array
from raidfs.array.legs import ArrayLeg
from raidfs.array.port import SyncUnderWay
from raidfs.array.read_errors import READ_ERRORS_MAX, SetAside
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
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.mddev import Mddev
from raidfs.node_options import NodeOptions
from raidfs.remote_resync import resyncing_code
from raidfs.units import KIB, SECTOR_BYTES, round_down

log = logging.getLogger(__name__)

PIECES_AHEAD = 2  # that are announced and not finished
LOST_BLOCKS_MAX = 1024  # of one pass

_ENGINE_ACTIONS = {
    SyncAction.RESYNC: EngineAction.HEAL,
    SyncAction.RECOVER: EngineAction.HEAL,
    SyncAction.CHECK: EngineAction.CHECK,
    SyncAction.REPAIR: EngineAction.REPAIR,
}


class SyncInterrupted(Exception):
    """The legs have changed: what has to be done is to be found out again."""


class TooMuchLost(Exception):
    """More blocks than `LOST_BLOCKS_MAX` cannot be read from any leg in sync."""


def legs_as_they_are(array: Array) -> tuple[object, ...]:
    """Return what changes when legs come, go or change their state; one that has failed and is back is another one."""
    return tuple((leg, leg.state, leg.role) for leg in array.legs)


@dataclasses.dataclass
class Piece:
    """A part of the window that is being copied."""

    span: Span
    under_way: SyncUnderWay


class SyncPass:
    """What the holder of ``resync`` does to the array; ``progress`` and ``action`` are for the status."""

    def __init__(self, array: Array, mddev: Mddev, channel: Channel, options: NodeOptions, aside: SetAside) -> None:
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
        self._aside = aside
        self.lost: set[int] = set()  # chunks with blocks that no leg in sync can read, of this pass
        self._lost_blocks = 0
        self._window = Span(0, 0)  # announced last
        self._announced = True  # RESYNCING_START was
        self._whole = False
        self._rewrites = False  # the window is one of `rewrite`
        self._held: deque[tuple[int, float]] = deque()  # announced pieces: their end, since when
        self._pieces: deque[Piece] = deque()
        self._legs = legs_as_they_are(array)
        self._checkpoint_at = (0, now)  # of the recovery: where it was, and when
        self._requests_seen = 0

    def bits_found(self) -> None:
        """Bits were imported: chunks that we are at may differ again below the window."""
        if self._rewrites:
            self._coverage.forget()  # the window is somewhere else
        elif not self._coverage.is_empty:
            self._coverage.restart(self._window.start)

    # ---- passes ----------------------------------------------------------------------------------------------------

    async def heal(self, recovering: Sequence[int]) -> None:
        """Go over everything that has to be healed, until nothing is left, and call the legs in sync.

        ``recovering``: the device numbers of all legs that recover; what they have missed is NEEDED here already. A leg
        that has come since then has to be looked at first.
        """
        array = self._array
        self._legs = legs_as_they_are(array)
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
            self._check_legs()
            await self._mddev.spares_in_sync(recovering)
            log.info("recovery is complete")

    async def compare(self, action: SyncAction) -> None:
        """Check or repair the whole array."""
        self._legs = legs_as_they_are(self._array)
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
        self.lost.clear()
        self._lost_blocks = 0
        self._coverage.forget()
        log.info("%s begins", action.word)

    # ---- one range -------------------------------------------------------------------------------------------------

    async def _go_over(self, span: Span) -> None:
        self._whole = self._is_whole(span)
        self._coverage.restart(span.start)
        at = span.start
        while self._pieces or at < span.end:
            self._check_legs()
            waits = self._checkpoint_is_due() or bool(self._array.read_errors)
            may_start = at < span.end and len(self._pieces) < PIECES_AHEAD and not waits
            if may_start and not self._pace.rest_s(self._runtime.now()):
                at = await self._start_piece(at, span.end)
            elif self._pieces:
                await self._finish_piece()
            elif self._checkpoint_is_due():
                await self._checkpoint(at)
            elif self._array.read_errors:
                if self._window.end > at:
                    await self._announce(Span(at, at))
                await self.rewrite()
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
        span = piece.span
        if not await self._is_done(piece):
            for block in await self._by_halves(_ENGINE_ACTIONS[self.action], span):
                await self._leave_out(block)
        self.progress.moved(span.end, span.end - span.start, self._runtime.now())
        if self.action in (SyncAction.RESYNC, SyncAction.RECOVER):
            finished = self._coverage.reach(span.end, self._array.size_bytes)
            if finished is not None:
                self._engine.sync_end(finished.start, finished.end, aborted=False)
                self._need(self.lost.intersection(self._array.chunks_of(finished)))

    async def _is_done(self, piece: Piece) -> bool:
        """Wait for the end of a piece; returns whether all of it could be read."""
        try:
            await self._array.port.end_sync(piece.under_way)
        except OSError as e:
            if e.errno == errno.EAGAIN:
                raise SyncInterrupted("a leg has failed") from None
            if e.errno == errno.ENODATA:
                return False
            raise
        finally:
            if piece.under_way.is_set():
                self._pieces.remove(piece)
        return True

    async def _by_halves(self, action: EngineAction, span: Span, *, leg: int = 0) -> list[Span]:
        """Do again what could not be read, in ever smaller parts; returns the ranges that no leg can read."""
        block_bytes = max(SECTOR_BYTES, self._array.block_bytes)
        lost: list[Span] = []
        parts = [span]
        while parts:
            part = parts.pop()
            piece = Piece(part, self._array.port.begin_sync(action, part.start, part.end, leg=leg))
            self._pieces.append(piece)
            if await self._is_done(piece):
                continue
            if part.end - part.start <= block_bytes:
                before = lost.pop() if lost and lost[-1].end == part.start else part
                lost.append(Span(before.start, part.end))
                self._lost_blocks += 1
                if self._lost_blocks > LOST_BLOCKS_MAX:
                    raise TooMuchLost
                continue
            middle = part.start + max(block_bytes, round_down((part.end - part.start) // 2, block_bytes))
            parts += [Span(middle, part.end), Span(part.start, middle)]
        return lost

    async def _leave_out(self, block: Span) -> None:
        """No leg in sync can read this: its chunks stay NEEDED, also where a leg lacks them that recovers."""
        self._array.read_errors.lost(block, self._runtime.now())
        if self._aside.tell(block):
            log.error(
                "no leg in sync can read bytes %d to %d of the array: they stay as they are", block.start, block.end
            )
        if self.action not in (SyncAction.RESYNC, SyncAction.RECOVER):
            return
        chunks = self._array.chunks_of(block)
        self.lost.update(chunks)
        self._need(chunks)
        await self._array.port.sweep()

    def _need(self, chunks: Collection[int]) -> None:
        if chunks:
            bits = sum(1 << chunk for chunk in chunks) << 8 * BITMAP_SUPER_BYTES
            self._engine.import_bits(bits.to_bytes(self._array.layout.slot_bytes, "little"))

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

    # ---- what legs could not read ----------------------------------------------------------------------------------

    async def rewrite(self) -> None:
        """Write anew what legs could not read, from another leg (md: fix_read_error).

        Nobody else writes there meanwhile: another node's write between our read of one leg and our write of the other
        would be undone there. A leg that has too many errors, or gives back something else, is failed; a block that no
        leg can read is left as it is. Nothing of a pass may be in flight.
        """
        errors = self._array.read_errors
        self._legs = legs_as_they_are(self._array)
        action, self.action, self._rewrites = self.action, SyncAction.REPAIR, True
        try:
            while errors:
                index, span = errors.first
                leg = self._array.leg(index)
                if leg.state == LegState.IN_SYNC and not self._array.is_last(leg):
                    await self._rewrite(leg, span)
                    self._check_legs()
                errors.done(index, span)
            if errors.corrected:
                await self._announce(Span(self._window.start, self._window.start))
                await self._mddev.record_corrected_reads()
        finally:
            self.action = action
            self._rewrites = False

    async def _rewrite(self, leg: ArrayLeg, span: Span) -> None:
        count = self._array.read_errors.count(leg.index, self._runtime.now())
        if count > READ_ERRORS_MAX:
            self._give_up(leg, f"it has failed {count} reads, old ones not counted")
        await self._announce(span)
        try:
            lost = await self._by_halves(EngineAction.REWRITE, span, leg=leg.index)
        except OSError as e:
            if e.errno != errno.EIO or self._array.fenced:
                raise
            self._give_up(leg, f"what was written anew at byte {span.start} of the array is not read back")
        for block in lost:
            await self._leave_out(block)
        corrected = span.end - span.start - sum(block.end - block.start for block in lost)
        if corrected:
            self._array.read_errors.was_corrected(leg.index, corrected // SECTOR_BYTES)
        if not lost:
            log.info("%s: what could not be read at byte %d of the array was written anew", leg.path, span.start)

    def _give_up(self, leg: ArrayLeg, why: str) -> NoReturn:
        log.error("%s: the leg is failed: %s", leg.path, why)
        self._array.give_up(leg)
        raise SyncInterrupted("a leg has failed")

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

    def _legs_changed(self) -> bool:
        return legs_as_they_are(self._array) != self._legs

    def _check_legs(self) -> None:
        if self._legs_changed():
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
        if self.action is SyncAction.RECOVER and not self._legs_changed() and done > self._recovered_to():
            await self._array.port.flush()
            await self._mddev.checkpoint_recovery(done)
