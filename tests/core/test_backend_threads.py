"""The thread backend on real files: what system calls do to leg operations."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.engines import DATA_OFFSET

from raidfs._backend_threads import ThreadBackend, notify_eventfd
from raidfs._core import Engine, EventKind, LegState

SIZE = 1 << 20
REPLY_S_MAX = 20.0


class Running:
    """An engine on two files, with workers; replies are awaited through the eventfd."""

    def __init__(self, directory: Path) -> None:
        self.paths = [directory / "leg0", directory / "leg1"]
        self.fds = []
        for path in self.paths:
            path.write_bytes(bytes(DATA_OFFSET + SIZE))
            self.fds.append(os.open(path, os.O_RDWR))
        self.engine = Engine(2)
        self.engine.configure(
            block_bytes=512,
            size_bytes=SIZE,
            data_offsets=[DATA_OFFSET] * 2,
            raid_disks=2,
            slot_offset=8192,
            chunk_bytes=65536,
            bitmap=bytes(4096),
            events=1,
            events_cleared=0,
        )
        self.engine.publish_legs([LegState.IN_SYNC] * 2)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        notify_eventfd(self.engine, self.eventfd)
        self.backend = ThreadBackend(self.engine)
        for leg, fd in enumerate(self.fds):
            self.backend.attach(leg, fd)
        self.backend.start(4)
        self.found: dict[int, tuple[int, bytes | None]] = {}

    def result(self, tag: int) -> int:
        self._wait(lambda: tag in self.found)
        return self.found[tag][0]

    def data(self, tag: int) -> bytes | None:
        self.result(tag)
        return self.found[tag][1]

    def event(self) -> tuple[EventKind, int, int]:
        events: list[tuple[EventKind, int, int, int, int]] = []

        def raised() -> bool:
            events.extend(self.engine.events())
            return bool(events)

        self._wait(raised)
        return events[0][:3]

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + REPLY_S_MAX
        while not condition():
            assert time.monotonic() < end
            select.select([self.eventfd], [], [], 1)
            for tag, result, data in self.engine.replies():
                self.found[tag] = (result, data)
            if select.select([self.eventfd], [], [], 0)[0]:
                os.eventfd_read(self.eventfd)

    def close(self) -> None:
        self.backend.close()
        self.backend.close()
        notify_eventfd(self.engine, -1)
        os.close(self.eventfd)
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


def test_what_is_written_is_in_both_files_and_read_back(running: Running) -> None:
    data = os.urandom(300_000)
    assert running.result(running.engine.submit_write(1234, data)) == len(data)
    assert running.data(running.engine.submit_read(1234, len(data))) == data
    for path in running.paths:
        assert path.read_bytes()[DATA_OFFSET + 1234 :][: len(data)] == data


def test_many_requests_at_once_all_end(running: Running) -> None:
    tags = [running.engine.submit_write(i * 1000, bytes([i % 256]) * 1000) for i in range(1000)]
    tags += [running.engine.submit_flush() for _ in range(10)]
    assert {running.result(tag) for tag in tags} == {1000, 0}
    contents = {path.read_bytes()[DATA_OFFSET:] for path in running.paths}
    assert len(contents) == 1
    assert contents.pop()[: 1000 * 1000] == b"".join(bytes([i % 256]) * 1000 for i in range(1000))


def test_durable_writes_and_sweeps_work_on_a_real_file(running: Running) -> None:
    assert running.result(running.engine.submit_write(0, b"a" * 512, durable=True)) == 512
    for _ in range(3):
        assert running.result(running.engine.submit_sweep()) == 0
    assert not any(running.paths[0].read_bytes()[8192 + 256 : 8192 + 4096])


def test_a_leg_that_is_taken_away_gives_enodev(running: Running) -> None:
    running.backend.attach(1, -1)
    tag = running.engine.submit_write(0, b"a" * 512)
    assert running.event() == (EventKind.LEG_FAILED, 1, errno.ENODEV)
    running.engine.leg_failure(1, recorded=True)
    assert running.result(tag) == 512


def test_a_file_that_ends_too_early_is_a_read_error_and_the_other_leg_answers(running: Running) -> None:
    os.truncate(running.paths[0], DATA_OFFSET + 512)
    os.truncate(running.paths[1], DATA_OFFSET + SIZE)
    for _ in range(4):
        assert running.data(running.engine.submit_read(4096, 512)) == bytes(512)
    assert running.event() == (EventKind.READ_ERROR, 0, errno.EIO)


def test_a_descriptor_that_cannot_be_written_fails_its_leg(running: Running) -> None:
    read_only = os.open(running.paths[1], os.O_RDONLY)
    running.backend.attach(1, read_only)
    running.engine.submit_write(0, b"a" * 512)
    assert running.event() == (EventKind.LEG_FAILED, 1, errno.EBADF)
    os.close(read_only)


def test_a_block_device_is_no_file_in_memory_though_its_name_is(tmp_path: Path) -> None:
    running = Running(tmp_path)
    try:
        image = tmp_path / "image"
        image.write_bytes(bytes(SIZE))
        made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"no loop devices here: {made.stderr.strip()}")
        device = os.open(made.stdout.strip(), os.O_RDWR)
        with tempfile.TemporaryFile(dir="/dev/shm") as memory:
            for leg in range(2):
                running.backend.attach(leg, memory.fileno())
            assert running.backend.in_memory()
            running.backend.attach(1, device)
            assert not running.backend.in_memory()
        os.close(device)
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
    finally:
        running.close()
