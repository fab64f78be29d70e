"""What a simulated schedule does: machines, what their nodes are asked, and what goes wrong. All of it from one seed.

A plan is a value: it can be printed, and made smaller by leaving things out (`raidfs.sim.shrink`). The order in which
things then happen is not in it; that comes from ``schedule_seed``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from random import Random

from raidfs.sim.layout import CHUNK_BYTES, NODES
from raidfs.units import SECTOR_BYTES

CHUNKS = 8
SECTORS = CHUNKS * CHUNK_BYTES // SECTOR_BYTES
READ_SECTORS_MAX = 16
MACHINES_MAX = NODES
# Longer than the patience of a sender: a node that forgot to wake somebody is not saved by what it does next.
IDLE_S = (70.0, 140.0)


class OpKind(enum.Enum):
    """What a node's user does."""

    READ = "read"
    WRITE = "write"
    WRITE_DURABLE = "write-durable"
    FLUSH = "flush"
    REST = "rest"
    TOUCH = "touch"  # a metadata update that changes nothing but the event count
    FAIL = "fail"  # make a leg faulty on all nodes
    ANNOUNCE = "announce"  # a message without reconfig_mutex, as md's resync thread sends it (RESYNCING_START)
    ANNOUNCE_LOCKED = "announce-locked"  # work under the mutex and then, still under it, a message (BITMAP_NEEDS_SYNC)
    UNKNOWN = "unknown"  # a message of a type that no node knows: all must refuse it
    BUSY = "busy"  # work of the node alone under reconfig_mutex, which wants no token and so announces nothing


UPDATES = frozenset({OpKind.TOUCH, OpKind.ANNOUNCE, OpKind.ANNOUNCE_LOCKED, OpKind.UNKNOWN})  # that send one message


class FaultKind(enum.Enum):
    """What happens to one run of a machine."""

    CRASH = "crash"
    STOP = "stop"  # a request to leave, in the middle of everything
    LOSE_LOCKS = "lose-locks"  # the lock manager is out of reach: the node must serve nothing any more
    PAUSE = "pause"  # the process does not run for a while; storage and lock manager do


