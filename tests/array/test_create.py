from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.arrays import NOW_S, SET_UUID, device_uuid, make_array
from support.golden import golden_images

from raidfs.array import create, images
from raidfs.array.create import create_array, set_name
from raidfs.array.images import OpenImage
from raidfs.array.request import ArrayRequest
from raidfs.errors import (
    BadGeometry,
    ImageAccess,
    ImageHoldsData,
    ImageInUse,
    ImageNotFound,
    ImageTooSmall,
    RaidfsError,
    SameImageTwice,
    TooManyNodes,
)
from raidfs.format.bitmap import BitmapSuperblock, count_dirty
from raidfs.format.superblock import MAX_SECTOR, ROLE_SPARE, Superblock
from raidfs.units import GIB, KIB, MIB


def superblock_of(path: Path) -> Superblock:
    with path.open("rb") as file:
        return Superblock.decode(file.read(8192)[4096:], path=str(path))


def blank(path: Path, size_bytes: int) -> Path:
    path.touch()
    os.truncate(path, size_bytes)
    return path


def create_on(*paths: Path, device_uuids: list[bytes] | None = None, **request: Any) -> create.CreatedArray:
    uuids = [device_uuid(n) for n in range(len(paths))] if device_uuids is None else device_uuids
    wanted = ArrayRequest(images=tuple(str(path) for path in paths), **request)
    return create_array(wanted, set_uuid=SET_UUID, device_uuids=uuids, now_s=NOW_S)


def test_the_superblock_is_the_one_that_mdadm_writes(tmp_path: Path) -> None:
    make_array(tmp_path, size_bytes=64 * MIB)
    assert superblock_of(tmp_path / "leg1") == Superblock(
        set_uuid=SET_UUID,
        set_name=b"alpha:md0",
        ctime=NOW_S,
        size_sectors=131072,
        raid_disks=2,
        dev_number=1,
        device_uuid=device_uuid(1),
        data_offset_sectors=2048,
        data_size_sectors=131072,
        utime=NOW_S,
        events=0,
        resync_offset_sectors=0,
        dev_roles=(0, 1, *[ROLE_SPARE] * 126),
        feature_map=0x101,
    )


def test_slot_0_is_all_ones_to_its_end_and_the_other_slots_are_zeros(tmp_path: Path) -> None:
    layout = make_array(tmp_path, nodes=3, chunk_bytes=4 * KIB, cluster_name="alpha").layout
    for leg in ("leg0", "leg1"):
        data = (tmp_path / leg).read_bytes()
        for slot in range(3):
            start = layout.slot_offset_bytes(slot)
            head = BitmapSuperblock.decode(data[start:], slot=slot)
            assert (head.uuid, head.events, head.events_cleared, head.state) == (SET_UUID, 0, 0, 0)
            assert (head.nodes, head.cluster_name, head.chunk_bytes, head.sync_size_sectors) == (
                3,
                b"alpha",
                4096,
                8192,
            )
            bits = data[start + 256 : start + layout.slot_bytes]
            assert bits == (b"\xff" if slot == 0 else b"\0") * (4096 - 256)
            assert count_dirty(bits, layout.bits) == (1024 if slot == 0 else 0)


def test_an_array_that_is_assumed_clean_needs_no_resync_but_has_its_bits_set(tmp_path: Path) -> None:
    layout = make_array(tmp_path, assume_clean=True).layout
    assert superblock_of(tmp_path / "leg0").resync_offset_sectors == MAX_SECTOR
    assert count_dirty((tmp_path / "leg0").read_bytes()[8192 + 256 : 8192 + 4096], layout.bits) == layout.bits


def test_spares_come_after_the_legs_and_carry_the_bitmaps_too(tmp_path: Path) -> None:
    created = make_array(tmp_path, spares=1)
    spare = superblock_of(tmp_path / "spare0")
    assert (spare.dev_number, spare.role, spare.raid_disks) == (2, ROLE_SPARE, 2)
    assert spare.dev_roles == superblock_of(tmp_path / "leg0").dev_roles
    assert (tmp_path / "spare0").read_bytes()[8192:24576] == (tmp_path / "leg0").read_bytes()[8192:24576]
    assert [image.role for image in created.images] == [0, 1, None]


