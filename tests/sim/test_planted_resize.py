"""Mistakes in resizes, each found in plans in which users resize; these break nothing without it."""

from __future__ import annotations

import functools

import pytest

from raidfs.errors import SimulationFailed
from raidfs.sim.cluster import simulate
from raidfs.sim.draw import make_plan
from raidfs.sim.plan import Plan
from raidfs.sim.planted_resize import RESIZE

PLANS = 40


@functools.cache
def plans() -> list[Plan]:
    drawn = (make_plan(seed) for seed in range(20_000_000, 20_001_000))
    return [plan for plan in drawn if plan.resizes][:PLANS]


@pytest.mark.slow
def test_resizes_break_no_rule() -> None:
    outcomes = [simulate(plan) for plan in plans()]
    assert [str(outcome.failure) for outcome in outcomes if outcome.failure is not None] == []
    assert sum(outcome.counts["resized"] for outcome in outcomes) > PLANS


@functools.cache
def found(name: str) -> tuple[int, SimulationFailed] | None:
    with RESIZE[name].patch():
        for number, plan in enumerate(plans(), start=1):
            failure = simulate(plan).failure
            if failure is not None:
                return number, failure
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RESIZE))
def test_the_mistake_is_found(name: str) -> None:
    seen = found(name)
    assert seen is not None, f"{RESIZE[name].what} was not found in {PLANS} schedules"
    number, failure = seen
    print(f"{name}: found after {number} schedules by {failure.rule}")
    assert failure.rule in {*RESIZE[name].rules, "NothingCanRun"}, str(failure)


@pytest.mark.slow
def test_both_rules_of_sizes_are_seen_broken() -> None:
    rules = {seen[1].rule for name in RESIZE if (seen := found(name)) is not None}
    assert rules >= {"served-beyond", "one-size"}
