from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.arrays import make_array

from raidfs.array import head
from raidfs.array.head import READINGS_MAX, read_candidate, read_candidates
from raidfs.array.images import OpenImage, open_image
from raidfs.errors import NoBitmapSuperblock, NotClustered, RaidfsError, SuperblockField
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import Superblock
from raidfs.units import MIB


def rewrite(path: str, **changes: object) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        superblock = Superblock.decode(file.read(4096))
        file.seek(4096)
        file.write(dataclasses.replace(superblock, **changes).encode())  # type: ignore[arg-type]


def slot_errors(path: str) -> list[RaidfsError]:
    with open_image(path) as image:
        return [slot for slot in read_candidate(image).slots if isinstance(slot, RaidfsError)]


def test_a_good_image_gives_its_superblock_and_all_slots(tmp_path: Path) -> None:
    path = make_array(tmp_path, nodes=5).images[1].path
    (candidate,) = read_candidates([path])
    assert isinstance(candidate.superblock, Superblock)
    assert [type(slot) for slot in candidate.slots] == [BitmapSuperblock] * 5
    assert (candidate.path, candidate.size_bytes) == (path, 5 * MIB)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"feature_map": 0x1}, NotClustered, "feature map 0x1"),
        ({"feature_map": 0x100}, NotClustered, "feature map 0x100"),
        ({"bitmap_offset_sectors": 0}, SuperblockField, "bitmap_offset is 0"),
        ({"bitmap_offset_sectors": 12}, SuperblockField, "bitmap_offset is 12"),
        ({"bitmap_offset_sectors": 1024}, NoBitmapSuperblock, "magic 00000000"),
        ({"bitmap_offset_sectors": 2**24}, NoBitmapSuperblock, "magic missing"),
        ({"data_offset_sectors": 40}, SuperblockField, "nodes is 4, but 3 slots of 4096 bytes fit"),
    ],
    ids=str,
)
def test_a_bitmap_that_cannot_be_there_is_one_error_beside_the_superblock(
    tmp_path: Path, changes: dict[str, object], error: type[RaidfsError], words: str
) -> None:
    path = make_array(tmp_path).images[0].path
    rewrite(path, **changes)
    (found,) = slot_errors(path)
    assert isinstance(found, error)
    assert words in str(found)


def test_superblocks_that_change_meanwhile_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [image.path for image in make_array(tmp_path).images]
    real = head.read_candidate
    read: list[str] = []

    def updated_meanwhile(image: OpenImage) -> head.Candidate:
        candidate = real(image)
        read.append(image.path)
        if len(read) == 1:  # another node writes all superblocks between the two legs
            for path in paths:
                rewrite(path, events=5)
        return candidate

    monkeypatch.setattr(head, "read_candidate", updated_meanwhile)
    events = [c.superblock.events for c in read_candidates(paths) if isinstance(c.superblock, Superblock)]
    assert events == [5, 5]
    assert read == paths * 2


def test_superblocks_that_never_rest_are_given_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_array(tmp_path).images[0].path
    real = head.read_candidate
    readings = 0

    def always_updated(image: OpenImage) -> head.Candidate:
        nonlocal readings
        readings += 1
        rewrite(path, events=readings)
        return real(image)

    monkeypatch.setattr(head, "read_candidate", always_updated)
    read_candidates([path])
    assert readings == READINGS_MAX
