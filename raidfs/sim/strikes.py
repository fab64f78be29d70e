"""Faults of `raidfs.faults` on simulated disks: the same decisions as on real legs, carried out in simulated time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from raidfs._core import OpKind
from raidfs.faults import IoKind, Strike
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.stepper import Stepper

IO_KINDS = {
    OpKind.READ: IoKind.READ,
    OpKind.WRITE: IoKind.WRITE,
    OpKind.WRITE_DURABLE: IoKind.WRITE,
    OpKind.FLUSH: IoKind.FLUSH,
}

Decide = Callable[[SimDisk, DiskOp], Strike | None]
"""What shall happen to an operation; see `raidfs.faults.LegFaults.decide`."""


def submit_struck(stepper: Stepper, disk: SimDisk, op: DiskOp, strike: Strike) -> None:
    """Let an operation be struck: it ends as the strike says, in a step of its own."""
    struck = _struck(disk, op, strike)

    def begin() -> None:
        if struck is None:
            op.done(strike.result(op.length), None)
        else:
            disk.submit(struck)

    stepper.later(op.owner, disk.name, strike.delay_s, begin)


def _struck(disk: SimDisk, op: DiskOp, strike: Strike) -> DiskOp | None:
    """Return what the disk gets in the place of an operation, if anything."""
    result = strike.result(op.length)
    done = op.done
    if op.kind == OpKind.FLUSH:
        return op if strike.is_flushed and not strike.errno else None
    if op.kind == OpKind.READ:
        if result < 0:
            return None

        def read(ended: int, data: bytes | None) -> None:
            done(min(ended, result), None if data is None else data[:result])

        return dataclasses.replace(op, done=read)
    keep = strike.done_bytes(op.length)
    if not keep:
        return None

    def written(ended: int, data: bytes | None) -> None:
        done(result if ended >= 0 else ended, None)

    assert op.data is not None
    return dataclasses.replace(
        op,
        kind=op.kind if strike.is_flushed else OpKind.WRITE,
        offset=strike.place(op.offset, op.length, disk.size_bytes),
        length=keep,
        data=op.data[:keep],
        done=written,
    )
