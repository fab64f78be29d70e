"""Which leg has which position, and how far it is copied."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.arrays import make_candidates

from raidfs._core import LegState
from raidfs.array.spares import (
    free_number,
    has_diverged,
    in_sync,
    readd_offset_sectors,
    recovering,
    standing,
    vacant_positions,
    with_raid_disks,
    with_spares,
)
from raidfs.format.superblock import ROLE_FAULTY, ROLE_SPARE, Feature, Superblock

SIZE = 8192


@pytest.fixture
def one(tmp_path: Path) -> Superblock:
    """The superblock of leg 1 of two, with one spare, number 2; 10 events."""
    found = make_candidates(tmp_path, spares=1)[1].superblock
    assert isinstance(found, Superblock)
    return dataclasses.replace(found, events=10)


def test_a_position_is_vacant_as_soon_as_its_leg_is_faulty_and_a_spare_gets_it(one: Superblock) -> None:
    assert vacant_positions(one) == ()
    failed = one.with_role(1, ROLE_FAULTY)
    assert vacant_positions(failed) == (1,)
    assert with_spares(failed, [1, 2]).dev_roles[:3] == (0, ROLE_FAULTY, 1)
    assert with_spares(one, [2]) == one


def test_how_far_a_leg_is_copied_is_what_it_says_itself(one: Superblock) -> None:
    assert standing(one, one).state == LegState.IN_SYNC
    half = recovering(one, 4096)
    assert (standing(one, half).state, standing(one, half).recovery_offset_sectors) == (LegState.RECOVERING, 4096)
    by_bitmap = recovering(one, SIZE)
    assert by_bitmap.feature_map & Feature.RECOVERY_BITMAP
    assert by_bitmap.recovery_offset_sectors == 0
    assert standing(one, by_bitmap).recovery_offset_sectors == SIZE
    assert in_sync(by_bitmap) == one


def test_a_leg_that_was_away_says_nothing_of_what_it_has_missed(one: Superblock) -> None:
    old = dataclasses.replace(one, events=8)
    assert standing(one, old).recovery_offset_sectors == 0
    spare = dataclasses.replace(one.with_role(1, ROLE_SPARE), events=9)
    assert standing(one, spare).recovery_offset_sectors == 0


def test_a_leg_comes_back_by_the_bitmap_only_while_no_bit_may_be_gone(one: Superblock) -> None:
    assert readd_offset_sectors(one, one, events_cleared=10) == SIZE
    assert readd_offset_sectors(one, one, events_cleared=11) == 0
    assert readd_offset_sectors(one, recovering(one, 4096), events_cleared=0) == 4096
    assert readd_offset_sectors(one, recovering(one, SIZE), events_cleared=0) == SIZE
    grown = dataclasses.replace(one, size_sectors=SIZE + 8)
    assert readd_offset_sectors(grown, one, events_cleared=0) == 0


def test_a_leg_that_was_used_without_those_of_the_array_has_diverged(one: Superblock) -> None:
    alone = one.with_role(0, ROLE_FAULTY)  # as leg 1 says that was started by itself
    assert has_diverged(one.with_role(1, ROLE_FAULTY), alone)
    assert not has_diverged(one.with_role(1, ROLE_FAULTY), one)
    # Leg 0 was replaced by number 2 before leg 1 failed, and is back: number 2 knows of all that either has.
    three = dataclasses.replace(one.with_role(2, 2), raid_disks=3)
    assert not has_diverged(three.with_role(1, ROLE_FAULTY), three.with_role(0, ROLE_FAULTY))
    # The legs that leg 1 knew are gone; it has missed something and has nothing that the array lacks.
    assert not has_diverged(one.with_role(0, ROLE_FAULTY).with_role(1, ROLE_FAULTY).with_role(2, 0), one)


def test_a_new_leg_gets_the_first_number_that_nobody_has(one: Superblock) -> None:
    assert free_number(one, set()) == 2
    assert free_number(one, {2, 3}) == 4
    assert free_number(one.with_role(2, ROLE_FAULTY), set()) == 3
    assert one.with_role(200, 0).role_of(150) == ROLE_SPARE


def test_legs_move_down_when_there_are_fewer_positions(one: Superblock) -> None:
    three = dataclasses.replace(one.with_role(2, 2), raid_disks=3)
    assert with_raid_disks(three, 2) is None
    shrunk = with_raid_disks(three.with_role(0, ROLE_FAULTY), 2)
    assert shrunk is not None
    assert (shrunk.raid_disks, shrunk.dev_roles[:3]) == (2, (ROLE_FAULTY, 0, 1))
    grown = with_raid_disks(one, 4)
    assert grown is not None
    assert vacant_positions(grown) == (2, 3)
