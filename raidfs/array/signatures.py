"""What an image already holds: superblocks and magic numbers of others, and data that nobody signed.

A small table of the places where file systems, partition tables, volume managers and virtual disks leave their
magic, after their own documentation and libblkid's. It only has to answer "would somebody miss this?", so it looks
at magics and not at checksums: a damaged file system is somebody's data too. How much space some of them need is told
by `needed_bytes`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator

from raidfs.units import KIB, MIB, PAGE_BYTES, SECTOR_BYTES, round_down

ReadBytes = Callable[[int, int], bytes]  # (offset_bytes, length_bytes) -> exactly that many bytes

_MD_MAGIC = 0xA92B4EFC.to_bytes(4, "little")

DATA = "unrecognised data"
_SAMPLE_EDGE_BYTES = MIB  # the first and last MiB are read in full
_SAMPLES = 64  # pages in between, evenly spread: 256 KiB more to read


@dataclasses.dataclass(frozen=True)
class Signature:
    """One thing found: what it is, where its magic lies, and how long that is (bytes)."""

    name: str
    offset_bytes: int
    length_bytes: int

    @property
    def is_md(self) -> bool:
        """Whether it is an md superblock, which must not survive the creation of another array."""
        return self.name.startswith("an md superblock")

    @property
    def is_data(self) -> bool:
        """Whether it is nothing but bytes that are not zero."""
        return self.name == DATA


@dataclasses.dataclass(frozen=True)
class _Magic:
    name: str
    offset_bytes: int
    magic: bytes


_MAGICS = (
    _Magic("an md superblock (1.1)", 0, _MD_MAGIC),
    _Magic("an md superblock (1.2)", 4096, _MD_MAGIC),
    _Magic("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    _Magic("an XFS file system", 0, b"XFSB"),
    _Magic("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    _Magic("a bcache device", 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    _Magic("a Bcachefs file system", 4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    _Magic("an F2FS file system", 1024, bytes.fromhex("1020f5f2")),
    _Magic("a GFS2 file system", 0x10000, bytes.fromhex("01161970")),
    _Magic("an OCFS2 file system", 4096 * 2, b"OCFSV2"),
    _Magic("a SquashFS file system", 0, b"hsqs"),
    _Magic("an EROFS file system", 1024, bytes.fromhex("e2e1f5e0")),
    _Magic("an NTFS file system", 3, b"NTFS    "),
    _Magic("an exFAT file system", 3, b"EXFAT   "),
    _Magic("a FAT file system", 54, b"FAT1"),
    _Magic("a FAT file system", 82, b"FAT32   "),
    _Magic("an ISO 9660 file system", 0x8001, b"CD001"),
    _Magic("a ZFS pool", 128 * KIB, (0x00BAB10C).to_bytes(8, "little")),
    _Magic("swap space", PAGE_BYTES - 10, b"SWAPSPACE2"),
    _Magic("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    _Magic("an LVM physical volume", SECTOR_BYTES, b"LABELONE"),
    _Magic("a GPT partition table", SECTOR_BYTES, b"EFI PART"),
    _Magic("a GPT partition table", PAGE_BYTES, b"EFI PART"),
    _Magic("a boot sector or MBR partition table", 510, b"\x55\xaa"),
    _Magic("a qcow2 image", 0, b"QFI\xfb"),
    _Magic("a VMDK image", 0, b"KDMV"),
    _Magic("a VMDK image", 0, b"# Disk DescriptorFile"),
    _Magic("a VHDX image", 0, b"vhdxfile"),
    _Magic("a VDI image", 64, bytes.fromhex("7f10dabe")),
)


def find_signatures(read: ReadBytes, size_bytes: int) -> tuple[Signature, ...]:
    """Return what is found, the most telling first; a blank image gives nothing.

    ``read`` gives bytes of the image, whose length is ``size_bytes``. Named signatures come first; when there is
    none, the first and last MiB and 64 pages in between are looked at and any byte that is not zero is reported as
    `DATA`.
    """
    named = tuple(
        Signature(magic.name, magic.offset_bytes, len(magic.magic))
        for magic in (*_MAGICS, *_at_the_end(size_bytes))
        if magic.offset_bytes + len(magic.magic) <= size_bytes
        and read(magic.offset_bytes, len(magic.magic)) == magic.magic
    )
    if named:
        return named
    for offset_bytes, length_bytes in _samples(size_bytes):
        data = read(offset_bytes, length_bytes)
        if data.count(0) != length_bytes:
            at = length_bytes - len(data.lstrip(b"\0"))
            return (Signature(DATA, offset_bytes + at, 1),)
    return ()


def _at_the_end(size_bytes: int) -> Iterator[_Magic]:
    # md 0.90 lies in the last whole 64 KiB but one of 64 KiB (MD_NEW_SIZE_SECTORS), 1.0 in the last 8 to 12 KiB,
    # on 4 KiB (super_1_load); a GPT has its copy in the last sector.
    sectors = size_bytes // SECTOR_BYTES
    if sectors >= 256:
        yield _Magic("an md superblock (0.90)", (round_down(sectors, 128) - 128) * SECTOR_BYTES, _MD_MAGIC)
        yield _Magic("an md superblock (1.0)", round_down(sectors - 16, 8) * SECTOR_BYTES, _MD_MAGIC)
        yield _Magic("a GPT partition table", (sectors - 1) * SECTOR_BYTES, b"EFI PART")


def _samples(size_bytes: int) -> Iterator[tuple[int, int]]:
    edge = min(size_bytes, _SAMPLE_EDGE_BYTES)
    yield 0, edge
    tail = max(edge, size_bytes - _SAMPLE_EDGE_BYTES)
    yield tail, size_bytes - tail
    between = tail - edge
    count = min(_SAMPLES, between // PAGE_BYTES)
    for n in range(count):
        yield edge + round_down(between * n // count, PAGE_BYTES), PAGE_BYTES


# ---- how much of the array is needed -------------------------------------------------------------------------------

NEEDED_HEAD_BYTES = 128 * KIB  # of the array, for `needed_bytes`: all that it looks at lies there

_EXT_INCOMPAT_64BIT = 0x80
# What ext3 knew; any other feature makes it ext4 (libblkid, probe_ext4).
_EXT3_INCOMPAT = 0x2 | 0x4 | 0x10
_EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4
_EXT_HAS_JOURNAL = 0x4
_EXT_LOG_BLOCK_MAX = 6  # blocks of 64 KiB
_MBR_PROTECTIVE = 0xEE
_SHIFT_MAX = 12  # sectors of 4 KiB


def needed_bytes(data: bytes) -> tuple[str, int] | None:
    """Return what an array's content says of its length: a name ("ext4 file system") and bytes; None if nothing does.

    ``data`` is the beginning of the array, `NEEDED_HEAD_BYTES` of it if it has so many. What is cut off behind the
    bytes returned is not missed; of several things that say how long they are the longest counts.
    """
    found = [one for look in _LENGTHS if (one := look(data)) is not None]
    return max(found, key=lambda one: one[1], default=None)


def _fields(layout: str, data: bytes, offset_bytes: int) -> tuple[int, ...]:
    # Zeros beyond the end: a magic that is missing says all.
    size = struct.calcsize(layout)
    return struct.unpack(layout, data[offset_bytes : offset_bytes + size].ljust(size, b"\0"))


def _has(data: bytes, offset_bytes: int, magic: bytes) -> bool:
    return data[offset_bytes : offset_bytes + len(magic)] == magic


def _ext(data: bytes) -> tuple[str, int] | None:
    # struct ext4_super_block at byte 1024.
    if not _has(data, 1080, b"\x53\xef"):
        return None
    (blocks_low,) = _fields("<I", data, 1024 + 4)
    (log_block,) = _fields("<I", data, 1024 + 24)
    compat, incompat, ro_compat = _fields("<III", data, 1024 + 92)
    (blocks_high,) = _fields("<I", data, 1024 + 0x150)
    if log_block > _EXT_LOG_BLOCK_MAX:
        return None
    blocks = blocks_low | (blocks_high << 32 if incompat & _EXT_INCOMPAT_64BIT else 0)
    if incompat & ~_EXT3_INCOMPAT or ro_compat & ~_EXT3_RO_COMPAT:
        name = "ext4"
    else:
        name = "ext3" if compat & _EXT_HAS_JOURNAL else "ext2"
    return f"{name} file system", blocks * (KIB << log_block)


def _xfs(data: bytes) -> tuple[str, int] | None:
    # struct xfs_dsb: sb_blocksize, sb_dblocks.
    if not _has(data, 0, b"XFSB"):
        return None
    block_bytes, blocks = _fields(">IQ", data, 4)
    return "XFS file system", block_bytes * blocks


def _btrfs(data: bytes) -> tuple[str, int] | None:
    # dev_item.total_bytes in struct btrfs_super_block at 64 KiB: of this device, not of all that it is made of.
    if not _has(data, 0x10040, b"_BHRfS_M"):
        return None
    return "Btrfs file system", _fields("<Q", data, 0x10000 + 0xC9 + 8)[0]


def _lvm(data: bytes) -> tuple[str, int] | None:
    # A label in one of the first four sectors; pv_header.device_size_xl behind pv_uuid, where the label says.
    for sector in range(4):
        label = sector * SECTOR_BYTES
        if _has(data, label, b"LABELONE") and _has(data, label + 24, b"LVM2 001"):
            (header,) = _fields("<I", data, label + 20)
            return "LVM physical volume", _fields("<Q", data, label + header + 32)[0]
    return None


def _swap(data: bytes) -> tuple[str, int] | None:
    # union swap_header: last_page.
    if not _has(data, PAGE_BYTES - 10, b"SWAPSPACE2"):
        return None
    return "swap space", (_fields("<I", data, 1024 + 4)[0] + 1) * PAGE_BYTES


def _gpt(data: bytes) -> tuple[str, int] | None:
    # The header lies in block 1, its copy in the block it calls alternate: the last one, behind a copy of the entries.
    for block_bytes in (SECTOR_BYTES, PAGE_BYTES):
        if _has(data, block_bytes, b"EFI PART"):
            (alternate,) = _fields("<Q", data, block_bytes + 32)
            (last_usable,) = _fields("<Q", data, block_bytes + 48)
            entries, entry_bytes = _fields("<II", data, block_bytes + 80)
            copy = -(-entries * entry_bytes // block_bytes)
            return "GPT partition table", (max(alternate, last_usable + copy + 1) + 1) * block_bytes
    return None


def _boot_sector(data: bytes) -> tuple[str, int] | None:
    if not _has(data, 510, b"\x55\xaa"):
        return None
    (sector_bytes,) = _fields("<H", data, 11)
    if _has(data, 3, b"NTFS    "):  # and a copy of the boot sector behind the last one that it counts
        return "NTFS file system", (_fields("<Q", data, 40)[0] + 1) * sector_bytes
    if _has(data, 3, b"EXFAT   "):
        return "exFAT file system", _fields("<Q", data, 72)[0] << min(_SHIFT_MAX, data[108])
    if _has(data, 54, b"FAT1") or _has(data, 82, b"FAT32   "):
        return "FAT file system", (_fields("<H", data, 19)[0] or _fields("<I", data, 32)[0]) * sector_bytes
    entries = [_fields("<B3xB3xII", data, 446 + 16 * n) for n in range(4)]
    used = [(start + count) * SECTOR_BYTES for _, kind, start, count in entries if kind not in (0, _MBR_PROTECTIVE)]
    if not used or any(active & 0x7F for active, *_ in entries):  # then it is a boot loader's code
        return None
    return "MBR partition table", max(used)


_LENGTHS = (_ext, _xfs, _btrfs, _lvm, _swap, _gpt, _boot_sector)
