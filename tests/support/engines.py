"""A small engine on simulated legs, for tests that step it."""

from __future__ import annotations

from raidfs._core import Engine, LegState, OpKind
from raidfs.sim.legs import PendingOp, SimulatedLegs

DATA_OFFSET = 64 * 1024
SLOT_OFFSET = 8192
PAGE = 4096
BITS_START = 256


class SteppedEngine:
    """Engine, legs and what was replied so far, by tag; sizes in bytes."""

    def __init__(
        self,
        *,
        legs: int = 2,
        size: int = 256 * 1024,
        block: int = 512,
        chunk: int = 4096,
        dirty: tuple[int, ...] = (),
        in_sync_below: int = 0,
        states: tuple[LegState, ...] | None = None,
        read_only: bool = False,
        pages: int = 1,
        events: int = 7,
        header: bytes = b"",
        capacity: int | None = None,
        room: int = 0,
    ) -> None:
        slot = bytearray(PAGE * pages)
        slot[: len(header)] = header
        for bit in dirty:
            slot[BITS_START + bit // 8] |= 1 << bit % 8
        self.engine = Engine(legs)
        self.engine.configure(
            block_bytes=block,
            size_bytes=size,
            data_offsets=[DATA_OFFSET] * legs,
            raid_disks=legs,
            slot_offset=SLOT_OFFSET,
            chunk_bytes=chunk,
            bitmap=bytes(slot),
            events=events,
            events_cleared=0,
            capacity_bytes=capacity,
            in_sync_below=in_sync_below,
            read_only=read_only,
        )
        self.engine.publish_legs(states or [LegState.IN_SYNC] * legs)
        image = bytearray(DATA_OFFSET + max(size, room))
        image[SLOT_OFFSET : SLOT_OFFSET + len(slot)] = slot
        self.legs = SimulatedLegs(self.engine, [bytearray(image) for _ in range(legs)])
        self.size = size
        self._replies: dict[int, tuple[int, bytes | None]] = {}

    def pending(self, kind: OpKind | None = None, leg: int | None = None) -> list[PendingOp]:
        """Return the operations in flight, of one kind and leg if asked for."""
        self.legs.take()
        return [op for op in self.legs.pending if (kind is None or op.kind == kind) and (leg is None or op.leg == leg)]

    def page_writes(self) -> list[PendingOp]:
        """Return the bitmap page writes in flight."""
        return [op for op in self.pending(OpKind.WRITE_DURABLE) if op.offset < DATA_OFFSET]

    def data_writes(self) -> list[PendingOp]:
        """Return the data writes in flight."""
        return [op for op in self.pending() if op.data is not None and op.offset >= DATA_OFFSET]

    def complete(self, ops: list[PendingOp]) -> None:
        """End operations with success."""
        for op in ops:
            self.legs.complete(op)

    def settle(self) -> None:
        """End everything with success until nothing is in flight."""
        self.legs.settle()

    def result(self, tag: int) -> int | None:
        """Return what a request was replied, or None while it was not."""
        self._collect()
        return self._replies[tag][0] if tag in self._replies else None

    def data(self, tag: int) -> bytes:
        """Return the data of a read that was replied."""
        self._collect()
        data = self._replies[tag][1]
        assert data is not None
        return data

    def _collect(self) -> None:
        for tag, result, data in self.engine.replies():
            assert tag not in self._replies
            self._replies[tag] = (result, data)

    def write(self, offset: int, data: bytes) -> None:
        """Write and let everything end."""
        tag = self.engine.submit_write(offset, data)
        self.settle()
        assert self.result(tag) == len(data)

    def sweep(self, rounds: int = 1) -> None:
        """Do whole sweeps."""
        for _ in range(rounds):
            tag = self.engine.submit_sweep()
            self.settle()
            assert self.result(tag) == 0

    def bit_on_disk(self, chunk: int, leg: int = 0) -> bool:
        """Tell whether a chunk's bit is set on a leg."""
        return bool(self.legs.images[leg][SLOT_OFFSET + BITS_START + chunk // 8] >> chunk % 8 & 1)

    def content(self, leg: int) -> bytes:
        """Return the data area of a leg."""
        return bytes(self.legs.images[leg][DATA_OFFSET:])

    def waiting(self) -> dict[str, int]:
        """Return the requests by what they wait for."""
        return self.engine.statistics()["waiting"]
