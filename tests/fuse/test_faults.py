"""Faults that a user orders with --fault, on real mounts: each kind once, and what the node makes of it."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from support.mounted import Array, Node, eventually, raidfs

from raidfs.array.examine import examine_image

pytestmark = pytest.mark.fuse

BLOCK = 4096
Mount = Callable[..., Node]


@pytest.fixture
def mount(array: Array, directories: list[pathlib.Path]) -> Mount:
    def mount_with(*faults: str) -> Node:
        return array.mount(directories[0], *[word for fault in faults for word in ("--fault", fault)])

    return mount_with


@pytest.fixture(autouse=True)  # and so there before the array, which has something to say until it is closed
def log(short_path: pathlib.Path) -> Iterator[Callable[[], str]]:
    run = short_path / "run"

    def read() -> str:
        return "".join(path.read_text() for path in run.glob("*.log"))

    yield read
    for path in run.glob("*.log"):
        path.write_text("")


@pytest.fixture
def data_offset(array: Array) -> int:
    report = examine_image(str(array.images[0]))
    return int(report.superblock.data_offset_sectors) * 512


def place(data_offset: int, at: int) -> str:
    return f"at={data_offset + at}-{data_offset + at + BLOCK}"


def write(node: Node, at: int, data: bytes, flags: int = 0) -> None:
    fd = os.open(node.file, os.O_WRONLY | flags)
    try:
        assert os.pwrite(fd, data, at) == len(data)
    finally:
        os.close(fd)


def read(node: Node, at: int, length: int = BLOCK) -> bytes:
    fd = os.open(node.file, os.O_RDONLY)
    try:
        return os.pread(fd, length, at)
    finally:
        os.close(fd)


def on_leg(array: Array, leg: int, offset: int, length: int = BLOCK) -> bytes:
    with open(array.images[leg], "rb") as file:
        file.seek(offset)
        return file.read(length)


def states(node: Node) -> list[str]:
    return [leg.state for leg in node.status().legs]


def is_recorded_as_failed(array: Array, leg: int) -> bool:
    shown = subprocess.run(
        ["mdadm", "--examine", array.images[1 - leg]], capture_output=True, text=True, check=True
    ).stdout
    assert "- correct" in shown
    return f"Array State : {'.A' if leg == 0 else 'A.'}" in shown


def test_a_write_error_is_recorded_before_the_write_returns(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"error,leg=b.img,on=write,{place(data_offset, 0)},errno=ENOSPC")
    write(node, 0, b"n" * BLOCK)
    assert is_recorded_as_failed(array, 1)
    assert states(node) == ["in_sync", "faulty"]
    assert read(node, 0) == b"n" * BLOCK
    assert on_leg(array, 1, data_offset) == bytes(BLOCK)
    assert f"fault error,leg=b.img,on=write,{place(data_offset, 0)},errno=ENOSPC: write" in log()
    assert os.strerror(errno.ENOSPC) in log()


def test_a_read_error_is_not_seen_by_who_reads_and_the_leg_is_written_anew(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"error,leg=0,on=read,nth=1,{place(data_offset, 0)}")
    write(node, 0, b"r" * BLOCK)
    assert [read(node, 0) for _ in range(4)] == [b"r" * BLOCK] * 4
    assert "another leg is tried" in log()
    eventually(lambda: node.status().legs[0].corrected_reads == 1, "the leg is written anew")
    assert node.status().legs[0].read_errors == 1
    assert states(node) == ["in_sync", "in_sync"]
    assert "a.img (1 blocks corrected)" in raidfs("status", "--detail", node.directory).stdout
    assert raidfs("wait", node.directory).returncode == 0
    assert on_leg(array, 0, data_offset) == b"r" * BLOCK


def test_a_leg_that_cannot_read_what_was_written_anew_is_failed_on_all_nodes(
    array: Array, mount: Mount, directories: list[pathlib.Path], log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"error,leg=0,on=read,{place(data_offset, 0)}")
    other = array.mount(directories[1])
    write(node, 0, b"r" * BLOCK)
    assert [read(node, 0) for _ in range(4)] == [b"r" * BLOCK] * 4
    eventually(lambda: states(node) == ["in_sync", "faulty"], "the leg is failed")
    eventually(lambda: states(other) == ["in_sync", "faulty"], "the other node leaves it out, too")
    assert is_recorded_as_failed(array, 0)
    assert read(other, 0) == read(node, 0) == b"r" * BLOCK
    assert "is not read back" in log()


def test_what_no_leg_can_read_is_the_users_error_and_costs_no_leg(
    mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"error,on=read,{place(data_offset, 0)}")
    write(node, 0, b"r" * 2 * BLOCK)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            read(node, 0)
    eventually(lambda: "no leg in sync can read bytes 0 to 4096" in log(), "it is told")
    assert raidfs("wait", node.directory).returncode == 0
    assert states(node) == ["in_sync", "in_sync"]
    assert read(node, BLOCK) == b"r" * BLOCK


def test_a_delay_delays_and_nothing_else(mount: Mount, log: Callable[[], str], data_offset: int) -> None:
    node = mount(f"delay,leg=0,on=write,seconds=0.5,{place(data_offset, 0)}")
    started = time.monotonic()
    write(node, 0, b"d" * BLOCK)
    assert time.monotonic() - started >= 0.5
    assert states(node) == ["in_sync", "in_sync"]
    assert read(node, 0) == b"d" * BLOCK
    assert "fault delay" in log()


def test_of_a_torn_write_the_beginning_is_there_and_the_leg_is_failed(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"torn,leg={array.images[1]},keep=3,{place(data_offset, 0)}")
    write(node, 0, b"t" * BLOCK)
    assert is_recorded_as_failed(array, 1)
    assert read(node, 0) == b"t" * BLOCK
    assert on_leg(array, 1, data_offset) == b"t" * 1536 + bytes(BLOCK - 1536)
    assert "fault torn" in log()


def test_a_torn_write_that_is_acknowledged_leaves_legs_that_differ(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"torn,leg=b.img,errno=none,{place(data_offset, 0)}")
    write(node, 0, b"t" * BLOCK)
    assert states(node) == ["in_sync", "in_sync"]
    assert on_leg(array, 0, data_offset) == b"t" * BLOCK
    assert on_leg(array, 1, data_offset) == b"t" * 512 + bytes(BLOCK - 512)
    assert "fault torn" in log()


def test_a_short_transfer_is_an_error_of_the_leg(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"short,leg=a.img,keep=2,{place(data_offset, 0)}")
    write(node, 0, b"s" * BLOCK)
    assert is_recorded_as_failed(array, 0)
    assert read(node, 0) == b"s" * BLOCK
    assert on_leg(array, 0, data_offset) == b"s" * 1024 + bytes(BLOCK - 1024)
    assert "fault short" in log()


def test_a_lost_flush_is_acknowledged(mount: Mount, log: Callable[[], str]) -> None:
    node = mount("lost-flush,leg=1")
    fd = os.open(node.file, os.O_WRONLY)
    os.pwrite(fd, b"f" * BLOCK, 0)
    os.fsync(fd)
    os.close(fd)
    assert states(node) == ["in_sync", "in_sync"]
    assert "fault lost-flush,leg=1: flush, " in log()
    assert "fault lost-flush,leg=1: write_durable of " in log()  # superblock and bitmap


def test_a_misdirected_write_is_acknowledged_and_lies_beside_its_place(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"misdirect,leg=b.img,by=64K,{place(data_offset, 0)}")
    write(node, 0, b"m" * BLOCK)
    assert states(node) == ["in_sync", "in_sync"]
    assert on_leg(array, 0, data_offset) == b"m" * BLOCK
    assert on_leg(array, 1, data_offset) == bytes(BLOCK)
    assert on_leg(array, 1, data_offset + (64 << 10)) == b"m" * BLOCK
    assert "fault misdirect" in log()


def test_a_leg_that_is_gone_is_left_out_and_users_go_on(
    array: Array, mount: Mount, log: Callable[[], str], data_offset: int
) -> None:
    node = mount(f"gone,leg=b.img,on=write,at={data_offset}-,nth=3")
    for number in range(5):
        write(node, number * BLOCK, bytes([number]) * BLOCK, os.O_DSYNC)
    assert is_recorded_as_failed(array, 1)
    assert [read(node, number * BLOCK) for number in range(5)] == [bytes([number]) * BLOCK for number in range(5)]
    assert on_leg(array, 1, data_offset + BLOCK) == bytes([1]) * BLOCK
    assert on_leg(array, 1, data_offset + 2 * BLOCK) == bytes(BLOCK)
    assert os.strerror(errno.ENODEV) in log()


def test_on_the_last_leg_an_error_is_the_users(mount: Mount, log: Callable[[], str], data_offset: int) -> None:
    node = mount(f"error,leg=1,on=write,{place(data_offset, 0)}", f"error,leg=0,on=write,{place(data_offset, BLOCK)}")
    write(node, 0, b"1" * BLOCK)
    with pytest.raises(OSError, match="Input/output error"):
        write(node, BLOCK, b"2" * BLOCK)
    assert states(node) == ["in_sync", "faulty"]
    assert read(node, 0) == b"1" * BLOCK
    assert "on the last leg" in log()


def test_a_node_leaves_while_io_is_delayed(
    array: Array, mount: Mount, log: Callable[[], str], directories: list[pathlib.Path]
) -> None:
    node = mount("delay,on=flush,seconds=5,nth=1")
    said = raidfs("umount", directories[0])
    assert said.returncode == 0, said.stderr
    eventually(lambda: not node.is_alive(), "the node ends")


def test_what_makes_no_sense_is_refused(array: Array, directories: list[pathlib.Path]) -> None:
    for fault, problem in (("eror", "no kind of fault"), ("error,leg=c.img", "no image is called c.img")):
        said = raidfs("mount", "--fault", fault, *array.images, directories[0])
        assert said.returncode == 2
        assert problem in said.stderr
