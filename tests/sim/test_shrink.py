"""Shrinking: what is left out, and what is not."""

from __future__ import annotations

from raidfs.sim.draw import make_plan
from raidfs.sim.plan import Op, OpKind, Plan
from raidfs.sim.shrink import shrink


def ops_of(plan: Plan) -> list[Op]:
    return [op for lives in plan.machines for life in lives for ops in life.workers for op in ops]


def test_everything_that_does_not_matter_is_left_out() -> None:
    plan = make_plan(3, machines=4)
    wanted = next(op for op in ops_of(plan) if op.kind is OpKind.WRITE)

    def breaks(smaller: Plan) -> str | None:
        return "rule" if wanted in ops_of(smaller) else None

    small = shrink(plan, "rule", breaks)
    assert ops_of(small) == [wanted]
    assert not small.has_disk_errors
    assert small.power_loss_s is None
    assert small.power_loss_after is None
    assert sum(bool(lives) for lives in small.machines) == 1
    assert not any(life.faults for lives in small.machines for life in lives)


def test_a_plan_that_breaks_another_rule_does_not_count() -> None:
    plan = make_plan(3)
    assert shrink(plan, "rule", lambda smaller: "rule" if smaller == plan else "other") == plan


def test_the_number_of_runs_has_a_limit() -> None:
    runs = []

    def breaks(plan: Plan) -> str | None:
        runs.append(plan)
        return None

    shrink(make_plan(3), "rule", breaks, runs_max=10)
    assert len(runs) == 10
