"""Whether images agree that they are legs of one array, and whether their bitmaps do: the checks of `assemble`.

Each check raises the error that names the image, the field and the two values; none of them returns a verdict.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from raidfs.array.assembly import AssembledLeg, LeftOutLeg
from raidfs.array.head import Candidate, check_bitmap_place, checked_layout
from raidfs.errors import (
    BitmapOfOtherArray,
    BitmapSlotsDiffer,
    DuplicateLeg,
    LegLayoutDiffers,
    LegsDiverged,
    LegTruncated,
    NoBitmapSuperblock,
    NotRaid1,
    OtherArray,
    RaidfsError,
    SlotsWouldMove,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import ArrayLayout, resized_layout, slot_bytes_for
from raidfs.format.superblock import LEVEL_RAID1, ROLE_FAULTY, ROLE_SPARE, Superblock
from raidfs.units import SECTOR_BYTES


@dataclasses.dataclass(frozen=True)
class Member:
    """A candidate whose superblock is good."""

    candidate: Candidate
    superblock: Superblock

    @property
    def path(self) -> str:
        """The image's name."""
        return self.candidate.path


def check_one_array(members: Sequence[Member]) -> None:
    """Refuse what is not one clustered RAID1, and two images that say they are the same leg."""
    first = members[0]
    by_device: dict[bytes, Member] = {}
    for member in members:
        superblock = member.superblock
        if superblock.level != LEVEL_RAID1:
            raise NotRaid1(path=member.path, level=superblock.level)
        check_bitmap_place(superblock, path=member.path)
        if superblock.set_uuid != first.superblock.set_uuid:
            raise OtherArray(
                path=member.path,
                uuid=superblock.set_uuid_text,
                other_path=first.path,
                other_uuid=first.superblock.set_uuid_text,
            )
        other = by_device.setdefault(superblock.device_uuid, member)
        if other is not member:
            raise DuplicateLeg(
                path=member.path, other_path=other.path, dev_number=superblock.dev_number, what="the device UUID"
            )


# What all legs write alike; where two of the same event count differ they were not written by one array.
_SHARED_FIELDS = ("raid_disks", "size_sectors", "resync_offset_sectors", "bitmap_offset_sectors", "ctime", "level")


def _differing_field(own: Superblock, best: Superblock) -> str | None:
    if _known_roles(own) != _known_roles(best):
        return "dev_roles"
    return next((name for name in _SHARED_FIELDS if getattr(own, name) != getattr(best, name)), None)


def _known_roles(superblock: Superblock) -> dict[int, int]:
    # Not the table itself: a leg that was added later may have a longer one (super_1_sync).
    return {number: role for number, role in enumerate(superblock.dev_roles) if role != ROLE_SPARE}


def check_diverged(members: Sequence[Member], freshest: Member, left_out: Sequence[LeftOutLeg]) -> None:
    """Refuse legs that were each written without the other: which data counts is not ours to say."""
    best = freshest.superblock
    left_out_paths = {leg.path for leg in left_out}
    for member in members:
        own = member.superblock
        field = None
        contradicts = own.role < own.raid_disks and own.role_of(best.dev_number) == ROLE_FAULTY
        if member.path in left_out_paths and contradicts and not _goes_on(members, own, best):
            field = "dev_roles"
        elif own.events == best.events and own.role != ROLE_SPARE:
            field = _differing_field(own, best)
        if field is not None:
            raise LegsDiverged(
                path=freshest.path,
                events=best.events,
                other_path=member.path,
                other_events=own.events,
                field=field.removesuffix("_sectors"),
            )


def _goes_on(members: Sequence[Member], own: Superblock, best: Superblock) -> bool:
    """Whether the array of ``own`` became that of ``best``: the freshest leg was faulty once, and was added back.

    Each step of the way is a leg that was there beside the one before and was written later.
    """
    reached = [own]
    for before in reached:
        for member in members:
            after = member.superblock
            was_there = before.role_of(after.dev_number) < before.raid_disks and after.events >= before.events
            if was_there and after.dev_number == best.dev_number:
                return True
            if was_there and not after.is_recovering and after not in reached:
                reached.append(after)
    return False


