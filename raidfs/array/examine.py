"""Examining an image: all that its metadata says, damaged or not, as one value.

The command line prints it as text or as JSON; both come from this value. Nothing is judged here beyond what one
image tells; whether images make up an array is told by `raidfs.array.assemble`.
"""

from __future__ import annotations

import collections
import dataclasses

from raidfs.array.head import checked_layout, read_slot_bits, read_slot_superblocks, read_superblock_area
from raidfs.array.images import OpenImage, open_image
from raidfs.errors import ImageShort, RaidfsError, SuperblockChecksum
from raidfs.format.bitmap import BitmapSuperblock, count_dirty
from raidfs.format.geometry import ArrayLayout, slot_bytes_for
from raidfs.format.superblock import (
    ROLE_ACTIVE_MAX,
    ROLE_FAULTY,
    ROLE_JOURNAL,
    SUPER_OFFSET_SECTORS,
    TIME_SECONDS_MASK,
    Superblock,
    checksum,
    stored_checksum,
)
from raidfs.units import SECTOR_BYTES

# What md keeps free behind the superblock: (32 + 4) KiB ("match kernel", getinfo_super1 of mdadm).
_SUPERBLOCK_ROOM_SECTORS = 72


@dataclasses.dataclass(frozen=True)
class SlotExamination:
    """One slot: its superblock or what is wrong with it (``error``), and how many of its bits are set."""

    slot: int
    bitmap: BitmapSuperblock | None = None
    bits: int = 0
    dirty: int = 0
    error: RaidfsError | None = None


@dataclasses.dataclass(frozen=True)
class Examination:
    """What one image says.

    ``problem`` is the reason why the image would be refused as a leg, apart from its checksum, which has fields of
    its own. ``slots`` is empty for an array without a clustered bitmap.
    """

    path: str
    size_bytes: int
    superblock: Superblock
    checksum_stored: int
    checksum_computed: int
    problem: RaidfsError | None
    layout: ArrayLayout | None
    slots: tuple[SlotExamination, ...]

    @property
    def checksum_is_right(self) -> bool:
        """Whether the stored checksum is that of the superblock's bytes."""
        return self.checksum_stored == self.checksum_computed

    @property
    def is_truncated(self) -> bool:
        """Whether the image ends before the array does."""
        return self.unused_after_sectors < 0

    @property
    def unused_before_sectors(self) -> int:
        """What mdadm calls unused before the data; it counts one slot of the bitmap and overstates the room."""
        superblock = self.superblock
        earliest = SUPER_OFFSET_SECTORS + _SUPERBLOCK_ROOM_SECTORS
        if self.slots and (bitmap := self.slots[0].bitmap) is not None:
            whole_chunks = bitmap.sync_size_sectors // (bitmap.chunk_bytes // SECTOR_BYTES)
            slot_sectors = slot_bytes_for(whole_chunks) // SECTOR_BYTES
            earliest = max(earliest, superblock.bitmap_offset_sectors + slot_sectors)
        if superblock.bblog_offset_sectors and superblock.bblog_size_sectors:
            log_end = SUPER_OFFSET_SECTORS + superblock.bblog_offset_sectors + superblock.bblog_size_sectors
            earliest = max(earliest, log_end)
        return max(0, superblock.data_offset_sectors - earliest)

    @property
    def unused_after_sectors(self) -> int:
        """The sectors of the image behind the array's data; negative when the image is truncated."""
        superblock = self.superblock
        return self.size_bytes // SECTOR_BYTES - superblock.data_offset_sectors - superblock.size_sectors

    @property
    def device_role(self) -> str:
        """This leg's role in mdadm's words."""
        role = self.superblock.role
        if role == ROLE_JOURNAL:
            return "Journal"
        return "spare" if role >= ROLE_FAULTY else f"Active device {role}"

    @property
    def array_state(self) -> str:
        """One letter for each position: A active, R being replaced, . missing, as mdadm prints them."""
        positions = min(self.superblock.raid_disks, ROLE_ACTIVE_MAX)
        letters = {0: ".", 1: "A", 2: "R"}
        legs_of = collections.Counter(self.superblock.dev_roles)
        return "".join(letters.get(legs_of[position], "?") for position in range(positions))

    def to_json(self) -> dict[str, object]:
        """Return the image's part of the document that ``raidfs examine --json`` prints; it may only grow."""
        superblock = self.superblock
        return {
            "path": self.path,
            "image_size_bytes": self.size_bytes,
            "version": "1.2",
            "feature_map": superblock.feature_map,
            "array_uuid": superblock.set_uuid_text,
            "name": superblock.name,
            "creation_time_s": superblock.ctime & TIME_SECONDS_MASK,
            "level": superblock.level,
            "raid_devices": superblock.raid_disks,
            "size_sectors": superblock.size_sectors,
            "data_size_sectors": superblock.data_size_sectors,
            "data_offset_sectors": superblock.data_offset_sectors,
            "super_offset_sectors": SUPER_OFFSET_SECTORS,
            "bitmap_offset_sectors": superblock.bitmap_offset_sectors,
            "recovery_offset_sectors": superblock.recovery_offset_sectors if superblock.is_recovering else None,
            "resync_offset_sectors": None if superblock.is_clean else superblock.resync_offset_sectors,
            "state": "clean" if superblock.is_clean else "active",
            "truncated": self.is_truncated,
            "device_uuid": superblock.device_uuid_text,
            "device_number": superblock.dev_number,
            "device_role": self.device_role,
            "array_state": self.array_state,
            "update_time_s": superblock.utime & TIME_SECONDS_MASK,
            "checksum": f"{self.checksum_stored:08x}",
            "checksum_expected": f"{self.checksum_computed:08x}",
            "checksum_correct": self.checksum_is_right,
            "events": superblock.events,
            "problem": None if self.problem is None else str(self.problem),
            "slots": [_slot_json(slot) for slot in self.slots],
        }


