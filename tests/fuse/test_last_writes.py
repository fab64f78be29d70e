"""A node that was killed is dead when its last write has ended, and not before.

What io_uring has in flight outlives the process. If its slot were taken over meanwhile, a write that lands after the
survivor has copied the chunk would leave legs that differ, and no bit that says so (P6).
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
from support.mounted import Array, Node, eventually, raidfs

from raidfs.control import client
from raidfs.units import KIB, MIB

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

LEG_MIB = 64


class SlowLeg:
    """A block device that ends no write while it is told so: a loop device over the block file of another array."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._below = Array(directory)
        top = directory / "below"
        top.mkdir()
        self._node: Node = self._below.mount(top)
        made = subprocess.run(
            ["losetup", "--find", "--show", "--direct-io=on", self._node.file],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            self._below.close()
            pytest.skip(f"no loop devices here: {made.stderr.strip()}")
        self.path = made.stdout.strip()

    @contextlib.contextmanager
    def held(self, first_byte: int) -> Iterator[None]:
        """Let no write behind that byte end."""
        self._node.suspend(first_byte, LEG_MIB * MIB)
        try:
            yield
        finally:
            self._node.suspend(0, 0)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._node.status().engine.parked

    def close(self) -> None:
        subprocess.run(["losetup", "--detach", self.path], check=True)
        self._below.close()


@pytest.fixture
def slow(short_path: pathlib.Path) -> Iterator[SlowLeg]:
    with tempfile.TemporaryDirectory(prefix="raidfs-slow-") as below:
        leg = SlowLeg(pathlib.Path(below))
        yield leg
        leg.close()


@pytest.fixture
def nodes(slow: SlowLeg, short_path: pathlib.Path, directories: list[pathlib.Path]) -> Iterator[list[Node]]:
    """Two nodes of an array with the slow leg and another one."""
    image = short_path / "c.img"
    with image.open("wb") as file:
        file.truncate(LEG_MIB * MIB)
    images = [slow.path, str(image)]
    made = raidfs("create", "--size", "32M", "--assume-clean", "--bitmap-chunk", "64K", *images)
    assert made.returncode == 0, made.stderr
    found = []
    for directory in directories:
        said = raidfs("mount", *images, directory)
        assert said.returncode == 0, said.stderr
        with client.find(str(directory)) as node:
            found.append(Node(directory, directory / "md0", node.hello.pid))
    yield found
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            one.signal(signal.SIGKILL)
            one.wait_gone()


def test_a_killed_node_is_a_member_until_its_last_write_has_ended(slow: SlowLeg, nodes: list[Node]) -> None:
    doomed, survivor = nodes
    with doomed.file.open("r+b", buffering=0) as file:
        file.seek(16 * MIB)
        file.write(bytes(64 * KIB))  # the bits are on disk now
    with slow.held(8 * MIB):
        words = ["fio", "--name=last", f"--filename={doomed.file}", "--rw=write", "--bs=4k", "--direct=1"]
        words += ["--iodepth=8", "--ioengine=libaio", "--offset=16m", "--size=32k", "--eta=never"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp") as load:
            eventually(lambda: slow.waiting > 0, "writes are in flight")
            doomed.signal(signal.SIGKILL)
            eventually(lambda: not doomed.is_alive(), "the process has ended")
            load.wait()
        time.sleep(1.5)  # nothing tells that nothing happens
        assert slow.waiting > 0
        assert {member.slot for member in survivor.status().members} == {0, 1}
    eventually(lambda: {member.slot for member in survivor.status().members} == {1}, "its death is noticed")
    assert raidfs("wait", survivor.directory).returncode == 0
    said = raidfs("check", "--wait", survivor.directory)
    assert said.returncode == 0, said.stderr
    assert survivor.status().sync.mismatch_sectors == 0
    assert raidfs("umount", survivor.directory).returncode == 0
