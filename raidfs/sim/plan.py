"""What a simulated schedule does: machines, what their nodes are asked, and what goes wrong. All of it from one seed.

A plan is a value: it can be printed, and made smaller by leaving things out (`raidfs.sim.shrink`). The order in which
things then happen is not in it; that comes from ``schedule_seed``. `raidfs.sim.draw` makes plans from seeds.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

from raidfs.sim.layout import CHUNK_BYTES, NODES
from raidfs.units import SECTOR_BYTES

CHUNKS = 8
CHUNK_SECTORS = CHUNK_BYTES // SECTOR_BYTES
SECTORS = CHUNKS * CHUNK_SECTORS
ROOM_CHUNKS = 6  # that legs have for the array to grow, where a plan resizes
SECTORS_MAX = SECTORS + ROOM_CHUNKS * CHUNK_SECTORS
READ_SECTORS_MAX = 16
MACHINES_MAX = NODES


class OpKind(enum.Enum):
    """What a node's user does."""

    READ = "read"
    WRITE = "write"
    WRITE_DURABLE = "write-durable"
    FLUSH = "flush"
    REST = "rest"
    TOUCH = "touch"  # a metadata update that changes nothing but the event count
    FAIL = "fail"  # make a leg faulty on all nodes
    ANNOUNCE = "announce"  # a message without reconfig_mutex, as md's resync thread sends some (CHANGE_CAPACITY)
    ANNOUNCE_LOCKED = "announce-locked"  # work under the mutex and then, still under it, a message (BITMAP_NEEDS_SYNC)
    UNKNOWN = "unknown"  # a message of a type that no node knows: all must refuse it
    BUSY = "busy"  # work of the node alone under reconfig_mutex, which wants no token and so announces nothing
    REMOVE = "remove"  # take a leg that is faulty or a spare out of the array
    ADD = "add"  # a disk that is new, or was a leg before
    ADD_SPARE = "add-spare"
    RE_ADD = "re-add"  # a leg that was a member back
    RAID_DEVICES = "raid-devices"  # change how many legs the array shall have
    CHECK = "check"
    REPAIR = "repair"
    IDLE = "idle"  # stop what syncs, on all nodes
    RESYNC = "resync"  # let nodes sync again
    RESIZE = "resize"  # give the array another size
    HEAL = "heal"  # wait until nothing is left to be synced, as ``raidfs wait`` does


# What the array may refuse for a good reason, with words; users ask for it without knowing how the array is.
MANAGEMENT = frozenset(
    {
        OpKind.FAIL,
        OpKind.REMOVE,
        OpKind.ADD,
        OpKind.ADD_SPARE,
        OpKind.RE_ADD,
        OpKind.RAID_DEVICES,
        OpKind.RESIZE,
        OpKind.CHECK,
        OpKind.REPAIR,
        OpKind.IDLE,
        OpKind.RESYNC,
    }
)
OF_A_DISK = frozenset({OpKind.FAIL, OpKind.REMOVE, OpKind.ADD, OpKind.ADD_SPARE, OpKind.RE_ADD})
WRITES = frozenset({OpKind.WRITE, OpKind.WRITE_DURABLE})
UPDATES = frozenset({OpKind.TOUCH, OpKind.ANNOUNCE, OpKind.ANNOUNCE_LOCKED, OpKind.UNKNOWN})  # that send one message


class FaultKind(enum.Enum):
    """What happens to one run of a machine."""

    CRASH = "crash"
    STOP = "stop"  # a request to leave, in the middle of everything
    LOSE_LOCKS = "lose-locks"  # the lock manager is out of reach: the node must serve nothing any more
    PAUSE = "pause"  # the process does not run for a while; storage and lock manager do


@dataclasses.dataclass(frozen=True)
class Op:
    """One request: sectors of the array, seconds of rest or of work, the disk that it is about, a number of legs.

    The ``sectors`` of a resize are the size that is asked for.

    ``give_up_s``: the user loses patience, and the request is cancelled wherever it then is.
    """

    kind: OpKind
    sector: int = 0
    sectors: int = 0
    rest_s: float = 0.0
    leg: int = 0
    count: int = 0
    give_up_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens before step ``at_step`` of a run, if it comes so far; ``seconds`` of a pause."""

    kind: FaultKind
    at_step: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Life:
    """One run of a machine: from join to leave or death. Each of the workers does its operations one by one.

    ``missing_leg`` is a disk that this run of the machine does not see, and starts without (``--run``).
    """

    start_after_s: float
    workers: tuple[tuple[Op, ...], ...]
    faults: tuple[Fault, ...] = ()
    missing_leg: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole schedule.

    ``granule_sectors``: sectors are owned by the machines in turn, in pieces of this size; only the owner writes them.
    ``fail_writes`` and ``fail_reads`` hold (disk, number of the operation on it). ``pct_depth`` 0 means even picking.
    ``clean``: the array needs no initial resync. Disks are numbered: first the ``legs`` of the array, then ``spares``
    that belong to it, then ``fresh`` ones, which hold nothing and may be added. ``window_sectors`` is how much a sync
    announces at a time. ``healers`` machines start when all others have ended, and wait until the array has healed.
    Where users resize, disks hold other things than each other behind the array's end, or (``assume_clean``) the same,
    and then the size is only ever made larger, with that word; disks that ``extend`` are no longer than needed at
    first, and ``short_disk`` has no room.
    Storage loses its power at a time, or right after so many flushes and durable writes were acknowledged: promises
    are most easily broken just after they were given.
    """

    schedule_seed: str
    machines: tuple[tuple[Life, ...], ...]
    legs: int = 2
    spares: int = 0
    fresh: int = 0
    clean: bool = True
    window_sectors: int = 16
    healers: int = 1
    pct_depth: int = 0
    granule_sectors: int = 4
    fail_writes: tuple[tuple[int, int], ...] = ()
    fail_reads: tuple[tuple[int, int], ...] = ()
    power_loss_s: float | None = None
    power_loss_after: int | None = None
    assume_clean: bool = False
    extend: bool = False
    short_disk: int | None = None

    @property
    def disks(self) -> int:
        """How many disks there are."""
        return self.legs + self.spares + self.fresh

    @property
    def ops(self) -> Iterator[Op]:
        """Everything that users ask."""
        return (op for lives in self.machines for life in lives for ops in life.workers for op in ops)

    @property
    def has_disk_errors(self) -> bool:
        """Whether requests may fail."""
        return bool(self.fail_writes or self.fail_reads)

    @property
    def gives_up(self) -> bool:
        """Whether users may give up metadata updates half-way."""
        return any(op.give_up_s is not None for op in self.ops)

    @property
    def manages_legs(self) -> bool:
        """Whether users change legs or ask for syncs, which not every one of them may get."""
        return any(op.kind in MANAGEMENT for op in self.ops)

    @property
    def resizes(self) -> bool:
        """Whether users ask for another size, or for what only a larger array has."""
        return any(op.kind is OpKind.RESIZE or op.sector + op.sectors > SECTORS for op in self.ops)

    @property
    def sectors_min(self) -> int:
        """The smallest size that the array may come to have."""
        return min([SECTORS, *(op.sectors for op in self.ops if op.kind is OpKind.RESIZE)])

    @property
    def hides_legs(self) -> bool:
        """Whether some run of a machine does not see all disks."""
        return any(life.missing_leg is not None for lives in self.machines for life in lives)


def owner_of(sector: int, machines: int, granule_sectors: int) -> int:
    """Return the machine that alone writes a sector."""
    return sector // granule_sectors % machines
