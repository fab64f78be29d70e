"""The md superblock, version 1.2: bytes in, a frozen value out, and back.

It lies at byte 4096 of every leg, is 256 bytes long and followed by one 16-bit role for each device number that the
array may ever use. All integers are little-endian, offsets and sizes are sectors of 512 bytes. The layout is that of
``struct mdp_superblock_1`` (Linux, ``include/uapi/linux/raid/md_p.h``).

What is refused is what Linux refuses in ``super_1_load`` (``drivers/md/md.c``), and what no clustered RAID1 can
have. What is accepted is written back byte for byte.
"""

from __future__ import annotations

import dataclasses
import enum
import struct

from raidfs.errors import NoSuperblock, SuperblockChecksum, SuperblockFeatures, SuperblockField, SuperblockVersion
from raidfs.units import SECTOR_BYTES

MAGIC = 0xA92B4EFC
MAJOR_VERSION = 1
SUPER_OFFSET_SECTORS = 8  # minor version 2; a clustered array has no other place for it
SUPER_OFFSET_BYTES = SUPER_OFFSET_SECTORS * SECTOR_BYTES
SUPER_BYTES = 4096  # what a reader reads: MAX_SB_SIZE of mdadm
HEADER_BYTES = 256
DEVICES_MAX = (SUPER_BYTES - HEADER_BYTES) // 2
LEVEL_RAID1 = 1
SECTORS_MAX = 2**63 // SECTOR_BYTES  # a file offset has 63 bits
MAX_SECTOR = 2**64 - 1  # "all of it": a clean array's resync_offset

ROLE_SPARE = 0xFFFF
ROLE_FAULTY = 0xFFFE
ROLE_JOURNAL = 0xFFFD
ROLE_ACTIVE_MAX = 0xFF00

TIME_SECONDS_MASK = (1 << 40) - 1  # of ctime and utime; the high 24 bits are microseconds

# The fields in their order on disk. set_name and pad3 are the only ones that are neither numbers nor UUIDs.
_HEADER = struct.Struct("<IIII16s32sQiIQIIiIQiIIiQQQQII16sBBHiQQQII32s")
assert _HEADER.size == HEADER_BYTES

_CHECKSUM_OFFSET = 216


class Feature(enum.IntFlag):
    """The bits of ``feature_map`` (``MD_FEATURE_*``); those of other levels are named so that they can be refused."""

    BITMAP_OFFSET = 1
    RECOVERY_OFFSET = 2
    RESHAPE_ACTIVE = 4
    BAD_BLOCKS = 8
    REPLACEMENT = 16
    RESHAPE_BACKWARDS = 32
    NEW_OFFSET = 64
    RECOVERY_BITMAP = 128
    CLUSTERED = 256
    JOURNAL = 512
    PPL = 1024
    MULTIPLE_PPLS = 2048
    RAID0_LAYOUT = 4096


FEATURES_KNOWN = sum(Feature)
FEATURES_CLUSTERED_RAID1 = Feature.BITMAP_OFFSET | Feature.CLUSTERED  # 0x101, all that a clean array has


def checksum(data: bytes, max_dev: int) -> int:
    """Return the checksum of a superblock with ``max_dev`` roles; the stored one is left out of the sum.

    The little-endian 32-bit words of 256 + 2 * max_dev bytes are added up, a last odd half word as well, and the
    carry is folded in once (``calc_sb_1_csum`` of Linux and mdadm).
    """
    end = HEADER_BYTES + 2 * max_dev
    covered = data[:_CHECKSUM_OFFSET] + bytes(4) + data[_CHECKSUM_OFFSET + 4 : end] + bytes(end % 4)
    words: tuple[int, ...] = struct.unpack(f"<{len(covered) // 4}I", covered)
    total = sum(words)
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def uuid_text(uuid: bytes) -> str:
    """Return 16 bytes as md prints them: four groups of eight hexadecimal digits in the order of the bytes."""
    return ":".join(uuid[i : i + 4].hex() for i in range(0, 16, 4))


def uuid_bytes(text: str) -> bytes:
    """Return the bytes of `uuid_text`; colons and dashes are optional. Raises ValueError for anything else."""
    uuid = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if len(uuid) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return uuid


