"""Mistakes in resizes (P4): what is served too early, what is forgotten, what nobody ends.

The names in brackets are those of md-cluster's own mistakes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from unittest.mock import patch

from raidfs.array_size import ArraySize
from raidfs.cluster.messages import Result
from raidfs.format.geometry import ArrayLayout
from raidfs.resize import Resize
from raidfs.resize_plan import Aim, Change
from raidfs.sim.planting import Mistakes

RESIZE = Mistakes()
plant = RESIZE.plant

_SIZES_DIFFER = ("served-beyond", "one-size", "stall", "node-error")


@plant("capacity-with-layout", *_SIZES_DIFFER)
def _capacity_with_layout() -> Iterator[None]:
    """A node serves a larger size as soon as its own slot says so, and not when all say it."""
    take = ArraySize.take

    async def wrong(size: ArraySize, layout: ArrayLayout, *, needed_from_sectors: int | None = None) -> Result:
        result = await take(size, layout, needed_from_sectors=needed_from_sectors)
        if result is Result.APPLIED:
            await size._array.set_capacity(layout.size_sectors)
        return result

    with patch.object(ArraySize, "take", wrong):
        yield


@plant("absent-forgotten", *_SIZES_DIFFER)
def _absent_forgotten() -> Iterator[None]:
    """The slots of nodes that do not run keep the old size, and nobody looks whether they do."""

    async def nothing(resize: Resize, change: Change, aim: Aim) -> None:
        return

    async def none(resize: Resize, aim: Aim) -> set[int]:
        return set()

    with patch.object(Resize, "absent", nothing), patch.object(Resize, "_slots_behind", none):
        yield


@plant("undo-not-written", *_SIZES_DIFFER)
def _undo_not_written() -> Iterator[None]:
    """A resize that is taken back is announced with what the superblock still says: the new size (W8)."""

    async def wrong(resize: Resize, aim: Aim) -> None:
        mddev = resize._mddev
        await mddev.reconfig_mutex.lock("resize")
        try:
            await mddev.update_sb(always=True)
        finally:
            mddev.reconfig_mutex.unlock()

    with patch.object(Resize, "_agree", wrong):
        yield


@plant("resize-left-half-done", *_SIZES_DIFFER)
def _resize_left_half_done() -> Iterator[None]:
    """What a node has left half-done that died in a resize is ended by nobody."""

    async def wrong(resize: Resize) -> bool:
        return False

    with patch.object(Resize, "_is_half_done", wrong):
        yield


@plant("new-space-not-marked", "legs-equal", "cleared-when-equal", "in-sync-copied", "register", "recovery-offset")
def _new_space_not_marked() -> Iterator[None]:
    """New space counts as equal on all legs, though nobody has said so."""
    aim = Resize._aim

    async def wrong(resize: Resize, change: Change) -> Aim:
        return dataclasses.replace(await aim(resize, change), marked_from_sectors=None)

    with patch.object(Resize, "_aim", wrong):
        yield
