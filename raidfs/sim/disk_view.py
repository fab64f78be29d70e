"""What the disks say of the array: which are in sync, which recover, which bits are set. Read anew from the format.

The array code has the same rules in `raidfs.array.spares`; they are written down here again on purpose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from raidfs.errors import RaidfsError
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import ROLE_SPARE, Feature, Superblock
from raidfs.sim.disks import SimDisk
from raidfs.units import SECTOR_BYTES

EVENTS_BEHIND_MAX = 1  # superblocks are written one after the other


class DiskView:
    """The disks through the superblocks that were last written to them; ``superblocks`` is kept by somebody else."""

    def __init__(self, layout: ArrayLayout, superblocks: Mapping[SimDisk, Superblock]) -> None:
        self.slots = layout  # where they are, which no size changes
        self._layouts = {layout.size_sectors: layout}
        self._superblocks = superblocks

    @property
    def layout(self) -> ArrayLayout:
        """The layout that the freshest superblock says."""
        size_sectors = self.freshest.size_sectors
        if size_sectors not in self._layouts:
            self._layouts[size_sectors] = dataclasses.replace(self.slots, size_sectors=size_sectors)
        return self._layouts[size_sectors]

    @property
    def freshest(self) -> Superblock:
        """The superblock with the most events."""
        return max(self._superblocks.values(), key=lambda superblock: superblock.events)

    def in_sync(self) -> list[SimDisk]:
        """Return the disks that are legs in sync, by position."""
        return [disk for _, disk in sorted(self._members(recovering=False), key=lambda member: member[0])]

    def recovering(self) -> list[SimDisk]:
        """Return the disks that are legs which are being rebuilt."""
        return [disk for _, disk in self._members(recovering=True)]

    def usable_spares(self) -> list[SimDisk]:
        """Return the disks that are recovering, or spares of the array: of those with one number the latest.

        One that was removed before the array grew is too short for one.
        """
        freshest = self.freshest
        latest: dict[int, int] = {}
        for own in self._superblocks.values():
            latest[own.dev_number] = max(latest.get(own.dev_number, 0), own.events)
        spares = [
            disk
            for disk, own in self._superblocks.items()
            if own.role == ROLE_SPARE
            and freshest.role_of(own.dev_number) == ROLE_SPARE
            and own.events == latest[own.dev_number]
            and disk.size_bytes >= (freshest.data_offset_sectors + freshest.size_sectors) * SECTOR_BYTES
        ]
        return self.recovering() + spares

    def recovered_bytes(self, disk: SimDisk) -> int:
        """Return how much of the array's beginning a recovering disk says that it has, but for chunks with bits."""
        own = self._superblocks[disk]
        if own.feature_map & Feature.RECOVERY_BITMAP:
            return self.layout.size_bytes
        return own.recovery_offset_sectors * SECTOR_BYTES

    def bits(self, disk: SimDisk, slot: int) -> int:
        """Return the bits of a slot as a disk has them."""
        layout = self.layout
        start = layout.slot_offset_bytes(slot) + BITMAP_SUPER_BYTES
        bits = int.from_bytes(disk.content[start : start + (layout.bits + 7) // 8], "little")
        return bits & ((1 << layout.bits) - 1)

    def sizes_said(self) -> dict[tuple[str, int], int]:
        """Return the size in sectors that slots say on legs in sync, by disk and slot; 0 of one that is none."""
        found = {}
        for disk in self.in_sync():
            for slot in range(self.slots.nodes):
                start = self.slots.slot_offset_bytes(slot)
                try:
                    head = BitmapSuperblock.decode(bytes(disk.content[start : start + BITMAP_SUPER_BYTES]))
                except RaidfsError:
                    found[disk.name, slot] = 0
                else:
                    found[disk.name, slot] = head.sync_size_sectors
        return found

    def size_of(self, disk: SimDisk) -> int:
        """Return the size in sectors that a disk's superblock says."""
        return self._superblocks[disk].size_sectors

    def dirty(self, disk: SimDisk) -> int:
        """Return the bits of all slots together, as a disk has them."""
        together = 0
        for slot in range(self.layout.nodes):
            together |= self.bits(disk, slot)
        return together

    def chunk(self, number: int) -> slice:
        """Return where a chunk's bytes are on a disk."""
        start = self.layout.data_offset_bytes + number * self.layout.chunk_bytes
        return slice(start, min(start + self.layout.chunk_bytes, self.layout.end_bytes))

    def _members(self, *, recovering: bool) -> list[tuple[int, SimDisk]]:
        freshest = self.freshest
        found: dict[int, tuple[int, SimDisk]] = {}  # by position: events
        for disk, own in self._superblocks.items():
            position = freshest.role_of(own.dev_number)
            if position >= freshest.raid_disks or own.events + EVENTS_BEHIND_MAX < freshest.events:
                continue
            if position not in found or found[position][0] < own.events:
                found[position] = (own.events, disk)
        return [(position, disk) for position, (_, disk) in found.items() if self._is_recovering(disk) == recovering]

    def _is_recovering(self, disk: SimDisk) -> bool:
        own = self._superblocks[disk]
        return own.role >= own.raid_disks or own.is_recovering
