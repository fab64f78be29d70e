"""What an assembled array is: the legs that are used and those that are not, and where its things lie."""

from __future__ import annotations

import dataclasses
import enum

from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import Superblock


class LegState(enum.Enum):
    """What a leg is good for. The values are shown to users."""

    IN_SYNC = "in_sync"
    RECOVERING = "recovering"
    SPARE = "spare"


class LeftOutReason(enum.Enum):
    """Why an image that was given is not used. The values are shown to users."""

    FAULTY = "faulty"
    STALE = "out of date"
    REMOVED = "removed from the array"


@dataclasses.dataclass(frozen=True)
class AssembledLeg:
    """One image that is used.

    ``role`` is its position in the array, ROLE_SPARE for a spare. ``recovery_offset_sectors`` tells how much of the
    array's beginning is on it: all for a leg in sync. ``superblock`` is this leg's own.
    """

    path: str
    superblock: Superblock
    role: int
    state: LegState
    recovery_offset_sectors: int


@dataclasses.dataclass(frozen=True)
class LeftOutLeg:
    """One image that is not used: its device number, and the position that its own superblock gives it (or None)."""

    path: str
    reason: LeftOutReason
    events: int
    role: int | None
    number: int


@dataclasses.dataclass(frozen=True)
class Assembly:
    """An array that can be started.

    ``superblock`` is the freshest one. ``bitmap_path`` is the leg from which all bitmaps are to be read: the first one
    in sync that has them all; ``bitmap`` is slot 0's superblock there. ``incomplete_bitmap_paths`` are legs in sync
    that lack slots, because Linux and ``mdadm --add`` do not write the slots of other nodes to a leg that is added:
    all slots must be copied to them before anything relies on their bitmaps. ``legs`` holds those in sync and
    recovering, by role; ``missing_roles`` the positions without one.
    ``slots_of_other_size`` are the slots whose ``sync_size`` is not the array's size: nodes died in the middle of a
    resize. Their bits stand for the same chunks, unless the chunk was changed too. ``agreed_size_sectors`` is what may
    be served meanwhile: the smallest size that the superblock or any slot says.
    ``half_updated`` says that the slots do not agree on their number or on the cluster's name: a change of these on
    the stopped array was cut off (`raidfs.array.update`). The largest number counts, and the name in slot 0 of
    ``bitmap_path``; who may write makes all slots say so before anything relies on them.
    """

    layout: ArrayLayout
    superblock: Superblock
    bitmap: BitmapSuperblock
    bitmap_path: str
    incomplete_bitmap_paths: tuple[str, ...]
    legs: tuple[AssembledLeg, ...]
    spares: tuple[AssembledLeg, ...]
    left_out: tuple[LeftOutLeg, ...]
    missing_roles: tuple[int, ...]
    slots_of_other_size: tuple[int, ...]
    agreed_size_sectors: int
    half_updated: bool = False

    @property
    def is_degraded(self) -> bool:
        """Whether fewer legs are in sync than the array has positions."""
        return sum(leg.state is LegState.IN_SYNC for leg in self.legs) < self.superblock.raid_disks

    @property
    def set_uuid(self) -> bytes:
        """The array's UUID."""
        return self.superblock.set_uuid

    @property
    def array_name(self) -> str:
        """The array's name without its home host."""
        return self.superblock.array_name

    @property
    def cluster_name(self) -> str:
        """The name of the cluster that the array belongs to."""
        return self.bitmap.cluster_name_text

    @property
    def nodes(self) -> int:
        """How many slots the array has."""
        return self.layout.nodes
