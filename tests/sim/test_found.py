"""What the simulator has found: each as a small plan that stays, tried in many schedules.

A plan comes from the shrinking of a failing seed. Its schedules change whenever the code does, so each is carried out
in as many orders as made it fail several times when it was found.
"""

from __future__ import annotations

import dataclasses

import pytest

from raidfs.sim.cluster import simulate
from raidfs.sim.draw import make_plan
from raidfs.sim.plan import Fault, FaultKind, Life, Op, OpKind, Plan

WRITE = Op(OpKind.WRITE, 0, 1)
TOUCH = Op(OpKind.TOUCH)


def user(*ops: Op, faults: tuple[Fault, ...] = (), start_after_s: float = 0.0) -> Life:
    """Return a run with one user."""
    return Life(start_after_s, (ops,) if ops else (), faults)


def broken_in(plan: Plan, schedules: int) -> list[str]:
    """Return what is broken in so many schedules of a plan, one line each."""
    found = []
    for number in range(schedules):
        failure = simulate(dataclasses.replace(plan, schedule_seed=str(number))).failure
        if failure is not None:
            found.append(f"schedule {number}: {str(failure)[-300:]}")
    return found


def crash_at(step: int) -> tuple[Fault, ...]:
    return (Fault(FaultKind.CRASH, step),)


def stop_at(step: int) -> tuple[Fault, ...]:
    return (Fault(FaultKind.STOP, step),)


def test_a_token_that_was_granted_just_before_its_wait_was_cancelled_is_given_back() -> None:
    for step in (5, *range(60, 260, 20)):  # 5: the node is to leave before its user has begun
        assert broken_in(Plan("", ((user(TOUCH, TOUCH, faults=stop_at(step)),), (user(TOUCH),))), 4) == []


def test_a_leg_that_fails_while_a_node_leaves_does_not_hold_it_up() -> None:
    for nth in range(2, 12):
        plan = Plan("", ((user(WRITE),),), fail_writes=((0, nth),))
        assert broken_in(plan, 4) == []


def test_a_leg_whose_superblock_could_not_be_read_is_written_all_the_same() -> None:
    for nth in range(10):
        assert broken_in(Plan("", ((user(WRITE),),), fail_reads=((1, nth),)), 2) == []


def test_a_leg_whose_superblock_could_not_be_written_is_not_in_sync() -> None:
    for nth in range(4):
        assert broken_in(Plan("", ((user(WRITE),),), fail_writes=((1, nth),)), 4) == []


@pytest.mark.slow
def test_superblocks_of_which_only_some_were_written_before_a_death_are_written_by_the_next_node() -> None:
    for step in range(70, 170, 2):
        plan = Plan("", ((user(faults=crash_at(step)), user(WRITE)),), legs=3)
        assert broken_in(plan, 4) == []


@pytest.mark.slow
def test_a_node_joins_while_the_last_one_leaves() -> None:
    for step in range(100, 200, 5):
        pause = (Fault(FaultKind.PAUSE, step, 5.0),)
        assert broken_in(Plan("", ((user(WRITE, faults=pause),), (user(),))), 10) == []


@pytest.mark.slow
def test_failing_a_leg_can_be_given_up_at_any_step() -> None:
    fail = Op(OpKind.FAIL, leg=0)
    for step in range(80, 260, 4):
        plan = Plan("", ((Life(0.0, ((WRITE,), (fail,)), stop_at(step)),),))
        assert broken_in(plan, 2) == []


@pytest.mark.slow
def test_a_member_that_leaves_while_another_joins_or_sends_is_no_stranger() -> None:
    for start in range(8):
        lives = tuple((user(TOUCH, TOUCH, start_after_s=0.002 * start * number),) for number in range(3))
        assert broken_in(Plan("", lives), 12) == []


@pytest.mark.slow
def test_two_users_of_a_node_that_loses_the_lock_manager_both_get_an_error() -> None:
    for step in range(120, 320, 5):
        lost = (Fault(FaultKind.LOSE_LOCKS, step),)
        plan = Plan("", ((Life(0.0, ((TOUCH, TOUCH), (TOUCH, TOUCH)), lost),),))
        assert broken_in(plan, 4) == []


@pytest.mark.slow
def test_legs_that_two_deaths_in_a_row_left_behind_are_not_forgotten() -> None:
    for step in range(80, 180, 2):
        plan = Plan("", ((user(faults=crash_at(step)), user(faults=crash_at(step)), user(WRITE)),), legs=3)
        assert broken_in(plan, 6) == []


def test_a_leg_that_was_missing_while_others_were_written_is_not_read_when_it_is_back() -> None:
    write, read = Op(OpKind.WRITE, 9, 1), Op(OpKind.READ, 9, 1)
    lives = (user(), Life(0.0, ((write, Op(OpKind.FLUSH)),), (), missing_leg=0), user(read, read))
    assert broken_in(Plan("", (lives,)), 5) == []


def test_a_leg_that_is_back_gets_what_it_has_missed_before_it_is_in_sync() -> None:
    fail, re_add = Op(OpKind.FAIL, leg=0), Op(OpKind.RE_ADD, leg=0)
    life = user(fail, WRITE, re_add, Op(OpKind.HEAL), Op(OpKind.READ, 0, 4))
    assert broken_in(Plan("", ((life,),)), 5) == []


