"""Choosing the legs of an array from the images that are given: a pure decision over `Candidate` values.

The rules are md's: the superblock with the most events counts, a leg more than one event behind is stale, and a
leg's role is what the *freshest* superblock says and not what its own does (a leg that was marked faulty just before
a crash still believes in itself). Every refusal is an error of its own; nothing is read or written here.
"""

from __future__ import annotations

from collections.abc import Sequence

from raidfs import _core as core
from raidfs.array.agreement import (
    Member,
    agreed_size_sectors,
    bitmap_legs,
    check_bitmaps,
    check_diverged,
    check_layouts,
    check_one_array,
    is_too_short,
    slots_of_other_size,
    with_all_slots,
)
from raidfs.array.assembly import AssembledLeg, Assembly, LeftOutLeg, LeftOutReason, LegState
from raidfs.array.head import Candidate
from raidfs.array.spares import EVENTS_BEHIND_MAX, has_position, standing
from raidfs.errors import (
    DuplicateLeg,
    LegLeftOut,
    LegMissing,
    NoImagesGiven,
    NoUsableLeg,
    OtherCluster,
    RaidfsError,
    SameImageTwice,
)
from raidfs.format.superblock import ROLE_FAULTY, ROLE_SPARE, Superblock

__all__ = ["AssembledLeg", "Assembly", "LeftOutLeg", "LeftOutReason", "LegState", "assemble"]

_STATES = {
    core.LegState.IN_SYNC: LegState.IN_SYNC,
    core.LegState.RECOVERING: LegState.RECOVERING,
    core.LegState.MISSING: LegState.SPARE,
}


def assemble(
    candidates: Sequence[Candidate],
    *,
    run: bool = False,
    cluster_name: str | None = None,
    heals_bitmaps: bool = False,
) -> Assembly:
    """Return how the array is to be started, or raise the error that says why not.

    Without ``run`` every leg that the freshest superblock counts must be there, and no image that was given for a
    vacant position may be useless; a position that is known to be vacant may be so, as mdadm starts a degraded array.
    With ``run`` one leg that is in sync is enough. ``cluster_name``, when given, must be the array's. An image that
    cannot be a leg of any array (damaged, foreign, truncated, given twice)
    is refused even with ``run``: the user leaves it out knowingly. Images that the array itself gave up (faulty,
    out of date, removed) are left out with ``run``. A leg in sync that lacks slots is refused unless the caller
    ``heals_bitmaps``: it promises to read them from ``Assembly.bitmap_path`` and to copy them to the others, and to
    make slots alike that an update has left different (``Assembly.half_updated``).
    """
    members = _members(candidates)
    check_one_array(members)
    freshest = _freshest(members)
    used, left_out = _roles(members, freshest)
    in_sync = sorted((leg for leg in used if leg.state is LegState.IN_SYNC), key=lambda leg: leg.role)
    check_diverged(members, freshest, left_out)
    if not in_sync:
        raise NoUsableLeg(uuid=freshest.superblock.set_uuid_text, reasons=_reasons(used, left_out))
    used_paths = {leg.path for leg in used}
    check_layouts([member for member in members if member.path in used_paths], freshest)
    complete, incomplete = bitmap_legs(members, in_sync, heals_bitmaps)
    layout, bitmap, half_updated = check_bitmaps(members, complete + incomplete, freshest.superblock, heals_bitmaps)
    complete, incomplete = with_all_slots(members, complete, incomplete, layout.nodes)
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
        slots_of_other_size=slots_of_other_size(members, in_sync, layout),
        half_updated=half_updated,
        agreed_size_sectors=agreed_size_sectors(members, in_sync, layout),
    )


def _members(candidates: Sequence[Candidate]) -> list[Member]:
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
        members.append(Member(candidate, candidate.superblock))
    return members


def _freshest(members: Sequence[Member]) -> Member:
    """Return the member whose superblock counts: most events, spares never; of equals one that is in sync."""
    active = [member for member in members if member.superblock.role < ROLE_FAULTY]
    if not active:
        first = members[0].superblock
        raise NoUsableLeg(uuid=first.set_uuid_text, reasons=", ".join(f"{m.path}: spare" for m in members))
    return max(active, key=lambda member: (member.superblock.events, not member.superblock.is_recovering))


def _roles(members: Sequence[Member], freshest: Member) -> tuple[list[AssembledLeg], list[LeftOutLeg]]:
    used: list[AssembledLeg] = []
    left_out: list[LeftOutLeg] = []
    by_number: dict[int, Member] = {}
    by_role: dict[int, Member] = {}
    for member in members:
        own = member.superblock
        reason = _left_out_reason(own, freshest.superblock)
        if reason is None and own.role == ROLE_SPARE and is_too_short(member, freshest.superblock):
            reason = LeftOutReason.REMOVED  # the array has grown since: it was none of its spares then
        if reason is not None:
            role = own.role if has_position(own) else None
            left_out.append(LeftOutLeg(member.path, reason, own.events, role, own.dev_number))
            continue
        other = by_number.setdefault(member.superblock.dev_number, member)
        if other is not member:
            number = member.superblock.dev_number
            raise DuplicateLeg(path=member.path, other_path=other.path, dev_number=number, what="the device number")
        leg = _leg(member, freshest.superblock)
        if leg.state is not LegState.SPARE and (twin := by_role.setdefault(leg.role, member)) is not member:
            raise DuplicateLeg(path=member.path, other_path=twin.path, dev_number=leg.role, what="the role")
        used.append(leg)
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


def _leg(member: Member, freshest: Superblock) -> AssembledLeg:
    own = member.superblock
    found = standing(freshest, own)
    role = ROLE_SPARE if found.role is None else found.role
    return AssembledLeg(member.path, own, role, _STATES[found.state], found.recovery_offset_sectors)


def _reasons(used: Sequence[AssembledLeg], left_out: Sequence[LeftOutLeg]) -> str:
    return ", ".join(
        [f"{leg.path}: {leg.state.value}" for leg in used] + [f"{leg.path}: {leg.reason.value}" for leg in left_out]
    )


def _raise_missing(superblock: Superblock, missing: Sequence[int], left_out: Sequence[LeftOutLeg]) -> None:
    for leg in left_out:
        if leg.role in missing:
            raise LegLeftOut(path=leg.path, reason=leg.reason.value)
    for role in missing:
        if role in superblock.dev_roles:
            raise LegMissing(uuid=superblock.set_uuid_text, role=role)
