"""Mistakes to make on purpose, so that the enumerator can show that it finds them; see `raidfs.sim.planted`.

``rules`` are those of `raidfs.sim.crash.reopened`. Each mistake is made while a scenario is recorded and while what is
left is opened again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import patch

from raidfs import hot_add, takeover
from raidfs._core import OpKind
from raidfs.array.array import Array
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.mddev import Mddev
from raidfs.sim.crash.layout import LAYOUT
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimBackend
from raidfs.sim.planted import PLANTED as OF_SCHEDULES
from raidfs.sim.planting import Mistakes
from raidfs.takeover import Takeover

PLANTED = Mistakes()
plant = PLANTED.plant

Kind = Callable[[OpKind, int], OpKind]


@contextlib.contextmanager
def _other_kind(kind_of: Kind) -> Iterator[None]:
    submit = SimBackend._submit

    def wrong(
        backend: SimBackend, op_id: int, kind: OpKind, disk: SimDisk, offset: int, length: int, data: bytes | None
    ) -> None:
        submit(backend, op_id, kind_of(kind, offset), disk, offset, length, data)

    with patch.object(SimBackend, "_submit", wrong):
        yield


def _durable_but(start: int, end: int) -> Kind:
    def kind_of(kind: OpKind, offset: int) -> OpKind:
        return OpKind.WRITE if kind == OpKind.WRITE_DURABLE and start <= offset < end else kind

    return kind_of


@plant("bits-not-durable", "legs-equal")
def _bits_not_durable() -> Iterator[None]:
    """Bits are written before the data and not made durable (P2)."""
    with _other_kind(_durable_but(LAYOUT.slot_offset_bytes(0), LAYOUT.data_offset_bytes)):
        yield


@plant("events-not-durable", "promised", "legs-equal")
def _events_not_durable() -> Iterator[None]:
    """Superblocks are written and not made durable (P1, P2)."""
    with _other_kind(_durable_but(0, LAYOUT.slot_offset_bytes(0))):
        yield


@plant("data-not-durable", "promised")
def _data_not_durable() -> Iterator[None]:
    """A durable write is an ordinary one."""
    with _other_kind(_durable_but(LAYOUT.data_offset_bytes, LAYOUT.end_bytes)):
        yield


@plant("flush-lost", "promised", "legs-equal")
def _flush_lost() -> Iterator[None]:
    """A flush of a leg is acknowledged before it is done: data is lost, and bits are cleared before data is durable."""
    submit = SimBackend._submit

    def wrong(backend: SimBackend, op_id: int, kind: OpKind, *rest: Any) -> None:
        if kind != OpKind.FLUSH:
            submit(backend, op_id, kind, *rest)
            return
        backend._completed.append((op_id, 0, None))
        backend._queue.wake_up()

    with patch.object(SimBackend, "_submit", wrong):
        yield


@plant("acknowledged-first", "promised", "legs-equal")
def _acknowledged_first() -> Iterator[None]:
    """A write that failed on a leg is acknowledged before the failure is recorded (P1)."""
    leg_failed = Mddev.leg_failed

    async def wrong(mddev: Mddev, index: int) -> None:
        mddev.array.port.engine.leg_failure(index, recorded=True)
        await leg_failed(mddev, index)

    with patch.object(Mddev, "leg_failed", wrong):
        yield


@plant("bits-cleared-at-once", "legs-equal")
def _bits_cleared_at_once() -> Iterator[None]:
    """Bits that a node finds on the disk when it starts are taken for clear."""
    with OF_SCHEDULES["bits-forgotten"].patch():
        yield


@plant("slots-ignored", "legs-equal", "heals")
def _slots_ignored() -> Iterator[None]:
    """A node that starts does not look at the slots of nodes that do not run."""
    with patch.object(Array, "import_slot", lambda array, data: 0):
        yield


@plant("resync-offset-kept", "legs-equal")
def _resync_offset_kept() -> Iterator[None]:
    """A node writes without making resync_offset = 0 durable: set bits are read as clean (P2)."""
    with OF_SCHEDULES["not-made-active"].patch():
        yield


# ---- takeover and recovery -----------------------------------------------------------------------------------------


@plant("takeover-clears-first", "legs-equal", "promised")
def _takeover_clears_first() -> Iterator[None]:
    """The slot of a node that has gone is cleared before its bits are durable in another one (P5)."""
    slots = Takeover.slots

    @contextlib.asynccontextmanager
    async def wrong(takeover: Takeover) -> AsyncIterator[list[int]]:
        array = takeover._array
        before: dict[int, bytes] = {}
        for slot in range(array.layout.nodes):
            before[slot] = await array.read_slot(slot)
            if slot != takeover._channel.slot:
                async with takeover._membership.idle_slot(slot) as idle:
                    if idle and any(before[slot][BITMAP_SUPER_BYTES:]):
                        await array.clear_slot(slot, before[slot])

        async def read_slot(slot: int) -> bytes:
            return before[slot]

        with patch.object(array, "read_slot", read_slot):
            async with slots(takeover) as found:
                yield found

    with patch.object(Takeover, "slots", wrong):
        yield


@plant("chunk-0-is-nothing", "legs-equal", "heals", "promised")
def _chunk_0_is_nothing() -> Iterator[None]:
    """A slot in which only chunk 0 is dirty is taken for an empty one (W5)."""

    def wrong(bits: bytes, count: int) -> int:
        return max(0, int.from_bytes(bits, "little").bit_length() - 1)

    with patch.object(takeover, "count_dirty", wrong):
        yield


@plant("bits-not-gathered", "legs-equal", "promised")
def _bits_not_gathered() -> Iterator[None]:
    """What a leg that comes back has missed is not looked for in the bitmaps (W10)."""

    async def wrong(mddev: Mddev, recovering: list[int]) -> None:
        recovering += [leg.number for leg in mddev.array.recovering()]

    with patch.object(Mddev, "_gather_bits", wrong):
        yield


@plant("recovered-on-paper", "legs-equal", "promised")
def _recovered_on_paper() -> Iterator[None]:
    """A leg that comes back is in sync from the start on (B6)."""
    with patch.object(hot_add, "recovering", lambda own, offset_sectors: own):
        yield
