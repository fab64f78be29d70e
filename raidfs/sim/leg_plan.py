"""What a plan has of legs and syncs: spares, new disks, disks that a machine does not see, users who manage legs.

Drawn apart from everything else, so that a plan is what it would be without them, with some operations more.

What may be lost for good must not come about: with a disk that some machine does not see, no other disk ever fails
(the machine that started without the one would go on with the other, and what was written to neither of them is gone).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random

from raidfs.sim.plan import OF_A_DISK, READ_SECTORS_MAX, SECTORS, Life, Op, OpKind, Plan, owner_of

LEGS_MAX = 4  # raid-devices asks for no more

_ASKED = (
    *(OpKind.RE_ADD,) * 4,
    *(OpKind.ADD,) * 3,
    OpKind.ADD_SPARE,
    *(OpKind.FAIL,) * 4,
    *(OpKind.REMOVE,) * 2,
    OpKind.RAID_DEVICES,
    *(OpKind.CHECK,) * 2,
    *(OpKind.REPAIR,) * 2,
    OpKind.IDLE,
    *(OpKind.RESYNC,) * 2,
)


def with_legs(plan: Plan, rng: Random) -> Plan:
    """Return the plan with what this module draws; two of five plans stay as they are."""
    if rng.random() < 0.4:
        return plan
    spares = rng.choice((0, 0, 0, 1))
    fresh = rng.choice((0, 0, 1))
    hidden = rng.randrange(plan.legs) if rng.random() < 0.2 else None
    chance = rng.choice((0.0, 0.1, 0.25))
    busy = rng.choice((0.0, 0.3, 0.6))
    changed = dataclasses.replace(
        plan,
        spares=spares,
        fresh=fresh,
        clean=plan.clean and rng.random() < 0.7,
        window_sectors=rng.choice((4, 10, 16, 16, 28, 64)),
        healers=rng.choice((1, 2)),
    )
    machines = tuple(
        tuple(_life(life, machine, changed, rng, hidden, chance, busy) for life in lives)
        for machine, lives in enumerate(plan.machines)
    )
    if hidden is None:
        return dataclasses.replace(changed, machines=machines)
    return dataclasses.replace(
        changed,
        machines=machines,
        fail_writes=tuple((hidden, nth) for _, nth in plan.fail_writes),
        fail_reads=tuple((hidden, nth) for _, nth in plan.fail_reads),
    )


def _life(
    life: Life, machine: int, plan: Plan, rng: Random, hidden: int | None, chance: float, busy_chance: float
) -> Life:
    def ops(before: tuple[Op, ...]) -> Iterator[Op]:
        for op in before:
            if rng.random() < chance:
                yield _managing(plan, rng, hidden)
            yield dataclasses.replace(op, leg=hidden) if op.kind is OpKind.FAIL and hidden is not None else op

    workers = tuple(tuple(ops(worker)) for worker in life.workers)
    if rng.random() < busy_chance:
        workers = (*workers, tuple(_hurry(plan, machine, rng)))
    sees_all = hidden is None or rng.random() < 0.6
    return dataclasses.replace(life, workers=workers, missing_leg=None if sees_all else hidden)


def _managing(plan: Plan, rng: Random, hidden: int | None) -> Op:
    kind = rng.choice(_ASKED)
    if kind is OpKind.RAID_DEVICES:
        return Op(kind, count=rng.randint(1, LEGS_MAX))
    if kind not in OF_A_DISK:
        return Op(kind)
    if hidden is not None:
        return Op(kind, leg=hidden)
    # Fail what is in the array, add what is not: the first and the last disk are asked for often.
    disks = range(plan.disks)
    return Op(kind, leg=rng.choice((disks[0], disks[-1], rng.choice(disks))))


def _hurry(plan: Plan, machine: int, rng: Random) -> Iterator[Op]:
    """Many small requests, one after the other, to some few places: what a sync has to live with."""
    machines = len(plan.machines)
    granule = plan.granule_sectors
    own = [sector for sector in range(SECTORS) if owner_of(sector, machines, granule) == machine]
    places = [rng.choice(own) for _ in range(4)]
    for _ in range(rng.randint(10, 150)):
        sector = rng.choice(places)
        if rng.random() < 0.5:
            yield Op(OpKind.WRITE, sector, 1)
        else:
            yield Op(OpKind.READ, sector, rng.randint(1, min(READ_SECTORS_MAX, SECTORS - sector)))
