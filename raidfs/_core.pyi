import enum
from collections.abc import Sequence
from typing import TypedDict

BYTES_MAX: int
"""The largest request, in bytes."""
LEGS_LIMIT: int
"""The largest number of legs."""

class LegState(enum.IntEnum):
    MISSING = 0
    IN_SYNC = 1
    RECOVERING = 2
    FAULTY = 3

class OpKind(enum.IntEnum):
    READ = 0
    WRITE = 1
    WRITE_DURABLE = 2
    FLUSH = 3

class EventKind(enum.IntEnum):
    LEG_FAILED = 0
    LAST_LEG = 1
    READ_ERROR = 2

class LegStatistics(TypedDict):
    state: int
    blocked: bool
    reads: int
    writes: int
    flushes: int
    read_errors: int
    write_errors: int

class EngineStatistics(TypedDict):
    """Counts since the engine was made; ``waiting`` has the requests by what they wait for.

    The keys of ``waiting``: new, order (an older overlapping write), suspended (the suspended range), blocked and
    failure (a leg's failure to be recorded, before the start and before the reply), counter (a full chunk), edges
    (blocks written in part), bitmap (bits to be durable), legs (leg operations), pages (a sweep's bitmap pages).
    """

    reads: int
    writes: int
    flushes: int
    bytes_read: int
    bytes_written: int
    page_writes: int
    chunks_dirty: int
    chunks_needed: int
    ops_queued: int
    ops_in_flight: int
    waiting: dict[str, int]
    legs: list[LegStatistics]

Reply = tuple[int, int, bytes | None]
"""Tag of the request; bytes done or -errno; data of a read."""
Op = tuple[int, OpKind, int, int, int, bytes | None]
"""Id, kind, leg, offset in the image, length in bytes, data of a write."""

class Engine:
    """The engine of one array on one node, with ``legs`` positions, not configured yet."""

    def __init__(self, legs: int) -> None: ...
    def configure(
        self,
        *,
        block_bytes: int,
        size_bytes: int,
        data_offsets: Sequence[int],
        raid_disks: int,
        slot_offset: int,
        chunk_bytes: int,
        bitmap: bytes,
        events: int,
        events_cleared: int,
        in_sync_below: int = 0,
        read_only: bool = False,
    ) -> None:
        """Publish the array's geometry and load the own slot's bitmap, once.

        ``block_bytes``: 512 to 4096, the unit of every leg operation. ``data_offsets``: of each leg, in bytes.
        ``slot_offset``: where the own bitmap slot is on every image, in bytes. ``bitmap``: the whole slot, superblock
        included. A set bit means NEEDED unless its chunk ends at or below ``in_sync_below`` bytes. Raises ValueError.
        """

    def publish_legs(self, states: Sequence[LegState]) -> None:
        """Publish the state of every leg; at least one must be in sync."""

    def block_leg(self, leg: int) -> None:
        """Leave a leg out from now on, as if it had failed a write (md: Blocked); answer with `leg_failure`."""

    def leg_failure(self, leg: int, *, recorded: bool) -> None:
        """Answer LEG_FAILED: ``recorded`` drops the leg for good, else it counts again and its writes fail."""

    def suspend(self, start: int, end: int) -> None:
        """Publish the suspended range [start, end) in bytes; equal values lift it.

        Writes that have not started wait, reads use the first leg that is in sync. Use `submit_drain` afterwards to
        know that no older request is in flight in it.
        """

    def fence(self, errno: int) -> None:
        """Membership is lost: from now on every request fails with ``errno`` and nothing more goes to a leg."""

    def set_events(self, events: int) -> None:
        """Publish the array's event count; the bitmap superblock follows with the next sweep."""

    def import_bits(self, bitmap: bytes, *, in_sync_below: int = 0) -> int:
        """Add the bits of another slot to the own one; a sweep makes them durable. Returns how many were set there."""

    def read_first_where(self, bitmap: bytes) -> None:
        """Read the chunks whose bits are set in ``bitmap`` from the first leg only; replaces what was said before.

        Their legs may differ; reading one of them gives the same on every node (md: choose_first). ``bitmap`` is laid
        out as a slot.
        """

    def submit_read(self, offset: int, length: int) -> int:
        """Read [offset, offset + length) of the array; the reply's data is short at the end of the array."""

    def submit_write(self, offset: int, data: bytes | bytearray | memoryview, *, durable: bool = False) -> int:
        """Write at ``offset`` of the array; the reply is short at the end, ENOSPC behind it."""

    def submit_flush(self) -> int:
        """Make every write replied so far durable on all good legs."""

    def submit_drain(self, start: int, end: int) -> int:
        """Be replied when no request that has started by now overlaps [start, end)."""

    def submit_sweep(self) -> int:
        """One round of the lazy clearing of bits; also writes every bitmap page that is due."""

    def submit_leg_read(self, leg: int, offset: int, length: int) -> int:
        """Read from one leg's image; offset and length in bytes, multiples of the leg's block size."""

    def submit_leg_write(self, leg: int, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write to one leg's image, durable when replied; multiples of the leg's block size."""

    def submit_leg_flush(self, leg: int) -> int:
        """Make everything written to one leg so far durable."""

    def replies(self) -> list[Reply]:
        """Return the replies that have come, oldest first."""

    def events(self) -> list[tuple[EventKind, int, int, int]]:
        """Return and forget the events raised so far: kind, leg, errno, offset in the image."""

    def take_ops(self) -> list[Op]:
        """Take all leg operations that wait (for tests and the simulator; a backend uses the C face)."""

    def complete_op(self, op_id: int, result: int, data: bytes | None = None) -> None:
        """End a taken operation with ``result`` bytes or -errno; a read that succeeds gives its data."""

    def bitmap_image(self) -> bytes:
        """Return the own slot as it shall be."""

    def bitmap_durable(self) -> bytes:
        """Return the own slot with the bits that are on every good leg for certain."""

    def counters(self) -> list[int]:
        """Return the counters of all chunks: bit 15 NEEDED, bit 14 RESYNC, below them 0, 1, 2 or 2 + writes."""

    def statistics(self) -> EngineStatistics:
        """Return counts since the start and the requests that wait now."""
