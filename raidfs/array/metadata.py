"""The superblocks of a running array: reading them again, and changing them.

There is one way to change metadata, `Metadata.update`, and it is only to be used under the token: it reads the
superblocks again (another node may have changed them), applies the change to the freshest, raises the event count by
one and writes every good leg, durably. What belongs to a leg alone (its number, its UUID, where its data is) is kept
from that leg's own superblock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from raidfs.array.port import EnginePort
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
    """Return ``leg``'s superblock with everything that belongs to the array taken from ``array``."""
    common = {
        field.name: getattr(array, field.name)
        for field in dataclasses.fields(Superblock)
        if field.name not in _LEG_FIELDS
    }
    common["feature_map"] = (array.feature_map & ~_LEG_FEATURES) | (leg.feature_map & _LEG_FEATURES)
    return dataclasses.replace(leg, **common)


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
        """Write no more metadata to a leg: it is faulty."""
        self._legs = [leg for leg in self._legs if leg.index != index]

    async def reload(self, number: int | None = None) -> Superblock:
        """Read all superblocks again and return the one to believe; a leg that cannot be read counts not.

        That is the one of device ``number`` if it is given and can be read (md reads the leg that the message names),
        else the freshest. Raises MetadataLost when none can be read.
        """
        found, problems = await self._read_all()
        named = [superblock for superblock in found.values() if superblock.dev_number == number]
        if named:
            self.superblock = named[0]
            return named[0]
        return self._freshest(found, problems)

    async def update(self, change: Callable[[Superblock], Superblock], *, without: int | None = None) -> Superblock:
        """Apply ``change`` to the freshest superblock and write it everywhere, durably; the caller holds the token.

        A change that leaves the superblock as it is writes nothing, unless a leg lacks what the others have, because a
        node died between two legs: that is completed. The leg ``without`` is left as it is: the change says that it is
        faulty (md writes no faulty device). A leg whose superblock cannot be read is written too, with what was known
        of it. ``on_write_failed(index, error)`` is called for each leg that fails the write (md: super_written calls
        md_error); MetadataLost is raised when no leg took it.
        """
        found, problems = await self._read_all()
        current = self._freshest(found, problems)
        changed = change(current)
        if changed == current and not self._is_behind(current, found, without):
            return current
        changed = dataclasses.replace(changed, events=current.events + 1, utime=self._wall_time())
        problems = []
        written = 0
        for leg in self._legs:
            if leg.index == without:
                continue
            own = for_leg(changed, self._own[leg.index])
            try:
                await self._port.leg_write(leg.index, SUPER_OFFSET_BYTES, own.encode())
            except OSError as e:
                problems.append(f"{leg.path}: {e.strerror}")
                self._on_write_failed(leg.index, e)
            else:
                self._own[leg.index] = own
                written += 1
        if not written:
            raise MetadataLost(events=changed.events, reason="; ".join(problems))
        self.superblock = changed
        return changed

    def _is_behind(self, current: Superblock, found: dict[int, Superblock], without: int | None) -> bool:
        return any(
            leg.index not in found or for_leg(current, found[leg.index]) != found[leg.index]
            for leg in self._legs
            if leg.index != without
        )

    def _freshest(self, found: dict[int, Superblock], problems: list[str]) -> Superblock:
        if not found:
            raise MetadataLost(events=self.superblock.events, reason="; ".join(problems))
        self.superblock = max(found.values(), key=lambda superblock: superblock.events)
        return self.superblock

    async def _read_all(self) -> tuple[dict[int, Superblock], list[str]]:
        found = {}
        problems = []
        for leg in self._legs:
            try:
                data = await self._port.leg_read(leg.index, SUPER_OFFSET_BYTES, SUPER_BYTES)
                self._own[leg.index] = found[leg.index] = Superblock.decode(data, path=leg.path)
            except OSError as e:
                problems.append(f"{leg.path}: {e.strerror}")
            except ImageError as e:
                problems.append(str(e))
        return found, problems
