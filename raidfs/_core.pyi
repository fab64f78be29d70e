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

class SyncAction(enum.IntEnum):
    """What a sync request does, block by block.

    HEAL: chunks that are NEEDED or RESYNC are read from the first leg in sync and written to all others; elsewhere,
    legs that recover and have a ``recovery_offset`` below the block's end are written. Skips what needs neither.
    CHECK: all legs in sync are read and compared. REPAIR: the same, and a block that differs, or that a leg could not
    read, is a write of the first leg's data to all others, its bit durable first. REWRITE: the blocks are read from
    another leg in sync, written to the given one, read back and compared.
    """

    HEAL = 0
    CHECK = 1
    REPAIR = 2
    REWRITE = 3

class LegStatistics(TypedDict):
    state: int
    blocked: bool
    reads: int
    writes: int
    flushes: int
    read_errors: int
    write_errors: int
    corrected_reads: int
    ops_in_flight: int

class SyncStatistics(TypedDict):
    """Of sync requests: those not replied, their blocks under way; bytes read from and written to legs, and skipped."""

    requests: int
    blocks_in_flight: int
    bytes_read: int
    bytes_written: int
    bytes_skipped: int

class EngineStatistics(TypedDict):
    """Counts since the engine was made; ``waiting`` has the requests by what they wait for.

    The keys of ``waiting``: new, order (an older overlapping write), suspended (the suspended range), blocked and
    failure (a leg's failure to be recorded, before the start and before the reply), counter (a full chunk), edges
    (blocks written in part), bitmap (bits to be durable), legs (leg operations), pages (a sweep's or a resize's bitmap
    pages), resize (the end of a resize).
    Sync requests are not among them, ``sync`` has them.
    """

    reads: int
    writes: int
    flushes: int
    bytes_read: int
    bytes_written: int
    page_writes: int
    chunks_dirty: int
    chunks_needed: int
    chunks_resyncing: int
    ops_queued: int
    ops_in_flight: int
    waiting: dict[str, int]
    sync: SyncStatistics
    legs: list[LegStatistics]

Reply = tuple[int, int, bytes | None]
"""Tag of the request; bytes done or -errno; data of a read."""
Op = tuple[int, OpKind, int, int, int, bytes | None]
"""Id, kind, leg, offset in the image, length in bytes, data of a write."""
Event = tuple[EventKind, int, int, int, int]
"""Kind, leg, errno, offset in the image in bytes, length in bytes (READ_ERROR; else 0)."""

