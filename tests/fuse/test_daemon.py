"""The daemon's own story, told by a node over a bytearray that says what it sees when it leaves."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.memory_node import FAIL_AT_LEAVE, FAIL_AT_OPEN, HANG_AT_OPEN
from support.mounted import Node, eventually, is_mounted, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

Start = Callable[..., subprocess.Popen[str]]

_TESTS = pathlib.Path(__file__).parent.parent


@pytest.fixture
def directory(directories: list[pathlib.Path]) -> pathlib.Path:
    return directories[0]


@pytest.fixture
def start(directory: pathlib.Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start_(*options: str, **environment: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "support.memory_node", str(directory), *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=_TESTS,
                env={**os.environ, "PYTHONPATH": str(_TESTS.parent), **environment},
            )
        )
        return processes[-1]

    yield start_
    for process in processes:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def _nothing_is_left(directory: pathlib.Path) -> bool:
    return not is_mounted(directory) and os.listdir(os.environ["RAIDFS_RUNTIME_DIR"]) == []


def test_the_node_leaves_after_the_unmount_and_before_the_mount_point_is_given_up(
    start: Start, directory: pathlib.Path
) -> None:
    process = start()
    assert _line(process) == "ready"
    assert raidfs("umount", directory).returncode == 0
    assert _line(process) == "left with owned control"
    assert process.wait() == 0
    assert _nothing_is_left(directory)


def test_a_node_that_cannot_join_leaves_nothing_behind(start: Start, directory: pathlib.Path) -> None:
    process = start("--fail", FAIL_AT_OPEN)
    assert _line(process).startswith("failed: /nowhere/a.img: there is no such image")
    assert process.wait() == 1
    assert _nothing_is_left(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it(start: Start, directory: pathlib.Path, number: signal.Signals) -> None:
    process = start("--fail", HANG_AT_OPEN)
    assert _line(process) == "opening"
    assert not (directory / "md0").exists()
    process.send_signal(number)
    assert _line(process).startswith(f"failed: {directory}: stopped by a signal before it was usable")
    assert process.wait() == 1
    assert _nothing_is_left(directory)


def test_a_mount_that_fails_makes_the_node_leave_again(
    start: Start, directory: pathlib.Path, short_path: pathlib.Path
) -> None:
    fake = short_path / "fusermount3"
    fake.write_text("#!/bin/sh\necho 'fusermount3: mount failed: Operation not permitted' >&2; exit 1\n")
    fake.chmod(0o755)
    process = start(PATH=f"{short_path}:{os.environ['PATH']}")
    assert _line(process).startswith(f"failed: {directory}: cannot mount: mount failed: Operation not permitted")
    assert process.wait() == 1
    assert _nothing_is_left(directory)


def _wrapped_fusermount(directory: pathlib.Path, script: str) -> str:
    # A search path on which fusermount3 is a script that calls the real one as $REAL.
    real = shutil.which("fusermount3")
    wrapper = directory / "fusermount3"
    wrapper.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    wrapper.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_a_node_that_is_told_to_stop_before_it_is_usable_stops_then(
    start: Start, directory: pathlib.Path, short_path: pathlib.Path
) -> None:
    process = start(PATH=_wrapped_fusermount(short_path, 'test "$1" = -u || sleep 0.5; exec $REAL "$@"'))
    run = pathlib.Path(os.environ["RAIDFS_RUNTIME_DIR"])
    eventually(lambda: list(run.glob("*.sock")), "the control socket is there")
    assert not is_mounted(directory)
    assert raidfs("umount", directory).returncode == 0
    assert (_line(process), _line(process)) == ("ready", "left with owned control")
    assert process.wait() == 0


def test_an_unmount_that_somebody_else_was_faster_with_is_done(
    start: Start, directory: pathlib.Path, short_path: pathlib.Path
) -> None:
    script = '$REAL "$@" || exit; test "$1" != -u || { echo not found >&2; exit 1; }'
    process = start(PATH=_wrapped_fusermount(short_path, script))
    assert _line(process) == "ready"
    assert raidfs("umount", directory).returncode == 0
    assert process.wait() == 0


def test_a_node_that_fails_to_leave_tells_its_user(start: Start, directory: pathlib.Path) -> None:
    process = start("--fail", FAIL_AT_LEAVE)
    assert _line(process) == "ready"
    said = raidfs("umount", directory)
    assert said.returncode == 1
    assert "the lock server ended" in said.stderr
    assert process.wait() == 1
    assert _nothing_is_left(directory)


class TestParkedWrite:
    """A caller that waits in a suspended range."""

    @pytest.fixture
    def node(self, start: Start, directory: pathlib.Path) -> Node:
        process = start()
        assert _line(process) == "ready"
        self.process = process
        node = Node(directory, directory / "md0", process.pid)
        node.suspend(0, 4096)
        return node

    @pytest.fixture
    def parked(self, node: Node) -> Iterator[tuple[threading.Thread, list[int | OSError]]]:
        fd = os.open(node.file, os.O_RDWR)
        result: list[int | OSError] = []

        def write() -> None:
            try:
                result.append(os.pwrite(fd, b"x" * 512, 0))
            except OSError as error:
                result.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: node.status().engine.parked == 1, "the write is parked")
        yield writer, result
        writer.join()
        try:
            os.close(fd)
        except OSError:
            assert not node.is_alive() or not is_mounted(node.directory)

    def test_a_signal_to_the_caller_does_not_end_it(
        self, node: Node, parked: tuple[threading.Thread, list[int | OSError]]
    ) -> None:
        writer, result = parked
        assert writer.ident is not None
        received: list[int] = []
        before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
        try:
            for _ in range(20):
                signal.pthread_kill(writer.ident, signal.SIGUSR1)
                os.stat(node.file)
                os.listdir(node.directory)
            assert (node.status().engine.parked, result) == (1, [])
            node.suspend(0, 0)
            writer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert result == [512]
        assert received

    def test_a_forced_umount_fails_the_caller_drains_and_takes_the_mount_away(
        self, node: Node, parked: tuple[threading.Thread, list[int | OSError]]
    ) -> None:
        writer, result = parked
        subprocess.run(["umount", "-f", str(node.directory)], check=False, stderr=subprocess.DEVNULL)
        writer.join()
        assert isinstance(result[0], OSError)
        time.sleep(0.2)  # nothing tells that nothing happens
        assert node.status().engine.parked == 1
        node.suspend(0, 0)
        assert _line(self.process).startswith("left with owned control")
        node.wait_gone()
        self.process.wait()
        assert _nothing_is_left(node.directory)


def test_callers_that_are_killed_in_the_middle_of_requests_harm_nobody(start: Start, directory: pathlib.Path) -> None:
    process = start()
    assert _line(process) == "ready"
    node = Node(directory, directory / "md0", process.pid)
    command = ["dd", f"if={node.file}", "of=/dev/null", "bs=4k", "status=none"]
    for number in range(40):
        with subprocess.Popen(command) as caller:
            time.sleep(0.002 * (number % 10))
            caller.kill()
        assert len(node.file.read_bytes()[:4096]) == 4096 if number % 20 == 0 else True
    assert node.status().engine.parked == 0
    assert raidfs("umount", directory).returncode == 0


def test_requests_are_as_large_as_fuse_allows(start: Start, directory: pathlib.Path) -> None:
    process = start()
    assert _line(process) == "ready"
    node = Node(directory, directory / "md0", process.pid)
    with open(node.file, "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), bytes(8 << 20), 0) == 8 << 20
        assert len(os.pread(file.fileno(), 8 << 20, 0)) == 8 << 20
    engine = node.status().engine
    # 1 MiB is 256 pages; a buffer that does not begin at a page needs one request more.
    assert max(engine.writes, engine.reads) <= 9
    assert raidfs("umount", directory).returncode == 0
