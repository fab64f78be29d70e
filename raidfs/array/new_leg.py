"""An image that shall become a leg of a running array: what it must be like, and what is written to it first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raidfs.array.images import OpenImage, open_image
from raidfs.array.signatures import find_signatures
from raidfs.array.spares import in_sync
from raidfs.array.wipe import wipe
from raidfs.errors import BlocksDiffer, ImageError, ImageHoldsData, ImageTooSmall
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import ROLE_SPARE, SUPER_BYTES, SUPER_OFFSET_BYTES, Feature, Superblock
from raidfs.units import SECTOR_BYTES, round_up


def open_new(
    path: str, layout: ArrayLayout, set_uuid: bytes, block_bytes: int, *, force: bool, buffered: bool
) -> OpenImage:
    """Open an image for adding to the array ``set_uuid``, alone, and make unrecognisable what was on it.

    Raises ImageInUse, ImageTooSmall, BlocksDiffer, and ImageHoldsData unless ``force`` is given, before anything is
    written. What an add of the same image has left that was cut off is nobody's data. The image is left under an
    exclusive flock, so that no node of this host uses it as something else.
    """
    open_image(path, writable=True, exclusive=True).close()  # refuses a block device that the system uses
    image = open_image(path, writable=True, direct=not buffered)
    try:
        image.lock(exclusive=True)
        check_fits(image, layout, block_bytes)
        found = find_signatures(image.read, image.size_bytes)
        if found and not (force or is_half_added(image, layout, set_uuid)):
            raise ImageHoldsData(path=path, found=found[0].name)
        wipe(image, found, layout.data_offset_bytes)
    except BaseException:
        image.close()
        raise
    return image


def is_half_added(image: OpenImage, layout: ArrayLayout, set_uuid: bytes) -> bool:
    """Whether slots of the array are on the image and no superblock yet: whoever was adding it was killed meanwhile."""
    if any(image.read(SUPER_OFFSET_BYTES, SUPER_BYTES)):
        return False
    try:
        slot = BitmapSuperblock.decode(image.read(layout.slot_offset_bytes(0), BITMAP_SUPER_BYTES), path=image.path)
    except ImageError:
        return False
    return slot.uuid == set_uuid


def check_fits(image: OpenImage, layout: ArrayLayout, block_bytes: int) -> None:
    """Raise ImageTooSmall or BlocksDiffer unless the image can be a leg of an array that runs with ``block_bytes``."""
    need_bytes = layout.data_offset_bytes + round_up(layout.size_bytes, block_bytes)
    if image.size_bytes < need_bytes:
        need_sectors = need_bytes // SECTOR_BYTES
        raise ImageTooSmall(path=image.path, have_sectors=image.size_bytes // SECTOR_BYTES, need_sectors=need_sectors)
    if block_bytes % image.logical_block_bytes:
        raise BlocksDiffer(path=image.path, block_bytes=image.logical_block_bytes, array_block_bytes=block_bytes)


def new_superblock(array: Superblock, number: int, device_uuid: bytes, image_bytes: int) -> Superblock:
    """Return the superblock of a new spare: the array's, and nothing yet of its own."""
    return dataclasses.replace(
        in_sync(array).with_role(number, ROLE_SPARE),
        feature_map=int(array.feature_map & ~(_OWN_FEATURES | Feature.RECOVERY_OFFSET | Feature.RECOVERY_BITMAP)),
        dev_number=number,
        device_uuid=device_uuid,
        devflags=0,
        data_size_sectors=image_bytes // SECTOR_BYTES - array.data_offset_sectors,
        recovery_offset_sectors=0,
        cnt_corrected_read=0,
        bblog_shift=0,
        bblog_size_sectors=0,
        bblog_offset_sectors=0,
        trailing=b"",
    )


_OWN_FEATURES = Feature.BAD_BLOCKS | Feature.REPLACEMENT


def erasing(layout: ArrayLayout) -> list[tuple[int, bytes]]:
    """Return the writes that take the metadata off an image that does not become a leg after all."""
    end = layout.bitmap_start_bytes + layout.nodes * layout.slot_bytes
    start = SUPER_OFFSET_BYTES + SUPER_BYTES
    return [(SUPER_OFFSET_BYTES, bytes(SUPER_BYTES)), (start, bytes(end - start))]


def write_new(image: OpenImage, writes: Sequence[tuple[int, bytes]]) -> None:
    """Write metadata to a new leg, one piece after the other, each durable before the next."""
    for offset_bytes, data in writes:
        image.write(offset_bytes, data)
        image.sync()
