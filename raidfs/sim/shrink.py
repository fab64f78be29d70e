"""Making a failing plan smaller: leave something out, see whether it still breaks the same rule, go on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from raidfs.sim.plan import Life, Plan

T = TypeVar("T")

RUNS_MAX = 600  # a few tens of seconds
SCHEDULES = 4  # a smaller plan has another schedule; so many are tried before it counts as whole


def shrink(plan: Plan, rule: str, breaks: Callable[[Plan], str | None], *, runs_max: int = RUNS_MAX) -> Plan:
    """Return a plan with fewer machines, runs, operations and faults that breaks ``rule`` as ``plan`` does.

    ``breaks`` carries a plan out and returns the rule that it broke, or None. Nothing smaller by one step breaks it
    any more, unless ``runs_max`` runs were not enough to find out.
    """
    runs = 0
    found = True
    while found:
        found = False
        for smaller in _smaller(plan):
            for variant in _schedules(smaller):
                if runs >= runs_max:
                    return plan
                runs += 1
                if breaks(variant) == rule:
                    plan, found = variant, True
                    break
            if found:
                break
    return plan


def _schedules(plan: Plan) -> Iterator[Plan]:
    yield plan
    base = plan.schedule_seed.partition("+")[0]
    for number in range(1, SCHEDULES):
        yield dataclasses.replace(plan, schedule_seed=f"{base}+{number}")


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Every plan that has one thing less; large things first."""
    replace = dataclasses.replace
    for number, lives in enumerate(plan.machines):
        if lives:
            yield replace(plan, machines=_put(plan.machines, number, ()))
    if plan.power_loss_s is not None:
        yield replace(plan, power_loss_s=None)
    if plan.power_loss_after is not None:
        yield replace(plan, power_loss_after=None)
    for number in range(len(plan.fail_writes)):
        yield replace(plan, fail_writes=_without(plan.fail_writes, number))
    for number in range(len(plan.fail_reads)):
        yield replace(plan, fail_reads=_without(plan.fail_reads, number))
    if plan.legs > 2:
        yield replace(plan, legs=plan.legs - 1)
    if plan.fresh:
        yield replace(plan, fresh=0)
    if plan.spares:
        yield replace(plan, spares=0)
    if plan.healers > 1:
        yield replace(plan, healers=1)
    for machine, lives in enumerate(plan.machines):
        for number in range(len(lives)):
            yield replace(plan, machines=_put(plan.machines, machine, _without(lives, number)))
    for machine, lives in enumerate(plan.machines):
        for number, life in enumerate(lives):
            for smaller in _smaller_lives(life):
                yield replace(plan, machines=_put(plan.machines, machine, _put(lives, number, smaller)))
    if plan.pct_depth:
        yield replace(plan, pct_depth=0)


def _smaller_lives(life: Life) -> Iterator[Life]:
    replace = dataclasses.replace
    for number in range(len(life.faults)):
        yield replace(life, faults=_without(life.faults, number))
    for number, ops in enumerate(life.workers):
        yield replace(life, workers=_without(life.workers, number))
        if len(ops) > 4:
            half = len(ops) // 2
            yield replace(life, workers=_put(life.workers, number, ops[:half]))
            yield replace(life, workers=_put(life.workers, number, ops[half:]))
    for number, ops in enumerate(life.workers):
        for op in range(len(ops)):
            yield replace(life, workers=_put(life.workers, number, _without(ops, op)))
    if life.missing_leg is not None:
        yield replace(life, missing_leg=None)
    if life.start_after_s:
        yield replace(life, start_after_s=0.0)


def _without(values: tuple[T, ...], number: int) -> tuple[T, ...]:
    return values[:number] + values[number + 1 :]


def _put(values: tuple[T, ...], number: int, value: T) -> tuple[T, ...]:
    return (*values[:number], value, *values[number + 1 :])
