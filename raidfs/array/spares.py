"""Which leg has which position, and how much of the array is on it: pure rules over superblocks.

The array's superblock gives each device number a role: a position, spare or faulty. A position that no number has is
*vacant*; a failed leg gives its position up at once, so that a spare may take it. A leg's own superblock tells how far
it is copied, in md's three ways (super_1_sync, super_1_validate in drivers/md/md.c)::

    feature 2 not set          in sync
    feature 2                  below recovery_offset it has everything but chunks whose bits are set; above it nothing
    features 2 and 128         it has everything but chunks whose bits are set (recovery is guided by the bitmap)

On disk recovery_offset is 0 with feature 128: Linux begins its pass there and skips what has no bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from raidfs._core import LegState
from raidfs.format.superblock import ROLE_FAULTY, ROLE_SPARE, Feature, Superblock

EVENTS_BEHIND_MAX = 1  # the superblocks of the legs are written one after the other; a crash may come in between

_RECOVERY = Feature.RECOVERY_OFFSET | Feature.RECOVERY_BITMAP


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a leg is. ``role`` is its position or None; a spare is MISSING: nothing is written to its data.

    ``recovery_offset_sectors`` tells how much of the array's beginning is on it but for chunks whose bits are set: all
    for a leg in sync and for one whose recovery is guided by the bitmap.
    """

    state: LegState
    role: int | None
    recovery_offset_sectors: int


def standing(array: Superblock, own: Superblock) -> Standing:
    """Return what ``array``, the freshest superblock, and a leg's ``own`` make of the leg.

    The role is the freshest one's word. How far the leg is copied only its own superblock tells; that is believed
    if it was written with the position that the leg has now, or at most one event before the freshest.
    """
    role = array.role_of(own.dev_number)
    if role == ROLE_FAULTY:
        return Standing(LegState.FAULTY, None, 0)
    if role >= array.raid_disks:
        return Standing(LegState.MISSING, None, 0)
    if not has_position(own) or own.events + EVENTS_BEHIND_MAX < array.events:
        # It was given its position after its own superblock was last written: nothing of the array is known to be
        # on it, whatever it says of itself.
        return Standing(LegState.RECOVERING, role, 0)
    offset_sectors = recovery_offset_sectors(own, array.size_sectors)
    if offset_sectors is None:
        return Standing(LegState.IN_SYNC, role, array.size_sectors)
    return Standing(LegState.RECOVERING, role, offset_sectors)


def has_position(own: Superblock) -> bool:
    """Whether a leg's own superblock was written for a leg with a position."""
    return own.role < own.raid_disks


def recovery_offset_sectors(own: Superblock, size_sectors: int) -> int | None:
    """Return how far a leg says that it is copied, None when it says that it is in sync."""
    if not own.is_recovering:
        return None
    if own.feature_map & Feature.RECOVERY_BITMAP:
        return size_sectors
    return own.recovery_offset_sectors if own.recovery_offset_sectors < size_sectors else None


def recovering(own: Superblock, offset_sectors: int) -> Superblock:
    """Return a leg's superblock that says: copied up to there; the array's size or more means guided by the bitmap."""
    features = own.feature_map & ~_RECOVERY | Feature.RECOVERY_OFFSET
    if offset_sectors >= own.size_sectors:
        features, offset_sectors = features | Feature.RECOVERY_BITMAP, 0
    return dataclasses.replace(own, feature_map=int(features), recovery_offset_sectors=offset_sectors)


def in_sync(own: Superblock) -> Superblock:
    """Return a leg's superblock that says: in sync."""
    return dataclasses.replace(own, feature_map=int(own.feature_map & ~_RECOVERY), recovery_offset_sectors=0)


def vacant_positions(array: Superblock) -> tuple[int, ...]:
    """Return the positions that no device number has."""
    held = set(array.dev_roles)
    return tuple(position for position in range(array.raid_disks) if position not in held)


def with_spares(array: Superblock, spares: Sequence[int]) -> Superblock:
    """Return the superblock with vacant positions given to spares, by device number; there may be more of either.

    A number that is no spare any more is passed over.
    """
    usable = [number for number in spares if array.role_of(number) == ROLE_SPARE]
    for position, number in zip(vacant_positions(array), usable, strict=False):
        array = array.with_role(number, position)
    return array


def readd_offset_sectors(array: Superblock, own: Superblock, events_cleared: int) -> int:
    """Return how far a leg that comes back is copied: all when the bitmap tells what it lacks, 0 when nothing does.

    ``own`` is what it said of itself when it left, ``events_cleared`` the highest of all slots. Bits are cleared only
    while no position is vacant, and events_cleared says how long that lasted: what a leg with fewer events has missed
    may have no bit any more. A leg that had not been copied in full when it left goes on where it was.
    """
    if own.events < events_cleared or own.size_sectors != array.size_sectors or not has_position(own):
        return 0
    offset_sectors = recovery_offset_sectors(own, array.size_sectors)
    return array.size_sectors if offset_sectors is None else offset_sectors


def has_diverged(array: Superblock, own: Superblock) -> bool:
    """Whether a former leg was used without any of the legs that ``array`` has now, so both have what the other lacks.

    Its own superblock then calls legs faulty that the array uses, and none of those good. What was written to it has no
    bits in the array's bitmaps.
    """
    others = [
        own.role_of(number)
        for number, role in enumerate(array.dev_roles)
        if role < array.raid_disks and number != own.dev_number
    ]
    return ROLE_FAULTY in others and all(role >= own.raid_disks for role in others)


def positions_in_use(array: Superblock) -> int:
    """Return how many positions have a leg."""
    return sum(role < array.raid_disks for role in array.dev_roles)


def with_raid_disks(array: Superblock, count: int) -> Superblock | None:
    """Return the superblock with another number of positions, or None when more legs have one.

    Legs move down to the lowest positions when there are fewer of them (raid1_reshape): all hold the same.
    """
    active = sorted(role for role in array.dev_roles if role < array.raid_disks)
    if len(active) > count:
        return None
    if count < array.raid_disks:
        places = {role: place for place, role in enumerate(active)}
        array = dataclasses.replace(array, dev_roles=tuple(places.get(role, role) for role in array.dev_roles))
    return dataclasses.replace(array, raid_disks=count)


def free_number(array: Superblock, taken: Collection[int]) -> int:
    """Return the device number for a new leg: the first free one from raid_disks on, as mdadm chooses.

    ``taken`` are the numbers of spares, which the roles do not tell from numbers that nobody has.
    """
    number = array.raid_disks
    while array.role_of(number) != ROLE_SPARE or number in taken:
        number += 1
    return number
