"""How much of an array its content needs: what real programs have made is whole without the rest, but not with less."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.array.signatures import NEEDED_HEAD_BYTES, needed_bytes
from raidfs.units import KIB, MIB

ARRAY_BYTES = 512 * MIB
needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="loop devices need root and /dev/loop-control"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "array"
    with path.open("wb") as file:
        file.truncate(ARRAY_BYTES)
    return path


def run(program: str, *arguments: str, text: str = "") -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    subprocess.run([found, *arguments], check=True, capture_output=True, input=text, text=True)


def needed(path: Path | str) -> tuple[str, int] | None:
    with open(path, "rb") as file:
        return needed_bytes(file.read(NEEDED_HEAD_BYTES))


def is_whole(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode == 0 and "corrupt" not in done.stdout + done.stderr


def check_length(path: Path, name: str, length_bytes: int, *checker: str) -> None:
    """The image is whole with the bytes that are called needed, and its checker complains when some are not there."""
    assert needed(path) == (name, length_bytes)
    os.truncate(path, length_bytes)
    assert is_whole(*checker, str(path))
    os.truncate(path, length_bytes - 4 * KIB)
    assert not is_whole(*checker, str(path))
    assert needed(path) == (name, length_bytes)


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("options", [(), ("-O", "extent,64bit"), ("-b", "1024"), ("-b", "4096")], ids=" ".join)
def test_an_ext_file_system_needs_its_blocks(path: Path, kind: str, options: Sequence[str]) -> None:
    run("mke2fs", "-q", "-F", "-t", kind, *options, str(path), "300M")
    name = "ext4" if "-O" in options else kind
    check_length(path, f"{name} file system", 300 * MIB, "e2fsck", "-fn")


def test_an_ext4_of_more_than_16_tib_needs_that() -> None:
    head = bytearray(NEEDED_HEAD_BYTES)
    struct.pack_into("<I", head, 1024 + 4, 0x40000000)
    struct.pack_into("<I", head, 1024 + 24, 2)
    head[1080:1082] = b"\x53\xef"
    struct.pack_into("<I", head, 1024 + 96, 0x80)
    struct.pack_into("<I", head, 1024 + 0x150, 1)
    assert needed_bytes(bytes(head)) == ("ext4 file system", (1 << 32 | 0x40000000) * 4096)


def test_an_xfs_needs_its_blocks(path: Path) -> None:
    run("mkfs.xfs", "-q", "-f", "-d", "size=300m", str(path))
    check_length(path, "XFS file system", 300 * MIB, "xfs_repair", "-n", "-f")


def test_a_btrfs_needs_what_it_was_given_of_this_device(path: Path) -> None:
    run("mkfs.btrfs", "-q", "-f", "-b", "300M", str(path))
    assert needed(path) == ("Btrfs file system", 300 * MIB)


def test_swap_space_needs_its_pages(path: Path) -> None:
    os.truncate(path, 300 * MIB)
    run("mkswap", "-q", str(path))
    os.truncate(path, ARRAY_BYTES)
    assert needed(path) == ("swap space", 300 * MIB)


@pytest.mark.parametrize("program", ["sfdisk", "sgdisk"])
def test_a_gpt_needs_its_copy_too(path: Path, program: str) -> None:
    os.truncate(path, 300 * MIB)
    if program == "sfdisk":
        run("sfdisk", "-q", str(path), text="label: gpt\n,100M\n")
    else:
        run("sgdisk", "-n", "1:2048:+100M", str(path))
    os.truncate(path, ARRAY_BYTES)
    assert needed(path) == ("GPT partition table", 300 * MIB)


def test_an_mbr_needs_its_last_partition(path: Path) -> None:
    run("sfdisk", "-q", str(path), text="label: dos\n2048,100M\n,100M,E\n,50M\n")
    assert needed(path) == ("MBR partition table", 251 * MIB)  # the first MiB, 100, 100 and 50


@pytest.mark.parametrize("bits", ["12", "16", "32"])
def test_a_fat_needs_its_sectors(path: Path, bits: str) -> None:
    size = {"12": 4 * MIB, "16": 100 * MIB, "32": 300 * MIB}[bits]
    run("mkfs.vfat", "-F", bits, str(path), str(size // KIB))
    found = needed(path)
    assert found is not None
    assert found[0] == "FAT file system"
    assert size - 64 * KIB < found[1] <= size  # it has whole tracks


def test_an_ntfs_needs_the_copy_of_its_boot_sector(path: Path) -> None:
    run("mkfs.ntfs", "-q", "-F", "-f", "-s", "512", str(path), str(300 * MIB // 512))
    assert needed(path) == ("NTFS file system", 300 * MIB)


def test_an_exfat_needs_its_sectors(path: Path) -> None:
    os.truncate(path, 300 * MIB)
    run("mkfs.exfat", str(path))
    assert needed(path) == ("exFAT file system", 300 * MIB)


@pytest.mark.root
@needs_loop
def test_an_lvm_physical_volume_needs_the_size_of_its_device(path: Path) -> None:
    os.truncate(path, 300 * MIB)
    losetup = ["losetup", "-f", "--show", str(path)]
    device = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        run("pvcreate", "-q", "-y", device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert needed(path) == ("LVM physical volume", 300 * MIB)


def test_of_several_the_longest_counts(path: Path) -> None:
    head = bytearray(NEEDED_HEAD_BYTES)
    head[0:4] = b"XFSB"
    struct.pack_into(">IQ", head, 4, 4096, 1000)
    head[4096 - 10 : 4096] = b"SWAPSPACE2"
    struct.pack_into("<I", head, 1028, 4999)
    assert needed_bytes(bytes(head)) == ("swap space", 5000 * 4096)
    struct.pack_into(">IQ", head, 4, 4096, 10_000)
    assert needed_bytes(bytes(head)) == ("XFS file system", 10_000 * 4096)


@pytest.mark.parametrize("length_bytes", [0, 1, 511, 4096, NEEDED_HEAD_BYTES])
def test_zeros_need_nothing(length_bytes: int) -> None:
    assert needed_bytes(bytes(length_bytes)) is None


MAGICS = (
    *((1080, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (4086, b"SWAPSPACE2"), (512, b"EFI PART")),
    *((4096, b"EFI PART"), (510, b"\x55\xaa"), (3, b"NTFS    "), (3, b"EXFAT   "), (54, b"FAT1"), (512, b"LABELONE")),
)


@given(st.data())
def test_no_content_is_too_strange_to_look_at(data: st.DataObject) -> None:
    piece = data.draw(st.binary(min_size=64, max_size=64))
    head = bytearray(piece * (NEEDED_HEAD_BYTES // len(piece)))
    for offset, magic in data.draw(st.lists(st.sampled_from(MAGICS))):
        head[offset : offset + len(magic)] = magic
    found = needed_bytes(bytes(head[: data.draw(st.integers(0, len(head)))]))
    assert found is None or found[1] >= 0
