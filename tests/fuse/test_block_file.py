"""What the block file promises to programs that use it, over a bytearray and over a real array."""

from __future__ import annotations

import errno
import mmap
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable, Iterator

import pytest
from support.fuse_uring import OverUring
from support.mounted import SIZE_BYTES, Array, Backend, Memory, Node

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

Opener = Callable[[int], int]


@pytest.fixture(scope="module", params=["memory", "native", "pyfuse3", "fuse uring"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    # One mount for the whole module: nothing here changes it, and every test writes what it reads.
    with tempfile.TemporaryDirectory(prefix="raidfs-") as path, pytest.MonkeyPatch.context() as environment:
        directory = pathlib.Path(path).resolve()
        environment.setenv("RAIDFS_RUNTIME_DIR", str(directory / "run"))
        (directory / "n0").mkdir()
        backend: Backend
        if request.param == "memory":
            backend = Memory()
        elif request.param == "fuse uring":
            backend = OverUring(directory)
        else:
            backend = Array(directory, "--plane", request.param)
        try:
            yield backend.mount(directory / "n0")
        finally:
            backend.close()


def _errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call()
    return caught.value.errno


def test_the_directory_holds_the_block_file_and_nothing_else(node: Node) -> None:
    assert os.listdir(node.directory) == ["md0"]


def test_stat_tells_size_owner_and_a_private_mode(node: Node) -> None:
    found = os.stat(node.file)
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_size, found.st_uid, found.st_gid) == (SIZE_BYTES, os.getuid(), os.getgid())
    assert found.st_blocks * 512 == SIZE_BYTES
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(os.stat(node.directory).st_mode) == 0o700


def test_the_file_system_is_full_and_as_large_as_the_array(node: Node) -> None:
    found = os.statvfs(node.directory)
    assert found.f_blocks * found.f_frsize == SIZE_BYTES
    assert (found.f_bavail, found.f_files, found.f_ffree) == (0, 1, 0)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4096), (4096, 1 << 20), (1, 1), (511, 2), (12345, 67890), (SIZE_BYTES - 3, 3)]
)
def test_what_is_written_is_read_at_any_alignment(opened: Opener, offset: int, length: int) -> None:
    fd = opened(os.O_RDWR)
    data = os.urandom(length)
    assert os.pwrite(fd, data, offset) == length
    assert os.pread(fd, length, offset) == data


def test_direct_io_works(opened: Opener) -> None:
    fd = opened(os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 20) as buffer:
        buffer[:] = os.urandom(1 << 20)
        assert os.pwritev(fd, [buffer], 1 << 20) == 1 << 20
        with mmap.mmap(-1, 1 << 20) as back:
            assert os.preadv(fd, [back], 1 << 20) == 1 << 20
            assert back[:] == buffer[:]


def test_another_descriptor_reads_what_was_written_since_nothing_is_cached(opened: Opener) -> None:
    reader, writer = opened(os.O_RDONLY), opened(os.O_WRONLY)
    before = os.pread(reader, 4096, 0)
    os.pwrite(writer, bytes(255 - byte for byte in before), 0)
    assert os.pread(reader, 4096, 0) == bytes(255 - byte for byte in before)


def test_reads_end_at_the_end(opened: Opener) -> None:
    fd = opened(os.O_RDONLY)
    assert len(os.pread(fd, 8192, SIZE_BYTES - 4096)) == 4096
    assert os.pread(fd, 4096, SIZE_BYTES) == b""
    assert os.pread(fd, 4096, SIZE_BYTES + 4096) == b""


def test_a_write_over_the_end_is_short_and_one_beyond_it_has_no_space(opened: Opener) -> None:
    fd = opened(os.O_RDWR)
    assert os.pwrite(fd, b"x" * 8192, SIZE_BYTES - 4096) == 4096
    assert _errno_of(lambda: os.pwrite(fd, b"x", SIZE_BYTES)) == errno.ENOSPC
    assert _errno_of(lambda: os.pwrite(fd, b"x", SIZE_BYTES + 4096)) == errno.ENOSPC
    assert os.fstat(fd).st_size == SIZE_BYTES


def test_append_has_no_space(opened: Opener) -> None:
    fd = opened(os.O_WRONLY | os.O_APPEND)
    assert _errno_of(lambda: os.write(fd, b"x")) == errno.ENOSPC


def test_truncating_is_not_permitted(node: Node, opened: Opener) -> None:
    fd = opened(os.O_RDWR)
    assert _errno_of(lambda: os.truncate(node.file, 0)) == errno.EPERM
    assert _errno_of(lambda: os.ftruncate(fd, SIZE_BYTES * 2)) == errno.EPERM
    assert os.fstat(fd).st_size == SIZE_BYTES


