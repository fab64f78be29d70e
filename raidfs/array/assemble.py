"""Choosing the legs of an array from the images that are given: a pure decision over `Candidate` values.

The rules are md's: the superblock with the most events counts, a leg more than one event behind is stale, and a
leg's role is what the *freshest* superblock says and not what its own does (a leg that was marked faulty just before
a crash still believes in itself). Every refusal is an error of its own; nothing is read or written here.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence

from raidfs.array.head import Candidate, check_bitmap_place, checked_layout
from raidfs.errors import (
    BitmapOfOtherArray,
    BitmapSlotsDiffer,
    DuplicateLeg,
    LegLayoutDiffers,
    LegLeftOut,
    LegMissing,
    LegsDiverged,
    LegTruncated,
    NoBitmapSuperblock,
    NoImagesGiven,
    NotRaid1,
    NoUsableLeg,
    OtherArray,
    OtherCluster,
    RaidfsError,
    SameImageTwice,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import ArrayLayout, slot_bytes_for
from raidfs.format.superblock import LEVEL_RAID1, ROLE_FAULTY, ROLE_SPARE, Superblock
from raidfs.units import SECTOR_BYTES

EVENTS_BEHIND_MAX = 1  # the superblocks of the legs are written one after the other; a crash may come in between


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
    """One image that is not used, with the position that its own superblock gives it (None for none)."""

    path: str
    reason: LeftOutReason
    events: int
    role: int | None


@dataclasses.dataclass(frozen=True)
class Assembly:
    """An array that can be started.

    ``superblock`` is the freshest one. ``bitmap_path`` is the leg from which all bitmaps are to be read: the first one
    in sync that has them all; ``bitmap`` is slot 0's superblock there. ``incomplete_bitmap_paths`` are legs in sync
    that lack slots, because Linux and ``mdadm --add`` do not write the slots of other nodes to a leg that is added:
    all slots must be copied to them before anything relies on their bitmaps. ``legs`` holds those in sync and
    recovering, by role; ``missing_roles`` the positions without one.
    ``slots_of_other_size`` are the slots whose ``sync_size`` is not the array's size: nodes died in the middle of a
    resize. Their bits stand for the same chunks all the same (Linux overwrites the field as it reads it).
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


@dataclasses.dataclass(frozen=True)
class _Member:
    """A candidate whose superblock is good."""

    candidate: Candidate
    superblock: Superblock

    @property
    def path(self) -> str:
        return self.candidate.path


def assemble(
    candidates: Sequence[Candidate],
    *,
    run: bool = False,
    cluster_name: str | None = None,
    heals_bitmaps: bool = False,
) -> Assembly:
    """Return how the array is to be started, or raise the error that says why not.

    Without ``run`` every position must have a leg; with it, one leg that is in sync is enough. ``cluster_name``, when
    given, must be the array's. An image that cannot be a leg of any array (damaged, foreign, truncated, given twice)
    is refused even with ``run``: the user leaves it out knowingly. Images that the array itself gave up (faulty,
    out of date, removed) are left out with ``run``. A leg in sync that lacks slots is refused unless the caller
    ``heals_bitmaps``: it promises to read them from ``Assembly.bitmap_path`` and to copy them to the others.
    """
    members = _members(candidates)
    _check_one_array(members)
    freshest = _freshest(members)
    used, left_out = _roles(members, freshest)
    in_sync = [leg for leg in used if leg.state is LegState.IN_SYNC]
    _check_diverged(members, freshest, left_out)
    if not in_sync:
        raise NoUsableLeg(uuid=freshest.superblock.set_uuid_text, reasons=_reasons(used, left_out))
    used_paths = {leg.path for leg in used}
    _check_layouts([member for member in members if member.path in used_paths], freshest)
    complete, incomplete = _bitmap_legs(members, in_sync, heals_bitmaps)
    layout, bitmap = _check_bitmaps(members, complete + incomplete, freshest.superblock)
    if cluster_name is not None and cluster_name != bitmap.cluster_name_text:
        raise OtherCluster(path=in_sync[0].path, found=bitmap.cluster_name_text, wanted=cluster_name)
    legs = tuple(sorted((leg for leg in used if leg.state is not LegState.SPARE), key=lambda leg: leg.role))
    present = {leg.role for leg in legs}
    missing = tuple(role for role in range(freshest.superblock.raid_disks) if role not in present)
    if missing and not run:
        _raise_missing(freshest.superblock, missing, left_out)
    return Assembly(
        layout=layout,
        superblock=freshest.superblock,
        bitmap=bitmap,
        bitmap_path=complete[0].path,
        incomplete_bitmap_paths=tuple(leg.path for leg in incomplete),
        legs=legs,
        spares=tuple(leg for leg in used if leg.state is LegState.SPARE),
        left_out=tuple(left_out),
        missing_roles=missing,
        slots_of_other_size=_slots_of_other_size(members, in_sync, layout),
    )


