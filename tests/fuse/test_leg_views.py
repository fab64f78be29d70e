"""Legs that come and go on real mounts: who sees which image, what mdadm says of the legs, what the next mount does."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from support.mounted import Array, Node, eventually, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20

Logs = Callable[[], str]


def done(*words: str | pathlib.Path) -> None:
    said = raidfs(*words)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", ""), said


def states(node: Node) -> dict[str, str]:
    return {os.path.basename(leg.path): leg.state for leg in node.status().legs}


def new_image(path: pathlib.Path, like: pathlib.Path) -> pathlib.Path:
    path.write_bytes(b"")
    os.truncate(path, like.stat().st_size)
    return path


def write(node: Node, offset: int, data: bytes) -> None:
    with open(node.file, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def mdadm(*words: str | pathlib.Path) -> str:
    return subprocess.run(["mdadm", *words], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def loop_device(path: pathlib.Path) -> Iterator[str]:
    words = ["losetup", "--find", "--show", "--read-only", str(path)]
    device = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def role(path: pathlib.Path) -> str:
    """What mdadm says that a leg is, whose superblock it accepts."""
    said = mdadm("--examine", path)
    assert "- correct" in said
    found = re.search(r"Device Role : (.*)", said)
    assert found is not None
    return found[1]


def test_an_image_that_one_node_does_not_see_is_not_added_and_that_node_is_named(
    array: Array, directories: list[pathlib.Path], short_path: pathlib.Path, logs: Logs
) -> None:
    elsewhere = short_path / "elsewhere"
    elsewhere.mkdir()
    new = new_image(elsewhere / "c.img", array.images[0])
    sees, does_not = array.mount(directories[0], "--search", str(elsewhere)), array.mount(directories[1])
    said = raidfs("add-spare", sees.directory, new)
    assert said.returncode == 1
    slot = does_not.status().node.slot
    [client] = [member.client for member in sees.status().members if member.slot == slot]
    assert f"{client} (slot {slot}): it does not see the image" in said.stderr
    assert [states(node) for node in (sees, does_not)] == [{"a.img": "in_sync", "b.img": "in_sync"}] * 2
    assert new.read_bytes()[: 64 * 1024] == bytes(64 * 1024)
    done("add-spare", does_not.directory, new)  # which needs no search for what it is told
    assert [states(node)["c.img"] for node in (sees, does_not)] == ["spare", "spare"]
    assert "it does not see the image" in logs()


def test_mdadm_accepts_every_leg_of_an_array_whose_legs_have_come_and_gone(
    array: Array, directories: list[pathlib.Path], short_path: pathlib.Path, logs: Logs
) -> None:
    first, second = (array.mount(directory) for directory in directories)
    a, b = array.images
    new, spare = (new_image(short_path / name, a) for name in ("c.img", "s.img"))
    write(first, 3 * MIB, b"before" * 1000)
    done("fail", first.directory, a)
    assert [role(path) for path in (a, b)] == ["Active device 0", "Active device 1"]  # a faulty one is not written
    assert "Array State : .A (" in mdadm("--examine", b)
    done("remove", second.directory, a)
    done("add", "--wait", second.directory, new)
    done("add-spare", first.directory, spare)
    write(second, 5 * MIB, b"after" * 1000)
    assert [role(path) for path in (new, b, spare)] == ["Active device 0", "Active device 1", "spare"]
    assert all("Array State : AA (" in mdadm("--examine", path) for path in (new, b))
    for node in (first, second):
        done("umount", node.directory)
    if os.geteuid() == 0 and shutil.which("losetup"):
        found = []
        for path in (new, b):
            with loop_device(path) as device:
                said = mdadm("-X", device)
            assert said.count("State : OK") == said.count("Node Slot") == 4
            found.append(re.findall(r"Bitmap : (\d+) bits \(chunks\), (\d+) dirty", said))
        assert found[0] == found[1]
        assert len(found[0]) == 4
    logs()


def test_a_spare_is_a_spare_again_at_the_next_mount_and_takes_over_then(
    array: Array, directories: list[pathlib.Path], short_path: pathlib.Path, logs: Logs
) -> None:
    spare = new_image(short_path / "s.img", array.images[0])
    node = array.mount(directories[0])
    done("add-spare", node.directory, spare)
    done("umount", node.directory)
    first, second = array.mount(directories[0], str(spare)), array.mount(directories[1])
    assert states(first) == {"a.img": "in_sync", "b.img": "in_sync", "s.img": "spare"}
    done("fail", second.directory, array.images[0])
    eventually(lambda: states(first)["s.img"] == states(second).get("s.img") == "in_sync", "the spare takes over")
    write(second, MIB, b"x" * 4096)
    done("remove", first.directory, array.images[0])
    done("add", second.directory, array.images[0])  # ours, so no --force
    assert states(second) == states(first) == {"b.img": "in_sync", "s.img": "in_sync", "a.img": "spare"}
    done("remove", first.directory, array.images[0])
    done("add-spare", first.directory, array.images[0])
    logs()