def test_a_leg_that_was_faulty_and_is_back_does_not_contradict_the_one_that_failed_after_it() -> None:
    fail, heal = [Op(OpKind.FAIL, leg=leg) for leg in range(3)], Op(OpKind.HEAL)
    life = user(fail[0], WRITE, heal, fail[2], Op(OpKind.RE_ADD, leg=0), heal, WRITE, heal)
    assert broken_in(Plan("", ((life,),), spares=1), 5) == []


def test_an_image_that_has_become_a_leg_meanwhile_is_not_made_a_new_one() -> None:
    fail, remove, re_add, add_spare = (
        Op(kind, leg=1) for kind in (OpKind.FAIL, OpKind.REMOVE, OpKind.RE_ADD, OpKind.ADD_SPARE)
    )
    # Both ask while somebody holds the mutex.
    rest, busy, heal = Op(OpKind.REST, rest_s=0.01), Op(OpKind.BUSY, rest_s=0.05), Op(OpKind.HEAL)
    users = ((busy,), (rest, re_add, WRITE, remove, heal), (rest, add_spare, WRITE, remove, heal))
    assert broken_in(Plan("", ((user(fail, remove), Life(0.0, users)),)), 10) == []


def test_a_leg_that_failed_and_came_back_during_one_long_flush_is_another_leg_for_the_sync() -> None:
    for number in (106, *range(5)):  # in 106 a flush takes 100 ms; one of some hundreds does
        fail_again = (Op(OpKind.FAIL, leg=2), Op(OpKind.WRITE, 0, 4), Op(OpKind.RE_ADD, leg=2))
        rest = Op(OpKind.REST, rest_s=0.02 + 0.002 * (number % 6))
        life = user(Op(OpKind.FAIL, leg=0), rest, *fail_again, Op(OpKind.HEAL))
        assert simulate(Plan(str(number), ((life,),), spares=1, window_sectors=4)).failure is None


@pytest.mark.slow
def test_a_node_that_dies_when_it_may_not_join_is_no_member_of_an_unknown_version() -> None:
    there, joins = user(Op(OpKind.REST, rest_s=3.0)), user(WRITE, start_after_s=0.1)
    for step in range(20, 60, 2):
        refused = Life(0.1, (), crash_at(step), missing_leg=0)
        assert broken_in(Plan("", ((there,), (refused,), (joins,))), 4) == []


def test_who_dies_while_the_array_heals_is_followed_by_others_who_wait_until_it_has_healed() -> None:
    # One healer has nothing to do and leaves; the other one, which has all to do, loses its power.
    for number in range(12):
        plan = Plan("", ((user(),),), clean=False, healers=2, window_sectors=4, power_loss_s=0.05 * number)
        assert broken_in(plan, 2) == []
    assert simulate(make_plan(1001619)).failure is None


@pytest.mark.slow
def test_a_last_leg_that_fails_while_bits_are_taken_over_holds_nobody_up() -> None:
    # The takeover waited, under the token, for bits to be written; the failure was to be recorded first, for the token.
    for first in (6, 7, 8, 9):
        for second in range(7, 13):
            lives = ((user(TOUCH),), (user(Op(OpKind.WRITE, 29, 3)),))
            assert broken_in(Plan("", lives, fail_writes=((1, first), (0, second))), 6) == []
    assert simulate(make_plan(4102001599)).failure is None


def test_an_image_that_was_taken_out_while_a_node_was_about_to_open_it_is_a_reason_not_to_join() -> None:
    for seed in (4102002962, 4102005390, 4102002627):
        assert simulate(make_plan(seed)).failure is None


@pytest.mark.slow
def test_a_resize_beside_a_leg_that_fails_ends_and_keeps_its_slot() -> None:
    # 6003620: the failure waited for the token of who had a slot written. The others gave their own slot away.
    for seed in (6002608, 6003620, 6004538, 6004717, 6004838):
        assert simulate(make_plan(seed)).failure is None


def test_a_leg_that_was_away_while_the_array_grew_has_room_on_record() -> None:
    for seed in (6004307, 6005622):
        assert simulate(make_plan(seed)).failure is None


@pytest.mark.slow
def test_a_sync_does_not_copy_from_a_leg_that_has_failed_a_write_of_another_node() -> None:
    # The write waited for the record of the failure, which came after the old data had been copied over the new.
    for nth in range(16, 34):
        lives = ((user(faults=crash_at(9)), user(Op(OpKind.WRITE, 18, 1), Op(OpKind.READ, 18, 1))), (user(TOUCH),))
        plan = Plan("", lives, legs=3, clean=False, window_sectors=4, fail_writes=((0, nth),))
        assert broken_in(plan, 4) == []
    for seed in (4103002115, 4103000074):
        assert simulate(make_plan(seed)).failure is None


def test_what_one_leg_cannot_read_may_be_older_on_the_other() -> None:
    # A write that a power loss cut off was on one leg alone, was read, and could not be read again: of the checker.
    for seed in (4103004575, 4103016774):
        assert simulate(make_plan(seed)).failure is None


def test_a_machine_that_does_not_see_a_spare_serves_no_more_when_that_becomes_a_leg() -> None:
    assert simulate(make_plan(4103009130)).failure is None


def test_an_image_that_was_removed_before_the_array_grew_is_left_out() -> None:
    for seed in (1000841, 1003516):
        assert simulate(make_plan(seed)).failure is None


def test_a_leg_that_goes_while_its_room_is_looked_at_is_left_out_of_that() -> None:
    assert simulate(make_plan(1001280)).failure is None


def test_a_window_that_was_given_up_before_anybody_acknowledged_it_is_none() -> None:
    assert simulate(make_plan(1001900)).failure is None
