"""Simulated clusters: the same seed gives the same trace, and real nodes break no rule."""

from __future__ import annotations

import dataclasses
import os

import pytest

from raidfs.sim.campaign import run_campaign, seeds_of
from raidfs.sim.cluster import simulate
from raidfs.sim.draw import make_plan
from raidfs.sim.plan import Life, Op, OpKind, Plan


@pytest.mark.slow
def test_the_same_seed_gives_a_byte_identical_trace_a_hundred_times() -> None:
    first = simulate(make_plan(11), keep_trace=True)
    assert len(first.trace.lines) > 100
    for _ in range(99):
        again = simulate(make_plan(11), keep_trace=True)
        assert again.trace.text() == first.trace.text()
        assert again.digest == first.digest


def test_other_seeds_give_other_traces() -> None:
    assert len({simulate(make_plan(seed), keep_trace=True).trace.digest() for seed in range(5)}) == 5


def test_looking_changes_nothing() -> None:
    for seed in range(5):
        seen, unseen = simulate(make_plan(seed), keep_trace=True), simulate(make_plan(seed))
        assert (seen.steps, seen.digest, seen.counts["message"]) == (
            unseen.steps,
            unseen.digest,
            unseen.counts["message"],
        )
        assert unseen.trace.lines == []


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    assert make_plan(5) == make_plan(5)
    assert make_plan(5) != make_plan(6)
    assert len(make_plan(5, machines=4).machines) == 4


def test_a_node_writes_reads_and_leaves_and_its_neighbour_reads_what_it_wrote() -> None:
    write = Life(0.0, ((Op(OpKind.WRITE, 0, 4), Op(OpKind.FLUSH), Op(OpKind.READ, 0, 4)),))
    read = Life(1.0, ((Op(OpKind.READ, 0, 8),),))
    for schedule in range(10):
        outcome = simulate(Plan(schedule_seed=str(schedule), machines=((write,), (read,))))
        assert outcome.failure is None
        assert outcome.counts["left"] == 3  # the two, and the one that reads everything in the end
        assert outcome.counts["crash"] == 0


SCHEDULES = int(os.environ.get("RAIDFS_SCHEDULES", "4000"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_campaign_breaks_no_rule() -> None:
    result = run_campaign(seeds_of(1, SCHEDULES))
    assert result.failures == ()
    assert result.schedules == SCHEDULES
    for kind in (
        "crash",
        "stop-request",
        "pause",
        "power-loss",
        "touched",
        "leg-failed",
        "error",
        "flushed",
        "healed",
        "copied",
        "re-add",
        "resized",
        "add",
    ):
        assert result.counts[kind] > 20, kind


def test_power_loss_right_after_a_promise_keeps_what_was_promised() -> None:
    life = Life(0.0, ((Op(OpKind.WRITE, 0, 4), Op(OpKind.WRITE, 4, 4), Op(OpKind.FLUSH), Op(OpKind.WRITE, 0, 2)),))
    plan = Plan(schedule_seed="0", machines=((life,),), power_loss_after=1, granule_sectors=8)
    for schedule in range(30):
        outcome = simulate(dataclasses.replace(plan, schedule_seed=str(schedule)))
        assert outcome.failure is None
        assert outcome.counts["power-loss"] == 2
