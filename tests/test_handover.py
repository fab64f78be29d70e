"""Whether an array can go to Linux's md and back: what stands against it is named, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from support.arrays import make_array
from support.golden import golden_images

from raidfs import errors, handover
from raidfs.array.create import CreatedArray
from raidfs.array.images import open_image
from raidfs.cli.main import main
from raidfs.format.bitmap import SUPER_BYTES, BitmapSuperblock
from raidfs.format.superblock import SUPER_OFFSET_BYTES, Feature, Superblock
from raidfs.handover import check_handover, corosync_cluster_name
from raidfs.lock import corosync
from raidfs.lock.corosync import ClusterFacts
from raidfs.units import KIB


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine is must not matter to a test."""
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(handover, "COROSYNC_CONF", str(tmp_path / "corosync.conf"))
    monkeypatch.setattr(handover, "LOCK_SPACES", str(tmp_path / "dlm"))
    monkeypatch.setattr(corosync, "cluster_facts", _no_corosync)


def _no_corosync() -> ClusterFacts:
    raise errors.CorosyncNotRunning(code=0)


@pytest.fixture
def created(tmp_path: pathlib.Path) -> CreatedArray:
    return make_array(tmp_path, assume_clean=True, chunk_bytes=64 * KIB)


@pytest.fixture
def paths(created: CreatedArray) -> list[str]:
    return [image.path for image in created.images]


def against(paths: list[str]) -> list[type[errors.RaidfsError]]:
    before = [pathlib.Path(path).read_bytes() for path in paths]
    found = check_handover(paths)
    assert [pathlib.Path(path).read_bytes() for path in paths] == before
    assert found.is_safe == (not found.against)
    return [type(error) for error in found.against]


def change_super(path: str, **changes: Any) -> None:
    with open(path, "r+b") as file:
        file.seek(SUPER_OFFSET_BYTES)
        superblock = dataclasses.replace(Superblock.decode(file.read(4096)), **changes)
        file.seek(SUPER_OFFSET_BYTES)
        file.write(superblock.encode())


def change_slot(created: CreatedArray, path: str, slot: int, **changes: Any) -> None:
    with open(path, "r+b") as file:
        file.seek(created.layout.slot_offset_bytes(slot))
        head = dataclasses.replace(BitmapSuperblock.decode(file.read(SUPER_BYTES)), **changes)
        file.seek(created.layout.slot_offset_bytes(slot))
        file.write(head.encode())


def test_an_array_that_nobody_uses_is_safe_and_its_dirty_chunks_are_told(paths: list[str]) -> None:
    found = check_handover(paths)
    assert found.is_safe
    # A new array: slot 0 is full.
    assert [(slot.slot, slot.dirty, slot.bits, slot.chunk_bytes) for slot in found.dirty_slots] == [(0, 64, 64, 65536)]


def test_a_stale_slot_counts_as_full(created: CreatedArray, paths: list[str]) -> None:
    for path in paths:
        change_slot(created, path, 2, state=2)
    assert [slot.slot for slot in check_handover(paths).dirty_slots] == [0, 2]


def test_what_the_kernel_has_stopped_cleanly_is_safe(tmp_path: pathlib.Path) -> None:
    assert against([image.write_to(tmp_path) for image in golden_images("001")]) == []


def test_a_leg_in_the_middle_of_a_recovery_by_the_kernel_stands_against_it(tmp_path: pathlib.Path) -> None:
    found = against([image.write_to(tmp_path) for image in golden_images("007")])
    assert errors.RecoveryUnfinished in found


def test_images_under_a_lock_stand_against_it(paths: list[str]) -> None:
    with open_image(paths[1]) as image:
        image.lock(exclusive=False)
        assert against(paths) == [errors.ImageInUse]


def test_a_superblock_that_the_last_update_has_not_reached_stands_against_it(paths: list[str]) -> None:
    change_super(paths[0], events=1)
    found = check_handover(paths)
    assert [type(error) for error in found.against] == [errors.SuperblocksDiffer]
    assert paths[1] in str(found.against[0])
    assert "events 0 and 1" in str(found.against[0])


def test_a_missing_leg_stands_against_it(paths: list[str]) -> None:
    assert against(paths[:1]) == [errors.LegMissing]


def test_a_resize_that_was_cut_off_stands_against_it(created: CreatedArray, paths: list[str]) -> None:
    for path in paths:
        change_slot(created, path, 1, sync_size_sectors=created.layout.size_sectors - 128)
    assert against(paths) == [errors.ArrayHalfResized]