def test_missing_images_are_sparse_of_the_smallest_length_and_private(tmp_path: Path) -> None:
    make_array(tmp_path, size_bytes=GIB)
    status = (tmp_path / "leg0").stat()
    assert status.st_size == GIB + 2 * MIB
    assert status.st_blocks * 512 < MIB
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_without_a_size_the_smallest_image_decides(tmp_path: Path) -> None:
    first, second = blank(tmp_path / "a", 100 * MIB), blank(tmp_path / "b", 80 * MIB + 512)
    layout = create_on(first, second).layout
    assert (layout.data_offset_sectors, layout.size_sectors) == (2048, 79 * 2048)
    assert superblock_of(first).data_size_sectors == 99 * 2048
    assert superblock_of(second).data_size_sectors == 79 * 2048 + 1


def test_a_missing_image_beside_an_existing_one_is_made_to_fit_it(tmp_path: Path) -> None:
    first = blank(tmp_path / "a", 1024 * MIB)
    layout = create_on(first, tmp_path / "b", size_bytes=10 * MIB).layout
    assert layout.data_offset_sectors == 4096
    assert (tmp_path / "b").stat().st_size == 12 * MIB


def test_without_a_size_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match="--size"):
        create_on(blank(tmp_path / "a", 8 * MIB), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_existing_array_is_not_overwritten_without_force(tmp_path: Path) -> None:
    make_array(tmp_path)
    before = (tmp_path / "leg0").read_bytes()
    with pytest.raises(ImageHoldsData, match=r"leg0 already holds an md superblock \(1.2\); give --force"):
        make_array(tmp_path)
    assert (tmp_path / "leg0").read_bytes() == before


def test_data_that_nobody_signed_is_not_overwritten_without_force(tmp_path: Path) -> None:
    first, second = blank(tmp_path / "a", 8 * MIB), blank(tmp_path / "b", 8 * MIB)
    with second.open("r+b") as file:
        file.seek(8 * MIB - 1)
        file.write(b"x")
    with pytest.raises(ImageHoldsData, match="b already holds unrecognised data"):
        create_on(first, second)
    assert not any(first.read_bytes())


def test_with_force_the_data_area_is_left_as_it_is(tmp_path: Path) -> None:
    content = os.urandom(MIB)
    paths = [blank(tmp_path / name, 4 * MIB) for name in ("a", "b")]
    for path in paths:
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(content)
    create_on(*paths, assume_clean=True, force=True)
    assert [path.read_bytes()[MIB : 2 * MIB] == content for path in paths] == [True, True]


@pytest.mark.parametrize("offset", [0, 4096, 8 * MIB - 65536, 8 * MIB - 8192], ids=["1.1", "1.2", "0.90", "1.0"])
def test_with_force_an_old_md_superblock_of_any_version_is_gone(tmp_path: Path, offset: int) -> None:
    first, second = blank(tmp_path / "a", 8 * MIB), blank(tmp_path / "b", 8 * MIB)
    with first.open("r+b") as file:
        file.seek(offset)
        file.write((0xA92B4EFC).to_bytes(4, "little") + b"\1" * 100)
    with pytest.raises(ImageHoldsData, match="an md superblock"):
        create_on(first, second)
    create_on(first, second, force=True)
    data = first.read_bytes()
    assert data.count((0xA92B4EFC).to_bytes(4, "little")) == 1
    assert superblock_of(first).events == 0
    assert not any(data[offset : offset + 4096]) or offset == 4096


def test_with_force_a_file_system_is_no_longer_recognised(tmp_path: Path) -> None:
    first, second = blank(tmp_path / "a", 8 * MIB), blank(tmp_path / "b", 8 * MIB)
    with first.open("r+b") as file:
        file.write(b"XFSB" + b"kept")
    create_on(first, second, force=True)
    assert first.read_bytes()[:8] == bytes(4) + b"kept"


def test_an_image_that_a_node_holds_is_refused(tmp_path: Path) -> None:
    first, second = blank(tmp_path / "a", 8 * MIB), blank(tmp_path / "b", 8 * MIB)
    with second.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(ImageInUse, match="b is in use"):
            create_on(first, second, force=True)
    assert not any(first.read_bytes())
    create_on(first, second)


def test_the_same_image_twice_is_refused_under_any_name(tmp_path: Path) -> None:
    first = blank(tmp_path / "a", 8 * MIB)
    (tmp_path / "link").symlink_to(first)
    os.link(first, tmp_path / "hard")
    for other in (first, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(SameImageTwice):
            create_on(first, other)
    with pytest.raises(SameImageTwice):
        create_on(tmp_path / "new", tmp_path / "." / "new", size_bytes=MIB)
    with pytest.raises(SameImageTwice):
        create_on(tmp_path / "new", Path(f"{tmp_path}/../{tmp_path.name}/new"), size_bytes=MIB)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"legs": 1}, BadGeometry),
        ({"legs": 17}, BadGeometry),
        ({"spares": 17}, BadGeometry),
        ({"nodes": 1}, BadGeometry),
        ({"nodes": 65}, BadGeometry),
        ({"chunk_bytes": 5000}, BadGeometry),
        ({"size_bytes": 4095}, BadGeometry),
        ({"name": ""}, BadGeometry),
        ({"name": ".."}, BadGeometry),
        ({"name": "a/b"}, BadGeometry),
        ({"name": "a:b"}, BadGeometry),
        ({"name": "n" * 32}, BadGeometry),
        ({"cluster_name": ""}, BadGeometry),
        ({"cluster_name": "c" * 64}, BadGeometry),
        ({"cluster_name": "a\nb"}, BadGeometry),
        ({"nodes": 64, "chunk_bytes": 4096, "size_bytes": 2 * GIB}, TooManyNodes),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, request_: dict[str, Any], error: type[RaidfsError]
) -> None:
    with pytest.raises(error):
        make_array(tmp_path, **request_)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_too_small_is_named_and_the_made_ones_are_removed(tmp_path: Path) -> None:
    first, second = blank(tmp_path / "a", 16 * MIB), blank(tmp_path / "b", 4 * MIB)
    with pytest.raises(ImageTooSmall, match="b is too small: it has 8192 sectors and 18432 are needed"):
        create_on(first, second, tmp_path / "c", size_bytes=8 * MIB)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ImageTooSmall, match="empty is too small"):
        create_on(first, blank(tmp_path / "empty", 0))


