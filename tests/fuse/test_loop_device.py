"""The block file under a loop device with a file system on it: the way most people will use it first."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from support.mounted import Node, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def loop(node: Node) -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    made = subprocess.run(["losetup", "--find", "--show", str(node.file)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_file_system_keeps_its_files_over_a_remount_of_everything(
    loop: str, node: Node, short_path: pathlib.Path
) -> None:
    data = {f"file-{number}": os.urandom(100_000 + number) for number in range(20)}
    top = short_path / "ext4"
    top.mkdir()
    subprocess.run(["mkfs.ext4", "-q", loop], check=True)
    subprocess.run(["mount", loop, str(top)], check=True)
    try:
        for name, content in data.items():
            (top / name).write_bytes(content)
    finally:
        subprocess.run(["umount", str(top)], check=True)
    checked = subprocess.run(["e2fsck", "-fn", loop], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    subprocess.run(["mount", "-o", "ro", loop, str(top)], check=True)
    try:
        assert {name: (top / name).read_bytes() for name in data} == data
    finally:
        subprocess.run(["umount", str(top)], check=True)


def test_a_loop_device_keeps_the_node_busy(loop: str, node: Node) -> None:
    said = raidfs("umount", node.directory)
    assert said.returncode == 1
    assert "is in use" in said.stderr
