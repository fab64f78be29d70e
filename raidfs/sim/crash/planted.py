"""Mistakes to make on purpose, so that the enumerator can show that it finds them; see `raidfs.sim.planted`.

``rules`` are those of `raidfs.sim.crash.reopened`. Each mistake is made while a scenario is recorded and while what is
left is opened again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from raidfs._core import OpKind
from raidfs.mddev import Mddev
from raidfs.sim.crash.layout import LAYOUT
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimBackend
from raidfs.sim.planted import PLANTED as OF_SCHEDULES
from raidfs.sim.planting import Mistakes

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


@plant("resync-offset-kept", "legs-equal")
def _resync_offset_kept() -> Iterator[None]:
    """A node writes without making resync_offset = 0 durable: set bits are read as clean (P2)."""
    with OF_SCHEDULES["not-made-active"].patch():
        yield
