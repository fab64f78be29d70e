"""Legs that fail, go and come, and syncs, as a user sees them: every command on two real nodes, from either."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest
from support.mounted import SIZE_BYTES, Array, Node, eventually, raidfs

from raidfs.array.head import read_candidates
from raidfs.format.superblock import Superblock

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
SILENT = (0, "", "")

Logs = Callable[[], str]


@pytest.fixture
def pair(array: Array, directories: list[pathlib.Path]) -> list[Node]:
    return [array.mount(directory) for directory in directories]


def said(*words: str | pathlib.Path) -> tuple[int, str, str]:
    done = raidfs(*words)
    return done.returncode, done.stdout, done.stderr


def positions(node: Node) -> str:
    """md's ``[U_]`` with the leg marks before it, as ``b.img[1](F) a.img[0] [U_]``."""
    first, second = raidfs("status", node.directory).stdout.splitlines()[:2]
    return f"{first.partition(' raid1 ')[2]} {second.split()[-1]}"


def write(node: Node, offset: int, data: bytes) -> None:
    with open(node.file, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def sized(image: pathlib.Path, size_bytes: int) -> None:
    image.write_bytes(b"")
    os.truncate(image, size_bytes)


def content(image: pathlib.Path) -> bytes:
    """The array's bytes on one leg."""
    superblock = read_candidates([str(image)])[0].superblock
    assert isinstance(superblock, Superblock)
    with open(image, "rb") as file:
        file.seek(superblock.data_offset_sectors * 512)
        return file.read(SIZE_BYTES)


def spoil(image: pathlib.Path, offset: int, data: bytes) -> None:
    """Change a leg behind the array's back."""
    superblock = read_candidates([str(image)])[0].superblock
    assert isinstance(superblock, Superblock)
    with open(image, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, superblock.data_offset_sectors * 512 + offset)
        os.fsync(file.fileno())


def judged_by_mdadm(image: pathlib.Path) -> str:
    done = subprocess.run(["mdadm", "--examine", image], capture_output=True, text=True, check=True)
    assert "- correct" in done.stdout
    return done.stdout


def test_a_leg_that_failed_comes_back_with_what_it_missed(array: Array, pair: list[Node], logs: Logs) -> None:
    write(pair[0], 0, b"before" * 1000)
    assert said("fail", pair[0].directory, array.images[1]) == SILENT
    assert [positions(node) for node in pair] == ["b.img[1](F) a.img[0] [U_]"] * 2
    assert [raidfs("status", "--test", node.directory).returncode for node in pair] == [1, 1]
    write(pair[1], MIB, b"degraded" * 1000)
    assert said("re-add", "--wait", pair[1].directory, array.images[1]) == SILENT
    assert [positions(node) for node in pair] == ["b.img[1] a.img[0] [UU]"] * 2
    assert [raidfs("status", "--test", node.directory).returncode for node in pair] == [0, 0]
    assert content(array.images[0]) == content(array.images[1])
    assert said("check", "--wait", pair[0].directory) == SILENT
    assert "Array State : AA (" in judged_by_mdadm(array.images[1])
    logs()


def test_a_leg_that_was_removed_is_replaced_by_a_new_image(
    array: Array, pair: list[Node], short_path: pathlib.Path, logs: Logs
) -> None:
    new = short_path / "c.img"
    sized(new, array.images[0].stat().st_size)
    write(pair[0], 5 * MIB, b"kept" * 1000)
    assert said("fail", pair[0].directory, array.images[0]) == SILENT
    assert said("remove", pair[1].directory, array.images[0]) == SILENT
    assert [positions(node) for node in pair] == ["b.img[1] [_U]"] * 2
    assert said("add", "--wait", pair[1].directory, new) == SILENT
    assert [positions(node) for node in pair] == ["c.img[2] b.img[1] [UU]"] * 2
    assert content(new) == content(array.images[1])
    judged_by_mdadm(new)
    logs()


def test_a_spare_takes_over_by_itself(array: Array, pair: list[Node], short_path: pathlib.Path, logs: Logs) -> None:
    spare = short_path / "s.img"
    sized(spare, array.images[0].stat().st_size)
    assert said("add-spare", pair[0].directory, spare) == SILENT
    assert [positions(node) for node in pair] == ["s.img[2](S) b.img[1] a.img[0] [UU]"] * 2
    assert said("fail", pair[1].directory, array.images[0]) == SILENT
    assert said("wait", pair[0].directory) == SILENT
    assert [positions(node) for node in pair] == ["s.img[2] b.img[1] a.img[0](F) [UU]"] * 2
    assert content(spare) == content(array.images[1])
    detail = raidfs("status", "--detail", pair[1].directory).stdout
    assert "   faulty           " in detail
    assert "             State : clean\n" in detail or "             State : active\n" in detail
    logs()


def test_the_number_of_legs_grows_and_shrinks_while_both_nodes_write(
    array: Array, pair: list[Node], short_path: pathlib.Path, logs: Logs
) -> None:
    third = short_path / "c.img"
    sized(third, array.images[0].stat().st_size)
    assert said("grow", pair[0].directory, "--raid-devices", "3", "--add", third, "--wait") == SILENT
    assert [positions(node) for node in pair] == ["c.img[2] b.img[1] a.img[0] [UUU]"] * 2
    write(pair[0], 0, b"three" * 1000)
    write(pair[1], MIB, b"legs" * 1000)
    assert content(third) == content(array.images[0]) == content(array.images[1])
    code, out, err = said("grow", pair[1].directory, "--raid-devices", "2")
    assert (code, out) == (1, "")
    assert err.startswith("raidfs: 3 legs are in use")
    assert said("fail", pair[1].directory, third) == SILENT
    assert said("remove", pair[0].directory, third) == SILENT
    assert said("grow", pair[1].directory, "--raid-devices", "2") == SILENT
    assert [positions(node) for node in pair] == ["b.img[1] a.img[0] [UU]"] * 2
    logs()


def test_a_check_finds_what_differs_and_a_repair_makes_it_equal(array: Array, pair: list[Node], logs: Logs) -> None:
    write(pair[0], 0, os.urandom(8 * MIB))
    spoil(array.images[1], 3 * MIB, b"\xff" * 1024)
    spoil(array.images[1], 7 * MIB, b"\xff" * 512)
    code, out, err = said("check", "--wait", pair[1].directory)
    assert (code, err) == (0, "")
    assert out == "the legs differed in 3 sectors of 512 bytes in 2 ranges; `raidfs repair` makes them equal\n"
    sync = json.loads(raidfs("status", "--json", pair[1].directory).stdout)["nodes"][0]["sync"]
    assert [(found["start_bytes"], found["length_bytes"]) for found in sync["mismatch_ranges"]] == [
        (3 * MIB, 1024),
        (7 * MIB, 512),
    ]
    assert "1 KiB at byte 3145728" in raidfs("status", "--detail", pair[1].directory).stdout
    assert content(array.images[0]) != content(array.images[1])
    code, out, err = said("repair", "--wait", pair[0].directory)
    assert (code, err) == (0, "")
    assert "3 sectors" in out
    assert content(array.images[0]) == content(array.images[1])
    assert said("check", "--wait", pair[1].directory) == SILENT
    logs()


def test_legs_that_nobody_called_equal_are_made_equal(
    short_path: pathlib.Path, directories: list[pathlib.Path]
) -> None:
    images = [short_path / "x.img", short_path / "y.img"]
    assert raidfs("create", "--size", "64M", *images).returncode == 0
    spoil(images[0], MIB, b"first leg" * 100)
    assert said("mount", *images, directories[0]) == SILENT
    assert said("mount", *images, directories[1]) == SILENT
    assert said("wait", directories[1]) == SILENT
    assert content(images[0]) == content(images[1])
    for directory in directories:
        assert said("umount", directory) == SILENT


def test_what_cannot_be_done_is_refused_in_one_line_that_names_it(
    array: Array, pair: list[Node], short_path: pathlib.Path, logs: Logs
) -> None:
    a = array.images[0]
    stranger, missing, small, text = (short_path / f"{name}.img" for name in ("stranger", "missing", "small", "text"))
    for image in (stranger, small, text):
        sized(image, MIB if image == small else a.stat().st_size)
    subprocess.run(["mkfs.ext4", "-q", "-F", text], check=True, capture_output=True)
    for command, words, code, told in (
        ("remove", [a], 1, ["a.img", "raidfs fail"]),
        ("remove", ["/dev/null"], 2, ["/dev/null is not a leg of this array"]),
        ("re-add", [a], 1, ["a.img"]),
        ("re-add", [stranger], 1, ["stranger.img"]),
        ("add", [a], 1, ["a.img"]),
        ("add", [missing], 1, ["missing.img"]),
        ("add", [small], 1, ["small.img", "too small"]),
        ("add", [text], 1, ["text.img", "ext", "--force"]),
        ("grow", ["--raid-devices", "0"], 2, ["0"]),
        ("grow", ["--raid-devices", "1000"], 2, ["1000"]),
    ):
        failed, out, err = said(command, pair[1].directory, *words)
        assert (failed, out) == (code, ""), (command, words, err)
        assert err.startswith("raidfs: ")
        assert err.count("\n") == 1
        assert all(one in err for one in told), err
    assert [positions(node) for node in pair] == ["b.img[1] a.img[0] [UU]"] * 2
    logs()


def test_what_is_stopped_on_one_node_is_stopped_on_all_until_it_is_let_go_on(
    array: Array, pair: list[Node], logs: Logs
) -> None:
    assert said("fail", pair[0].directory, array.images[1]) == SILENT
    write(pair[0], 0, os.urandom(MIB))
    assert said("idle", pair[1].directory) == SILENT
    assert said("re-add", pair[0].directory, array.images[1]) == SILENT
    assert "\trecovery=FROZEN\n" in raidfs("status", pair[0].directory).stdout
    code, out, err = said("wait", pair[0].directory)
    assert (code, out) == (1, "")
    assert f"let it go on: raidfs resync {pair[0].directory}" in err
    assert "stopped with `raidfs idle`" in raidfs("explain", pair[0].directory).stdout
    assert said("resync", "--wait", pair[1].directory) == SILENT
    assert [positions(node) for node in pair] == ["b.img[1] a.img[0] [UU]"] * 2
    assert content(array.images[0]) == content(array.images[1])
    logs()


def test_all_nodes_show_how_far_it_is_and_who_does_it(
    array: Array, directories: list[pathlib.Path], logs: Logs
) -> None:
    slowly = ("--sync-speed-max", "4096")  # KiB/s: 64 MiB take 16 s
    pair = [array.mount(directory, *slowly) for directory in directories]
    assert said("check", pair[0].directory) == SILENT
    eventually(lambda: pair[0].status().sync.state == "running", "the check runs")
    remote = eventually(
        lambda: [line for line in raidfs("status", pair[1].directory).stdout.splitlines() if "check =" in line],
        "the other node shows it",
    )[0]
    assert remote.strip().startswith("[")
    assert f"by slot {pair[0].status().node.slot} (" in remote
    assert ", checking by slot " in raidfs("status", "--detail", pair[1].directory).stdout
    code, out, err = said("check", pair[1].directory)
    assert (code, out) == (1, "")
    assert err.startswith("raidfs: ")
    assert said("idle", "--wait", pair[1].directory) == SILENT
    assert [node.status().sync.state for node in pair] == ["idle", "idle"]
    logs()


def test_a_new_array_is_made_equal_by_one_node_while_both_write_and_the_other_shows_it(
    short_path: pathlib.Path, directories: list[pathlib.Path]
) -> None:
    images = [short_path / "x.img", short_path / "y.img"]
    assert raidfs("create", "--size", "64M", *images).returncode == 0
    spoil(images[1], 40 * MIB, b"second leg" * 100)
    slowly = ("--sync-speed-max", "16384")  # KiB/s: 64 MiB take 4 s
    for directory in directories:
        assert said("mount", *slowly, *images, directory) == SILENT
    nodes = [Node(directory, directory / "md0", 0) for directory in directories]
    shown = eventually(
        lambda: [line for line in raidfs("status", directories[1]).stdout.splitlines() if "resync =" in line],
        "the other node shows it",
    )[0]
    assert "%" in shown
    assert f"by slot {nodes[0].status().node.slot} (" in shown
    written = {}
    for number in range(64):
        written[number] = os.urandom(3001)
        write(nodes[number % 2], number * MIB + 77, written[number])
    assert nodes[0].status().sync.state == "running"
    for directory in directories:
        assert said("wait", directory) == SILENT
    assert [node.status().sync.state for node in nodes] == ["idle", "idle"]
    assert content(images[0]) == content(images[1])
    assert all(content(images[0])[at * MIB + 77 :][:3001] == data for at, data in written.items())
    for directory in directories:
        assert said("umount", directory) == SILENT
