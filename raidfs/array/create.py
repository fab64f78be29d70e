"""Creating an array: the same bytes that ``mdadm --create --bitmap=clustered`` would write, without a cluster.

What is random or depends on the time is given by the caller. The order of writing makes a crash harmless: first
whatever was there is made unrecognisable, then the bitmaps are written, then the superblocks; each step is on
stable storage before the next. Before the last step no image is a leg of anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence

from raidfs.array.images import OpenImage, image_identity, image_status, open_image
from raidfs.array.request import ArrayRequest, check_request
from raidfs.array.signatures import find_signatures
from raidfs.array.sparse_files import made_files
from raidfs.array.wipe import wipe
from raidfs.errors import BadGeometry, ImageHoldsData, ImageNotFound, ImageTooSmall, SameImageTwice
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import (
    SIZE_ALIGN_SECTORS,
    ArrayLayout,
    choose_layout,
    data_offset_sectors,
    device_sectors_for,
)
from raidfs.format.superblock import (
    HEADER_BYTES,
    MAX_SECTOR,
    ROLE_SPARE,
    SUPER_OFFSET_BYTES,
    Superblock,
    uuid_text,
)
from raidfs.units import PAGE_BYTES, SECTOR_BYTES, round_down, round_up

SET_NAME_BYTES = 32


@dataclasses.dataclass(frozen=True)
class CreatedImage:
    """One image of the new array: its role (None for a spare), its length, and whether the file was made now."""

    path: str
    role: int | None
    size_bytes: int
    device_uuid: bytes
    was_made: bool


@dataclasses.dataclass(frozen=True)
class CreatedArray:
    """The array that was created."""

    set_uuid: bytes
    name: str
    cluster_name: str
    layout: ArrayLayout
    assume_clean: bool
    images: tuple[CreatedImage, ...]

    def to_json(self) -> dict[str, object]:
        """Return the document that ``raidfs create --json`` prints; it may only grow."""
        layout = self.layout
        return {
            "schema": 1,
            "array": {
                "uuid": uuid_text(self.set_uuid),
                "name": self.name,
                "cluster_name": self.cluster_name,
                "size_bytes": layout.size_bytes,
                "nodes": layout.nodes,
                "bitmap_chunk_bytes": layout.chunk_bytes,
                "data_offset_bytes": layout.data_offset_bytes,
                "slot_bytes": layout.slot_bytes,
                "assume_clean": self.assume_clean,
            },
            "images": [
                {
                    "path": image.path,
                    "role": image.role,
                    "state": "spare" if image.role is None else "active",
                    "size_bytes": image.size_bytes,
                    "device_uuid": uuid_text(image.device_uuid),
                    "created": image.was_made,
                }
                for image in self.images
            ],
        }


def create_array(request: ArrayRequest, *, set_uuid: bytes, device_uuids: Sequence[bytes], now_s: int) -> CreatedArray:
    """Write a new array and return what it is like.

    ``device_uuids`` has one UUID of 16 bytes for each of ``request.paths``; ``now_s`` is the time of creation. Refuses
    with BadGeometry, SameImageTwice, ImageNotFound, ImageInUse, ImageHoldsData, ImageTooSmall, TooManyNodes before
    anything is written; files that it made are removed again when anything fails later.
    """
    assert len(device_uuids) == len(request.paths), (len(device_uuids), len(request.paths))
    check_request(request)
    missing = _missing_paths(request)
    with contextlib.ExitStack() as open_images:
        existing = _open_existing(request, missing, open_images)
        found = {path: find_signatures(image.read, image.size_bytes) for path, image in existing.items()}
        if not request.force:
            for path, signatures in found.items():
                if signatures:
                    raise ImageHoldsData(path=path, found=signatures[0].name)
        layout = _choose(request, existing)
        with made_files(missing, layout.end_bytes) as made:
            for path in made:
                image = open_images.enter_context(open_image(path, writable=True))
                image.lock(exclusive=True)
                existing[path] = image
            images = [existing[path] for path in request.paths]
            _check_images(images, layout)
            superblocks = _superblocks(request, images, layout, set_uuid, device_uuids, now_s)
            for image in images:
                wipe(image, found.get(image.path, ()), layout.data_offset_bytes)
            for image in images:
                _write_bitmaps(image, layout, set_uuid, request.cluster_name)
            for image, superblock in zip(images, superblocks, strict=True):
                image.write(SUPER_OFFSET_BYTES, superblock.encode())
                image.sync()
        return CreatedArray(
            set_uuid=set_uuid,
            name=superblocks[0].name,
            cluster_name=request.cluster_name,
            layout=layout,
            assume_clean=request.assume_clean,
            images=tuple(
                CreatedImage(
                    path=image.path,
                    role=superblock.role if superblock.role != ROLE_SPARE else None,
                    size_bytes=image.size_bytes,
                    device_uuid=superblock.device_uuid,
                    was_made=image.path in missing,
                )
                for image, superblock in zip(images, superblocks, strict=True)
            ),
        )


def set_name(name: str, homehost: str) -> bytes:
    """Return the name as mdadm stores it: ``homehost:name`` when that is shorter than 32 bytes, else the name."""
    full = f"{homehost}:{name}".encode()
    return full if homehost and len(full) < SET_NAME_BYTES else name.encode()


def max_dev_for(devices: int) -> int:
    """Return how many roles mdadm makes room for: the superblock is rounded up to 512 bytes."""
    return (round_up(HEADER_BYTES + 2 * devices, SECTOR_BYTES) - HEADER_BYTES) // 2


def slot_image(layout: ArrayLayout, slot: int, *, set_uuid: bytes, cluster_name: str) -> bytes:
    """Return the bytes of one new slot, as ``write_bitmap1`` of mdadm makes them.

    Slot 0 is all ones up to its last byte, so that the first node syncs the whole array once; the others are zeros.
    """
    head = BitmapSuperblock(
        uuid=set_uuid,
        events=0,
        events_cleared=0,
        sync_size_sectors=layout.size_sectors,
        chunk_bytes=layout.chunk_bytes,
        nodes=layout.nodes,
        cluster_name=cluster_name.encode(),
    ).encode()
    return head + (b"\xff" if slot == 0 else b"\0") * (layout.slot_bytes - BITMAP_SUPER_BYTES)


def _missing_paths(request: ArrayRequest) -> tuple[str, ...]:
    """Return the images that are to be made."""
    missing: dict[str, str] = {}
    for path in request.paths:
        try:
            image_status(path)
        except ImageNotFound:
            if request.size_bytes is None:
                raise
            other = missing.setdefault(os.path.realpath(path), path)
            if other is not path or request.paths.count(path) > 1:
                raise SameImageTwice(path=path, other_path=other) from None
    return tuple(missing.values())


def _open_existing(
    request: ArrayRequest, missing: Sequence[str], open_images: contextlib.ExitStack
) -> dict[str, OpenImage]:
    images: dict[str, OpenImage] = {}
    by_identity: dict[tuple[str, int, int], str] = {}
    for path in request.paths:
        if path in missing:
            continue
        identity = image_identity(path)
        if identity in by_identity:
            raise SameImageTwice(path=path, other_path=by_identity[identity])
        by_identity[identity] = path
        image = open_images.enter_context(open_image(path, writable=True, exclusive=True))
        image.lock(exclusive=True)
        images[path] = image
    return images


def _choose(request: ArrayRequest, existing: dict[str, OpenImage]) -> ArrayLayout:
    """Return the layout: the data offset as the first existing image wants it, the size as all have it."""
    size_sectors = None
    if request.size_bytes is not None:
        size_sectors = round_down(request.size_bytes // SECTOR_BYTES, SIZE_ALIGN_SECTORS)
    if existing:
        first = existing[next(path for path in request.paths if path in existing)]
        path, device_sectors = first.path, first.size_sectors
        if size_sectors is None:
            smallest = min(existing.values(), key=lambda image: image.size_sectors)
            room = smallest.size_sectors - data_offset_sectors(device_sectors)
            size_sectors = round_down(room, SIZE_ALIGN_SECTORS)
            if size_sectors <= 0:
                need = data_offset_sectors(device_sectors) + SIZE_ALIGN_SECTORS
                raise ImageTooSmall(path=smallest.path, have_sectors=smallest.size_sectors, need_sectors=need)
    else:
        assert size_sectors is not None, "images that are missing come with a size"
        path, device_sectors = request.images[0], device_sectors_for(size_sectors)
    return choose_layout(
        device_sectors, size_sectors=size_sectors, chunk_bytes=request.chunk_bytes, nodes=request.nodes, path=path
    )


def _check_images(images: Sequence[OpenImage], layout: ArrayLayout) -> None:
    for image in images:
        need = layout.data_offset_sectors + layout.size_sectors
        if image.size_sectors < need:
            raise ImageTooSmall(path=image.path, have_sectors=image.size_sectors, need_sectors=need)
        if image.logical_block_bytes > PAGE_BYTES:
            rule = f"md's superblock needs blocks of at most {PAGE_BYTES} bytes"
            raise BadGeometry(what=f"block size of {image.path},", value=image.logical_block_bytes, rule=rule)


def _superblocks(
    request: ArrayRequest,
    images: Sequence[OpenImage],
    layout: ArrayLayout,
    set_uuid: bytes,
    device_uuids: Sequence[bytes],
    now_s: int,
) -> list[Superblock]:
    active = len(request.images)
    unused = max_dev_for(len(images)) - active
    return [
        Superblock(
            set_uuid=set_uuid,
            set_name=set_name(request.name, request.homehost),
            ctime=now_s,
            size_sectors=layout.size_sectors,
            raid_disks=active,
            dev_number=number,
            device_uuid=device_uuid,
            data_offset_sectors=layout.data_offset_sectors,
            data_size_sectors=image.size_sectors - layout.data_offset_sectors,
            utime=now_s,
            events=0,
            resync_offset_sectors=MAX_SECTOR if request.assume_clean else 0,
            dev_roles=(*range(active), *[ROLE_SPARE] * unused),
            bitmap_offset_sectors=layout.bitmap_offset_sectors,
        )
        for number, (image, device_uuid) in enumerate(zip(images, device_uuids, strict=True))
    ]


def _write_bitmaps(image: OpenImage, layout: ArrayLayout, set_uuid: bytes, cluster_name: str) -> None:
    for slot in range(layout.nodes):
        data = slot_image(layout, slot, set_uuid=set_uuid, cluster_name=cluster_name)
        image.write(layout.slot_offset_bytes(slot), data)
    image.sync()
