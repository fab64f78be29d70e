"""What an image already holds: superblocks and magic numbers of others, and data that nobody signed.

A small table of the places where file systems, partition tables, volume managers and virtual disks leave their
magic, after their own documentation and libblkid's. It only has to answer "would somebody miss this?", so it looks
at magics and not at checksums: a damaged file system is somebody's data too.
"""

from __future__ import annotations

import dataclasses
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
