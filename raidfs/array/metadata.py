"""The superblocks of a running array: reading them again, and changing them.

There is one way to change metadata, `Metadata.update`, and it is only to be used under the token: it reads the
superblocks again (another node may have changed them), applies the change to the freshest, raises the event count by
one and writes every good leg, durably. What belongs to a leg alone (its number, its UUID, where its data is) is kept
from that leg's own superblock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from raidfs.array.port import EnginePort
from raidfs.array.spares import has_position, recovering
from raidfs.errors import ImageError, MetadataLost
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Feature, Superblock

# What differs from leg to leg (md: super_1_sync); everything else is the array's.
_LEG_FIELDS = frozenset(
    {
        "dev_number",
        "device_uuid",
        "devflags",
        "data_offset_sectors",
        "data_size_sectors",
        "new_offset_sectors",
        "recovery_offset_sectors",
        "bblog_shift",
        "bblog_size_sectors",
        "bblog_offset_sectors",
        "cnt_corrected_read",
        "trailing",
    }
)
_LEG_FEATURES = Feature.RECOVERY_OFFSET | Feature.BAD_BLOCKS | Feature.REPLACEMENT | Feature.RECOVERY_BITMAP


def for_leg(array: Superblock, leg: Superblock) -> Superblock:
    """Return ``leg``'s superblock with everything that belongs to the array taken from ``array``.

    A leg that has got a position since its superblock was written says from now on that nothing has been copied to it.
    """
    got_position = array.role_of(leg.dev_number) < array.raid_disks and not has_position(leg)
    leg = recovering(leg, 0) if got_position else leg
    common = {
        field.name: getattr(array, field.name)
        for field in dataclasses.fields(Superblock)
        if field.name not in _LEG_FIELDS
    }
    common["feature_map"] = (array.feature_map & ~_LEG_FEATURES) | (leg.feature_map & _LEG_FEATURES)
    return dataclasses.replace(leg, **common)


async def _nothing(superblock: Superblock) -> None:
    return


def _same(index: int, own: Superblock) -> Superblock:
    return own


@dataclasses.dataclass(frozen=True)
class MetadataLeg:
    """A leg that carries metadata: its number in the engine, its path for messages, and its superblock when opened."""

    index: int
    path: str
    superblock: Superblock


class Metadata:
    """The superblocks of the legs that this node writes; ``superblock`` is the array's as last read or written."""

    def __init__(
        self,
        port: EnginePort,
        legs: Sequence[MetadataLeg],
        superblock: Superblock,
        wall_time: Callable[[], int],
        on_write_failed: Callable[[int, OSError], None],
    ) -> None:
        self.superblock = superblock
        self._port = port
        self._legs = list(legs)
        self._own = {leg.index: leg.superblock for leg in legs}
        self._wall_time = wall_time
        self._on_write_failed = on_write_failed

    def drop(self, index: int) -> None:
        """Write no more metadata to a leg: it is faulty, or it goes."""
        self._legs = [leg for leg in self._legs if leg.index != index]
        self._own.pop(index, None)

    def include(self, leg: MetadataLeg) -> None:
        """Write metadata to this leg too from now on; ``leg.superblock`` is what is known of its own."""
        self.drop(leg.index)
        self._legs = [*self._legs, leg]
        self._own[leg.index] = leg.superblock

    def own(self, index: int) -> Superblock | None:
        """Return a leg's own superblock as last read or written, None for a leg that carries none."""
        return self._own.get(index)

    def set_own(self, index: int, own: Superblock) -> None:
        """Believe this of a leg instead of what was read from it; it is written with the next update."""
        self._own[index] = own

    async def reload(self, number: int | None = None) -> Superblock:
        """Read the superblocks again and return the one to believe; a leg that cannot be read counts not.

        That is the one of device ``number`` if it is given and can be read (md reads the leg that the message names),
        else the freshest of all. All are read: how far a leg is copied only its own tells. Raises MetadataLost when
        none can be read.
        """
        found, problems = await self._read(self._legs)
        named = {index: own for index, own in found.items() if own.dev_number == number}
        return self._freshest(named or found, problems)

    async def update(
        self,
        change: Callable[[Superblock], Superblock],
        *,
        without: int | None = None,
        follow: Callable[[Superblock], Awaitable[None]] = _nothing,
        own: Callable[[int, Superblock], Superblock] = _same,
    ) -> tuple[Superblock, bool]:
        """Apply ``change`` to the freshest superblock and write it everywhere, durably; the caller holds the token.

        ``follow(superblock)`` is awaited with what was read, before ``change``: others may have changed it meanwhile.
        ``own(index, superblock)`` returns what a leg shall say of itself. Returns the superblock and whether anything
        was changed. A leg that lacks what the others have, because a node died between two legs, is brought up to them
        in any case. The leg ``without`` is left as it is: the change says that it is faulty (md writes no faulty
        device). A leg whose superblock cannot be read is written too, with what was known of it.
        ``on_write_failed(index, error)`` is called for each leg that fails a write (md: super_written calls md_error);
        MetadataLost is raised when no leg took it.
        """
        legs = self._legs
        found, problems = await self._read(legs)
        current = self._freshest(found, problems)
        await follow(current)
        changed = change(current)
        # A leg that came while we followed has nothing to catch up with: what it gets is the change.
        behind = self._behind(current, found, [leg for leg in legs if leg in self._legs and leg.index != without])
        if behind:  # a node died between two legs; completed first, so that no leg is ever two events behind
            await self._write(current, behind)
        owns = {leg.index: own(leg.index, self._own[leg.index]) for leg in self._legs if leg.index != without}
        if changed == current and all(one == self._own[index] for index, one in owns.items()):
            return current, False
        self._own.update(owns)
        changed = dataclasses.replace(changed, events=current.events + 1, utime=self._wall_time())
        await self._write(changed, [leg for leg in self._legs if leg.index != without])
        self.superblock = changed
        return changed, True

    async def _write(self, superblock: Superblock, legs: Sequence[MetadataLeg]) -> None:
        own = [for_leg(superblock, self._own[leg.index]) for leg in legs]
        errors = await self._port.leg_writes(
            [(leg.index, SUPER_OFFSET_BYTES, one.encode()) for leg, one in zip(legs, own, strict=True)]
        )
        problems = []
        for leg, one, error in zip(legs, own, errors, strict=True):
            if error is None:
                self._own[leg.index] = one
            else:
                problems.append(f"{leg.path}: {error.strerror}")
                self._on_write_failed(leg.index, error)
        if len(problems) == len(legs):
            raise MetadataLost(events=superblock.events, reason="; ".join(problems))

    def _behind(
        self, current: Superblock, found: dict[int, Superblock], legs: Sequence[MetadataLeg]
    ) -> list[MetadataLeg]:
        return [
            leg for leg in legs if leg.index not in found or for_leg(current, self._own[leg.index]) != found[leg.index]
        ]

    def holder(self, superblock: Superblock) -> int | None:
        """Return the device number of a leg that is known to hold this superblock."""
        for leg in self._legs:
            own = self._own[leg.index]
            if own.events == superblock.events and superblock.role_of(own.dev_number) < superblock.raid_disks:
                return own.dev_number
        return None

    def _freshest(self, found: dict[int, Superblock], problems: list[str]) -> Superblock:
        if not found:
            raise MetadataLost(events=self.superblock.events, reason="; ".join(problems))
        # What was known stays known: the leg that has it may be the one that cannot be read now.
        self.superblock = max([*found.values(), self.superblock], key=lambda superblock: superblock.events)
        return self.superblock

    async def _read(self, legs: Sequence[MetadataLeg]) -> tuple[dict[int, Superblock], list[str]]:
        found = {}
        problems = []
        data = await self._port.leg_reads([leg.index for leg in legs], SUPER_OFFSET_BYTES, SUPER_BYTES)
        for leg, one in zip(legs, data, strict=True):
            try:
                if isinstance(one, OSError):
                    raise one
                self._own[leg.index] = found[leg.index] = Superblock.decode(one, path=leg.path)
            except OSError as e:
                problems.append(f"{leg.path}: {e.strerror}")
            except ImageError as e:
                problems.append(str(e))
        return found, problems
