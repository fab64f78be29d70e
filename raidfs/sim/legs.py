"""Simulated legs: images in memory behind an engine, stepped one leg operation at a time.

Whoever drives them decides which operation ends next and how; the order of completions is the driver's only freedom,
and every order is one that real disks could show. A write is applied when it completes; a recorder may keep it.
"""

from __future__ import annotations

import dataclasses

from raidfs._core import Engine, OpKind


@dataclasses.dataclass(frozen=True)
class PendingOp:
    """A leg operation that has been taken from the engine and not ended yet; offset and length in bytes."""

    op_id: int
    kind: OpKind
    leg: int
    offset: int
    length: int
    data: bytes | None


class SimulatedLegs:
    """The images of all legs; ``images`` holds their bytes, ``pending`` the operations in flight, oldest first."""

    def __init__(self, engine: Engine, images: list[bytearray]) -> None:
        self.engine = engine
        self.images = images
        self.pending: list[PendingOp] = []

    def take(self) -> list[PendingOp]:
        """Take what the engine has for the legs; return the new operations, which are then pending."""
        taken = [PendingOp(*op) for op in self.engine.take_ops()]
        self.pending += taken
        return taken

    def complete(self, op: PendingOp) -> None:
        """End a pending operation with success, and take what follows from it."""
        self.pending.remove(op)
        if op.kind == OpKind.READ:
            data = bytes(self.images[op.leg][op.offset : op.offset + op.length])
            self.engine.complete_op(op.op_id, len(data), data)
        elif op.kind == OpKind.FLUSH:
            self.engine.complete_op(op.op_id, 0)
        else:
            assert op.data is not None
            self.images[op.leg][op.offset : op.offset + op.length] = op.data
            self.engine.complete_op(op.op_id, op.length)
        self.take()

    def fail(self, op: PendingOp, errno: int) -> None:
        """End a pending operation with an error, nothing transferred, and take what follows from it."""
        self.pending.remove(op)
        self.engine.complete_op(op.op_id, -errno)
        self.take()

    def cut_short(self, op: PendingOp, done_bytes: int) -> None:
        """End a pending read or write after ``done_bytes``, and take what follows from it."""
        self.pending.remove(op)
        data = None
        if op.kind == OpKind.READ:
            data = bytes(self.images[op.leg][op.offset : op.offset + done_bytes])
        else:
            assert op.data is not None
            self.images[op.leg][op.offset : op.offset + done_bytes] = op.data[:done_bytes]
        self.engine.complete_op(op.op_id, done_bytes, data)
        self.take()

    def settle(self) -> None:
        """End everything with success, oldest first, until nothing is pending."""
        self.take()
        while self.pending:
            self.complete(self.pending[0])