def check_layouts(members: Sequence[Member], freshest: Member) -> None:
    """Refuse legs that are too short, or that do not have the data and the bitmap in the same place."""
    best = freshest.superblock
    for member in members:
        own = member.superblock
        for field, unit_field in (("data_offset", "data_offset_sectors"), ("bitmap_offset", "bitmap_offset_sectors")):
            value, wanted = getattr(own, unit_field), getattr(best, unit_field)
            if value != wanted:
                raise LegLayoutDiffers(
                    path=member.path, field=field, value=value, other_path=freshest.path, other_value=wanted
                )
        if is_too_short(member, best):
            need_sectors = best.data_offset_sectors + best.size_sectors
            have_sectors = member.candidate.size_bytes // SECTOR_BYTES
            raise LegTruncated(path=member.path, have_sectors=have_sectors, need_sectors=need_sectors)


def is_too_short(member: Member, array: Superblock) -> bool:
    """Whether an image ends before the array's data does."""
    return member.candidate.size_bytes // SECTOR_BYTES < array.data_offset_sectors + array.size_sectors


# What every slot of an array says alike. Events, state and sectors_reserved are each slot's own; size and chunk are
# those of the last resize that has reached the slot, in which the slots have never moved.
_SLOT_FIELDS = ("nodes", "cluster_name")
_UPDATED_FIELDS = ("nodes", "cluster_name")  # that raidfs.array.update changes, one slot after the other


def bitmap_legs(
    members: Sequence[Member], in_sync: Sequence[AssembledLeg], heals_bitmaps: bool
) -> tuple[list[AssembledLeg], list[AssembledLeg]]:
    """Return the legs in sync that have all slots and those that lack some; one of the former there must be.

    A slot that was never written is all that may be wrong with a slot; anything else raises the slot's error.
    """
    incomplete: list[AssembledLeg] = []
    first_error: RaidfsError | None = None
    for leg, _, bitmap in _slots(members, in_sync):
        if isinstance(bitmap, RaidfsError):
            if not (heals_bitmaps and isinstance(bitmap, NoBitmapSuperblock) and bitmap.is_blank):
                raise bitmap
            first_error = first_error or bitmap
            if leg not in incomplete:
                incomplete.append(leg)
    complete = [leg for leg in in_sync if leg not in incomplete]
    if not complete:
        assert first_error is not None
        raise first_error
    return complete, incomplete


def with_all_slots(
    members: Sequence[Member], complete: Sequence[AssembledLeg], incomplete: Sequence[AssembledLeg], nodes: int
) -> tuple[list[AssembledLeg], list[AssembledLeg]]:
    """Return the legs again when ``nodes`` is known: those are not complete whose slots tell of fewer."""
    slots = {member.path: len(member.candidate.slots) for member in members}
    fewer = [leg for leg in complete if slots[leg.path] < nodes]
    assert len(fewer) < len(complete), "the largest number is that of a leg"
    return [leg for leg in complete if leg not in fewer], [*incomplete, *fewer]


