"""What a plan has of resizes: users who give the array another size, and who use what it has got.

Drawn apart from everything else, so that a plan is what it would be without them, with some operations more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random

from raidfs.sim.plan import (
    CHUNK_SECTORS,
    CHUNKS,
    ROOM_CHUNKS,
    SECTORS,
    SECTORS_MAX,
    Life,
    Op,
    OpKind,
    Plan,
    owner_of,
)

RESIZED_OF = 5  # one plan in so many
SMALLEST_CHUNKS = CHUNKS // 2


def with_resizes(plan: Plan, rng: Random) -> Plan:
    """Return the plan with what this module draws; four of five plans stay as they are."""
    if rng.randrange(RESIZED_OF):
        return plan
    assume_clean = rng.random() < 0.25
    extend = rng.random() < 0.3
    if assume_clean:
        sizes = [rng.randint(CHUNKS + 1, CHUNKS + ROOM_CHUNKS)]
    else:
        sizes = [rng.randint(SMALLEST_CHUNKS, CHUNKS + ROOM_CHUNKS) for _ in range(3)]
    chance = rng.choice((0.1, 0.2, 0.4))
    changed = dataclasses.replace(
        plan,
        assume_clean=assume_clean,
        extend=extend,
        short_disk=rng.randrange(plan.legs) if rng.random() < 0.15 else None,
    )
    lives = tuple(
        tuple(_life(life, machine, changed, rng, sizes, chance) for life in lives)
        for machine, lives in enumerate(plan.machines)
    )
    return dataclasses.replace(changed, machines=lives)


def _life(life: Life, machine: int, plan: Plan, rng: Random, sizes: list[int], chance: float) -> Life:
    def ops(before: tuple[Op, ...]) -> Iterator[Op]:
        for op in before:
            draw = rng.random()
            if draw < chance / 2:
                yield Op(OpKind.RESIZE, sectors=rng.choice(sizes) * CHUNK_SECTORS)
            elif draw < 2 * chance:
                yield _behind_the_end(machine, plan, rng)
            yield op

    return dataclasses.replace(life, workers=tuple(tuple(ops(worker)) for worker in life.workers))


def _behind_the_end(machine: int, plan: Plan, rng: Random) -> Op:
    """Return a read or a write near the first end of the array or behind it."""
    machines, granule = len(plan.machines), plan.granule_sectors
    own = [
        sector
        for sector in range(SECTORS - 2 * granule * machines, SECTORS_MAX)
        if owner_of(sector, machines, granule) == machine and sector >= 0
    ]
    sector = rng.choice(own)
    if rng.random() < 0.4:
        return Op(OpKind.READ, sector, rng.randint(1, min(8, SECTORS_MAX - sector)))
    sectors = rng.randint(1, granule - sector % granule)
    return Op(OpKind.WRITE, sector, min(sectors, SECTORS_MAX - sector))
