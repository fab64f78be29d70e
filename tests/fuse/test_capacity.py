"""The mounted file has the size that the array serves, from the moment on in which that has been changed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from support.mounted import SIZE_BYTES, Array, Node, eventually

from raidfs.control import client
from raidfs.mount import capacity, mountpoint

pytestmark = pytest.mark.fuse

SMALL = SIZE_BYTES // 2
BLOCK = 4096
_TESTS = pathlib.Path(__file__).parent.parent


class Sized:
    """A mounted node whose capacity can be said."""

    def __init__(self, array: Array, directory: pathlib.Path, plane: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.capacity_node", str(directory), plane, *map(str, array.images)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_TESTS,
            env={**os.environ, "PYTHONPATH": str(_TESTS.parent)},
            text=True,
        )
        assert self._said() == "ready\n"
        self.node = Node(directory, directory / "md0", self._process.pid)
        self.file = self.node.file

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def serve(self, size_bytes: int) -> None:
        """Have the node serve so much; returns when it acknowledges that."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size_bytes}\n")
        self._process.stdin.flush()
        assert self._said() == f"{size_bytes}\n"

    def close(self) -> None:
        self._process.terminate()
        assert self._process.wait(30) == 0
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(params=["native", "pyfuse3"])
def sized(request: pytest.FixtureRequest, array: Array, directories: list[pathlib.Path]) -> Iterator[Sized]:
    found = Sized(array, directories[0], request.param)
    yield found
    found.close()


@pytest.fixture
def opened(sized: Sized) -> Iterator[int]:
    fd = os.open(sized.file, os.O_RDWR | os.O_DIRECT)
    yield fd
    os.close(fd)


@pytest.fixture
def aio() -> Iterator[Callable[[int, int], int]]:
    """Linux asynchronous I/O, which does not ask for the size of the file: read a block and return the bytes got."""
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are those of x86-64")
    call = ctypes.CDLL(None, use_errno=True).syscall
    context = ctypes.c_ulong(0)
    assert call(206, 1, ctypes.byref(context)) == 0, os.strerror(ctypes.get_errno())  # io_setup
    room = mmap.mmap(-1, BLOCK)
    place = ctypes.addressof(ctypes.c_char.from_buffer(room))

    def read(fd: int, offset: int) -> int:
        # data key flags opcode priority fd buf nbytes offset reserved flags resfd: a PREAD
        request = ctypes.create_string_buffer(
            struct.pack("=QIiHhIQQqQII", 0, 0, 0, 0, 0, fd, place, BLOCK, offset, 0, 0, 0)
        )
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        assert call(209, context, ctypes.c_long(1), pointers) == 1, os.strerror(ctypes.get_errno())  # io_submit
        event = ctypes.create_string_buffer(32)
        assert call(208, context, ctypes.c_long(1), ctypes.c_long(1), event, None) == 1  # io_getevents
        _data, _request, result, _more = struct.unpack("=QQqq", event.raw)
        return int(result)

    yield read
    call(207, context)  # io_destroy


def test_new_space_is_there_at_once_for_whoever_has_the_file_open(
    sized: Sized, opened: int, aio: Callable[[int, int], int]
) -> None:
    sized.serve(SMALL)
    assert os.fstat(opened).st_size == SMALL
    assert aio(opened, SMALL) == 0
    sized.serve(SIZE_BYTES)
    assert aio(opened, SMALL) == aio(opened, SIZE_BYTES - BLOCK) == BLOCK
    assert aio(opened, SIZE_BYTES) == 0
    assert os.fstat(opened).st_size == os.lseek(opened, 0, os.SEEK_END) == SIZE_BYTES


def test_what_is_cut_off_is_gone_at_once(sized: Sized, opened: int, aio: Callable[[int, int], int]) -> None:
    assert aio(opened, SMALL) == BLOCK
    sized.serve(SMALL)
    assert aio(opened, SMALL) == 0
    assert os.lseek(opened, 0, os.SEEK_END) == SMALL
    fd = os.open(sized.file, os.O_RDWR)
    try:
        assert os.pread(fd, 2 * BLOCK, SMALL - BLOCK) == bytes(BLOCK)
        assert os.pwrite(fd, bytes(2 * BLOCK), SMALL - BLOCK) == BLOCK
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.pwrite(fd, b"a", SMALL)
    finally:
        os.close(fd)
    with client.find(str(sized.node.directory)) as node, pytest.raises(Exception, match="range"):
        node.call("suspend", lo_bytes=SMALL, hi_bytes=SMALL + BLOCK)