def test_an_open_with_o_trunc_fails_and_leaves_size_and_content(node: Node, opened: Opener) -> None:
    fd = opened(os.O_RDWR)
    os.pwrite(fd, b"still here", 4096)
    for flags in (os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC):
        assert _errno_of(lambda flags=flags: os.open(node.file, flags)) == errno.EPERM  # type: ignore[misc]
        assert os.fstat(fd).st_size == SIZE_BYTES
        assert os.stat(node.file).st_size == SIZE_BYTES
        assert os.pread(fd, 10, 4096) == b"still here"


@pytest.mark.parametrize(
    "change",
    [
        lambda file: os.unlink(file),
        lambda file: os.rename(file, f"{file}.old"),
        lambda file: os.link(file, f"{file}.2"),
        lambda file: os.symlink(file, f"{file}.2"),
        lambda file: os.open(f"{file}.new", os.O_CREAT | os.O_WRONLY),
        lambda file: os.mkdir(f"{file}.d"),
        lambda file: os.mknod(f"{file}.fifo", stat.S_IFIFO | 0o600),
        lambda file: os.chmod(file, 0o666),
        lambda file: os.chown(file, 12345, 12345),
    ],
    ids=["unlink", "rename", "link", "symlink", "create", "mkdir", "mknod", "chmod", "chown"],
)
def test_the_name_space_cannot_be_changed(node: Node, change: Callable[[pathlib.Path], object]) -> None:
    assert _errno_of(lambda: change(node.file)) == errno.EPERM
    assert os.listdir(node.directory) == ["md0"]


def test_touch_works_and_changes_nothing(node: Node) -> None:
    before = os.stat(node.file)
    os.utime(node.file)
    assert os.stat(node.file).st_mtime_ns == before.st_mtime_ns


def test_there_are_no_extended_attributes(node: Node) -> None:
    assert _errno_of(lambda: os.setxattr(node.file, "user.a", b"1")) == errno.ENOTSUP
    assert _errno_of(lambda: os.getxattr(node.file, "user.a")) == errno.ENOTSUP


def test_a_shared_mapping_is_refused_since_it_would_be_a_cache(opened: Opener) -> None:
    fd = opened(os.O_RDWR)
    assert _errno_of(lambda: mmap.mmap(fd, 4096)) == errno.ENODEV


def test_a_read_only_node_refuses_to_open_for_writing(backend: Backend, directories: list[pathlib.Path]) -> None:
    node = backend.mount(directories[0], "--read-only")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert _errno_of(lambda flags=flags: os.open(node.file, flags)) == errno.EROFS  # type: ignore[misc]
    fd = os.open(node.file, os.O_RDONLY)
    assert len(os.pread(fd, 4096, 0)) == 4096
    os.close(fd)


class TestDurability:
    """Which writes reach the volume as durable; a bytearray remembers (its status tells the count as written_bytes)."""

    @pytest.fixture
    def node(self, memory: Memory, directories: list[pathlib.Path]) -> Node:
        return memory.mount(directories[0])

    def _durable_and_flushes(self, node: Node) -> tuple[int, int]:
        engine = node.status().engine
        return engine.written_bytes, engine.flushes

    def test_a_plain_write_is_not_durable_and_closing_flushes_nothing(self, node: Node) -> None:
        fd = os.open(node.file, os.O_WRONLY)
        os.write(fd, b"x" * 512)
        os.close(fd)
        assert self._durable_and_flushes(node) == (0, 0)

    @pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
    def test_fsync_and_fdatasync_flush(self, node: Node, opened: Opener, sync: Callable[[int], None]) -> None:
        sync(opened(os.O_WRONLY))
        assert self._durable_and_flushes(node) == (0, 1)

    @pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC])
    def test_writes_of_a_file_opened_with_o_dsync_are_durable(self, node: Node, opened: Opener, flag: int) -> None:
        os.write(opened(os.O_WRONLY | flag), b"x" * 512)
        assert self._durable_and_flushes(node) == (1, 0)

    @pytest.mark.parametrize("flag", [os.RWF_DSYNC, os.RWF_SYNC])
    def test_a_single_write_with_rwf_dsync_is_durable(self, node: Node, opened: Opener, flag: int) -> None:
        fd = opened(os.O_WRONLY)
        os.pwritev(fd, [b"x" * 512], 0, flag)
        os.pwritev(fd, [b"x" * 512], 0)
        assert self._durable_and_flushes(node) == (1, 0)
