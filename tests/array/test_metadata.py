"""Metadata updates over legs that fail, lag or cannot be read."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.arrays import NOW_S, make_candidates

from raidfs._core import LegState
from raidfs.array.metadata import Metadata, MetadataLeg
from raidfs.array.spares import recovering, standing
from raidfs.errors import MetadataLost
from raidfs.format.superblock import Superblock

LATER_S = NOW_S + 60


class Legs:
    """Superblocks in memory behind the two calls that metadata uses; ``unreadable`` and ``unwritable`` legs fail."""

    def __init__(self, superblocks: Sequence[Superblock]) -> None:
        self.superblocks = list(superblocks)
        self.unreadable: set[int] = set()
        self.unwritable: set[int] = set()
        self.history: list[tuple[int, int]] = []  # leg, events

    async def leg_reads(self, legs: Sequence[int], offset: int, length: int) -> list[bytes | OSError]:
        error = OSError(errno.EIO, "read failed")
        return [error if leg in self.unreadable else self.superblocks[leg].encode() for leg in legs]

    async def leg_writes(self, writes: Sequence[tuple[int, int, bytes]]) -> list[OSError | None]:
        results: list[OSError | None] = []
        for leg, _, data in writes:
            if leg in self.unwritable:
                results.append(OSError(errno.EIO, "write failed"))
                continue
            self.superblocks[leg] = Superblock.decode(data)
            self.history.append((leg, self.superblocks[leg].events))
            results.append(None)
        return results

    def events(self) -> list[int]:
        return [superblock.events for superblock in self.superblocks]


class Setting:
    """Metadata over three legs, and the legs that were reported as failed."""

    def __init__(self, directory: Path) -> None:
        self.legs = Legs(
            [
                c.superblock
                for c in make_candidates(directory, legs=3, assume_clean=True)
                if isinstance(c.superblock, Superblock)
            ]
        )
        self.failed: list[int] = []
        self.metadata = Metadata(
            self.legs,  # type: ignore[arg-type]
            [MetadataLeg(index, f"leg{index}", superblock) for index, superblock in enumerate(self.legs.superblocks)],
            self.legs.superblocks[0],
            lambda: LATER_S,
            lambda index, error: self.failed.append(index),
        )


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def active(superblock: Superblock) -> Superblock:
    return dataclasses.replace(superblock, resync_offset_sectors=0)


def unchanged(superblock: Superblock) -> Superblock:
    return superblock


async def test_an_update_reaches_every_leg_with_one_event_more_and_keeps_what_is_the_legs_own(setting: Setting) -> None:
    before = list(setting.legs.superblocks)
    superblock, changed = await setting.metadata.update(active)
    assert changed
    assert setting.legs.events() == [1, 1, 1]
    for old, new in zip(before, setting.legs.superblocks, strict=True):
        assert (new.dev_number, new.device_uuid) == (old.dev_number, old.device_uuid)
        assert (new.resync_offset_sectors, new.utime) == (0, LATER_S)
    assert superblock.events == 1


async def test_a_change_that_changes_nothing_writes_nothing(setting: Setting) -> None:
    assert (await setting.metadata.update(unchanged))[1] is False
    assert setting.legs.history == []


async def test_a_leg_that_a_dead_node_did_not_reach_is_brought_up_without_a_new_event(setting: Setting) -> None:
    setting.legs.superblocks[0] = dataclasses.replace(setting.legs.superblocks[0], events=1, resync_offset_sectors=0)
    superblock, changed = await setting.metadata.update(active)
    assert not changed
    assert superblock.events == 1
    assert setting.legs.history == [(1, 1), (2, 1)]
    assert {one.resync_offset_sectors for one in setting.legs.superblocks} == {0}


async def test_no_leg_is_ever_two_events_behind(setting: Setting) -> None:
    setting.legs.superblocks[0] = dataclasses.replace(setting.legs.superblocks[0], events=1)
    await setting.metadata.update(active)
    assert setting.legs.history[:2] == [(1, 1), (2, 1)]
    assert setting.legs.events() == [2, 2, 2]


async def test_a_leg_that_cannot_be_read_is_written_with_what_was_known_of_it(setting: Setting) -> None:
    setting.legs.unreadable = {2}
    await setting.metadata.update(active)
    assert setting.legs.events() == [1, 1, 1]
    assert setting.legs.superblocks[2].dev_number == 2


async def test_the_newest_superblock_counts_although_its_leg_cannot_be_read_any_more(setting: Setting) -> None:
    setting.legs.superblocks[1] = dataclasses.replace(setting.legs.superblocks[1], events=5)
    assert (await setting.metadata.reload()).events == 5
    setting.legs.unreadable = {1}
    await setting.metadata.update(unchanged)
    assert setting.legs.events() == [5, 5, 5]


async def test_a_leg_that_fails_the_write_is_reported_and_the_others_have_it(setting: Setting) -> None:
    setting.legs.unwritable = {1}
    superblock, _ = await setting.metadata.update(active)
    assert setting.failed == [1]
    assert setting.legs.events() == [1, 0, 1]
    assert setting.metadata.holder(superblock) == 0
    setting.legs.unwritable = {0, 1, 2}
    with pytest.raises(MetadataLost, match=r"event count 1.*leg1: write failed"):
        await setting.metadata.update(unchanged)


async def test_a_leg_that_is_left_out_keeps_its_superblock(setting: Setting) -> None:
    await setting.metadata.update(lambda superblock: superblock.with_role(1, 0xFFFE), without=1)
    assert setting.legs.events() == [1, 0, 1]
    setting.metadata.drop(1)
    await setting.metadata.update(active)
    assert setting.legs.events() == [2, 0, 2]


async def test_the_named_leg_is_believed_and_the_freshest_when_it_cannot_be_read(setting: Setting) -> None:
    setting.legs.superblocks[2] = dataclasses.replace(setting.legs.superblocks[2], events=3)
    assert (await setting.metadata.reload(2)).events == 3
    setting.legs.unreadable = {0}
    assert (await setting.metadata.reload(0)).events == 3
    setting.legs.unreadable = {0, 1, 2}
    with pytest.raises(MetadataLost):
        await setting.metadata.reload()


async def test_what_others_have_written_is_followed_before_the_own_change_is_applied(setting: Setting) -> None:
    setting.legs.superblocks[0] = dataclasses.replace(setting.legs.superblocks[0], events=4)
    seen: list[int] = []

    def change(superblock: Superblock) -> Superblock:
        seen.append(-superblock.events)
        return active(superblock)

    async def follow(superblock: Superblock) -> None:
        seen.append(superblock.events)

    await setting.metadata.update(change, follow=follow)
    assert seen == [4, -4]


async def test_a_leg_that_comes_back_in_an_update_is_written_once_and_keeps_what_it_says_of_itself(
    setting: Setting,
) -> None:
    await setting.metadata.update(lambda superblock: superblock.with_role(1, 0xFFFE), without=1)
    own = setting.legs.superblocks[1]
    setting.metadata.drop(1)
    await setting.metadata.update(active)
    setting.legs.history.clear()

    async def attach(superblock: Superblock) -> None:
        setting.metadata.include(MetadataLeg(1, "leg1", recovering(own, own.size_sectors)))

    await setting.metadata.update(lambda superblock: superblock.with_role(1, 1), follow=attach)
    assert [leg for leg, _ in setting.legs.history].count(1) == 1
    back = setting.legs.superblocks[1]
    assert standing(setting.metadata.superblock, back).recovery_offset_sectors == back.size_sectors


async def test_a_leg_that_got_its_position_from_a_dead_node_says_that_nothing_is_on_it(setting: Setting) -> None:
    spare = setting.legs.superblocks[2].with_role(2, 0xFFFF)
    setting.legs.superblocks[2] = spare
    for leg in (0, 1):
        setting.legs.superblocks[leg] = dataclasses.replace(setting.legs.superblocks[leg], events=1)
    superblock, changed = await setting.metadata.update(unchanged)
    assert not changed
    found = standing(superblock, setting.legs.superblocks[2])
    assert (found.state, found.role, found.recovery_offset_sectors) == (LegState.RECOVERING, 2, 0)