@dataclasses.dataclass(frozen=True)
class Op:
    """One request: sectors of the array, seconds of rest or of work, or a leg to fail.

    ``give_up_s``: the user loses patience, and the request is cancelled wherever it then is.
    """

    kind: OpKind
    sector: int = 0
    sectors: int = 0
    rest_s: float = 0.0
    leg: int = 0
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
    ``clean``: the array needs no initial resync. Storage loses its power at a time, or right after so many flushes and
    durable writes were acknowledged: promises are most easily broken just after they were given.
    """

    schedule_seed: str
    machines: tuple[tuple[Life, ...], ...]
    legs: int = 2
    clean: bool = True
    pct_depth: int = 0
    granule_sectors: int = 4
    fail_writes: tuple[tuple[int, int], ...] = ()
    fail_reads: tuple[tuple[int, int], ...] = ()
    power_loss_s: float | None = None
    power_loss_after: int | None = None

    @property
    def has_disk_errors(self) -> bool:
        """Whether requests may fail."""
        return bool(self.fail_writes or self.fail_reads)

    @property
    def gives_up(self) -> bool:
        """Whether users may give up metadata updates half-way."""
        return any(
            op.give_up_s is not None for lives in self.machines for life in lives for ops in life.workers for op in ops
        )

    @property
    def fails_legs(self) -> bool:
        """Whether users ask for legs to be failed, which not every one of them may get."""
        return any(
            op.kind is OpKind.FAIL for lives in self.machines for life in lives for ops in life.workers for op in ops
        )


def make_plan(seed: int, *, machines: int | None = None) -> Plan:
    """Return the plan of a seed, for a number of machines or as many as the seed says (2 to 5)."""
    rng = Random(f"plan {seed}")
    count = machines if machines is not None else rng.choice((2, 2, 2, 3, 3, 4, 5))
    granule = rng.choice((1, 2, 4, 8))
    legs = rng.choice((2, 2, 2, 3))
    mix = _Mix(touch=rng.choice((0.0, 0.1, 0.4)), fail=rng.choice((0.0, 0.0, 0.03)), legs=legs)
    fail_writes: tuple[tuple[int, int], ...] = ()
    fail_reads: tuple[tuple[int, int], ...] = ()
    if rng.random() < 0.25:
        fail_writes = tuple((rng.randrange(legs), rng.randrange(150)) for _ in range(rng.randint(1, 2)))
    if rng.random() < 0.15:
        fail_reads = tuple((rng.randrange(legs), rng.randrange(5, 150)) for _ in range(rng.randint(1, 3)))
    power_loss = rng.choice(("time", "promise", "no", "no", "no", "no"))
    machines_lives = tuple(_lives(rng, machine, count, granule, mix) for machine in range(count))
    return Plan(
        schedule_seed=str(seed),
        machines=_with_messages(machines_lives, Random(f"messages {seed}")),
        legs=legs,
        clean=rng.random() < 0.8,
        pct_depth=rng.choice((0, 0, 2, 3, 4)),
        granule_sectors=granule,
        fail_writes=fail_writes,
        fail_reads=fail_reads,
        power_loss_s=round(10 ** rng.uniform(-2.3, 1.1), 6) if power_loss == "time" else None,
        power_loss_after=rng.randint(1, 6) if power_loss == "promise" else None,
    )


@dataclasses.dataclass(frozen=True)
class _Mix:
    touch: float  # the chance that an operation is one
    fail: float
    legs: int


def owner_of(sector: int, machines: int, granule_sectors: int) -> int:
    """Return the machine that alone writes a sector."""
    return sector // granule_sectors % machines


def _lives(rng: Random, machine: int, machines: int, granule: int, mix: _Mix) -> tuple[Life, ...]:
    return tuple(_life(rng, machine, machines, granule, mix) for _ in range(rng.choice((1, 1, 2, 3))))


def _life(rng: Random, machine: int, machines: int, granule: int, mix: _Mix) -> Life:
    workers = tuple(
        tuple(_op(rng, machine, machines, granule, mix) for _ in range(rng.randint(1, 8)))
        for _ in range(rng.choice((1, 2, 3)))
    )
    faults = []
    if rng.random() < 0.4:
        faults.append(Fault(FaultKind.CRASH, _step(rng)))
    if rng.random() < 0.2:
        faults.append(Fault(FaultKind.STOP, _step(rng)))
    if rng.random() < 0.15:
        faults.append(Fault(FaultKind.PAUSE, _step(rng), round(rng.uniform(0.001, 20.0), 3)))
    if rng.random() < 0.07:
        faults.append(Fault(FaultKind.LOSE_LOCKS, _step(rng)))
    start = rng.choice((0.0, 0.0, round(rng.uniform(0.0, 3.0), 3)))
    return Life(start, workers, tuple(sorted(faults, key=lambda fault: fault.at_step)))


_MESSAGES = (OpKind.ANNOUNCE, OpKind.ANNOUNCE, OpKind.ANNOUNCE_LOCKED, OpKind.UNKNOWN, OpKind.BUSY)


# Drawn apart from everything else, so that a plan is what it would be without them, with some operations more.
def _with_messages(machines: tuple[tuple[Life, ...], ...], rng: Random) -> tuple[tuple[Life, ...], ...]:
    chance = rng.choice((0.0, 0.1, 0.4))
    give_up_chance = rng.choice((0.0, 0.3))
    idle_chance = rng.choice((0.0, 0.0, 0.4))

    def ops(before: tuple[Op, ...]) -> Iterator[Op]:
        for op in before:
            if rng.random() < chance:
                kind = rng.choice(_MESSAGES)
                works = kind is OpKind.BUSY or (kind is OpKind.ANNOUNCE_LOCKED and rng.random() < 0.5)
                rest_s = round(10 ** rng.uniform(-4.0, 0.0), 6) if works else 0.0
                yield _impatient(Op(kind, rest_s=rest_s), rng, give_up_chance)
            yield _impatient(op, rng, give_up_chance)

    def life(before: Life) -> Life:
        workers = [tuple(ops(worker)) for worker in before.workers]
        if rng.random() < idle_chance:
            busy = Op(OpKind.BUSY, rest_s=round(10 ** rng.uniform(-2.0, 0.5), 6))
            workers[0] += (busy, Op(OpKind.REST, rest_s=round(rng.uniform(*IDLE_S), 3)))
        return dataclasses.replace(before, workers=tuple(workers))

    return tuple(tuple(life(before) for before in lives) for lives in machines)


# A message takes some milliseconds of simulated time, or as long as a pause of a receiver.
def _impatient(op: Op, rng: Random, chance: float) -> Op:
    if op.kind not in UPDATES or rng.random() >= chance:
        return op
    return dataclasses.replace(op, give_up_s=round(10 ** rng.uniform(-4.0, 0.5), 6))


# Early and late steps alike: a join has some 200, a life with its sweeps up to some thousand.
def _step(rng: Random) -> int:
    return int(2 ** rng.uniform(0.0, 10.5))


def _op(rng: Random, machine: int, machines: int, granule: int, mix: _Mix) -> Op:
    if rng.random() < mix.touch:
        return Op(OpKind.TOUCH)
    if rng.random() < mix.fail:
        return Op(OpKind.FAIL, leg=rng.randrange(mix.legs))
    chance = rng.random()
    if chance < 0.35:
        sector = rng.randrange(SECTORS)
        return Op(OpKind.READ, sector, rng.randint(1, min(READ_SECTORS_MAX, SECTORS - sector)))
    if chance < 0.8:
        pieces = [
            piece for piece in range(SECTORS // granule) if owner_of(piece * granule, machines, granule) == machine
        ]
        start = rng.choice(pieces) * granule + rng.randrange(granule)
        sectors = rng.randint(1, granule - start % granule)
        return Op(rng.choice((OpKind.WRITE, OpKind.WRITE, OpKind.WRITE_DURABLE)), start, sectors)
    if chance < 0.9:
        return Op(OpKind.FLUSH)
    return Op(OpKind.REST, rest_s=round(rng.choice((rng.uniform(0.0, 0.01), rng.uniform(0.0, 12.0))), 6))