class Engine:
    """The engine of one array on one node, with ``legs`` legs for a start, not configured yet."""

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
        capacity_bytes: int | None = None,
        in_sync_below: int = 0,
        read_only: bool = False,
    ) -> None:
        """Publish the array's geometry and load the own slot's bitmap, once.

        ``block_bytes``: 512 to 4096, the unit of every leg operation. ``data_offsets``: of each leg, in bytes.
        ``slot_offset``: where the own bitmap slot is on every image, in bytes. ``bitmap``: the whole slot, superblock
        included; a resize can use as many bits as it has room for. A set bit means NEEDED unless its chunk ends at or
        below ``in_sync_below`` bytes. ``capacity_bytes``: what requests may address, at most ``size_bytes`` (None: all
        of it), see `set_capacity`. Raises ValueError.
        """

    def add_leg(self, data_offset: int) -> int:
        """Add a leg, MISSING until it is published, and return its index: one that was freed, or the next.

        ``data_offset`` in bytes. Raises ValueError when there are `LEGS_LIMIT` already.
        """

    def remove_leg(self, leg: int) -> None:
        """Free the index of a leg that is MISSING or FAULTY.

        Raises OSError EBUSY while operations are in flight on it, ValueError when it counts or does not exist.
        """

    def publish_legs(
        self,
        states: Sequence[LegState],
        *,
        positions: Sequence[int] | None = None,
        recovery_offsets: Sequence[int] | None = None,
        raid_disks: int | None = None,
    ) -> None:
        """Publish the state of every leg, by index; at least one is in sync, those left out at the end are MISSING.

        ``positions``: the role of each; the *first* leg is the one in sync with the lowest, the same on all nodes
        (None: the index). ``recovery_offsets``: in bytes, looked at for RECOVERING legs only: below it a leg holds
        everything but NEEDED chunks, at and above it everything has to be copied; the array's size for a recovery that
        the bitmap guides (None: as before, 0 for a leg that begins). ``raid_disks``: the number of positions, if it
        changes.

        When a leg counts (IN_SYNC, RECOVERING) that did not before, writes under way leave their chunks NEEDED, and no
        bit counts as durable until the own slot has been written anew to all legs; a sweep that is submitted afterwards
        ends when that is so.
        """

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

    def set_capacity(self, capacity_bytes: int) -> None:
        """Publish how much of the array requests may address; what the bitmap covers is another number.

        From now on reads and writes are short at that byte, writes behind it fail with ENOSPC, and sync requests end
        there. So do writes that wait for something before their data goes out: one that reaches beyond it fails with
        ENOSPC as a whole. Use `submit_drain` afterwards to know that none is in flight behind it. Raises ValueError
        when the bitmap, or what a resize under way makes of it, does not cover it.
        """

    def import_bits(self, bitmap: bytes, *, in_sync_below: int = 0) -> int:
        """Add the bits of another slot to the own one; a sweep makes them durable. Returns how many were set there."""

    def read_first_where(self, bitmap: bytes) -> None:
        """Read the chunks whose bits are set in ``bitmap`` from the first leg only; replaces what was said before.

        Their legs may differ; reading one of them gives the same on every node (md: choose_first). ``bitmap`` is laid
        out as a slot.
        """

    def read_first(self, on: bool) -> None:
        """Read everything from the first leg while ``on`` (md: SUSPEND_READ_BALANCING)."""

    def need_dirty(self) -> int:
        """Make every chunk whose bit is set NEEDED: what a leg that comes back lacks. Returns how many there are."""

    def next_to_sync(self, offset: int) -> tuple[int, int] | None:
        """Return the first contiguous range of bytes at or after ``offset`` that a healing pass has to touch, or None.

        That is: chunks that are NEEDED or RESYNC, and everything from the lowest recovery offset of a recovering leg.
        """

    def sync_start(self, start: int, end: int) -> None:
        """NEEDED becomes RESYNC in every chunk that [start, end) touches (md: start_sync)."""

    def sync_end(self, start: int, end: int, *, aborted: bool) -> None:
        """RESYNC ends (md: end_sync): in the chunks wholly in [start, end), to be cleared by the sweeps that follow.

        ``aborted``: in all chunks that the range touches, and they are NEEDED again. A chunk that became NEEDED
        meanwhile stays so. The end of the array ends its last chunk.
        """

    def set_sync_limits(self, block_bytes: int, blocks_in_flight: int) -> None:
        """Bound what sync requests have in flight together, from their next block on; 1 MiB and 8 at the start.

        ``block_bytes``: a power of two, from the legs' block to `BYTES_MAX`. ``blocks_in_flight``: 1 to 64.
        """

    def submit_sync(self, action: SyncAction, start: int, end: int, *, leg: int = 0) -> int:
        """Do an action over [start, end) of the array, widened to whole blocks; ``leg`` is REWRITE's.

        Requests are worked on in order, several may wait. Own writes to a block come before or after it, others go on;
        the suspended range is not looked at. The result is the bytes of the array that were read (HEAL: to be copied),
        or an error, when the blocks in flight have ended: EAGAIN when a leg has failed or its failure is not recorded
        yet (look again), ECANCELED after `abort_sync`, ENODATA when no leg that may be read can read a block, EIO when
        the last leg in sync refuses a write, or REWRITE reads back something else or nothing, EROFS on a read-only node
        for all but CHECK, the fence's.
        """

    def abort_sync(self) -> None:
        """Start no more blocks of the sync requests that wait now; they end with ECANCELED."""

    def mismatches(self) -> tuple[int, list[tuple[int, int]], int]:
        """Return what CHECK and REPAIR found since the last reset.

        That is: 512-byte sectors in which legs differ, their ranges (start, bytes) in order and merged, and the number
        of ranges that did not fit.
        """

    def reset_mismatches(self) -> None:
        """Forget what CHECK and REPAIR found."""

    def submit_read(self, offset: int, length: int) -> int:
        """Read [offset, offset + length) of the array; the reply's data is short at the end of the array."""

    def submit_write(self, offset: int, data: bytes | bytearray | memoryview, *, durable: bool = False) -> int:
        """Write at ``offset`` of the array; the reply is short at the end, ENOSPC behind it."""

    def submit_zero(self, offset: int, length: int, *, punch: bool = False) -> int:
        """Write zeros to whole blocks (EINVAL else); with ``punch`` their space is given back where that can be done.

        Everything that holds for a write holds for this. `take_ops` shows it as writes of zeros.
        """

    def submit_flush(self) -> int:
        """Make every write replied so far durable on all good legs."""

    def submit_drain(self, start: int, end: int) -> int:
        """Be replied when no request that has started by now overlaps [start, end)."""

    def submit_sweep(self) -> int:
        """One round of the lazy clearing of bits; also writes every bitmap page that is due."""

    def submit_resize(
        self,
        size_bytes: int,
        chunk_bytes: int,
        header: bytes | bytearray | memoryview,
        *,
        needed_from: int | None = None,
    ) -> int:
        """Have the own bitmap cover another size, or have chunks of another size (md: md_bitmap_resize).

        ``header``: the 256 bytes of the bitmap superblock; the event counts in it are left out, the engine has its own.
        A new chunk is dirty, NEEDED or in doubt when any old chunk is so that had a part of it; what is behind the new
        size is forgotten. With ``needed_from``, when the size grows, all chunks from the one of that byte on are set
        and NEEDED. The slot keeps its length. The capacity stays as it is: lower it, and drain, before the size shrinks
        (what is on its way to the legs behind the new size is waited for); raise it when all nodes can follow.

        Until the reply no write sends data that was not on its way, and at every moment what is on each leg, read by
        the header that is on it, tells of every chunk that it has to tell of. 0 is replied when header and bits are
        durable on every good leg; a leg that fails meanwhile is left out as by any other bitmap write. Errors: EIO when
        the last leg refused a page, and the old layout is in force; EINVAL when the capacity is more than the size by
        the time that those before it are over; the fence's. Resizes are done one after the other. A read-only node
        follows in memory. Raises ValueError when the bits do not fit into the slot or the capacity not into the size.
        """

    def submit_leg_read(self, leg: int, offset: int, length: int) -> int:
        """Read from one leg's image; offset and length in bytes, multiples of the leg's block size."""

    def submit_leg_write(self, leg: int, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write to one leg's image, durable when replied; multiples of the leg's block size."""

    def submit_leg_flush(self, leg: int) -> int:
        """Make everything written to one leg so far durable."""

    def replies(self) -> list[Reply]:
        """Return the replies that have come, oldest first."""

    def events(self) -> list[Event]:
        """Return and forget the events raised so far.

        Of LEG_FAILED and LAST_LEG one stands for several of a leg; of READ_ERROR every distinct range is kept, up to a
        limit per leg.
        """

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
