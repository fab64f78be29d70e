from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.arrays import make_candidates
from support.golden import golden_images

from raidfs.array.assemble import Assembly, LeftOutReason, LegState, assemble
from raidfs.array.head import Candidate, read_candidates
from raidfs.errors import (
    BitmapOfOtherArray,
    BitmapSlotsDiffer,
    DuplicateLeg,
    LegLayoutDiffers,
    LegLeftOut,
    LegMissing,
    LegsDiverged,
    LegTruncated,
    NoBitmapSuperblock,
    NoImagesGiven,
    NotClustered,
    NotRaid1,
    NoUsableLeg,
    OtherArray,
    OtherCluster,
    RaidfsError,
    SameImageTwice,
    SuperblockChecksum,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import ROLE_FAULTY, ROLE_SPARE, Feature, Superblock
from raidfs.units import MIB


@pytest.fixture
def legs(tmp_path: Path) -> list[Candidate]:
    """Two legs that are in sync, events 10."""
    return [with_super(leg, events=10) for leg in make_candidates(tmp_path)]


def with_super(candidate: Candidate, **changes: Any) -> Candidate:
    assert isinstance(candidate.superblock, Superblock)
    return dataclasses.replace(candidate, superblock=dataclasses.replace(candidate.superblock, **changes))


def with_role(candidate: Candidate, dev_number: int, role: int, **changes: Any) -> Candidate:
    assert isinstance(candidate.superblock, Superblock)
    return with_super(candidate, dev_roles=candidate.superblock.with_role(dev_number, role).dev_roles, **changes)


def with_slot(candidate: Candidate, slot: int, change: BitmapSuperblock | RaidfsError | dict[str, Any]) -> Candidate:
    slots = list(candidate.slots)
    old = slots[slot]
    if isinstance(change, dict):
        assert isinstance(old, BitmapSuperblock)
        slots[slot] = dataclasses.replace(old, **change)
    else:
        slots[slot] = change
    return dataclasses.replace(candidate, slots=tuple(slots))


def states(assembly: Assembly) -> list[tuple[str, int, LegState]]:
    return [(Path(leg.path).name, leg.role, leg.state) for leg in (*assembly.legs, *assembly.spares)]


def left_out(assembly: Assembly) -> list[tuple[str, LeftOutReason]]:
    return [(Path(leg.path).name, leg.reason) for leg in assembly.left_out]


@pytest.mark.parametrize("number", ["001", "002", "003"])
def test_arrays_that_linux_ran_are_assembled(tmp_path: Path, number: str) -> None:
    paths = [image.write_to(tmp_path) for image in golden_images(number)]
    assembly = assemble(read_candidates(list(reversed(paths))), cluster_name="vmlab")
    assert [leg.path for leg in assembly.legs] == paths
    assert {leg.state for leg in assembly.legs} == {LegState.IN_SYNC}
    assert (assembly.nodes, assembly.array_name, assembly.cluster_name) == (4, "0", "vmlab")
    assert not assembly.is_degraded
    assert assembly.slots_of_other_size == ()


def golden(tmp_path: Path, number: str) -> list[Candidate]:
    return list(read_candidates([image.write_to(tmp_path) for image in golden_images(number)]))


def test_an_array_that_mdadm_made_with_a_spare_is_assembled_with_it(tmp_path: Path) -> None:
    assembly = assemble(golden(tmp_path, "004"))
    assert [leg.state for leg in assembly.legs] == [LegState.IN_SYNC] * 2
    assert [leg.state for leg in assembly.spares] == [LegState.SPARE]
    assert (assembly.nodes, assembly.layout.chunk_bytes, assembly.array_name) == (3, 16384, "gold")


def test_the_leg_that_linux_failed_is_left_out_though_it_believes_in_itself(tmp_path: Path) -> None:
    images = golden(tmp_path, "006")
    with pytest.raises(LegLeftOut, match="member1 cannot be used as a leg: it is faulty"):
        assemble(images)
    assembly = assemble(images, run=True)
    assert [leg.role for leg in assembly.legs] == [0]
    assert [(leg.reason, leg.role) for leg in assembly.left_out] == [(LeftOutReason.FAULTY, 1)]


def test_a_recovery_that_linux_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    assembly = assemble(golden(tmp_path, "007"))
    assert [(leg.role, leg.state) for leg in assembly.legs] == [(0, LegState.IN_SYNC), (1, LegState.RECOVERING)]
    assert assembly.legs[1].recovery_offset_sectors == 61184
    assert [(leg.reason, leg.events) for leg in assembly.left_out] == [(LeftOutReason.STALE, 1)]
    assert assembly.is_degraded


def test_a_new_array_is_whole_and_its_legs_are_in_order_of_their_roles(legs: list[Candidate]) -> None:
    assembly = assemble(legs[::-1])
    assert states(assembly) == [("leg0", 0, LegState.IN_SYNC), ("leg1", 1, LegState.IN_SYNC)]
    assert (assembly.is_degraded, assembly.missing_roles, assembly.left_out) == (False, (), ())
    assert assembly.layout.size_bytes == 4 * MIB
    assert assembly.array_name == "md0"


def test_a_missing_leg_is_named_by_its_role_and_started_without_only_on_request(legs: list[Candidate]) -> None:
    with pytest.raises(LegMissing, match=r"leg 1 is missing; .* --run"):
        assemble(legs[:1])
    assembly = assemble(legs[:1], run=True)
    assert (assembly.is_degraded, assembly.missing_roles) == (True, (1,))


def test_a_spare_is_kept_beside_the_legs_whatever_its_events(tmp_path: Path) -> None:
    first, second, spare = make_candidates(tmp_path, spares=1)
    assembly = assemble([spare, with_super(first, events=50), with_super(second, events=50)])
    assert states(assembly)[2] == ("spare0", ROLE_SPARE, LegState.SPARE)
    assert assembly.superblock.events == 50
    with pytest.raises(NoUsableLeg, match="spare0: spare"):
        assemble([spare], run=True)


def test_a_spare_need_not_know_what_the_legs_know(tmp_path: Path) -> None:
    first, second, spare = make_candidates(tmp_path, spares=1)
    changed = [with_super(leg, resync_offset_sectors=8192) for leg in (first, second)]
    assert len(assemble([*changed, spare]).spares) == 1


def test_a_spare_with_the_most_events_does_not_decide(tmp_path: Path) -> None:
    first, second, spare = make_candidates(tmp_path, spares=1)
    assembly = assemble([first, second, with_super(spare, events=99)])
    assert assembly.superblock.events == 0


def test_a_leg_one_event_behind_is_used(legs: list[Candidate]) -> None:
    assembly = assemble([legs[0], with_super(legs[1], events=9)])
    assert states(assembly)[1] == ("leg1", 1, LegState.IN_SYNC)
    assert assembly.superblock.events == 10


def test_a_leg_two_events_behind_is_out_of_date(legs: list[Candidate]) -> None:
    stale = [legs[0], with_super(legs[1], events=8)]
    with pytest.raises(LegLeftOut, match="leg1 cannot be used as a leg: it is out of date; start degraded with --run"):
        assemble(stale)
    assembly = assemble(stale, run=True)
    assert left_out(assembly) == [("leg1", LeftOutReason.STALE)]
    assert assembly.missing_roles == (1,)


def test_a_leg_one_event_behind_is_believed_faulty_by_the_freshest(legs: list[Candidate]) -> None:
    # B22: it was failed just before a crash, and its own superblock still says that it is good.
    failed = [with_role(legs[0], 1, ROLE_FAULTY), with_super(legs[1], events=9)]
    with pytest.raises(LegLeftOut, match="faulty"):
        assemble(failed)
    assembly = assemble(failed, run=True)
    assert left_out(assembly) == [("leg1", LeftOutReason.FAULTY)]
    assert states(assembly) == [("leg0", 0, LegState.IN_SYNC)]


def test_a_leg_that_was_removed_is_left_out(legs: list[Candidate]) -> None:
    assembly = assemble([with_role(legs[0], 1, ROLE_SPARE), with_super(legs[1], events=5)], run=True)
    assert left_out(assembly) == [("leg1", LeftOutReason.STALE)]
    beyond = [with_role(legs[0], 1, 7), with_super(legs[1], events=9)]
    assert left_out(assemble(beyond, run=True)) == [("leg1", LeftOutReason.REMOVED)]


def test_a_leg_that_recovers_is_used_as_far_as_it_has_come(legs: list[Candidate]) -> None:
    features = int(Feature.BITMAP_OFFSET | Feature.CLUSTERED | Feature.RECOVERY_OFFSET)
    recovering = with_super(legs[1], feature_map=features, recovery_offset_sectors=4096)
    assembly = assemble([legs[0], recovering])
    assert states(assembly)[1] == ("leg1", 1, LegState.RECOVERING)
    assert assembly.legs[1].recovery_offset_sectors == 4096
    assert assembly.is_degraded
    with pytest.raises(NoUsableLeg, match="leg1: recovering"):
        assemble([recovering], run=True)


def test_a_leg_whose_recovery_has_reached_the_end_is_in_sync(legs: list[Candidate]) -> None:
    features = int(Feature.BITMAP_OFFSET | Feature.CLUSTERED | Feature.RECOVERY_OFFSET)
    done = with_super(legs[1], feature_map=features, recovery_offset_sectors=8192)
    assert not assemble([legs[0], done]).is_degraded


def test_a_spare_that_was_given_a_position_one_event_ago_holds_nothing_yet(tmp_path: Path) -> None:
    first, second, spare = make_candidates(tmp_path, spares=1)
    roles = with_role(with_role(first, 1, ROLE_FAULTY), 2, 1, events=10)
    assembly = assemble([roles, with_super(spare, events=9), with_super(second, events=9)])
    assert states(assembly)[1] == ("spare0", 1, LegState.RECOVERING)
    assert assembly.legs[1].recovery_offset_sectors == 0
    assert left_out(assembly) == [("leg1", LeftOutReason.FAULTY)]


def test_of_two_equal_superblocks_one_in_sync_is_the_freshest(legs: list[Candidate]) -> None:
    features = int(Feature.BITMAP_OFFSET | Feature.CLUSTERED | Feature.RECOVERY_OFFSET)
    assembly = assemble([with_super(legs[0], feature_map=features), legs[1]])
    assert assembly.superblock.dev_number == 1


Change = Callable[[list[Candidate]], list[Candidate]]
DAMAGED = SuperblockChecksum(path="leg1", stored="0", computed="1")
BAD_SLOT = NoBitmapSuperblock(path="leg1", slot=2, magic="deadbeef")
BLANK_SLOT = NoBitmapSuperblock(path="leg1", slot=2, magic="00000000")

REFUSED: dict[str, tuple[Change, type[RaidfsError], str]] = {
    "no image at all": (lambda legs: [], NoImagesGiven, "no image was given"),
    "the same image twice": (lambda legs: [legs[0], legs[1], legs[0]], SameImageTwice, "are the same image"),
    "a copy of a leg": (
        lambda legs: [*legs, dataclasses.replace(legs[0], path="copy", identity=None)],
        DuplicateLeg,
        "copy and .*leg0 are both leg 0",
    ),
    "two legs of one number": (
        lambda legs: [legs[0], with_super(legs[1], dev_number=0)],
        DuplicateLeg,
        "the device number is the same",
    ),
    "two legs of one role": (
        lambda legs: [with_role(leg, 1, 0) for leg in legs],
        DuplicateLeg,
        r"leg1 and .*leg0 are both leg 0 \(the role is the same\)",
    ),
    "a damaged superblock": (
        lambda legs: [legs[0], dataclasses.replace(legs[1], superblock=DAMAGED, slots=())],
        SuperblockChecksum,
        "leg1: the superblock's checksum",
    ),
    "a leg of another array": (
        lambda legs: [legs[0], with_super(legs[1], set_uuid=bytes(16))],
        OtherArray,
        "leg1 belongs to array 00000000:00000000:00000000:00000000 and .*leg0 to array",
    ),
    "another level": (lambda legs: [with_super(leg, level=5) for leg in legs], NotRaid1, "level 5"),
    "no clustered bitmap": (lambda legs: [with_super(leg, feature_map=1) for leg in legs], NotClustered, "0x1"),
    "a bitmap before the superblock": (
        lambda legs: [with_super(leg, bitmap_offset_sectors=-8) for leg in legs],
        RaidfsError,
        "field bitmap_offset is -8",
    ),
    "legs each failed by the other": (
        lambda legs: [with_role(legs[0], 1, ROLE_FAULTY), with_role(legs[1], 0, ROLE_FAULTY)],
        LegsDiverged,
        "each was used without the other",
    ),
    "an older leg that failed the fresher one": (
        lambda legs: [with_role(legs[0], 1, ROLE_FAULTY), with_role(legs[1], 0, ROLE_FAULTY, events=3)],
        LegsDiverged,
        "dev_roles differs",
    ),
    "equal events and another size": (
        lambda legs: [legs[0], with_super(legs[1], size_sectors=4096)],
        LegsDiverged,
        "size differs",
    ),
    "data in another place": (
        lambda legs: [legs[0], with_super(legs[1], data_offset_sectors=4096)],
        LegLayoutDiffers,
        "leg1: data_offset is 4096, but 2048",
    ),
    "a truncated image": (
        lambda legs: [legs[0], dataclasses.replace(legs[1], size_bytes=4 * MIB)],
        LegTruncated,
        "leg1 is truncated: it has 8192 sectors and its array needs 10240",
    ),
    "a bad slot": (lambda legs: [legs[0], with_slot(legs[1], 2, BAD_SLOT)], NoBitmapSuperblock, "slot 2"),
    "a slot of another array": (
        lambda legs: [legs[0], with_slot(legs[1], 0, {"uuid": bytes(16)})],
        BitmapOfOtherArray,
        "leg1: the bitmap of slot 0 belongs to array 00000000:",
    ),
    "a slot of chunks that would move the slots": (
        lambda legs: [legs[0], with_slot(legs[1], 3, {"chunk_bytes": 512, "sync_size_sectors": 2**30})],
        BitmapSlotsDiffer,
        "slot 3 and slot 0 differ in sync_size",
    ),
    "slots of other clusters": (
        lambda legs: [legs[0], with_slot(legs[1], 1, {"cluster_name": b"beta"})],
        BitmapSlotsDiffer,
        r"differ in cluster_name \(beta and raidfs\)",
    ),
    "a slot of a size that would move the slots": (
        lambda legs: [legs[0], with_slot(legs[1], 1, {"sync_size_sectors": 2**40})],
        BitmapSlotsDiffer,
        "differ in sync_size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("run", [False, True])
def test_what_is_no_array_is_refused_by_its_own_error(legs: list[Candidate], name: str, run: bool) -> None:
    change, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        assemble(change(legs), run=run)


def test_the_array_of_another_cluster_is_refused(legs: list[Candidate]) -> None:
    with pytest.raises(OtherCluster, match="belongs to cluster 'raidfs', not to 'beta'"):
        assemble(legs, cluster_name="beta")
    assert assemble(legs, cluster_name="raidfs").cluster_name == "raidfs"


def test_a_resize_that_was_cut_off_is_told_and_does_not_stand_in_the_way(legs: list[Candidate]) -> None:
    assembly = assemble([legs[0], with_slot(legs[1], 2, {"sync_size_sectors": 4096})])
    assert assembly.slots_of_other_size == (2,)


def test_after_a_change_of_the_chunk_that_was_cut_off_the_larger_one_counts(legs: list[Candidate]) -> None:
    chunk_bytes = assemble(legs).layout.chunk_bytes
    assembly = assemble([legs[0], with_slot(legs[1], 3, {"chunk_bytes": 2 * chunk_bytes})])
    assert assembly.layout.chunk_bytes == 2 * chunk_bytes
    assert assembly.slots_of_other_size == (0, 1, 2, 3)


def test_no_more_is_served_than_every_slot_says(legs: list[Candidate]) -> None:
    whole = assemble(legs)
    assert whole.agreed_size_sectors == whole.layout.size_sectors
    assert assemble([legs[0], with_slot(legs[1], 2, {"sync_size_sectors": 2048})]).agreed_size_sectors == 2048
    larger = whole.layout.size_sectors + 8
    assert assemble([legs[0], with_slot(legs[1], 2, {"sync_size_sectors": larger})]).agreed_size_sectors == larger - 8


def test_the_size_is_that_of_the_freshest_leg_when_nodes_died_in_a_resize(legs: list[Candidate]) -> None:
    shrunk = with_super(legs[1], events=11, size_sectors=4096)
    assembly = assemble([legs[0], shrunk])
    assert assembly.layout.size_sectors == assembly.superblock.size_sectors == 4096
    assert {leg.recovery_offset_sectors for leg in assembly.legs} == {4096}
    assert assembly.slots_of_other_size == (0, 1, 2, 3)


def test_a_leg_that_lacks_slots_is_refused_unless_the_caller_heals_it(legs: list[Candidate]) -> None:
    blank = with_slot(legs[0], 2, BLANK_SLOT)
    with pytest.raises(NoBitmapSuperblock, match="slot 2"):
        assemble([blank, legs[1]])
    assembly = assemble([blank, legs[1]], heals_bitmaps=True)
    assert assembly.bitmap_path == legs[1].path
    assert assembly.incomplete_bitmap_paths == (legs[0].path,)
    nothing = dataclasses.replace(legs[0], slots=(BLANK_SLOT,))
    assert assemble([nothing, legs[1]], heals_bitmaps=True).incomplete_bitmap_paths == (legs[0].path,)
    whole = assemble(legs, heals_bitmaps=True)
    assert (whole.bitmap_path, whole.incomplete_bitmap_paths) == (legs[0].path, ())


def test_a_slot_that_no_leg_has_or_that_is_damaged_is_refused(legs: list[Candidate]) -> None:
    with pytest.raises(NoBitmapSuperblock, match="slot 2"):
        assemble([with_slot(legs[0], 2, BLANK_SLOT)], run=True, heals_bitmaps=True)
    with pytest.raises(NoBitmapSuperblock, match="slot 2"):
        assemble([with_slot(leg, 2, BLANK_SLOT) for leg in legs], heals_bitmaps=True)
    with pytest.raises(NoBitmapSuperblock, match="deadbeef"):
        assemble([legs[0], with_slot(legs[1], 2, BAD_SLOT)], heals_bitmaps=True)


def test_the_bitmaps_of_a_leg_that_recovers_are_not_looked_at(legs: list[Candidate]) -> None:
    features = int(Feature.BITMAP_OFFSET | Feature.CLUSTERED | Feature.RECOVERY_OFFSET)
    recovering = with_slot(with_super(legs[1], feature_map=features), 0, BAD_SLOT)
    assert states(assemble([legs[0], recovering]))[1] == ("leg1", 1, LegState.RECOVERING)


def test_a_truncated_leg_that_is_left_out_anyway_is_no_error(legs: list[Candidate]) -> None:
    short = dataclasses.replace(with_super(legs[1], events=1), size_bytes=3 * MIB)
    assert left_out(assemble([legs[0], short], run=True)) == [("leg1", LeftOutReason.STALE)]


def test_a_leg_that_was_added_with_a_longer_table_of_roles_is_not_another_array(legs: list[Candidate]) -> None:
    superblock = legs[1].superblock
    assert isinstance(superblock, Superblock)
    longer = with_super(legs[1], dev_roles=(*superblock.dev_roles, *[ROLE_SPARE] * 256))
    assert not assemble([legs[0], longer]).is_degraded


def test_a_leg_that_was_replaced_twice_over_is_stale_and_contradicts_nobody(tmp_path: Path) -> None:
    """Leg 2 failed leg 1 beside leg 0; leg 0 failed leg 2, took leg 1 back, and was failed by it in the end."""
    three = make_candidates(tmp_path, legs=3)
    legs = [
        with_role(three[0], 2, ROLE_FAULTY, events=15),
        with_role(with_role(three[1], 2, ROLE_FAULTY, events=17), 0, ROLE_FAULTY),
        with_role(three[2], 1, ROLE_FAULTY, events=7),
    ]
    assembly = assemble(legs, run=True)
    assert [leg.role for leg in assembly.legs] == [1]
    assert sorted(left_out(assembly)) == [("leg0", LeftOutReason.FAULTY), ("leg2", LeftOutReason.FAULTY)]
    with pytest.raises(LegsDiverged):
        assemble([legs[1], legs[2]], run=True)  # without leg 0 nothing says how one became the other


def test_a_spare_that_is_too_short_was_removed_before_the_array_grew(legs: list[Candidate]) -> None:
    one_leg = with_super(legs[0], raid_disks=1, dev_roles=(0, ROLE_SPARE))
    spare = with_super(legs[1], raid_disks=1, dev_roles=(0, ROLE_SPARE))
    assert [leg.path for leg in assemble([one_leg, spare]).spares] == [spare.path]
    assembly = assemble([one_leg, dataclasses.replace(spare, size_bytes=4 * MIB)])
    assert assembly.spares == ()
    assert [left.path for left in assembly.left_out] == [spare.path]
