"""The legs of a running array, as control sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from raidfs._core import LegState
from raidfs.array.assemble import Assembly, LeftOutReason
from raidfs.array.assemble import LegState as AssembledState
from raidfs.array.metadata import MetadataLeg
from raidfs.array.spares import recovering
from raidfs.units import SECTOR_BYTES

_STATES = {
    AssembledState.IN_SYNC: LegState.IN_SYNC,
    AssembledState.RECOVERING: LegState.RECOVERING,
    AssembledState.SPARE: LegState.MISSING,  # nothing is written to its data
}


class LegImage(Protocol):
    """An open image as the array needs it; `raidfs.array.images.OpenImage` is one."""

    path: str
    size_bytes: int
    logical_block_bytes: int
    direct: bool


@dataclasses.dataclass(eq=False)
class ArrayLeg:
    """One leg: ``index`` in the engine, ``number`` in the superblock, ``role`` its position or None.

    A spare and a faulty leg have no position. ``recovery_offset`` is in bytes and counts for a leg that is RECOVERING:
    below it the leg has everything but chunks whose bits are set, above it nothing. ``blocked`` is true from the time
    when a leg became faulty until all nodes know (md: Blocked); the engine is told its state only then. ``image_bytes``
    is how long the image was when somebody last looked, 0 for one that is not open.
    """

    index: int
    path: str
    number: int
    role: int | None
    state: LegState
    direct: bool = False
    recovery_offset: int = 0
    blocked: bool = False
    image_bytes: int = 0

    @property
    def is_spare(self) -> bool:
        """Whether it waits for a position."""
        return self.role is None and self.state == LegState.MISSING


def assembled_legs(assembly: Assembly, images: Iterable[LegImage]) -> tuple[list[ArrayLeg], list[MetadataLeg]]:
    """Return the legs of an array that starts, and those of them that carry its metadata.

    A leg that was given and is faulty is among the former only: nothing is read from it or written to it, but it can be
    removed, or added again.
    """
    opened = {image.path: image for image in images}
    legs: list[ArrayLeg] = []
    metadata = []
    for leg in (*assembly.legs, *assembly.spares):
        state = _STATES[leg.state]
        own, offset_sectors = leg.superblock, leg.recovery_offset_sectors
        role = None if state == LegState.MISSING else leg.role
        offset = offset_sectors * SECTOR_BYTES
        image = opened[leg.path]
        entry = ArrayLeg(len(legs), leg.path, own.dev_number, role, state, image.direct, offset)
        entry.image_bytes = image.size_bytes
        legs.append(entry)
        own = recovering(own, offset_sectors) if state == LegState.RECOVERING else own
        metadata.append(MetadataLeg(legs[-1].index, leg.path, own))
    for left in assembly.left_out:
        if left.reason is LeftOutReason.FAULTY:
            legs.append(ArrayLeg(len(legs), left.path, left.number, None, LegState.FAULTY))
    return legs, metadata
