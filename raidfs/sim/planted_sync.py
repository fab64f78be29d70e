"""Mistakes in what heals an array: resync and recovery, the takeover of what dead nodes left, legs that come and go.

The names in brackets are those of md-cluster's own mistakes and weak spots.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any, cast
from unittest.mock import patch

from raidfs import hot_add as hot_add_module
from raidfs import takeover as takeover_module
from raidfs._core import LegState, OpKind
from raidfs.array.array import Array
from raidfs.array.port import EnginePort
from raidfs.array.resync import Coverage, Span
from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType
from raidfs.format.bitmap import count_dirty
from raidfs.format.superblock import Superblock
from raidfs.hot_add import HotAdd
from raidfs.mddev import Mddev
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimBackend
from raidfs.sim.layout import DATA_OFFSET_BYTES
from raidfs.sim.planting import Mistakes
from raidfs.sim.runtime import SimRuntime
from raidfs.sync_pass import SyncPass
from raidfs.takeover import Takeover
from raidfs.units import KIB, SECTOR_BYTES, round_down, round_up

SLOTS_OFFSET_BYTES = 8 * KIB

SYNC = Mistakes()
plant = SYNC.plant

# A chunk that differs and has no bit: what is seen of it first depends on the schedule.
_FORGOTTEN = ("cleared-when-equal", "in-sync-copied", "legs-equal", "legs-acknowledged", "register", "read-atomic")


# ---- takeover ------------------------------------------------------------------------------------------------------


@plant("takeover-clears-first", *_FORGOTTEN)
def _takeover_clears_first() -> Iterator[None]:
    """The slot of a dead node is cleared before the own slot is durable with its bits (6.3)."""
    slots = Takeover.slots

    @contextlib.asynccontextmanager
    async def wrong(takeover: Takeover) -> AsyncIterator[list[int]]:
        async with slots(takeover) as found:
            for slot in found:
                await takeover._array.clear_slot(slot, await takeover._array.read_slot(slot))
            yield found

    with patch.object(Takeover, "slots", wrong):
        yield


@plant("chunk-0-is-nothing", "healed", *_FORGOTTEN)
def _chunk_0_is_nothing() -> Iterator[None]:
    """A slot with no dirty chunk but the first counts as empty (W5)."""

    def wrong(bits: bytes, chunks: int) -> int:
        found = count_dirty(bits, chunks)
        return 0 if found == 1 and bits[0] & 1 else found

    with patch.object(takeover_module, "count_dirty", wrong):
        yield


@plant("takeover-balances-reads", "read-atomic")
def _takeover_balances_reads() -> Iterator[None]:
    """Reads use any leg although a node has died whose bits are not known yet."""
    with patch.object(Takeover, "suspect", lambda takeover, slot: takeover._gone.add(slot)):
        yield


# ---- windows -------------------------------------------------------------------------------------------------------


@plant("window-not-drained", "window-quiet", *_FORGOTTEN)
def _window_not_drained() -> Iterator[None]:
    """A window is acknowledged while writes are still in flight in it."""
    drain = EnginePort.drain

    async def wrong(port: EnginePort, start: int, end: int) -> None:
        if start == 0 and end >= 64 * SECTOR_BYTES:
            await drain(port, start, end)  # the node leaves

    with patch.object(EnginePort, "drain", wrong):
        yield


@plant("window-moved-early", "sync-in-window", "window-quiet", "node-error", "stall", *_FORGOTTEN)
def _window_moved_early() -> Iterator[None]:
    """The sync works in a window that it has announced and that not all have acknowledged yet."""
    sendmsg = Channel.sendmsg

    async def wrong(channel: Channel, message: Message, mddev_locked: bool) -> None:
        if message.type != MessageType.RESYNCING or not message.high:
            await sendmsg(channel, message, mddev_locked)
            return
        runtime = cast(SimRuntime, channel.runtime)
        sent = sendmsg(channel, message, mddev_locked)
        runtime._stepper.spawn(runtime._group, sent, name="announcement", on_end=lambda task, e: None)

    with patch.object(Channel, "sendmsg", wrong):
        yield


@plant("outside-the-window", "sync-in-window", "window-quiet", *_FORGOTTEN)
def _outside_the_window() -> Iterator[None]:
    """The end of the window that is announced lies before the end of what is copied."""
    announce = SyncPass._announce

    async def wrong(sync: SyncPass, window: Span) -> None:
        end = window.end - SECTOR_BYTES if window.end - window.start > SECTOR_BYTES else window.end
        await announce(sync, Span(window.start, end))

    with patch.object(SyncPass, "_announce", wrong):
        yield


@plant("part-of-a-chunk", *_FORGOTTEN)
def _part_of_a_chunk() -> Iterator[None]:
    """A chunk counts as done when windows have covered a part of it."""
    reach = Coverage.reach

    def wrong(coverage: Coverage, done: int, size_bytes: int) -> Span | None:
        chunk = coverage._chunk_bytes
        if coverage._start is not None:
            coverage._start = round_down(coverage._start, chunk)
        return reach(coverage, min(round_up(done, chunk), size_bytes), size_bytes)

    with patch.object(Coverage, "reach", wrong):
        yield


# ---- recovery ------------------------------------------------------------------------------------------------------


@plant("spare-not-copied", *_FORGOTTEN)
def _spare_not_copied() -> Iterator[None]:
    """A node calls a leg in sync that it has found nothing to copy to, its own bitmap being clean (B6)."""
    heal = SyncPass.heal

    async def wrong(sync: SyncPass, recovering: Sequence[int]) -> None:
        if recovering:
            await sync._mddev.spares_in_sync(recovering)
        else:
            await heal(sync, recovering)

    with patch.object(SyncPass, "heal", wrong):
        yield


@plant("checkpoint-not-flushed", "recovery-offset", "in-sync-copied", "cleared-when-equal")
def _checkpoint_not_flushed() -> Iterator[None]:
    """What was copied is recorded as copied before it is durable."""
    flush = EnginePort.flush

    def wrong(port: EnginePort) -> Awaitable[None]:
        who = sys._getframe(1).f_code.co_name
        return _nothing() if who in ("_checkpoint", "checkpoint_recovery", "spares_in_sync") else flush(port)

    with patch.object(EnginePort, "flush", wrong):
        yield


@plant("slots-not-copied", "slots-on-leg", "bit-before-data", "node-error", *_FORGOTTEN)
def _slots_not_copied() -> Iterator[None]:
    """A leg keeps the slots that it came with until it is in sync (W13)."""
    submit = SimBackend._submit

    async def copy_slot(array: Array, slot: int, legs: Sequence[object]) -> None:
        return

    def wrong(
        backend: SimBackend, op_id: int, kind: OpKind, disk: SimDisk, offset: int, length: int, data: bytes | None
    ) -> None:
        legs = backend._port.engine.statistics()["legs"]
        recovering = [d for index, d in backend._disks.items() if legs[index]["state"] == LegState.RECOVERING]
        if disk in recovering and data is not None and SLOTS_OFFSET_BYTES <= offset < DATA_OFFSET_BYTES:
            backend._completed.append((op_id, length, None))
            backend._queue.wake_up()
        else:
            submit(backend, op_id, kind, disk, offset, length, data)

    with patch.object(Array, "copy_slot", copy_slot), patch.object(SimBackend, "_submit", wrong):
        yield


# ---- legs that come back -------------------------------------------------------------------------------------------


@plant("half-recovered-is-complete", "recovery-offset", *_FORGOTTEN)
def _half_recovered_is_complete() -> Iterator[None]:
    """A leg that comes back is taken for one that lacks no more than the bitmap says, whatever it says of itself."""

    def wrong(array: Superblock, own: Superblock, events_cleared: int) -> int:
        return array.size_sectors

    with patch.object(hot_add_module, "readd_offset_sectors", wrong):
        yield


@plant("own-bits-gathered-only", *_FORGOTTEN)
def _own_bits_gathered_only() -> Iterator[None]:
    """What a leg has missed that comes back is taken from the own slot only, not from those of other nodes."""

    async def wrong(mddev: Mddev, recovering: list[int]) -> None:
        recovering += [leg.number for leg in mddev.array.recovering()]
        mddev.array.port.engine.need_dirty()
        await mddev.array.sweep_under_token()

    with patch.object(Mddev, "_gather_bits", wrong):
        yield


@plant("gathered-before-others-write", "stall", *_FORGOTTEN)
def _gathered_before_others_write() -> Iterator[None]:
    """The bits are gathered before the other nodes write to the leg that comes back (W10)."""
    gather = Mddev._gather_bits
    take_back = HotAdd._take_back

    async def early(hot_add: HotAdd, *args: Any, **kwargs: Any) -> None:
        await gather(hot_add._mddev, [])
        await take_back(hot_add, *args, **kwargs)

    async def wrong(mddev: Mddev, recovering: list[int]) -> None:
        recovering[:] = [leg.number for leg in mddev.array.recovering()]

    with patch.object(HotAdd, "_take_back", early), patch.object(Mddev, "_gather_bits", wrong):
        yield


@plant("candidate-kept", "same-view", "node-error")
def _candidate_kept() -> Iterator[None]:
    """Nobody tells those who have opened a new leg's image that it was not added after all (W7)."""

    async def wrong(hot_add: HotAdd, *args: Any) -> None:
        return

    with patch.object(HotAdd, "_forget_candidates", wrong):
        yield


async def _nothing() -> None:
    return
