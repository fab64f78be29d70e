"""What each plane does when something goes wrong, whoever carries its leg operations out.

The native plane has three ways to the legs: files in memory at once, others through io_uring, and through a pool of
threads where io_uring is forbidden.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from support.fuse_uring import OverUring, switched
from support.mounted import SIZE_BYTES, Array, Memory, Node, eventually, is_mounted, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

_TESTS = pathlib.Path(__file__).parent.parent


class _WithoutUring(Array):
    def _started(self, *words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "support.no_uring", sys.executable, "-m", "raidfs", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": f"{_TESTS}:{_TESTS.parent}"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.fixture(params=["memory legs", "io_uring", "pool", "pyfuse3", "fuse uring, memory legs", "fuse uring"])
def array(request: pytest.FixtureRequest, short_path: pathlib.Path) -> Iterator[Array]:
    if "memory legs" in request.param:
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no /dev/shm here")
        with tempfile.TemporaryDirectory(prefix="raidfs-", dir="/dev/shm") as memory:
            backend = (OverUring if "fuse uring" in request.param else Array)(pathlib.Path(memory))
            yield backend
            backend.close()
        return
    if request.param == "pool" and os.geteuid() != 0:
        pytest.skip("a filter for system calls would keep fusermount3 from being root")
    if request.param == "pool":
        backend = _WithoutUring(short_path)
    elif request.param == "fuse uring":
        backend = OverUring(short_path)
    else:
        backend = Array(short_path, "--plane", "pyfuse3" if request.param == "pyfuse3" else "native")
    yield backend
    backend.close()


@pytest.fixture
def node(array: Array, directories: list[pathlib.Path]) -> Node:
    return array.mount(directories[0])


def _forget_the_log() -> str:
    (log,) = pathlib.Path(os.environ["RAIDFS_RUNTIME_DIR"]).glob("*.log")
    said = log.read_text()
    log.write_text("")
    return said


def test_what_many_threads_write_at_once_is_read_by_each(node: Node) -> None:
    threads, faults = 8, []
    share = SIZE_BYTES // threads

    def work(number: int) -> None:
        chance = random.Random(number)
        fd = os.open(node.file, os.O_RDWR)
        for _ in range(60):
            length = chance.choice((1, 511, 512, 4096, 5000, 65536, 1 << 20))
            offset = number * share + chance.randrange(share - length)
            data = chance.randbytes(length)
            if os.pwrite(fd, data, offset) != length or os.pread(fd, length, offset) != data:
                faults.append((number, offset, length))
        os.fsync(fd)
        os.close(fd)

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    assert faults == []
    assert node.status().engine.in_flight == 0


def test_writes_over_clean_chunks_end_when_no_request_follows_them(
    short_path: pathlib.Path, directories: list[pathlib.Path]
) -> None:
    # All callers wait for a bitmap page then, and nothing but its end wakes a worker.
    array = Array(short_path, create=("--bitmap-chunk", "4096"))
    try:
        for _ in range(3):
            node = array.mount(directories[0])
            command = ["fio", "--name=touch", f"--filename={node.file}", "--rw=randwrite", "--bs=4k", "--direct=1",
                       "--iodepth=32", "--ioengine=libaio", "--thread"]  # fmt: skip
            too_late = threading.Timer(60, node.signal, [signal.SIGKILL])  # else a caller that hangs cannot be ended
            too_late.start()
            done = subprocess.run(command, capture_output=True, text=True, cwd="/tmp", check=False)
            too_late.cancel()
            assert done.returncode == 0, done.stdout
            assert node.status().engine.in_flight == 0
            assert raidfs("umount", node.directory).returncode == 0
    finally:
        array.close()


class _Parked:
    """A caller that waits in a suspended range."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.result: list[int | OSError] = []
        self.fd = os.open(node.file, os.O_RDWR)
        node.suspend(0, 4096)
        self.thread = threading.Thread(target=self._write)
        self.thread.start()
        eventually(lambda: node.status().engine.parked == 1, "the write is parked")

    def _write(self) -> None:
        try:
            self.result.append(os.pwrite(self.fd, b"x" * 512, 0))
        except OSError as error:
            self.result.append(error)


def test_a_signal_to_a_caller_that_waits_does_not_end_its_request(node: Node) -> None:
    parked = _Parked(node)
    assert parked.thread.ident is not None
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        for _ in range(20):
            signal.pthread_kill(parked.thread.ident, signal.SIGUSR1)
            os.stat(node.file)
            os.listdir(node.directory)
        assert (node.status().engine.parked, parked.result) == (1, [])
        node.suspend(0, 0)
        parked.thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert parked.result == [512]
    os.close(parked.fd)


def test_a_node_with_requests_that_wait_is_busy_and_stops_when_they_are_done(node: Node) -> None:
    parked = _Parked(node)
    node.signal(signal.SIGTERM)
    eventually(lambda: "is in use" in _forget_the_log(), "the node says that it is in use")
    assert (node.status().engine.parked, parked.result) == (1, [])
    node.suspend(0, 0)
    parked.thread.join()
    assert parked.result == [512]
    os.close(parked.fd)
    node.signal(signal.SIGTERM)
    node.wait_gone()
    assert not is_mounted(node.directory)


