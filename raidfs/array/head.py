"""The metadata of one image, read and taken apart: its superblock and the superblocks of its bitmap's slots.

Reading and believing are apart: `read_head` does the I/O and never fails because of what it reads; what is wrong
with it is kept as an error beside the value, for `raidfs.array.assemble` to judge and `raidfs.array.examine` to show.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from raidfs.array.images import OpenImage, open_image
from raidfs.errors import NoBitmapSuperblock, NotClustered, RaidfsError, SuperblockField
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import BITMAP_OFFSET_SECTORS, ArrayLayout
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.units import SECTOR_BYTES


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An image that may be a leg: what is known of it before anything is decided.

    ``superblock`` is a Superblock that passed all checks, or the error that tells why there is none. ``slots`` has
    for each slot of the bitmap its superblock or an error; it is empty when ``superblock`` is an error, and has
    slot 0 alone when that one does not tell where the others are. ``identity`` is equal for two names of one image.
    """

    path: str
    size_bytes: int
    superblock: Superblock | RaidfsError
    slots: tuple[BitmapSuperblock | RaidfsError, ...] = ()
    identity: tuple[str, int, int] | None = None
    logical_block_bytes: int = SECTOR_BYTES
    direct: bool = True


# A running array writes its superblocks seldom (a leg fails, a node joins), so the second reading nearly always agrees.
READINGS_MAX = 8


def read_candidates(paths: Sequence[str]) -> tuple[Candidate, ...]:
    """Open, read and close the images, read-only; raises what opening and reading raise.

    Other nodes may be writing superblocks meanwhile. So that those of one moment are returned, and not an old one of
    the first leg beside a new one of the second, they are read again until they no longer change.
    """
    with contextlib.ExitStack() as opened:
        images = [opened.enter_context(open_image(path)) for path in paths]
        for _ in range(READINGS_MAX):
            before = [read_superblock_area(image) for image in images]
            candidates = tuple(read_candidate(image) for image in images)
            if before == [read_superblock_area(image) for image in images]:
                break
        return candidates


def read_candidate(image: OpenImage) -> Candidate:
    """Read an image's metadata; only a failing read itself (ImageAccess) is raised."""
    superblock: Superblock | RaidfsError
    slots: tuple[BitmapSuperblock | RaidfsError, ...] = ()
    try:
        superblock = Superblock.decode(read_superblock_area(image), path=image.path)
    except RaidfsError as e:
        superblock = e
    else:
        slots = read_slot_superblocks(image, superblock)
    return Candidate(
        path=image.path,
        size_bytes=image.size_bytes,
        superblock=superblock,
        slots=slots,
        identity=image.identity,
        logical_block_bytes=image.logical_block_bytes,
        direct=image.direct,
    )


def read_superblock_area(image: OpenImage) -> bytes:
    """Return the 4096 bytes at byte 4096, or fewer when the image ends before."""
    end = min(image.size_bytes, SUPER_OFFSET_BYTES + SUPER_BYTES)
    return image.read(SUPER_OFFSET_BYTES, end - SUPER_OFFSET_BYTES) if end > SUPER_OFFSET_BYTES else b""


def read_slot_superblocks(image: OpenImage, superblock: Superblock) -> tuple[BitmapSuperblock | RaidfsError, ...]:
    """Return each slot's superblock or what is wrong with it; slot 0 tells where they are and how many.

    Where ``raidfs update`` was cut off another slot may tell of more, and those are read too.
    """
    try:
        check_bitmap_place(superblock, path=image.path)
        first = _read_slot(image, slot_0_offset_bytes(superblock), slot=0)
        layout = checked_layout(superblock, first, path=image.path)
    except RaidfsError as e:
        return (e,)
    slots: list[BitmapSuperblock | RaidfsError] = [first]
    while (slot := len(slots)) < layout.nodes:
        try:
            found = _read_slot(image, layout.slot_offset_bytes(slot), slot=slot)
        except RaidfsError as e:
            slots.append(e)
            continue
        slots.append(found)
        if found.uuid == superblock.set_uuid and layout.nodes < found.nodes <= layout.nodes_max:
            layout = dataclasses.replace(layout, nodes=found.nodes)
    return tuple(slots)


def read_slot_bits(image: OpenImage, layout: ArrayLayout, slot: int) -> bytes:
    """Return a slot's bytes from bit 0 on, without its superblock."""
    return image.read(layout.slot_offset_bytes(slot), layout.slot_bytes)[BITMAP_SUPER_BYTES:]


def slot_0_offset_bytes(superblock: Superblock) -> int:
    """Return where slot 0 begins: the one slot whose place the superblock alone tells."""
    return SUPER_OFFSET_BYTES + superblock.bitmap_offset_sectors * SECTOR_BYTES


def check_bitmap_place(superblock: Superblock, *, path: str) -> None:
    """Raise NotClustered, or SuperblockField when the bitmap is not between the superblock and the data."""
    if not superblock.is_clustered:
        raise NotClustered(path=path, feature_map=hex(superblock.feature_map))
    offset_sectors = superblock.bitmap_offset_sectors
    if offset_sectors < BITMAP_OFFSET_SECTORS or offset_sectors % BITMAP_OFFSET_SECTORS:
        rule = f"it must be a multiple of {BITMAP_OFFSET_SECTORS} sectors after the superblock"
        raise SuperblockField(path=path, place="superblock", field="bitmap_offset", value=offset_sectors, rule=rule)


def checked_layout(superblock: Superblock, first: BitmapSuperblock, *, path: str) -> ArrayLayout:
    """Return the layout, or raise SuperblockField when the slots do not fit before the data."""
    layout = ArrayLayout.of(superblock, first)
    if not layout.slots_fit:
        rule = f"{layout.nodes_max} slots of {layout.slot_bytes} bytes fit before the data"
        place = "bitmap superblock (slot 0)"
        raise SuperblockField(path=path, place=place, field="nodes", value=layout.nodes, rule=rule)
    return layout


def _read_slot(image: OpenImage, offset_bytes: int, *, slot: int) -> BitmapSuperblock:
    if offset_bytes + BITMAP_SUPER_BYTES > image.size_bytes:
        raise NoBitmapSuperblock(path=image.path, slot=slot, magic="missing")
    return BitmapSuperblock.decode(image.read(offset_bytes, BITMAP_SUPER_BYTES), path=image.path, slot=slot)
