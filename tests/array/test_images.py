from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.array import images
from raidfs.array.images import image_identity, open_image
from raidfs.errors import ImageAccess, ImageClosed, ImageInUse, ImageNotFound, ImageNotUsable, ImageShort
from raidfs.units import MIB

needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="loop devices need root and /dev/loop-control"
)
CONTENT = bytes(i * 7 % 251 for i in range(3 * MIB + 777))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "content"
    path.write_bytes(CONTENT)
    return str(path)


@pytest.fixture(params=[512, 4096], ids=["512-byte blocks", "4096-byte blocks"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    path = tmp_path / "backing"
    path.write_bytes(CONTENT[: 2 * MIB])
    command = ["losetup", "-f", "--show", "-b", str(request.param), str(path)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    yield name, request.param
    subprocess.run(["losetup", "-d", name], check=True)


@given(offset_bytes=st.integers(0, len(CONTENT)), length_bytes=st.integers(0, 2 * MIB), direct=st.booleans())
def test_any_range_is_read_exactly(content: str, offset_bytes: int, length_bytes: int, direct: bool) -> None:
    length_bytes = min(length_bytes, len(CONTENT) - offset_bytes)
    with open_image(content, direct=direct) as image:
        assert image.read(offset_bytes, length_bytes) == CONTENT[offset_bytes : offset_bytes + length_bytes]


def test_reading_beyond_the_end_says_that_the_image_is_truncated(content: str) -> None:
    with (
        open_image(content) as image,
        pytest.raises(ImageShort, match=f"ends at byte {len(CONTENT)}, before the 4096 bytes at {len(CONTENT)}"),
    ):
        image.read(len(CONTENT), 4096)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 * MIB))
    data = CONTENT[: 2 * MIB + 8192]
    with open_image(str(path), writable=True) as image:
        image.write(4096, data)
        image.sync()
        assert image.read(4096, len(data)) == data
    assert path.read_bytes() == bytes(4096) + data + bytes(2 * MIB - 12288)


def test_an_image_that_was_opened_for_reading_cannot_be_written(content: str) -> None:
    with open_image(content) as image, pytest.raises(ImageAccess, match="cannot write it"):
        image.write(0, bytes(4096))


def test_a_file_that_takes_direct_io_is_opened_with_it(content: str) -> None:
    with open_image(content) as image:
        flags = fcntl.fcntl(image.fd, fcntl.F_GETFL)
        assert image.direct == bool(flags & os.O_DIRECT)
        assert not image.is_block_device
        assert image.logical_block_bytes in (512, 1024, 2048, 4096)
    with open_image(content, direct=False) as image:
        assert not image.direct
        assert not fcntl.fcntl(image.fd, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("refuses", ["open", "read"])
def test_storage_that_refuses_direct_io_is_opened_buffered(
    content: str, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    real_open, real_preadv = os.open, os.preadv

    def no_direct_open(path: str, flags: int) -> int:
        if refuses == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags)

    def no_direct_read(fd: int, buffers: list[memoryview], offset: int) -> int:
        if refuses == "read" and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "open", no_direct_open)
    monkeypatch.setattr(os, "preadv", no_direct_read)
    with open_image(content) as image:
        assert not image.direct
        assert image.read(1, 5) == CONTENT[1:6]


def test_without_statx_the_block_size_is_proved_by_reading(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_preadv = os.preadv

    def blocks_of_1024(fd: int, buffers: list[memoryview], offset: int) -> int:
        if sum(len(buffer) for buffer in buffers) % 1024:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(images, "_statx_offset_align_bytes", lambda fd: 0)
    monkeypatch.setattr(os, "preadv", blocks_of_1024)
    with open_image(content) as image:
        assert image.logical_block_bytes == 1024


def test_an_error_of_the_storage_is_told_with_the_image_and_the_reason(
    content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_image(content) as image:

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(ImageAccess, match=r"content: cannot read it: Input/output error"):
            image.read(0, 1)
        with pytest.raises(ImageAccess, match=r"content: cannot flush it: Input/output error"):
            image.sync()


def test_closing_twice_is_harmless_and_using_it_afterwards_is_not(content: str) -> None:
    image = open_image(content)
    image.close()
    image.close()
    with pytest.raises(ImageClosed, match="was closed already"):
        image.read(0, 1)


@pytest.mark.parametrize("path", ["absent", "a\0b"])
def test_a_name_without_a_file_is_told(tmp_path: Path, path: str) -> None:
    with pytest.raises((ImageNotFound, ImageAccess)):
        open_image(str(tmp_path / path))


def test_what_cannot_be_an_image_is_named_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a directory"), (tmp_path / "pipe", "a pipe"), ("/dev/zero", "a character device")):
        with pytest.raises(ImageNotUsable, match=f"is {kind}; a backing image is"):
            open_image(str(path))


def test_one_exclusive_lock_stands_against_any_other(content: str) -> None:
    with open_image(content) as first, open_image(content) as second:
        first.lock(exclusive=False)
        second.lock(exclusive=False)
        with pytest.raises(ImageInUse):
            second.lock(exclusive=True)
        first.close()
        second.lock(exclusive=True)


def test_two_names_of_one_file_have_one_identity(tmp_path: Path, content: str) -> None:
    (tmp_path / "link").symlink_to(content)
    other = tmp_path / "other"
    other.touch()
    assert image_identity(str(tmp_path / "link")) == image_identity(content) != image_identity(str(other))


@pytest.mark.root
@needs_loop
def test_a_block_device_tells_its_size_and_block_size(device: tuple[str, int]) -> None:
    name, block_bytes = device
    with open_image(name) as image:
        assert (image.is_block_device, image.direct) == (True, True)
        assert (image.size_bytes, image.logical_block_bytes) == (2 * MIB, block_bytes)
        assert image.read(777, 5000) == CONTENT[777:5777]


@pytest.mark.root
@needs_loop
def test_a_block_device_that_the_system_uses_is_refused(device: tuple[str, int], tmp_path: Path) -> None:
    name, _ = device
    holder = os.open(name, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(ImageInUse):
            open_image(name, writable=True, exclusive=True)
    finally:
        os.close(holder)
    open_image(name, writable=True, exclusive=True).close()