def test_an_update_that_was_cut_off_stands_against_it(created: CreatedArray, paths: list[str]) -> None:
    change_slot(created, paths[0], 1, cluster_name=b"blue")
    assert against(paths) == [errors.UpdateCutOff]


def test_slots_that_were_never_written_stand_against_it(created: CreatedArray, paths: list[str]) -> None:
    with open(paths[0], "r+b") as file:
        file.seek(created.layout.slot_offset_bytes(3))
        file.write(bytes(created.layout.slot_bytes))
    assert against(paths) == [errors.SlotsLacking]


@pytest.mark.parametrize("feature", [Feature.BAD_BLOCKS, Feature.REPLACEMENT])
def test_a_feature_that_one_side_does_not_know_stands_against_it(paths: list[str], feature: Feature) -> None:
    change_super(paths[1], feature_map=0x101 | feature)
    found = check_handover(paths)
    assert errors.FeatureInTheWay in [type(error) for error in found.against]
    assert str(feature.name) in str(found.against[0])


def test_a_lock_space_of_the_array_stands_against_it(tmp_path: pathlib.Path, paths: list[str]) -> None:
    (tmp_path / "dlm" / "00010203-0405-0607-0809-0a0b0c0d0e0f").mkdir(parents=True)
    assert against(paths) == [errors.LockSpaceHere]


def test_corosync_of_another_cluster_stands_against_it(tmp_path: pathlib.Path, paths: list[str]) -> None:
    conf = tmp_path / "corosync.conf"
    conf.write_text("totem {\n  cluster_name: raidfs\n}\n")
    assert against(paths) == []
    conf.write_text("totem {\n  version: 2\n  cluster_name: blue\n}\n")
    assert against(paths) == [errors.CorosyncOfOtherCluster]


@pytest.mark.parametrize(("text", "name"), [("totem { }", None), (" cluster_name:  a-b \n", "a-b"), ("", None)])
def test_the_name_of_corosyncs_cluster_is_read(text: str, name: str | None) -> None:
    assert corosync_cluster_name(text) == name


def test_machines_that_have_the_lock_space_stand_against_it(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def clustered(name: str = "raidfs", *, quorate: bool = True) -> None:
        facts = ClusterFacts(name, 1, quorate=quorate, two_node=False, wait_for_all=False)
        monkeypatch.setattr(corosync, "cluster_facts", lambda: facts)

    users = {"00010203-0405-0607-0809-0a0b0c0d0e0f": [1, 2, 5]}  # what is here has a reason of its own
    monkeypatch.setattr(corosync, "lock_space_users", lambda name: users.get(name, []))
    clustered()
    found = check_handover(paths)
    assert [type(error) for error in found.against] == [errors.LockSpaceElsewhere]
    assert "is in use on machine 2, 5 of the cluster" in str(found.against[0])
    users.clear()
    found = check_handover(paths)
    assert (found.is_safe, found.cluster_seen) == (True, True)
    for unseen in ({"name": "blue"}, {"quorate": False}):
        clustered(**unseen)
        found = check_handover(paths)
        assert (found.is_safe, found.cluster_seen) == (True, False)


def test_the_same_image_twice_is_refused(paths: list[str]) -> None:
    with pytest.raises(errors.SameImageTwice):
        check_handover([paths[0], paths[0]])


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_found(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["handover", "--check", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("array alpha:md0, cluster raidfs, uuid 00010203:04050607:")
    assert lines[1] == "slot 0: 64 of 64 chunks of 64 KiB are dirty, and are resynced by whoever starts the array next"
    assert lines[2].startswith("safe, as far as this machine sees")


def test_the_command_fails_when_something_stands_against_it(
    paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    change_super(paths[0], events=1)
    assert main(["handover", "--check", *paths]) == 1
    out, err = capsys.readouterr()
    assert f"against it: {paths[1]}: its superblock" in out
    assert err == "raidfs: not safe now, for 1 reason told above; do what is said there, then check again\n"


def test_the_json_document_says_the_same(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    change_super(paths[0], events=1)
    assert main(["handover", "--check", "--json", *paths]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["safe"], document["array"]["nodes"]) == (1, False, 4)
    assert [one["error"] for one in document["against"]] == ["SuperblocksDiffer"]
    assert document["dirty_slots"] == [{"slot": 0, "dirty": 64, "bits": 64, "chunk_bytes": 65536}]


def test_without_check_there_is_nothing_that_it_does(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["handover", *paths]) == 2
    assert "give --check" in capsys.readouterr().err