def examine_image(path: str) -> Examination:
    """Read one image and return what it says.

    Raises NoSuperblock and the like when there is nothing that could be shown, and what opening and reading raise.
    """
    with open_image(path) as image:
        return examine(image)


def examine(image: OpenImage) -> Examination:
    """As `examine_image`, for an image that is open."""
    area = read_superblock_area(image)
    superblock = Superblock.unpack(area, path=image.path)
    problem: RaidfsError | None = None
    try:
        Superblock.decode(area, path=image.path)
    except SuperblockChecksum:
        pass  # shown by the checksum itself
    except RaidfsError as e:
        problem = e
    layout, slots = _examine_slots(image, superblock) if superblock.is_clustered else (None, ())
    return Examination(
        path=image.path,
        size_bytes=image.size_bytes,
        superblock=superblock,
        checksum_stored=stored_checksum(area),
        checksum_computed=checksum(area, superblock.max_dev),
        problem=problem,
        layout=layout,
        slots=slots,
    )


def _examine_slots(image: OpenImage, superblock: Superblock) -> tuple[ArrayLayout | None, tuple[SlotExamination, ...]]:
    found = read_slot_superblocks(image, superblock)
    first = found[0]
    if isinstance(first, RaidfsError):
        return None, (SlotExamination(slot=0, error=first),)
    layout = checked_layout(superblock, first, path=image.path)
    return layout, tuple(_examine_slot(image, layout, slot, bitmap) for slot, bitmap in enumerate(found))


def _examine_slot(
    image: OpenImage, layout: ArrayLayout, slot: int, bitmap: BitmapSuperblock | RaidfsError
) -> SlotExamination:
    if isinstance(bitmap, RaidfsError):
        return SlotExamination(slot=slot, error=bitmap)
    try:
        bits = read_slot_bits(image, layout, slot)
    except ImageShort as e:
        return SlotExamination(slot=slot, bitmap=bitmap, error=e)
    return SlotExamination(slot=slot, bitmap=bitmap, bits=layout.bits, dirty=count_dirty(bits, layout.bits))


def _slot_json(slot: SlotExamination) -> dict[str, object]:
    document: dict[str, object] = {"slot": slot.slot, "error": None if slot.error is None else str(slot.error)}
    if slot.bitmap is not None:
        document |= {
            "events": slot.bitmap.events,
            "events_cleared": slot.bitmap.events_cleared,
            "state": slot.bitmap.state,
            "chunk_bytes": slot.bitmap.chunk_bytes,
            "sync_size_sectors": slot.bitmap.sync_size_sectors,
            "nodes": slot.bitmap.nodes,
            "cluster_name": slot.bitmap.cluster_name_text,
            "array_uuid": slot.bitmap.uuid_text,
            "bits": slot.bits,
            "dirty": slot.dirty,
        }
    return document
