"""What mdadm says of our images, over sizes, chunks, nodes and legs."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.arrays import make_array

from raidfs.array.create import CreatedArray, create_array
from raidfs.array.examine import examine_image
from raidfs.array.head import read_candidates
from raidfs.array.request import ArrayRequest
from raidfs.array.update import UpdateRequest, update_array
from raidfs.cli.examine import text_lines
from raidfs.errors import NoSuperblock, TooManyNodes
from raidfs.format.bitmap import set_dirty
from raidfs.units import GIB, KIB, MIB

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("mdadm") is None, reason="mdadm is not installed"),
]
needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="loop devices need root and /dev/loop-control"
)

SIZES = (64 * MIB, 100 * MIB + 4096, 256 * MIB, GIB, 4 * GIB)
CHUNKS = (4 * KIB, 16 * KIB, 64 * KIB, MIB, 64 * MIB)
NODES = (2, 3, 4, 16)
LEGS = (2, 3, 4)

# Every value of each axis at least once, and the corners; the whole matrix is slow.
FEW = [
    (64 * MIB, 4 * KIB, 16, 2),
    (100 * MIB + 4096, 16 * KIB, 3, 3),
    (256 * MIB, 64 * MIB, 2, 4),
    (GIB, 64 * KIB, 4, 2),
    (4 * GIB, 4 * KIB, 16, 2),
    (4 * GIB, MIB, 2, 2),
]
ALL = [(size, chunk, nodes, legs) for size in SIZES for chunk in CHUNKS for nodes in NODES for legs in LEGS]


def mdadm(*args: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(["mdadm", *args], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def loop_device(path: str) -> Iterator[str]:
    device = subprocess.run(
        ["losetup", "-f", "--show", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def facts(text: str) -> dict[str, str]:
    """The ``Name : value`` lines of --examine."""
    return {name.strip(): value.strip() for name, _, value in (line.partition(" : ") for line in text.splitlines())}


def slots_by_mdadm(path: str) -> list[tuple[int, int]]:
    """(bits, dirty bits) of each slot as ``mdadm -X`` counts them on a loop device."""
    with loop_device(path) as device:
        text = mdadm("-X", device)
    assert text.count("State : OK") == text.count("Node Slot")
    found = re.findall(r"Bitmap : (\d+) bits \(chunks\), (\d+) dirty", text)
    return [(int(bits), int(dirty)) for bits, dirty in found]


def set_bits(created: CreatedArray, path: str, counts: list[int]) -> None:
    """Set ``counts[slot]`` bits, spread at random, the first and the last among them, in all slots but 0."""
    layout = created.layout
    rng = random.Random(created.layout.bits)
    with open(path, "r+b") as file:
        for slot, count in enumerate(counts):
            if slot == 0:
                continue
            bits = bytearray(layout.slot_bytes - 256)
            for bit in {0, layout.bits - 1, *rng.sample(range(layout.bits), count)}:
                set_dirty(bits, bit)
            file.seek(layout.slot_offset_bytes(slot) + 256)
            file.write(bits)


def check_examine(created: CreatedArray) -> None:
    layout = created.layout
    for image in created.images:
        found = facts(mdadm("--examine", image.path))
        assert found["Checksum"].endswith("- correct")
        assert found["Array Size"].split()[0] == str(layout.size_bytes // 1024)
        assert found["Data Offset"] == f"{layout.data_offset_sectors} sectors"
        assert found["Avail Dev Size"].split()[0] == str(layout.size_sectors)
        assert found["Cluster Name"] == "raidfs"
        assert found["Raid Devices"] == str(len(created.images))
        assert found["Device Role"] == f"Active device {image.role}"
        assert found["Array State"].startswith("A" * len(created.images) + " ")
        assert found["Unused Space"].endswith("after=0 sectors")


def check(tmp_path: Path, case: tuple[int, int, int, int], *, bits: bool) -> None:
    size, chunk, nodes, legs = case
    created = make_array(tmp_path, size_bytes=size, chunk_bytes=chunk, nodes=nodes, legs=legs)
    check_examine(created)
    if bits:
        path = created.images[-1].path
        total = created.layout.bits
        set_bits(created, path, [min(total, 3 * slot * slot) for slot in range(nodes)])
        ours = [(slot.bits, slot.dirty) for slot in examine_image(path).slots]
        assert slots_by_mdadm(path) == ours
        assert ours[0] == (total, total)
        assert all(0 < dirty <= total for _, dirty in ours)
    for image in created.images:
        os.unlink(image.path)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_mdadm_accepts_the_superblock_and_its_sizes(tmp_path: Path, case: tuple[int, int, int, int]) -> None:
    check(tmp_path, case, bits=False)


@pytest.mark.root
@needs_loop
@pytest.mark.parametrize("case", FEW, ids=str)
def test_mdadm_counts_the_dirty_bits_of_each_slot_as_we_do(tmp_path: Path, case: tuple[int, int, int, int]) -> None:
    check(tmp_path, case, bits=True)


@pytest.mark.slow
@pytest.mark.root
@needs_loop
@pytest.mark.parametrize("size", SIZES)
def test_mdadm_accepts_every_size_chunk_number_of_nodes_and_of_legs(tmp_path: Path, size: int) -> None:
    refused = 0
    for case in ALL:
        if case[0] == size:
            try:
                check(tmp_path, case, bits=case[3] == 2)
            except TooManyNodes:
                refused += 1
    assert refused == 0


@pytest.mark.root
@needs_loop
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_mdadm_agrees_with_another_number_of_nodes_and_another_cluster(tmp_path: Path, nodes: int) -> None:
    created = make_array(tmp_path, size_bytes=256 * MIB, chunk_bytes=16 * KIB, nodes=4)
    paths = [image.path for image in created.images]
    for path in paths:
        set_bits(created, path, [0, 10, 200, 3000])
    before = slots_by_mdadm(paths[0])
    update_array(UpdateRequest(tuple(paths), nodes=nodes, cluster_name="blue"), now_s=1)
    for path in paths:
        found = facts(mdadm("--examine", path))
        assert found["Checksum"].endswith("- correct")
        assert found["Cluster Name"] == "blue"
        with loop_device(path) as device:
            text = mdadm("-X", device)
        assert re.findall(r"Cluster nodes : (\d+)", text) == [str(nodes)]
        assert re.findall(r"Cluster name : (\w+)", text) == ["blue"]
        after = slots_by_mdadm(path)
        assert after == [(slot.bits, slot.dirty) for slot in examine_image(path).slots]
        kept = min(nodes, 4)
        assert after[:kept] == before[:kept]  # slot 0 has all bits, as a new array has
        assert after[kept:] == [(created.layout.bits, 0)] * (nodes - kept)


def test_our_text_is_that_of_mdadm_examine(tmp_path: Path) -> None:
    created = make_array(tmp_path, size_bytes=GIB, spares=1)
    for image in created.images:
        theirs = [line.rstrip() for line in mdadm("--examine", image.path).splitlines()]
        ours = [line.rstrip() for line in text_lines(examine_image(image.path), homehost="")]
        assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (4096 + 8, b"\x03"),
        (4096 + 152, b"\x10"),
        (4096 + 200, b"\x11\x22"),
        (4096 + 208, b"\xff" * 8),
        (4096 + 216, b"\xaa\xbb"),
        (4096 + 256, b"\xfe\xff"),
        (4096 + 136, b"\x08"),
        (4096 + 184, b"\x03"),
        (4096 + 160, b"\x01"),
        (4096 + 76, b"\x01"),
    ],
    ids=str,
)
def test_our_text_is_that_of_mdadm_examine_for_other_states_too(tmp_path: Path, offset: int, data: bytes) -> None:
    path = make_array(tmp_path, size_bytes=64 * MIB).images[0].path
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    theirs = [line.rstrip() for line in mdadm("--examine", path).splitlines()]
    ours = [line.rstrip() for line in text_lines(examine_image(path), homehost="")]
    assert ours[: len(theirs)] == theirs


def test_mdadm_zeroes_our_superblock_and_then_nobody_finds_one(tmp_path: Path) -> None:
    path = make_array(tmp_path).images[0].path
    mdadm("--zero-superblock", path)
    assert isinstance(read_candidates([path])[0].superblock, NoSuperblock)


@pytest.mark.root
@needs_loop
def test_an_array_on_block_devices_is_like_one_on_files(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.touch()
        os.truncate(path, 64 * MIB)
    request: dict[str, Any] = {"set_uuid": bytes(range(16)), "device_uuids": [b"a" * 16, b"b" * 16], "now_s": 1}
    with loop_device(str(paths[0])) as first, loop_device(str(paths[1])) as second:
        created = create_array(ArrayRequest(images=(first, second)), **request)
        assert [image.size_bytes for image in created.images] == [64 * MIB] * 2
        assert facts(mdadm("--examine", first))["Checksum"].endswith("- correct")
        assert examine_image(first).superblock == examine_image(str(paths[0])).superblock
