"""Mistakes of syncs and legs that seldom show: each in plans that make it likely, which break nothing without it."""

from __future__ import annotations

import pytest

from raidfs.sim.cluster import simulate
from raidfs.sim.plan import Fault, FaultKind, Life, Op, OpKind, Plan
from raidfs.sim.planted import PLANTED

HEAL = Op(OpKind.HEAL)
WRITE = Op(OpKind.WRITE, 0, 4)
READ = Op(OpKind.READ, 0, 8)


def rest(seconds: float) -> Op:
    return Op(OpKind.REST, rest_s=seconds)


def life(*users: tuple[Op, ...], missing_leg: int | None = None, faults: tuple[Fault, ...] = ()) -> Life:
    return Life(0.0, users, faults, missing_leg)


def recovery_that_is_interrupted() -> list[Plan]:
    """A spare takes over, fails half-way and comes back."""
    writes = tuple(Op(OpKind.WRITE, sector, 4) for sector in range(0, 64, 8))
    fail = (Op(OpKind.FAIL, leg=0), Op(OpKind.FAIL, leg=2))
    plans = []
    for number in range(40):
        half_way = (fail[0], rest(0.002 * (number % 20)), fail[1])
        ops = (*writes, rest(20.0), *half_way, WRITE, Op(OpKind.RE_ADD, leg=2), HEAL)
        plans.append(Plan(str(number), ((life(ops),),), spares=1, window_sectors=4, granule_sectors=64))
    return plans


def writes_beside_a_resync() -> list[Plan]:
    """One node resyncs an array that is not clean, while another one writes to it as fast as it can."""
    writes = tuple(Op(OpKind.WRITE, sector % 60, 4) for sector in range(4, 200, 8))
    lives = ((life((rest(0.3),)),), (life(writes, writes, writes),))
    return [Plan(str(n), lives, clean=False, window_sectors=8, granule_sectors=64) for n in range(60)]


def image_that_one_node_does_not_see() -> list[Plan]:
    """One node adds it, one sees it, one does not."""
    adds = (rest(1.0), Op(OpKind.ADD, leg=2), rest(20.0))
    lives = ((life((rest(20.0),)),), (life(adds),), (life((rest(20.0),), missing_leg=2),))
    return [Plan(str(n), lives, fresh=1) for n in range(5)]


def reads_while_a_writer_dies() -> list[Plan]:
    """A node dies in the middle of its writes, and two others read what it was writing, again and again."""
    reads = tuple(op for _ in range(300) for op in (READ, rest(0.004)))
    writes = (rest(0.4), *(Op(OpKind.WRITE, 0, 8),) * 30)
    return [
        Plan(str(step), ((life(writes, faults=(Fault(FaultKind.CRASH, step),)),), (life(reads),), (life(reads),)),
             granule_sectors=64)
        for step in range(200, 320, 4)
    ]  # fmt: skip


def spare_beside_a_node_with_dirty_chunks() -> list[Plan]:
    """One node has written, and its bits are set still when a spare takes over."""
    writes = tuple(Op(OpKind.WRITE, sector, 4) for sector in range(0, 64, 8))
    lives = ((life((*writes, rest(20.0))),), (life((rest(0.3), Op(OpKind.FAIL, leg=0), HEAL)),))
    return [Plan(str(n), lives, spares=1, granule_sectors=64) for n in range(10)]


def leg_that_is_taken_back_by_a_node_that_has_not_written() -> list[Plan]:
    """One node writes beside a failed leg; another one, whose own slot knows of nothing, takes the leg back."""
    sectors = range(0, 64, 8)
    reads = tuple(Op(OpKind.READ, sector, 8) for sector in sectors)
    plans = []
    for number in range(8):
        leg = number % 2
        writes = tuple(Op(OpKind.WRITE, sector, 4) for sector in sectors)
        writer = life((Op(OpKind.FAIL, leg=leg), *writes, rest(6.0), *reads))
        other = life((rest(2.0), Op(OpKind.RE_ADD, leg=leg), HEAL, *reads))
        plans.append(Plan(str(number), ((writer,), (other,)), granule_sectors=64))
    return plans


def writer_of_the_first_chunk_that_dies() -> list[Plan]:
    """A node that has only written to the first chunk dies in the middle of a write; another one lives on."""
    writes = (rest(0.4), *(WRITE,) * 30)
    return [
        Plan(str(step), ((life(writes, faults=(Fault(FaultKind.CRASH, step),)),), (life((rest(20.0), HEAL)),)),
             granule_sectors=64)
        for step in range(150, 300, 5)
    ]  # fmt: skip


MAKERS = {
    "chunk-0-is-nothing": writer_of_the_first_chunk_that_dies,
    "own-bits-gathered-only": leg_that_is_taken_back_by_a_node_that_has_not_written,
    "slots-not-copied": spare_beside_a_node_with_dirty_chunks,
    "half-recovered-is-complete": recovery_that_is_interrupted,
    "window-not-drained": writes_beside_a_resync,
    "candidate-kept": image_that_one_node_does_not_see,
    "takeover-balances-reads": reads_while_a_writer_dies,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_mistake_is_found_in_its_own_plans_which_are_sound_without_it(name: str) -> None:
    plans = MAKERS[name]()
    assert [str(failure) for plan in plans if (failure := simulate(plan).failure) is not None] == []
    with PLANTED[name].patch():
        for number, plan in enumerate(plans, start=1):
            failure = simulate(plan).failure
            if failure is not None:
                print(f"{name}: found after {number} schedules by {failure.rule}")
                assert failure.rule in PLANTED[name].rules, str(failure)
                return
    pytest.fail(f"{PLANTED[name].what} was not found in {len(plans)} schedules")