def printable(raw: bytes) -> str:
    """Return a name as it is stored: up to its first NUL, bytes that are not UTF-8 shown as escapes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class Superblock:
    """One leg's superblock. Fields have md's names; a unit at the end of a name is ours.

    ``set_name`` and ``trailing`` are raw bytes without their trailing NULs; ``trailing`` is what lies between the
    last role and byte 4096, which md neither reads nor covers by the checksum. Legs of one array differ only in the
    fields from ``data_offset_sectors`` to ``bblog_offset_sectors`` and in three feature bits.
    """

    set_uuid: bytes
    set_name: bytes
    ctime: int
    size_sectors: int
    raid_disks: int
    dev_number: int
    device_uuid: bytes
    data_offset_sectors: int
    data_size_sectors: int
    utime: int
    events: int
    resync_offset_sectors: int
    dev_roles: tuple[int, ...]
    feature_map: int = int(FEATURES_CLUSTERED_RAID1)
    level: int = LEVEL_RAID1
    layout: int = 0
    chunk_sectors: int = 0
    bitmap_offset_sectors: int = 8
    new_level: int = 0
    reshape_position: int = 0
    delta_disks: int = 0
    new_layout: int = 0
    new_chunk_sectors: int = 0
    new_offset_sectors: int = 0
    recovery_offset_sectors: int = 0
    cnt_corrected_read: int = 0
    devflags: int = 0
    bblog_shift: int = 0
    bblog_size_sectors: int = 0
    bblog_offset_sectors: int = 0
    trailing: bytes = b""

    @classmethod
    def decode(cls, data: bytes, *, path: str = "image") -> Superblock:
        """Return the superblock in ``data``, the 4096 bytes at byte 4096 of a leg.

        ``path`` is only used to name the leg in errors: NoSuperblock, SuperblockVersion, SuperblockFeatures,
        SuperblockField, and SuperblockChecksum, looked for in this order.
        """
        superblock = cls.unpack(data, path=path)
        unknown = superblock.feature_map & ~FEATURES_KNOWN
        if unknown:
            raise SuperblockFeatures(path=path, feature_map=hex(superblock.feature_map), unknown=hex(unknown))
        superblock._check_fields(path)
        stored, computed = stored_checksum(data), checksum(data, len(superblock.dev_roles))
        if stored != computed:
            raise SuperblockChecksum(path=path, stored=f"{stored:08x}", computed=f"{computed:08x}")
        return superblock

    @classmethod
    def unpack(cls, data: bytes, *, path: str = "image") -> Superblock:
        """Return what ``data`` says without believing it: neither the checksum nor the values are looked at.

        For showing damaged superblocks. Raises only where the bytes cannot be taken apart: a wrong magic or version,
        padding that is not zero, another place than byte 4096, more roles than fit.
        """
        if len(data) != SUPER_BYTES:
            raise NoSuperblock(path=path)
        (
            magic, major, feature_map, pad0, set_uuid, set_name, ctime, level, layout, size, chunk, raid_disks,
            bitmap_offset, new_level, reshape_position, delta_disks, new_layout, new_chunk, new_offset,
            data_offset, data_size, super_offset, recovery_offset, dev_number, cnt_corrected_read, device_uuid,
            devflags, bblog_shift, bblog_size, bblog_offset, utime, events, resync_offset, _, max_dev, pad3,
        ) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise NoSuperblock(path=path)
        if major != MAJOR_VERSION:
            raise SuperblockVersion(path=path, version=major)
        _require(path, "pad0", pad0, pad0 == 0, "it must be 0")
        _require(path, "pad3", pad3.rstrip(b"\0").hex(), pad3 == bytes(32), "it must be zeros")
        here = f"it must be {SUPER_OFFSET_SECTORS}, the sector it was read from (metadata 1.2)"
        _require(path, "super_offset", super_offset, super_offset == SUPER_OFFSET_SECTORS, here)
        _require(path, "max_dev", max_dev, max_dev <= DEVICES_MAX, f"at most {DEVICES_MAX} roles fit")
        end = HEADER_BYTES + 2 * max_dev
        return cls(
            set_uuid=set_uuid,
            set_name=set_name.rstrip(b"\0"),
            ctime=ctime,
            size_sectors=size,
            raid_disks=raid_disks,
            dev_number=dev_number,
            device_uuid=device_uuid,
            data_offset_sectors=data_offset,
            data_size_sectors=data_size,
            utime=utime,
            events=events,
            resync_offset_sectors=resync_offset,
            dev_roles=struct.unpack_from(f"<{max_dev}H", data, HEADER_BYTES),
            feature_map=feature_map,
            level=level,
            layout=layout,
            chunk_sectors=chunk,
            bitmap_offset_sectors=bitmap_offset,
            new_level=new_level,
            reshape_position=reshape_position,
            delta_disks=delta_disks,
            new_layout=new_layout,
            new_chunk_sectors=new_chunk,
            new_offset_sectors=new_offset,
            recovery_offset_sectors=recovery_offset,
            cnt_corrected_read=cnt_corrected_read,
            devflags=devflags,
            bblog_shift=bblog_shift,
            bblog_size_sectors=bblog_size,
            bblog_offset_sectors=bblog_offset,
            trailing=data[end:].rstrip(b"\0"),
        )

    def encode(self) -> bytes:
        """Return the 4096 bytes to write at byte 4096 of the leg, with the right checksum."""
        header = _HEADER.pack(
            MAGIC, MAJOR_VERSION, self.feature_map, 0, self.set_uuid, self.set_name, self.ctime, self.level,
            self.layout, self.size_sectors, self.chunk_sectors, self.raid_disks, self.bitmap_offset_sectors,
            self.new_level, self.reshape_position, self.delta_disks, self.new_layout, self.new_chunk_sectors,
            self.new_offset_sectors, self.data_offset_sectors, self.data_size_sectors, SUPER_OFFSET_SECTORS,
            self.recovery_offset_sectors, self.dev_number, self.cnt_corrected_read, self.device_uuid, self.devflags,
            self.bblog_shift, self.bblog_size_sectors, self.bblog_offset_sectors, self.utime, self.events,
            self.resync_offset_sectors, 0, self.max_dev, bytes(32),
        )  # fmt: skip
        roles = struct.pack(f"<{self.max_dev}H", *self.dev_roles)
        data = bytearray((header + roles + self.trailing).ljust(SUPER_BYTES, b"\0"))
        assert len(data) == SUPER_BYTES, len(data)
        struct.pack_into("<I", data, _CHECKSUM_OFFSET, checksum(bytes(data), self.max_dev))
        return bytes(data)

    @property
    def max_dev(self) -> int:
        """How many device numbers the superblock has roles for."""
        return len(self.dev_roles)

    @property
    def name(self) -> str:
        """The array's full name as it is stored, usually ``homehost:name``."""
        return printable(self.set_name)

    @property
    def array_name(self) -> str:
        """The array's name without its home host: what the block file is called."""
        return self.name.rpartition(":")[2]

    @property
    def set_uuid_text(self) -> str:
        """The array's UUID as md prints it."""
        return uuid_text(self.set_uuid)

    @property
    def device_uuid_text(self) -> str:
        """This leg's UUID as md prints it."""
        return uuid_text(self.device_uuid)

    @property
    def is_clean(self) -> bool:
        """Whether no resync of the whole array is due; a running clustered array says no, the bitmaps know more."""
        return self.resync_offset_sectors == MAX_SECTOR

    @property
    def is_clustered(self) -> bool:
        """Whether the array has a bitmap and the bitmap is a clustered one."""
        return self.feature_map & FEATURES_CLUSTERED_RAID1 == FEATURES_CLUSTERED_RAID1

    @property
    def role(self) -> int:
        """This leg's role as this leg knows it: an active position, ROLE_SPARE, ROLE_FAULTY or ROLE_JOURNAL."""
        return self.role_of(self.dev_number)

    def role_of(self, dev_number: int) -> int:
        """Return the role of a device number; one beyond the table is a spare, as in ``super_1_validate``."""
        return self.dev_roles[dev_number] if dev_number < self.max_dev else ROLE_SPARE

    @property
    def is_recovering(self) -> bool:
        """Whether this leg says of itself that only the data below ``recovery_offset_sectors`` is on it."""
        return bool(self.feature_map & Feature.RECOVERY_OFFSET)

    def with_role(self, dev_number: int, role: int) -> Superblock:
        """Return this superblock with another role for a device number; the table grows if it has to (super_1_sync)."""
        assert dev_number < DEVICES_MAX, dev_number
        roles = [*self.dev_roles, *[ROLE_SPARE] * (dev_number + 1 - self.max_dev)]
        roles[dev_number] = role
        return dataclasses.replace(self, dev_roles=tuple(roles))

    def _check_fields(self, path: str) -> None:
        # super_1_load refuses data that begins inside the superblock; the rest cannot be in an array that works.
        superblock_end = SUPER_OFFSET_SECTORS + SUPER_BYTES // SECTOR_BYTES
        _require(
            path, "data_offset", self.data_offset_sectors, self.data_offset_sectors >= superblock_end,
            f"data cannot begin before sector {superblock_end}",
        )  # fmt: skip
        _require(
            path, "size", self.size_sectors, self.size_sectors <= self.data_size_sectors,
            f"the leg has {self.data_size_sectors} sectors for data",
        )  # fmt: skip
        _require(
            path, "data_size", self.data_size_sectors, self.data_offset_sectors + self.data_size_sectors < SECTORS_MAX,
            f"a device has less than {SECTORS_MAX} sectors",
        )  # fmt: skip
        _require(
            path, "raid_disks", self.raid_disks, 1 <= self.raid_disks <= ROLE_ACTIVE_MAX,
            f"it must be 1 to {ROLE_ACTIVE_MAX}",
        )  # fmt: skip


def stored_checksum(data: bytes) -> int:
    """Return the checksum that a superblock carries, whether or not it is right."""
    return int.from_bytes(data[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 4], "little")


def _require(path: str, field: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise SuperblockField(path=path, place="superblock", field=field, value=value, rule=rule)
