"""A simulated disk without chance: each operation takes the same time, and a recorder may write down what happens."""

from __future__ import annotations

from random import Random
from typing import Protocol

from raidfs._core import OpKind
from raidfs.sim.crash.layout import LEG_BYTES
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.stepper import Group, Stepper
from raidfs.sim.trace import Trace

_NOTHING_KEPT = Trace(keep=False)
_NO_CHANCE = Random(0)


class Recorder(Protocol):
    """Who hears of what happens to writes and flushes."""

    def submitted(self, leg: int, op: DiskOp) -> None:
        """An operation has reached the leg."""

    def completed(self, leg: int, op: DiskOp, *, done: bool) -> None:
        """An operation has ended, well or (not ``done``) having done nothing."""


class PlainDisk(SimDisk):
    """Leg number ``leg``; operations take ``latency_s``. A ``broken`` leg fails all writes and flushes."""

    def __init__(self, leg: int, stepper: Stepper, group: Group, *, latency_s: float = 0.0) -> None:
        super().__init__(f"disk{leg}", LEG_BYTES, stepper, group, _NO_CHANCE, _NOTHING_KEPT)
        self.leg = leg
        self.latency_s = latency_s
        self.recorder: Recorder | None = None
        self.broken = False

    def submit(self, op: DiskOp) -> None:
        """See `SimDisk.submit`."""
        self.in_flight[op] = None
        if self.recorder is not None and op.kind != OpKind.READ:
            self.recorder.submitted(self.leg, op)

        def carry_out() -> None:
            self._carry_out(op)

        if self.latency_s:
            self._stepper.later(self._group, self.name, self.latency_s, carry_out)
        else:
            self._stepper.soon(self._group, self.name, carry_out)

    def sever(self, owner: Group) -> None:
        """See `SimDisk.sever`; here all that is in flight gets lost."""
        self.fence(owner)

    def _carry_out(self, op: DiskOp) -> None:
        if op not in self.in_flight:
            return
        del self.in_flight[op]
        result, data = self._effect(op)
        if self.recorder is not None and op.kind != OpKind.READ:
            self.recorder.completed(self.leg, op, done=result >= 0)
        if not op.owner.dead:
            op.done(result, data)

    def _effect(self, op: DiskOp) -> tuple[int, bytes | None]:
        if op.kind == OpKind.READ:
            return op.length, bytes(self.content[op.offset : op.offset + op.length])
        if self.broken:
            return -5, None
        if op.data is not None:
            self.content[op.offset : op.offset + op.length] = op.data
        return op.length, None
