"""Holes and zeros in the block file (native plane): on all legs, with the promises of a write."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pathlib
import struct
import tempfile
import threading
from collections.abc import Iterator

import pytest
from support.fuse_uring import OverUring
from support.mounted import SIZE_BYTES, Array, Node, eventually, raidfs

from raidfs.array.examine import examine_image

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # linux/falloc.h
BLKGETSIZE64 = 0x80081272
MIB = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(params=["memory legs", "io_uring", "fuse uring"])
def array(request: pytest.FixtureRequest, short_path: pathlib.Path) -> Iterator[Array]:
    with tempfile.TemporaryDirectory(prefix="raidfs-", dir="/dev/shm") as memory:
        kind = OverUring if request.param == "fuse uring" else Array
        backend = kind(short_path if request.param == "io_uring" else pathlib.Path(memory))
        yield backend
        backend.close()


@pytest.fixture
def node(array: Array, directories: list[pathlib.Path]) -> Node:
    return array.mount(directories[0])


@pytest.fixture
def fd(node: Node) -> Iterator[int]:
    fd = os.open(node.file, os.O_RDWR)
    for start in range(0, 8 * MIB, MIB):
        os.pwrite(fd, b"\xaa" * MIB, start)
    yield fd
    os.close(fd)


def legs(array: Array) -> list[bytes]:
    found = []
    for image in array.images:
        start = int(examine_image(str(image)).superblock.data_offset_sectors) * 512
        with open(image, "rb") as file:
            found.append(os.pread(file.fileno(), 8 * MIB, start))
    return found


RANGES = ((0, 4096), (MIB, 5 * MIB), (1, 1), (511, 2), (4095, 4098), (MIB - 700, 2 * MIB + 1500))


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
def test_a_range_reads_as_zeros_on_every_leg_and_its_neighbours_are_what_they_were(
    fd: int, array: Array, mode: int
) -> None:
    for offset, length in RANGES:
        for start in range(0, 8 * MIB, MIB):
            os.pwrite(fd, b"\xaa" * MIB, start)
        fallocate(fd, mode, offset, length)
        wanted = b"\xaa" * offset + bytes(length) + b"\xaa" * (8 * MIB - offset - length)
        assert b"".join(os.pread(fd, MIB, start) for start in range(0, 8 * MIB, MIB)) == wanted
        os.fsync(fd)
        assert [leg == wanted for leg in legs(array)] == [True, True]


def test_a_hole_gives_its_space_back_on_every_leg(fd: int, array: Array) -> None:
    os.fsync(fd)
    before = [image.stat().st_blocks for image in array.images]
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, 6 * MIB)
    os.fsync(fd)
    after = [image.stat().st_blocks for image in array.images]
    assert [was - now >= 5 * MIB // 512 for was, now in zip(before, after, strict=True)] == [True, True]


def test_a_hole_waits_in_a_suspended_range_like_a_write(node: Node, fd: int) -> None:
    node.suspend(2 * MIB, 3 * MIB)
    puncher = threading.Thread(target=fallocate, args=(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4 * MIB))
    puncher.start()
    eventually(lambda: node.status().engine.parked == 1, "the third piece is parked")
    assert os.pread(fd, 1, 2 * MIB - 1) == b"\0"
    assert os.pread(fd, 1, 2 * MIB) == b"\xaa"
    node.suspend(0, 0)
    puncher.join()
    assert os.pread(fd, 1, 4 * MIB - 1) == b"\0"


def test_the_end_of_the_file_is_kept(fd: int) -> None:
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, SIZE_BYTES - 4096, MIB)
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, SIZE_BYTES - 4096, MIB)
    for mode, wanted in ((ZERO_RANGE, errno.ENOSPC), (0, errno.EOPNOTSUPP), (KEEP_SIZE, errno.EOPNOTSUPP)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fallocate(fd, mode, SIZE_BYTES - 4096, MIB)
        assert caught.value.errno == wanted
    assert os.fstat(fd).st_size == SIZE_BYTES


def test_seek_finds_data_and_holes(fd: int) -> None:
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 2 * MIB, 2 * MIB)
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 2 * MIB
    assert os.lseek(fd, 3 * MIB, os.SEEK_DATA) == 4 * MIB
    assert os.lseek(fd, SIZE_BYTES - 1, os.SEEK_HOLE) == SIZE_BYTES - 1
    for offset, whence in ((16 * MIB, os.SEEK_DATA), (SIZE_BYTES, os.SEEK_HOLE), (SIZE_BYTES, os.SEEK_DATA)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.lseek(fd, offset, whence)
        assert caught.value.errno == errno.ENXIO


def test_the_size_can_be_asked_for_as_of_a_device(fd: int) -> None:
    assert struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0] == SIZE_BYTES
    with pytest.raises(OSError) as caught:  # noqa: PT011
        fcntl.ioctl(fd, 0x1268)  # BLKSSZGET gives no length with its number, so FUSE cannot carry its answer
    assert caught.value.errno == errno.ENOTTY


def test_the_portable_plane_says_that_it_has_no_holes(array: Array, directories: list[pathlib.Path]) -> None:
    node = array.mount(directories[1], "--plane", "pyfuse3")
    fd = os.open(node.file, os.O_RDWR)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
    os.close(fd)
    assert raidfs("umount", node.directory).returncode == 0