def check_bitmaps(
    members: Sequence[Member], legs: Sequence[AssembledLeg], freshest: Superblock, heals_bitmaps: bool
) -> tuple[ArrayLayout, BitmapSuperblock, bool]:
    """Return the layout and slot 0's superblock of the first leg, after comparing the slots of all legs with it.

    A leg that is still recovering is not among them: its bitmaps are written when it is in sync. With
    ``heals_bitmaps`` slots may differ in what an update changes; the third value says that they do. Their number is
    then the largest that any of them tells, which is safe wherever an update is cut off: slots are written before
    they are told of, and nobody tells of slots any more before they go.
    """
    found: list[tuple[AssembledLeg, int, BitmapSuperblock]] = []
    for leg, slot, bitmap in _slots(members, legs):
        if isinstance(bitmap, RaidfsError):
            continue  # blank
        if bitmap.uuid != leg.superblock.set_uuid:
            raise BitmapOfOtherArray(
                path=leg.path, slot=slot, found=bitmap.uuid_text, uuid=leg.superblock.set_uuid_text
            )
        found.append((leg, slot, bitmap))
    assert found, "the first leg has all slots"
    first_leg, _, reference = found[0]
    half_updated = False
    if heals_bitmaps:
        half_updated = len({tuple(getattr(bitmap, name) for name in _UPDATED_FIELDS) for *_, bitmap in found}) > 1
        teller = max(found, key=lambda one: one[2].nodes)
        first_leg, reference = teller[0], dataclasses.replace(reference, nodes=teller[2].nodes)
    layout = checked_layout(freshest, reference, path=first_leg.path)
    for leg, slot, bitmap in found:
        _check_slot(leg.path, slot, bitmap, reference, layout, _UPDATED_FIELDS if half_updated else ())
    layout = _with_chunk(layout, max(bitmap.chunk_bytes for *_, bitmap in found))
    return layout, reference, half_updated


def _with_chunk(layout: ArrayLayout, chunk_bytes: int) -> ArrayLayout:
    # A chunk that was being changed when nodes died: the larger one, in which no bit is lost, if the slots allow it.
    with contextlib.suppress(SlotsWouldMove):
        return resized_layout(layout, layout.size_sectors, chunk_bytes)
    return layout


def _slots(
    members: Sequence[Member], in_sync: Sequence[AssembledLeg]
) -> Iterator[tuple[AssembledLeg, int, BitmapSuperblock | RaidfsError]]:
    candidates = {member.path: member.candidate for member in members}
    for leg in in_sync:
        for slot, bitmap in enumerate(candidates[leg.path].slots):
            yield leg, slot, bitmap


def _check_slot(
    path: str,
    slot: int,
    bitmap: BitmapSuperblock,
    reference: BitmapSuperblock,
    layout: ArrayLayout,
    except_fields: Sequence[str],
) -> None:
    for name in (name for name in _SLOT_FIELDS if name not in except_fields):
        value, wanted = getattr(bitmap, name), getattr(reference, name)
        if value != wanted:
            raise BitmapSlotsDiffer(
                path=path, slot=slot, other_slot=0, field=name, value=_shown(value), other_value=_shown(wanted)
            )
    if slot_bytes_for(bitmap.bits) != layout.slot_bytes:  # the slots would lie elsewhere
        value, wanted = bitmap.sync_size_sectors, layout.size_sectors
        raise BitmapSlotsDiffer(path=path, slot=slot, other_slot=0, field="sync_size", value=value, other_value=wanted)


def slots_of_other_size(
    members: Sequence[Member], in_sync: Sequence[AssembledLeg], layout: ArrayLayout
) -> tuple[int, ...]:
    """Return the slots whose superblock was not reached by the last change of the array's size."""
    return tuple(
        sorted(
            {
                slot
                for _, slot, bitmap in _slots(members, in_sync)
                if isinstance(bitmap, BitmapSuperblock)
                and (bitmap.sync_size_sectors, bitmap.chunk_bytes) != (layout.size_sectors, layout.chunk_bytes)
            }
        )
    )


def _shown(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def agreed_size_sectors(members: Sequence[Member], legs: Sequence[AssembledLeg], layout: ArrayLayout) -> int:
    """Return the largest size that every slot says, on every leg: what may be served without asking anybody (P4)."""
    sizes = [
        bitmap.sync_size_sectors
        for _, _, bitmap in _slots(members, legs)
        if isinstance(bitmap, BitmapSuperblock) and bitmap.sync_size_sectors
    ]
    return min([layout.size_sectors, *sizes])
