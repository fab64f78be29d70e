"""Plans drawn from seeds: what users ask, and what goes wrong. `raidfs.sim.leg_plan` draws what concerns legs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random

from raidfs.sim.leg_plan import with_legs
from raidfs.sim.plan import READ_SECTORS_MAX, SECTORS, UPDATES, Fault, FaultKind, Life, Op, OpKind, Plan, owner_of
from raidfs.sim.resize_plan import with_resizes

# Longer than the patience of a sender: a node that forgot to wake somebody is not saved by what it does next.
IDLE_S = (70.0, 140.0)


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
    plan = Plan(
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
    return with_resizes(with_legs(plan, Random(f"legs {seed}")), Random(f"resizes {seed}"))


@dataclasses.dataclass(frozen=True)
class _Mix:
    touch: float  # the chance that an operation is one
    fail: float
    legs: int


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
