from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidfs.array import extend as extend_module
from raidfs.array.extend import extend
from raidfs.array.images import open_image
from raidfs.errors import DeviceNotExtendable, ImageNotExtended
from raidfs.host import LinuxHost
from raidfs.units import GIB, MIB

CONTENT = bytes(i * 7 % 251 for i in range(MIB))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="loop devices need root and /dev/loop-control"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "leg"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 4 MiB, and an image in it."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", str(place)], check=True)
    try:
        (place / "leg").write_bytes(CONTENT)
        yield place / "leg"
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """As `small`, on ext4, which keeps what it could allocate when it runs out of space."""
    place, backing = tmp_path / "small", tmp_path / "backing"
    place.mkdir()
    with backing.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(backing)], check=True)
    subprocess.run(["mount", "-o", "loop", str(backing), str(place)], check=True)
    try:
        (place / "leg").write_bytes(CONTENT)
        yield place / "leg"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_image_is_extended_with_reserved_zeros_behind_what_it_holds(path: Path) -> None:
    with open_image(str(path), writable=True) as image:
        extend(image, 3 * MIB)
        assert image.size_bytes == 3 * MIB
        assert image.read(0, 3 * MIB) == CONTENT + bytes(2 * MIB)
    assert path.stat().st_blocks * 512 >= 3 * MIB


def test_a_hole_is_left_where_it_is_asked_for(path: Path) -> None:
    with open_image(str(path), writable=True) as image:
        extend(image, 1024 * MIB, sparse=True)
        assert image.read(1023 * MIB, MIB) == bytes(MIB)
    assert path.stat().st_blocks * 512 < 4 * MIB


@pytest.mark.parametrize("sparse", [False, True])
def test_an_image_that_is_long_enough_stays_as_it_is(path: Path, sparse: bool) -> None:
    with open_image(str(path), writable=True) as image:
        for size_bytes in (0, 4096, MIB):
            extend(image, size_bytes, sparse=sparse)
    assert path.read_bytes() == CONTENT


def test_the_length_of_now_counts_and_not_the_one_at_opening(path: Path) -> None:
    with open_image(str(path), writable=True) as image:
        os.truncate(path, 5 * MIB)
        assert image.size_bytes == MIB
        extend(image, 2 * MIB)
        assert image.size_bytes == 5 * MIB == path.stat().st_size


def check_refused(path: Path, size_bytes: int) -> None:
    with open_image(str(path), writable=True) as image:
        with pytest.raises(ImageNotExtended) as caught:
            extend(image, size_bytes)
        assert image.size_bytes == MIB
    text = f"{path} cannot be extended from {MIB} to {size_bytes} bytes: No space left on device"
    assert str(caught.value) == text
    assert path.read_bytes() == CONTENT


@pytest.mark.root
@needs_root
def test_a_full_file_system_leaves_the_old_length(small: Path) -> None:
    check_refused(small, 100 * MIB)


@pytest.mark.root
@needs_loop
def test_a_full_ext4_leaves_the_old_length(small_ext4: Path) -> None:
    free = os.statvfs(small_ext4).f_bavail
    check_refused(small_ext4, 100 * MIB)
    assert os.statvfs(small_ext4).f_bavail >= free - 16  # a few blocks to say where the others are


def test_a_file_system_without_fallocate_is_told_of_and_a_sparse_file_can_be_had(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fallocate(fd: int, offset_bytes: int, length_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(extend_module, "_fallocate", no_fallocate)
    with open_image(str(path), writable=True) as image:
        with pytest.raises(ImageNotExtended, match="cannot reserve space"):
            extend(image, 2 * MIB)
        extend(image, 2 * MIB, sparse=True)
        assert image.size_bytes == 2 * MIB


def test_a_length_that_does_not_become_durable_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_image(str(path), writable=True) as image:
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(ImageNotExtended, match="Input/output error"):
            extend(image, 2 * MIB)
        assert image.size_bytes == MIB == path.stat().st_size


@pytest.mark.root
@needs_loop
def test_a_block_device_is_refused_by_name_and_tells_its_size_when_it_has_grown(path: Path) -> None:
    command = ["losetup", "-f", "--show", str(path)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        with open_image(device, writable=True) as image:
            with pytest.raises(DeviceNotExtendable, match=f"^{device} is a block device of {MIB} bytes and {2 * MIB}"):
                extend(image, 2 * MIB)
            os.truncate(path, 2 * MIB)
            subprocess.run(["losetup", "-c", device], check=True)
            assert image.size_bytes == MIB
            assert image.refresh_size() == 2 * MIB
            extend(image, 2 * MIB)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


async def test_a_host_extends_an_open_image_and_tells_its_room(path: Path) -> None:
    host = LinuxHost()
    with open_image(str(path), writable=True) as image:
        assert await host.room_bytes(image) == MIB
        await host.extend(image, 2 * MIB)
        await host.extend(image, GIB, sparse=True)
        assert await host.room_bytes(image) == GIB == path.stat().st_size
    assert 2 * MIB <= path.stat().st_blocks * 512 < 4 * MIB