def _members(candidates: Sequence[Candidate]) -> list[_Member]:
    if not candidates:
        raise NoImagesGiven()
    by_identity: dict[tuple[str, int, int], str] = {}
    members = []
    for candidate in candidates:
        if candidate.identity is not None:
            if candidate.identity in by_identity:
                raise SameImageTwice(path=candidate.path, other_path=by_identity[candidate.identity])
            by_identity[candidate.identity] = candidate.path
        if isinstance(candidate.superblock, RaidfsError):
            raise candidate.superblock
        members.append(_Member(candidate, candidate.superblock))
    return members


def _check_one_array(members: Sequence[_Member]) -> None:
    """Refuse what is not one clustered RAID1, and two images that say they are the same leg."""
    first = members[0]
    by_device: dict[bytes, _Member] = {}
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


def _freshest(members: Sequence[_Member]) -> _Member:
    """Return the member whose superblock counts: most events, spares never; of equals one that is in sync."""
    active = [member for member in members if member.superblock.role < ROLE_FAULTY]
    if not active:
        first = members[0].superblock
        raise NoUsableLeg(uuid=first.set_uuid_text, reasons=", ".join(f"{m.path}: spare" for m in members))
    return max(active, key=lambda member: (member.superblock.events, not member.superblock.is_recovering()))


def _roles(members: Sequence[_Member], freshest: _Member) -> tuple[list[AssembledLeg], list[LeftOutLeg]]:
    used: list[AssembledLeg] = []
    left_out: list[LeftOutLeg] = []
    by_number: dict[int, _Member] = {}
    for member in members:
        reason = _left_out_reason(member.superblock, freshest.superblock)
        if reason is not None:
            role = member.superblock.role if member.superblock.role < member.superblock.raid_disks else None
            left_out.append(LeftOutLeg(member.path, reason, member.superblock.events, role))
            continue
        other = by_number.setdefault(member.superblock.dev_number, member)
        if other is not member:
            number = member.superblock.dev_number
            raise DuplicateLeg(path=member.path, other_path=other.path, dev_number=number, what="the device number")
        used.append(_leg(member, freshest.superblock))
    return used, left_out


def _left_out_reason(own: Superblock, freshest: Superblock) -> LeftOutReason | None:
    role = freshest.role_of(own.dev_number)
    if role == ROLE_FAULTY:
        return LeftOutReason.FAULTY
    if own.role == ROLE_SPARE and role == ROLE_SPARE:
        return None  # a spare is not written at every event, so its events say nothing
    if own.events + EVENTS_BEHIND_MAX < freshest.events:
        return LeftOutReason.STALE
    return None if role < freshest.raid_disks else LeftOutReason.REMOVED


def _leg(member: _Member, freshest: Superblock) -> AssembledLeg:
    own = member.superblock
    role = freshest.role_of(own.dev_number)
    if role == ROLE_SPARE:
        state, offset_sectors = LegState.SPARE, 0
    elif own.role != role:
        # It was given its position after its own superblock was last written: nothing of the array is known to be
        # on it, whatever it says of itself.
        state, offset_sectors = LegState.RECOVERING, 0
    elif own.is_recovering() and own.recovery_offset_sectors < freshest.size_sectors:
        state, offset_sectors = LegState.RECOVERING, own.recovery_offset_sectors
    else:
        state, offset_sectors = LegState.IN_SYNC, freshest.size_sectors
    return AssembledLeg(member.path, own, role, state, offset_sectors)


# What all legs write alike; where two of the same event count differ they were not written by one array.
_SHARED_FIELDS = ("raid_disks", "size_sectors", "resync_offset_sectors", "bitmap_offset_sectors", "ctime", "level")


def _differing_field(own: Superblock, best: Superblock) -> str | None:
    if _known_roles(own) != _known_roles(best):
        return "dev_roles"
    return next((name for name in _SHARED_FIELDS if getattr(own, name) != getattr(best, name)), None)


def _known_roles(superblock: Superblock) -> dict[int, int]:
    # Not the table itself: a leg that was added later may have a longer one (super_1_sync).
    return {number: role for number, role in enumerate(superblock.dev_roles) if role != ROLE_SPARE}