def test_holes_and_zeros_end_at_the_capacity(array: Array, directories: list[pathlib.Path]) -> None:
    sized = Sized(array, directories[0], "native")
    fd = os.open(sized.file, os.O_RDWR)
    try:
        os.pwrite(fd, b"a" * BLOCK, SMALL)
        sized.serve(SMALL)
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(fd, SMALL, os.SEEK_DATA)
        assert os.lseek(fd, SMALL - 1, os.SEEK_HOLE) <= SMALL
        size = struct.unpack("Q", _ioctl_size(fd))[0]
        assert size == SMALL
        assert _punch(fd, SMALL - BLOCK, 2 * BLOCK) == 0
        sized.serve(SIZE_BYTES)
        assert os.pread(fd, BLOCK, SMALL) == b"a" * BLOCK
    finally:
        os.close(fd)
        sized.close()


def _ioctl_size(fd: int) -> bytes:
    return fcntl.ioctl(fd, 0x80081272, bytes(8))  # BLKGETSIZE64


def _punch(fd: int, offset: int, length: int) -> int:
    call = ctypes.CDLL(None, use_errno=True).fallocate
    keep_size_and_punch_hole = 3
    return int(call(fd, keep_size_and_punch_hole, ctypes.c_long(offset), ctypes.c_long(length)))


@pytest.mark.timeout(60)
def test_the_kernel_learns_of_it_between_writes_that_do_not_stop(
    sized: Sized, opened: int, aio: Callable[[int, int], int]
) -> None:
    over = threading.Event()

    def write(number: int) -> None:
        fd = os.open(sized.file, os.O_RDWR)
        while not over.is_set():
            os.pwrite(fd, bytes(BLOCK), number * BLOCK)
        os.close(fd)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            sized.serve(SMALL)
            assert aio(opened, SMALL) == 0
            sized.serve(SIZE_BYTES)
            assert aio(opened, SMALL) == BLOCK
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.timeout(60)
def test_writes_that_are_parked_hold_nothing_up(sized: Sized, opened: int, aio: Callable[[int, int], int]) -> None:
    sized.serve(SMALL)
    fd = os.open(sized.file, os.O_RDWR)
    threads = [threading.Thread(target=os.pwrite, args=(fd, b"a" * BLOCK, n * BLOCK)) for n in range(20)]
    sized.node.suspend(0, SMALL)
    try:
        for thread in threads:
            thread.start()
        eventually(lambda: sized.node.status().engine.parked == 20, "all writes are parked")
        sized.serve(SIZE_BYTES)
        assert aio(opened, SMALL) == BLOCK
    finally:
        sized.node.suspend(0, 0)
        for thread in threads:
            thread.join()
        found = os.pread(fd, BLOCK, 19 * BLOCK)
        os.close(fd)
    assert found == b"a" * BLOCK


@pytest.mark.root
@pytest.mark.slow
def test_a_loop_device_finds_new_space(sized: Sized) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    sized.serve(SMALL)
    made = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", str(sized.file)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        sized.serve(SIZE_BYTES)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        fd = os.open(device, os.O_RDWR | os.O_DSYNC)
        try:
            assert os.lseek(fd, 0, os.SEEK_END) == SIZE_BYTES
            os.pwrite(fd, b"a" * BLOCK, SIZE_BYTES - BLOCK)
            assert os.pread(fd, BLOCK, SIZE_BYTES - BLOCK) == b"a" * BLOCK
        finally:
            os.close(fd)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert sized.file.read_bytes()[-BLOCK:] == b"a" * BLOCK


async def test_a_kernel_that_does_not_answer_is_logged_and_nobody_hangs(
    directories: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capacity, "TOLD_WITHIN_S", 0.1)
    fuse_fd = mountpoint.mount(str(directories[0]), source="md0", read_only=False)  # nobody reads it
    try:
        told = capacity.KernelSize(str(directories[0] / "md0"), lambda message: None, lambda: 0)
        await told.tell(SMALL)
        await told.tell(SIZE_BYTES)
    finally:
        os.close(fuse_fd)
        mountpoint.detach(str(directories[0]))
    assert caplog.text.count("does not take notice") == 2


async def test_a_file_that_is_not_there_any_more_needs_no_size(short_path: pathlib.Path) -> None:
    messages: list[bytes] = []
    await capacity.KernelSize(str(short_path / "md0"), messages.append, lambda: 0).tell(SMALL)
    assert len(messages) == 1