def test_a_forced_umount_fails_a_caller_that_waits_and_the_node_leaves_when_its_request_is_done(node: Node) -> None:
    parked = _Parked(node)
    subprocess.run(["umount", "-f", str(node.directory)], check=False, stderr=subprocess.DEVNULL)
    parked.thread.join()
    assert isinstance(parked.result[0], OSError)
    time.sleep(0.2)  # nothing tells that nothing happens
    assert node.status().engine.parked == 1
    node.suspend(0, 0)
    node.wait_gone()
    assert not is_mounted(node.directory)
    with contextlib.suppress(OSError):
        os.close(parked.fd)


def _load(node: Node) -> subprocess.Popen[str]:
    command = ["fio", "--name=load", f"--filename={node.file}", "--rw=randrw", "--bs=4k", "--direct=1", "--iodepth=32",
               "--ioengine=libaio", "--time_based", "--runtime=60", "--eta=never", "--thread"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/tmp")
    eventually(lambda: node.status().engine.writes > 100, "the load has begun")
    return process


def test_callers_that_are_killed_in_the_middle_of_requests_harm_nobody(node: Node) -> None:
    for number in range(6):
        load = _load(node)
        time.sleep(0.003 * number)
        load.kill()
        load.communicate()
    eventually(lambda: node.status().engine.in_flight == 0, "all requests have ended")
    assert raidfs("umount", node.directory).returncode == 0


def test_a_forced_umount_under_load_ends_the_load_and_the_node(node: Node) -> None:
    load = _load(node)
    subprocess.run(["umount", "-f", str(node.directory)], check=False, stderr=subprocess.DEVNULL)
    load.communicate()
    assert load.returncode != 0
    node.wait_gone()
    assert not is_mounted(node.directory)


def test_a_node_that_is_killed_under_load_fails_its_callers_and_another_one_finds_its_dirty_chunks(
    node: Node, array: Array
) -> None:
    load = _load(node)
    node.signal(signal.SIGKILL)
    load.communicate()
    assert load.returncode != 0
    eventually(lambda: not is_mounted(node.directory), "the mount point is cleaned up")
    again = array.mount(node.directory)
    assert again.status().bitmap.dirty > 0
    assert len(again.file.read_bytes()) == SIZE_BYTES
    _forget_the_log()


def test_a_node_that_loses_its_membership_under_load_fails_every_request(node: Node) -> None:
    load = _load(node)
    (server,) = _lock_servers(node)
    os.kill(server, signal.SIGKILL)
    said, _ = load.communicate()
    assert load.returncode != 0
    assert "Input/output error" in said
    fd = os.open(node.file, os.O_RDWR)
    for request in (lambda: os.pwrite(fd, b"x" * 512, 0), lambda: os.pread(fd, 512, 0), lambda: os.fsync(fd)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            request()
        assert caught.value.errno == errno.EIO
    os.close(fd)
    assert raidfs("umount", node.directory).returncode == 0
    node.wait_gone()
    assert "lost the membership" in _forget_the_log()


def _lock_servers(node: Node) -> list[int]:
    digits = node.status().array.uuid.replace(":", "")
    address = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])).encode()
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"lockd" in words and any(address in word for word in words):
            found.append(int(process.name))
    return found


@pytest.mark.root
def test_a_kernel_that_lets_few_requests_be_in_flight_is_served_all_the_same(
    node: Node, short_path: pathlib.Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    control = short_path / "fusectl"
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", str(control)], check=True)
    try:
        (control / str(os.minor(os.stat(node.directory).st_dev)) / "max_background").write_text("1")
    finally:
        subprocess.run(["umount", str(control)], check=True)
    node.suspend(0, 4096)
    command = ["fio", "--name=full", f"--filename={node.file}", "--rw=write", "--bs=4k", "--direct=1", "--iodepth=64",
               "--ioengine=libaio", "--size=1M", "--verify=crc32c", "--eta=never"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/tmp") as job:
        eventually(lambda: node.status().engine.parked == 1, "one request is parked and fills the queue")
        fd = os.open(node.file, os.O_RDWR)
        assert os.pwrite(fd, b"y" * 4096, 8 << 20) == 4096  # synchronous requests do not count
        assert os.pread(fd, 4096, 8 << 20) == b"y" * 4096
        os.close(fd)
        node.suspend(0, 0)
        assert job.wait(60) == 0


def test_status_names_the_plane(array: Array, directories: list[pathlib.Path], request: pytest.FixtureRequest) -> None:
    node = array.mount(directories[0])
    wanted = "pyfuse3" if "pyfuse3" in request.node.name else "native"
    wanted += ", FUSE over io_uring" if "fuse uring" in request.node.name else ""
    assert node.status().node.plane == wanted


def test_a_volume_that_is_not_made_of_files_is_served_by_the_portable_plane(
    memory: Memory, directories: list[pathlib.Path]
) -> None:
    assert memory.mount(directories[0]).status().node.plane == "pyfuse3"


def test_a_node_that_shall_use_fuse_over_io_uring_where_it_is_off_says_so_and_uses_the_device(
    short_path: pathlib.Path, directories: list[pathlib.Path]
) -> None:
    array = Array(short_path, "--fuse-uring")
    with switched("N"):
        node = array.mount(directories[0])
    assert node.status().node.plane == "native"
    (line,) = _forget_the_log().splitlines()
    assert "FUSE over io_uring cannot be used (/sys/module/fuse/parameters/enable_uring is not Y)" in line
    array.close()
