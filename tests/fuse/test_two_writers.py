"""The main job: two nodes write at the same time, each in its half, and everything is where it belongs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
from support.mounted import Array, Node, raidfs

from raidfs.array.head import read_candidates
from raidfs.format.superblock import Superblock

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

SECONDS = int(os.environ.get("RAIDFS_FIO_SECONDS", "8"))
HALF_MIB = 32
# fio cannot verify overlapping blocks of several sizes, so each size has a region of its own; 3001 and 100003 begin and
# end within blocks.
BLOCK_BYTES = (512, 3001, 4096, 100003, 1 << 20)
REGION_MIB = 6


def fio(node: Node, half: int) -> subprocess.Popen[str]:
    command = [
        "fio", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--verify=crc32c",
        "--verify_backlog=200", "--verify_state_save=0", "--time_based", f"--runtime={SECONDS}", "--randrepeat=0",
        f"--filename={node.file}",
    ]  # fmt: skip
    for number, block in enumerate(BLOCK_BYTES):
        offset_mib = half * HALF_MIB + number * REGION_MIB
        size = (REGION_MIB << 20) // block * block
        command += [f"--name=bs{block}", f"--bs={block}", f"--offset={offset_mib}M", f"--size={size}"]
        if block % 512:
            command += ["--direct=0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("plane", ["native", "pyfuse3"])
def test_two_nodes_under_fio_verify_leave_equal_legs_and_a_clean_bitmap(
    array: Array, directories: list[pathlib.Path], plane: str
) -> None:
    nodes = [array.mount(directory, "--plane", plane) for directory in directories]
    assert [node.status().node.plane for node in nodes] == [plane] * 2
    running = [fio(node, half) for half, node in enumerate(nodes)]
    said = [process.communicate(timeout=SECONDS + 100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert "verify:" not in "".join(said)
    for node in nodes:
        assert raidfs("umount", node.directory).returncode == 0
    superblock = read_candidates([str(path) for path in array.images])[0].superblock
    assert isinstance(superblock, Superblock)
    data = [path.read_bytes()[superblock.data_offset_sectors * 512 :] for path in array.images]
    assert data[0] == data[1]
    assert any(data[0])
    for path in array.images:
        shown = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=True).stdout
        assert "- correct" in shown
        (image,) = json.loads(raidfs("examine", "--json", path).stdout)["images"]
        assert [slot["dirty"] for slot in image["slots"]] == [0] * 4
