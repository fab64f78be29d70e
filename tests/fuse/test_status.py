"""``raidfs status`` of real nodes, in health and trouble."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import signal

import pytest
from support.mounted import SIZE_BYTES, Array, Memory, Node, eventually, is_mounted, raidfs

from raidfs.control import client
from raidfs.control.schema import SCHEMA_VERSION, NodeStatus

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture
def member(array: Array, directories: list[pathlib.Path]) -> Node:
    return array.mount(directories[0])


def test_text_detail_and_json_tell_the_same_node(member: Node) -> None:
    text, detail, document = (
        raidfs("status", member.directory, *form).stdout for form in ([], ["--detail"], ["--json"])
    )
    assert text.startswith(
        f"md0 : active raid1 b.img[1] a.img[0]\n      {SIZE_BYTES // 1024} blocks super 1.2 [2/2] [UU]\n"
    )
    parsed = json.loads(document)
    assert parsed["schema"] == SCHEMA_VERSION
    status = NodeStatus.from_json(parsed["nodes"][0])
    assert status.array.uuid in detail
    assert (status.array.size_bytes, status.node.pid) == (SIZE_BYTES, member.pid)
    assert status.node.mountpoint == str(member.directory)
    assert [(leg.state, leg.number, leg.role) for leg in status.legs] == [("in_sync", 0, 0), ("in_sync", 1, 1)]


def test_requests_are_counted(member: Node) -> None:
    before = member.status().engine
    with open(member.file, "r+b", buffering=0) as file:
        file.write(b"x" * 8192)
        os.fsync(file.fileno())
        file.seek(0)
        file.read(4096)
    after = member.status().engine
    assert (after.writes - before.writes, after.reads - before.reads) == (1, 1)
    assert (after.written_bytes - before.written_bytes, after.read_bytes - before.read_bytes) == (8192, 4096)


def test_the_counters_can_be_asked_for_alone(member: Node) -> None:
    with client.find(str(member.directory)) as node:
        assert node.call("statistics") == dataclasses.asdict(member.status().engine)


def test_an_array_without_assume_clean_is_resynced_by_itself(
    short_path: pathlib.Path, directories: list[pathlib.Path]
) -> None:
    images = [short_path / "x.img", short_path / "y.img"]
    assert raidfs("create", "--size", "64M", *images).returncode == 0
    for _ in range(2):  # it goes on after a clean stop
        assert raidfs("mount", "--sync-speed-max", "1000", *images, directories[0]).returncode == 0
        assert "resync = " in raidfs("status", directories[0]).stdout
        assert "resyncing" in raidfs("status", directories[0], "--detail").stdout
        assert raidfs("umount", directories[0]).returncode == 0
    assert raidfs("mount", *images, directories[0]).returncode == 0
    assert raidfs("wait", directories[0]).returncode == 0
    assert "resync" not in raidfs("status", directories[0]).stdout
    assert raidfs("umount", directories[0]).returncode == 0


def test_the_exit_code_of_a_test_tells_fine_degraded_and_nobody_there(
    array: Array, directories: list[pathlib.Path]
) -> None:
    assert raidfs("status", directories[0], "--test").returncode == 4
    assert raidfs("status", "--test").returncode == 4
    array.mount(directories[0])
    assert raidfs("status", directories[0], "--test").returncode == 0
    assert raidfs("umount", directories[0]).returncode == 0
    array.images[1].unlink()
    array.images.pop()
    array.mount(directories[0], "--run")
    assert raidfs("status", directories[0], "--test").returncode == 1
    assert "[2/1] [U_]" in raidfs("status", directories[0]).stdout


def test_a_mount_point_without_a_node_is_named(directories: list[pathlib.Path]) -> None:
    said = raidfs("status", directories[0])
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == (f"raidfs: {directories[0]}: no node of yours is mounted there; `raidfs status` lists them\n")


def test_without_any_node_there_is_nothing_to_fail(directories: list[pathlib.Path]) -> None:
    said = raidfs("status")
    assert (said.returncode, said.stdout) == (0, "no node of yours is mounted on this machine\n")
    assert json.loads(raidfs("status", "--json").stdout) == {"schema": SCHEMA_VERSION, "nodes": []}


def _lock_server_of(array_uuid: str) -> int:
    address = f"abstract:raidfs/{array_uuid}".encode()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"lockd" in words and address in words:
            return int(process.name)
    raise AssertionError("the array has no lock server")


def test_a_node_without_its_lock_server_fails_every_request_says_why_and_unmounts(
    member: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = member.status().array.uuid.replace(":", "")
    lengths = (8, 4, 4, 4, 12)
    dashed = "-".join(digits[sum(lengths[:i]) : sum(lengths[: i + 1])] for i in range(5))
    fd = os.open(member.file, os.O_RDWR)
    os.kill(_lock_server_of(dashed), signal.SIGKILL)
    eventually(lambda: member.status().node.lost, "the node notices")
    for request in (lambda: os.pwrite(fd, b"x" * 512, 0), lambda: os.pread(fd, 512, 0), lambda: os.fsync(fd)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            request()
        assert caught.value.errno == errno.EIO
    os.close(fd)
    assert "\n      LOST: " in raidfs("status", member.directory).stdout
    assert raidfs("status", member.directory, "--test").returncode == 2
    assert raidfs("umount", member.directory).returncode == 0
    assert not is_mounted(member.directory)
    member.wait_gone()
    (log,) = pathlib.Path(os.environ["RAIDFS_RUNTIME_DIR"]).glob("*.log")
    assert "lost the membership" in log.read_text()
    log.unlink()  # it had reason to speak


def test_umount_cleans_up_after_a_node_that_died_without_its_watcher(
    memory: Memory, directories: list[pathlib.Path]
) -> None:
    node = memory.mount(directories[0])
    children = pathlib.Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    node.signal(signal.SIGKILL)
    node.wait_gone()
    assert is_mounted(node.directory)
    refused = raidfs("mount", "a.img", node.directory)
    assert refused.stderr == (
        f"raidfs: {node.directory} is left over from a daemon that died; "
        f"clean it up: fusermount3 -u -z {node.directory}\n"
    )
    assert raidfs("umount", node.directory).returncode == 0
    assert not is_mounted(node.directory)


def test_suspended_range_is_told_and_one_outside_the_array_is_refused(member: Node) -> None:
    from raidfs.errors import BadRange

    member.suspend(4096, 8192)
    engine = member.status().engine
    assert (engine.suspend_lo_bytes, engine.suspend_hi_bytes) == (4096, 8192)
    member.suspend(0, 0)
    for lo, hi in ((0, SIZE_BYTES + 1), (-1, 5), (5, 5), (9, 5)):
        with pytest.raises(BadRange, match=f"bytes {lo} to {hi} are no range of this array"):
            member.suspend(lo, hi)
    assert dataclasses.replace(engine, suspend_lo_bytes=0, suspend_hi_bytes=0) == member.status().engine
