"""A thousand writes that wait in a suspended range leave everybody else going."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest
from support.mounted import Backend, Node, eventually

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

PARKED = 1000
BLOCK_BYTES = 4096
RANGE_BYTES = PARKED * BLOCK_BYTES
OUTSIDE = 32 << 20


@pytest.fixture(params=["memory", "array", "pyfuse3_array", "fuse_uring_array"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def suspended(node: Node) -> Iterator[Node]:
    node.suspend(0, RANGE_BYTES)
    yield node
    node.suspend(0, 0)


def _others_go_on(node: Node) -> None:
    # Without the right flags the kernel holds these behind the parked ones for ever; the timeout of the test ends that.
    fd = os.open(node.file, os.O_RDWR)
    try:
        for number in range(64):
            data = os.urandom(BLOCK_BYTES)
            assert os.pwrite(fd, data, OUTSIDE + number * BLOCK_BYTES) == BLOCK_BYTES
            assert os.pread(fd, BLOCK_BYTES, OUTSIDE + number * BLOCK_BYTES) == data
            assert len(os.pread(fd, BLOCK_BYTES, number * BLOCK_BYTES)) == BLOCK_BYTES
        os.stat(node.file)
        assert node.status().engine.parked == PARKED
    finally:
        os.close(fd)


@pytest.mark.timeout(60)
def test_a_thousand_writers_that_wait_stop_nobody_else(suspended: Node) -> None:
    node = suspended
    fd = os.open(node.file, os.O_RDWR)
    written = [0] * PARKED
    data = [bytes([number % 251 + 1]) * BLOCK_BYTES for number in range(PARKED)]

    def write(number: int) -> None:
        written[number] = os.pwrite(fd, data[number], number * BLOCK_BYTES)

    writers = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(PARKED)]
    for writer in writers:
        writer.start()
    eventually(lambda: node.status().engine.parked == PARKED, f"{PARKED} writes are parked")
    _others_go_on(node)
    assert not any(written)
    node.suspend(0, 0)
    for writer in writers:
        writer.join()
    assert written == [BLOCK_BYTES] * PARKED
    assert os.pread(fd, RANGE_BYTES, 0) == b"".join(data)
    os.close(fd)


@pytest.mark.timeout(60)
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_a_thousand_asynchronous_writes_that_wait_stop_nobody_else(suspended: Node, short_path: pathlib.Path) -> None:
    # These count against the kernel's max_background, whose default is 12.
    node = suspended
    job = subprocess.Popen(
        ["fio", "--name=parked", f"--filename={node.file}", "--rw=write", f"--bs={BLOCK_BYTES}", "--direct=1",
         f"--size={RANGE_BYTES}", "--ioengine=libaio", f"--iodepth={PARKED}", "--verify=crc32c", "--do_verify=0",
         "--output-format=json", f"--output={short_path}/fio.json"],
        cwd=short_path,
    )  # fmt: skip
    eventually(lambda: node.status().engine.parked == PARKED, f"{PARKED} writes are parked")
    _others_go_on(node)
    node.suspend(0, 0)
    assert job.wait(30) == 0
    done = json.loads((short_path / "fio.json").read_text())["jobs"][0]
    assert (done["error"], done["write"]["total_ios"]) == (0, PARKED)
