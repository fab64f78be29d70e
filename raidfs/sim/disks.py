"""Simulated shared disks: what storage may do to reads, writes and flushes, and what it may not.

Each disk carries out what is in flight in any order. A completed write is seen by every later read of every
machine, but it is durable only after a flush that was submitted later, or when it was a durable write (FUA).

Two ways to lose something, the durability models of crash tests:

*N*, a machine dies (`SimDisk.sever`): completed writes stay. Of its writes in flight any subset takes place, each torn
at 512 bytes, now or late; after `SimDisk.fence` none does any more.
*S*, the storage loses power (`SimDisk.lose_power`): of every sector that was written since it was last made durable any
version remains; writes in flight may have begun.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from random import Random

from raidfs._core import OpKind
from raidfs.sim.stepper import Group, Stepper
from raidfs.sim.trace import Trace
from raidfs.units import SECTOR_BYTES

# Latency: one part of the operations is done as soon as it is their turn, the others take up to a millisecond, a few
# a hundred times as long (a disk that retries inside).
AT_ONCE_CHANCE = 0.5
LATENCY_S_MAX = 0.001
SLOW_CHANCE = 0.02
SLOW_FACTOR = 100

LATE_S_MAX = 1.5  # how long after its machine's death a write may still take place, if nothing fences it before

Done = Callable[[int, bytes | None], None]
Watcher = Callable[["SimDisk", Group | None, int, int], None]


@dataclasses.dataclass(eq=False)
class DiskOp:
    """An operation in flight. ``owner`` is the machine run that submitted it, ``done(result, data)`` tells it the end.

    ``offset`` and ``length`` are bytes and multiples of 512. ``sectors`` tells, once the owner is dead, which of the
    write's sectors still take place, and ``not_before`` when.
    """

    owner: Group
    kind: OpKind
    offset: int
    length: int
    data: bytes | None
    done: Done
    sequence: int = 0
    sectors: frozenset[int] | None = None
    not_before: float = 0.0


class SimDisk:
    """One disk of ``size_bytes``; ``content`` is what reads see, ``durable`` what a power loss leaves for certain.

    It can be made longer up to ``size_max_bytes``, which is what it has unless somebody sets more.
    ``fail_write`` holds numbers of writes and flushes (counted from 0 over the disk's life) that end with EIO and
    take place in part; ``fail_read`` the same for reads. ``watchers`` are called after each change of
    ``content`` with the disk, whose write it was (None: nobody's), offset and length; ``on_read_error`` at each read
    that fails, with the disk, offset and length.
    """

    def __init__(self, name: str, size_bytes: int, stepper: Stepper, group: Group, rng: Random, trace: Trace) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.size_max_bytes = size_bytes
        self.content = bytearray(size_bytes)
        self.durable = bytearray(size_bytes)
        self.fail_write: frozenset[int] = frozenset()
        self.fail_read: frozenset[int] = frozenset()
        self.in_flight: dict[DiskOp, None] = {}
        self.watchers: list[Watcher] = []
        self.on_read_error: Callable[[SimDisk, int, int], None] = lambda disk, offset, length: None
        self._cache: dict[int, list[tuple[int, bytes]]] = {}  # sector: (sequence, bytes), not durable, oldest first
        self._sequence = 0
        self._writes = 0
        self._reads = 0
        self._stepper = stepper
        self._group = group
        self._rng = rng
        self._trace = trace

    def put(self, offset: int, data: bytes) -> None:
        """Place bytes before the simulation starts."""
        self.content[offset : offset + len(data)] = data
        self.durable[offset : offset + len(data)] = data

    def extend(self, size_bytes: int) -> None:
        """Make the disk longer, durably; what is added reads as zeros."""
        assert self.size_bytes <= size_bytes <= self.size_max_bytes, (self.size_bytes, size_bytes, self.size_max_bytes)
        for place in (self.content, self.durable):
            place.extend(bytes(size_bytes - self.size_bytes))
        self.size_bytes = size_bytes

    def submit(self, op: DiskOp) -> None:
        """Take an operation; it ends some time later, in a step of its own."""
        self._sequence += 1
        op.sequence = self._sequence
        self.in_flight[op] = None
        if self._trace.keep:
            self._note("submit", op)

        def carry_out() -> None:
            self._carry_out(op)

        if self._rng.random() < AT_ONCE_CHANCE:
            self._stepper.soon(self._group, self.name, carry_out)
        else:
            factor = SLOW_FACTOR if self._rng.random() < SLOW_CHANCE else 1
            self._stepper.later(self._group, self.name, self._rng.random() * LATENCY_S_MAX * factor, carry_out)

    def sever(self, owner: Group) -> None:
        """The owner died: nothing is told to it any more, and each write of its takes place in part, late, or never."""
        for op in [op for op in self.in_flight if op.owner is owner]:
            sectors = range(op.length // SECTOR_BYTES)
            fate = self._rng.random()
            if op.kind == OpKind.READ or op.kind == OpKind.FLUSH or fate < 0.35:
                del self.in_flight[op]
            elif fate < 0.6:
                op.sectors = frozenset(sectors)
            else:
                op.sectors = frozenset(sector for sector in sectors if self._rng.random() < 0.5)
            if self._rng.random() < 0.5:
                op.not_before = self._stepper.now + self._rng.random() * LATE_S_MAX

    def fence(self, owner: Group) -> None:
        """Nothing of the owner's takes place from here on."""
        for op in [op for op in self.in_flight if op.owner is owner]:
            del self.in_flight[op]

    def finish(self, owner: Group) -> None:
        """Carry out at once what the owner has in flight: it closes the disk and waits for that."""
        for op in [op for op in self.in_flight if op.owner is owner]:
            self._carry_out(op)

    def lose_power(self) -> None:
        """Lose what is not durable, in part; everything in flight is gone. All owners must be dead."""
        for op in list(self.in_flight):
            if op.data is not None and op.kind != OpKind.READ:
                self._cache_write(op.offset, op.data)
        self.in_flight.clear()
        for sector, versions in sorted(self._cache.items()):
            kept = self._rng.randrange(len(versions) + 1)
            if kept:
                at = sector * SECTOR_BYTES
                self.durable[at : at + SECTOR_BYTES] = versions[kept - 1][1]
        self._cache.clear()
        self.content[:] = self.durable
        self._trace.event(self._stepper.now, self.name, "power-loss")
        self._changed(None, 0, self.size_bytes)

    def _carry_out(self, op: DiskOp) -> None:
        if op not in self.in_flight:
            return
        if self._stepper.now < op.not_before:
            delay_s = op.not_before - self._stepper.now
            self._stepper.later(self._group, self.name, delay_s, lambda: self._carry_out(op))
            return
        del self.in_flight[op]
        result, data = self._effect(op)
        if self._trace.keep:
            self._note("done" if result >= 0 else "failed", op)
        if not op.owner.dead:
            op.done(result, data)

    def _effect(self, op: DiskOp) -> tuple[int, bytes | None]:
        if op.kind == OpKind.READ:
            self._reads += 1
            if self._reads - 1 in self.fail_read:
                self.on_read_error(self, op.offset, op.length)
                return -errno.EIO, None
            return op.length, bytes(self.content[op.offset : op.offset + op.length])
        self._writes += 1
        failed = self._writes - 1 in self.fail_write
        if op.kind == OpKind.FLUSH:
            if failed:
                return -errno.EIO, None
            self._make_durable(op.sequence)
            return 0, None
        assert op.data is not None
        for start, end in self._runs(op, failed):
            self._write(op.owner, op.offset + start, op.data[start:end], durable=op.kind == OpKind.WRITE_DURABLE)
        return (-errno.EIO, None) if failed else (op.length, None)

    # The parts of a write that take place, as ranges of bytes in it.
    def _runs(self, op: DiskOp, failed: bool) -> list[tuple[int, int]]:
        sectors = op.sectors
        if failed:
            sectors = frozenset(n for n in range(op.length // SECTOR_BYTES) if self._rng.random() < 0.5)
        if sectors is None:
            return [(0, op.length)]
        return [(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES) for sector in sorted(sectors)]

    def _write(self, owner: Group, offset: int, data: bytes, *, durable: bool) -> None:
        end = offset + len(data)
        if durable:
            for sector in range(offset // SECTOR_BYTES, end // SECTOR_BYTES):
                self._cache.pop(sector, None)
            self.durable[offset:end] = data
        else:
            self._sequence += 1
            self._cache_write(offset, data)
        self.content[offset:end] = data
        self._changed(owner, offset, len(data))

    def _cache_write(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), SECTOR_BYTES):
            versions = self._cache.setdefault((offset + at) // SECTOR_BYTES, [])
            versions.append((self._sequence, data[at : at + SECTOR_BYTES]))

    # A flush covers what was complete when it was submitted.
    def _make_durable(self, sequence: int) -> None:
        for sector, versions in list(self._cache.items()):
            covered = [version for version in versions if version[0] <= sequence]
            if covered:
                at = sector * SECTOR_BYTES
                self.durable[at : at + SECTOR_BYTES] = covered[-1][1]
                del versions[: len(covered)]
                if not versions:
                    del self._cache[sector]

    def _changed(self, owner: Group | None, offset: int, length: int) -> None:
        for watcher in self.watchers:
            watcher(self, owner, offset, length)

    def _note(self, kind: str, op: DiskOp) -> None:
        self._trace.event(
            self._stepper.now, self.name, kind, op.kind.name.lower(), op.offset, op.length, f"#{op.sequence}",
            op.owner.name,
        )  # fmt: skip