def fail_at(monkeypatch: pytest.MonkeyPatch, condition: Callable[[int, int], bool]) -> list[int]:
    """Let the n-th write (from 0) fail with EIO when ``condition(n, offset_bytes)``; return the offsets written."""
    offsets: list[int] = []
    write = OpenImage.write

    def failing(self: OpenImage, offset_bytes: int, data: bytes) -> None:
        if condition(len(offsets), offset_bytes):
            raise ImageAccess(path=self.path, doing="write it", reason="Input/output error")
        offsets.append(offset_bytes)
        write(self, offset_bytes, data)

    monkeypatch.setattr(OpenImage, "write", failing)
    return offsets


def test_a_failed_write_removes_the_files_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, lambda n, offset: n == 5)
    with pytest.raises(ImageAccess, match="cannot write it: Input/output error"):
        make_array(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_until_the_last_step_no_image_has_a_superblock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [blank(tmp_path / name, 8 * MIB) for name in ("a", "b")]
    for crash_at in range(2 + 2 * 4 + 1):  # two old superblocks, four slots on each of two images, one superblock
        create_on(*paths, force=True, name="old")
        with monkeypatch.context() as patch:
            fail_at(patch, lambda n, offset, at=crash_at: n == at)  # type: ignore[misc]
            with pytest.raises(ImageAccess):
                create_on(*paths, force=True, name="new")
        names = set()
        for path in paths:
            try:
                names.add(superblock_of(path).array_name)
            except RaidfsError:
                names.add("none")
        assert "new" not in names
        assert names == {"old"} or crash_at > 0


def test_bitmaps_are_synced_before_superblocks_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    write, sync = OpenImage.write, OpenImage.sync

    def logged_write(self: OpenImage, offset_bytes: int, data: bytes) -> None:
        steps.append("superblock" if offset_bytes == 4096 else "bitmap")
        write(self, offset_bytes, data)

    def logged_sync(self: OpenImage) -> None:
        steps.append("sync")
        sync(self)

    monkeypatch.setattr(OpenImage, "write", logged_write)
    monkeypatch.setattr(OpenImage, "sync", logged_sync)
    make_array(tmp_path, nodes=2)
    assert steps == [*["bitmap", "bitmap", "sync"] * 2, *["superblock", "sync"] * 2]


def test_what_was_there_is_gone_for_good_before_anything_new_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [image.path for image in make_array(tmp_path, nodes=2).images]
    steps: list[str] = []
    write, sync = OpenImage.write, OpenImage.sync

    def logged_write(self: OpenImage, offset_bytes: int, data: bytes) -> None:
        steps.append("other" if any(data) else "zeros")
        write(self, offset_bytes, data)

    def logged_sync(self: OpenImage) -> None:
        steps.append("sync")
        sync(self)

    monkeypatch.setattr(OpenImage, "write", logged_write)
    monkeypatch.setattr(OpenImage, "sync", logged_sync)
    create_on(*map(Path, paths), force=True, nodes=2)
    assert steps == [*["zeros", "sync"] * 2, *["other", "other", "sync"] * 2, *["other", "sync"] * 2]


def test_a_magic_in_the_data_area_is_content_and_stays(tmp_path: Path) -> None:
    paths = [blank(tmp_path / name, 8 * MIB) for name in ("a", "b")]
    for path in paths:
        with path.open("r+b") as file:
            file.seek(8 * MIB - 512)
            file.write(b"EFI PART")
    create_on(*paths, force=True, assume_clean=True)
    assert [path.read_bytes()[8 * MIB - 512 :][:8] for path in paths] == [b"EFI PART"] * 2


def test_the_names_of_made_files_are_durable_before_their_superblocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def logged(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", logged)
    make_array(tmp_path)
    leg = str(tmp_path / "leg0")
    assert leg in synced[: synced.index(str(tmp_path))]
    assert str(tmp_path) in synced[: len(synced) - synced[::-1].index(leg) - 1]


def test_an_image_with_blocks_larger_than_the_superblock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_file_block_bytes", lambda fd: 8192)
    with pytest.raises(BadGeometry, match=r"block size of .*leg0, 8192 is not possible"):
        make_array(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "homehost", "stored"),
    [
        ("md0", "alpha", b"alpha:md0"),
        ("md0", "", b"md0"),
        ("n" * 20, "h" * 10, b"h" * 10 + b":" + b"n" * 20),
        ("n" * 20, "h" * 11, b"n" * 20),
    ],
)
def test_the_home_host_is_left_out_when_it_does_not_fit(name: str, homehost: str, stored: bytes) -> None:
    assert set_name(name, homehost) == stored


def test_the_document_names_the_array_and_each_image(tmp_path: Path) -> None:
    document = make_array(tmp_path, spares=1, size_bytes=64 * MIB).to_json()
    assert document["schema"] == 1
    assert document["array"] == {
        "uuid": "00010203:04050607:08090a0b:0c0d0e0f",
        "name": "alpha:md0",
        "cluster_name": "raidfs",
        "size_bytes": 64 * MIB,
        "nodes": 4,
        "bitmap_chunk_bytes": 64 * MIB,
        "data_offset_bytes": MIB,
        "slot_bytes": 4096,
        "assume_clean": False,
    }
    images = document["images"]
    assert isinstance(images, list)
    assert images[2] == {
        "path": str(tmp_path / "spare0"),
        "role": None,
        "state": "spare",
        "size_bytes": 65 * MIB,
        "device_uuid": "d2d2d2d2:d2d2d2d2:d2d2d2d2:d2d2d2d2",
        "created": True,
    }


@pytest.mark.parametrize(
    ("number", "legs", "request_"),
    [
        ("004", 2, {"nodes": 3, "chunk_bytes": 16 * KIB, "name": "gold"}),
        (
            "005",
            3,
            {"nodes": 16, "chunk_bytes": 64 * KIB, "name": "three", "assume_clean": True, "size_bytes": 100000 * KIB},
        ),
        ("008", 2, {"name": "big0", "assume_clean": True}),
        ("009", 2, {"name": "big2", "assume_clean": True}),
        ("010", 2, {"name": "big4", "assume_clean": True}),
        ("011", 2, {"name": "big6", "assume_clean": True}),
    ],
)
def test_the_bytes_are_those_that_mdadm_wrote(tmp_path: Path, number: str, legs: int, request_: dict[str, Any]) -> None:
    golden = golden_images(number)
    theirs = [Superblock.decode(image.head[4096:8192]) for image in golden]
    members = max(legs, len(golden))  # of some arrays the first member alone is kept
    paths = [str(blank(tmp_path / f"member{n}", golden[0].length_bytes)) for n in range(members)]
    device_uuids = [superblock.device_uuid for superblock in theirs]
    create_array(
        ArrayRequest(
            images=tuple(paths[:legs]),
            spares=tuple(paths[legs:]),
            homehost="maker",
            cluster_name="vmlab",
            **request_,
        ),
        set_uuid=theirs[0].set_uuid,
        device_uuids=device_uuids + [bytes(16)] * (members - len(golden)),
        now_s=theirs[0].ctime,
    )
    for path, image in zip(paths, golden, strict=False):
        with open(path, "rb") as file:
            assert file.read(len(image.head)) == image.head
