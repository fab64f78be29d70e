from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.array.images import open_image
from raidfs.array.signatures import DATA, Signature, find_signatures
from raidfs.units import KIB, MIB


def found_in(data: bytes) -> list[str]:
    def read(offset_bytes: int, length_bytes: int) -> bytes:
        piece = data[offset_bytes : offset_bytes + length_bytes]
        assert len(piece) == length_bytes, (offset_bytes, length_bytes, len(data))
        return piece

    return [signature.name for signature in find_signatures(read, len(data))]


def with_bytes(size_bytes: int, offset_bytes: int, magic: bytes) -> bytes:
    data = bytearray(size_bytes)
    data[offset_bytes : offset_bytes + len(magic)] = magic
    return bytes(data)


MD = (0xA92B4EFC).to_bytes(4, "little")


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 512, 4096, 65536, 131072, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_a_blank_image_of_any_size_holds_nothing(size_bytes: int) -> None:
    assert found_in(bytes(size_bytes)) == []


@pytest.mark.parametrize(
    ("offset_bytes", "magic", "name"),
    [
        (0, MD, "an md superblock (1.1)"),
        (4096, MD, "an md superblock (1.2)"),
        (4 * MIB - 64 * KIB, MD, "an md superblock (0.90)"),
        (4 * MIB - 8192, MD, "an md superblock (1.0)"),
        (512, b"EFI PART", "a GPT partition table"),
        (4 * MIB - 512, b"EFI PART", "a GPT partition table"),
        (510, b"\x55\xaa", "a boot sector or MBR partition table"),
        (0x10040, b"_BHRfS_M", "a Btrfs file system"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"KDMV", "a VMDK image"),
        (0x8001, b"CD001", "an ISO 9660 file system"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0, b"LUKS\xba\xbe\0\2", "a LUKS encrypted volume"),
        (3, b"NTFS    ", "an NTFS file system"),
    ],
)
def test_a_magic_is_named(offset_bytes: int, magic: bytes, name: str) -> None:
    assert found_in(with_bytes(4 * MIB, offset_bytes, magic)) == [name]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["mkfs.ext4", "-q", "-F"], "an ext2, ext3 or ext4 file system"),
        (["mkfs.ext2", "-q", "-F"], "an ext2, ext3 or ext4 file system"),
        (["mkfs.xfs", "-q", "-f"], "an XFS file system"),
        (["mkswap", "-q"], "swap space"),
        (["mkfs.btrfs", "-q", "-f"], "a Btrfs file system"),
        (["mkfs.vfat"], "a FAT file system"),
        (["mkfs.ntfs", "-q", "-F"], "an NTFS file system"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_real_program_makes_is_named(tmp_path: Path, command: list[str], name: str) -> None:
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run([program, *command[1:], str(path)], check=True, capture_output=True)
    with open_image(str(path)) as image:
        names = [signature.name for signature in find_signatures(image.read, image.size_bytes)]
    assert name in names


@pytest.mark.parametrize("offset_bytes", [0, 777, MIB - 1, 3 * MIB, 4 * MIB - 1])
def test_a_byte_at_either_end_is_data(offset_bytes: int) -> None:
    data = with_bytes(4 * MIB, offset_bytes, b"\1")
    assert find_signatures(lambda at, n: data[at : at + n], len(data)) == (Signature(DATA, offset_bytes, 1),)


def test_data_between_the_ends_is_found_by_samples() -> None:
    data = bytes(MIB) + b"\1" * 2 * MIB + bytes(MIB)
    assert found_in(data) == [DATA]


@given(st.integers(0, 200_000))
def test_nothing_outside_of_the_image_is_ever_read(size_bytes: int) -> None:
    found_in(bytes(size_bytes))


def test_named_signatures_are_told_before_data() -> None:
    data = bytearray(with_bytes(4 * MIB, 4096, MD))
    data[0:4] = b"XFSB"
    data[2 * MIB] = 1
    assert found_in(bytes(data)) == ["an md superblock (1.2)", "an XFS file system"]