def _check_diverged(members: Sequence[_Member], freshest: _Member, left_out: Sequence[LeftOutLeg]) -> None:
    """Refuse legs that were each written without the other."""
    best = freshest.superblock
    left_out_paths = {leg.path for leg in left_out}
    for member in members:
        own = member.superblock
        field = None
        if member.path in left_out_paths and own.role < own.raid_disks and own.role_of(best.dev_number) == ROLE_FAULTY:
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


def _reasons(used: Sequence[AssembledLeg], left_out: Sequence[LeftOutLeg]) -> str:
    return ", ".join(
        [f"{leg.path}: {leg.state.value}" for leg in used] + [f"{leg.path}: {leg.reason.value}" for leg in left_out]
    )


def _check_layouts(members: Sequence[_Member], freshest: _Member) -> None:
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
        need_sectors = best.data_offset_sectors + best.size_sectors
        have_sectors = member.candidate.size_bytes // SECTOR_BYTES
        if have_sectors < need_sectors:
            raise LegTruncated(path=member.path, have_sectors=have_sectors, need_sectors=need_sectors)


# What every slot of an array says alike. Events, state and sectors_reserved are each slot's own.
_SLOT_FIELDS = ("chunk_bytes", "nodes", "cluster_name")


def _bitmap_legs(
    members: Sequence[_Member], in_sync: Sequence[AssembledLeg], heals_bitmaps: bool
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


def _check_bitmaps(
    members: Sequence[_Member], legs: Sequence[AssembledLeg], freshest: Superblock
) -> tuple[ArrayLayout, BitmapSuperblock]:
    """Return the layout and slot 0's superblock of the first leg, after comparing the slots of all legs with it.

    A leg that is still recovering is not among them: its bitmaps are written when it is in sync.
    """
    reference: BitmapSuperblock | None = None
    layout: ArrayLayout | None = None
    for leg, slot, bitmap in _slots(members, legs):
        if isinstance(bitmap, RaidfsError):
            continue  # blank
        if bitmap.uuid != leg.superblock.set_uuid:
            raise BitmapOfOtherArray(
                path=leg.path, slot=slot, found=bitmap.uuid_text, uuid=leg.superblock.set_uuid_text
            )
        if reference is None or layout is None:
            reference, layout = bitmap, checked_layout(freshest, bitmap, path=leg.path)
        _check_slot(leg.path, slot, bitmap, reference, layout)
    assert reference is not None, "the first leg has all slots"
    assert layout is not None
    return layout, reference


def _slots(
    members: Sequence[_Member], in_sync: Sequence[AssembledLeg]
) -> Iterator[tuple[AssembledLeg, int, BitmapSuperblock | RaidfsError]]:
    candidates = {member.path: member.candidate for member in members}
    for leg in in_sync:
        for slot, bitmap in enumerate(candidates[leg.path].slots):
            yield leg, slot, bitmap


def _check_slot(
    path: str, slot: int, bitmap: BitmapSuperblock, reference: BitmapSuperblock, layout: ArrayLayout
) -> None:
    for name in _SLOT_FIELDS:
        value, wanted = getattr(bitmap, name), getattr(reference, name)
        if value != wanted:
            raise BitmapSlotsDiffer(
                path=path, slot=slot, other_slot=0, field=name, value=_shown(value), other_value=_shown(wanted)
            )
    if slot_bytes_for(bitmap.bits) != layout.slot_bytes:  # the slots would lie elsewhere
        value, wanted = bitmap.sync_size_sectors, layout.size_sectors
        raise BitmapSlotsDiffer(path=path, slot=slot, other_slot=0, field="sync_size", value=value, other_value=wanted)


def _slots_of_other_size(
    members: Sequence[_Member], in_sync: Sequence[AssembledLeg], layout: ArrayLayout
) -> tuple[int, ...]:
    return tuple(
        sorted(
            {
                slot
                for _, slot, bitmap in _slots(members, in_sync)
                if isinstance(bitmap, BitmapSuperblock) and bitmap.sync_size_sectors != layout.size_sectors
            }
        )
    )


def _shown(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _raise_missing(superblock: Superblock, missing: Sequence[int], left_out: Sequence[LeftOutLeg]) -> None:
    for leg in left_out:
        if leg.role in missing:
            raise LegLeftOut(path=leg.path, reason=leg.reason.value)
    raise LegMissing(uuid=superblock.set_uuid_text, role=missing[0])
