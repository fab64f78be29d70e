"""Where things lie on a leg: the sizes that mdadm chooses, and the addresses that follow from them.

::

    byte 0        4096            8192                                    data_offset
    |  unused     | superblock   | slot 0 bitmap | slot 1 | ... | (gap)   | data ...

The rules are those of mdadm 4.2 (``super1.c``: ``validate_geometry1``, ``choose_bm_space``,
``add_internal_bitmap1``, ``write_bitmap1``), so that mdadm and raidfs lay out the same devices in the same way.
Sizes are sectors of 512 bytes unless the name says bytes.
"""

from __future__ import annotations

import dataclasses

from raidfs.errors import BadGeometry, ImageTooSmall, SlotsWouldMove, TooManyNodes
from raidfs.format import bitmap
from raidfs.format.superblock import SUPER_OFFSET_BYTES, Superblock
from raidfs.units import GIB, MIB, SECTOR_BYTES, round_down, round_up

BITMAP_OFFSET_SECTORS = 8  # from the superblock, metadata 1.2
SLOT_ALIGN_BYTES = 4096  # of a slot's length; Linux agrees with itself only where a page has 4 KiB
DEVICE_SECTORS_MIN = 24  # the smallest device that mdadm looks at
SIZE_ALIGN_SECTORS = 8  # of an array made here: whole 4 KiB blocks, whatever the block size of the images

NODES_DEFAULT = 4
NODES_MAX = 64  # Linux keeps the nodes that it must recover in a map of 64 bits (recover_slot in md-cluster.c)
SLOTS_MAX = 32768  # as many as fit before the largest data offset that mdadm chooses; keeps damaged numbers in bounds
CHUNK_BYTES_DEFAULT = 64 * MIB
CHUNK_BYTES_MIN = 4096  # "sub-page chunks don't work yet" (mdadm)

_HEADROOM_SECTORS_MAX = 128 * MIB // SECTOR_BYTES
_HEADROOM_SHARE = 1024  # headroom is at most this part of the device, about 0.1 %
_DATA_ALIGN_SECTORS = MIB // SECTOR_BYTES
_BITMAP_ROOM_SECTORS_MAX = 256  # "limit to 128K of bitmap when chunk size not requested"


def bitmap_room_sectors(device_sectors: int) -> int:
    """Return the room that mdadm sets aside for one bitmap on such a device (``choose_bm_space``)."""
    if device_sectors < 128:
        return 0
    if device_sectors - 128 >= 200 * GIB // SECTOR_BYTES:
        return 256
    if device_sectors - 8 > 8 * GIB // SECTOR_BYTES:
        return 128
    return 8


def data_offset_sectors(device_sectors: int) -> int:
    """Return the first data sector that mdadm chooses for a device: a multiple of 1 MiB, growing with the device."""
    headroom = _HEADROOM_SECTORS_MAX
    while headroom * _HEADROOM_SHARE > device_sectors:
        headroom //= 2
    return round_up(24 + bitmap_room_sectors(device_sectors) + headroom, _DATA_ALIGN_SECTORS)


def device_sectors_for(size_sectors: int) -> int:
    """Return the smallest device that, laid out by the rules above, has exactly ``size_sectors`` for data.

    The data offset never falls as the device grows, so following it upwards from below ends at the smallest device.
    """
    device = size_sectors
    while (wanted := size_sectors + data_offset_sectors(device)) != device:
        device = wanted
    return device


def default_chunk_bytes(size_sectors: int) -> int:
    """Return the bitmap chunk for an array where none is asked for: 64 MiB, or the smallest larger one that fits.

    What must fit is one bitmap in the room that mdadm sets aside for it; it begins to matter above 64 TiB.
    """
    room = min(bitmap_room_sectors(size_sectors), _BITMAP_ROOM_SECTORS_MAX)
    bits_max = (room * SECTOR_BYTES - bitmap.SUPER_BYTES) * 8
    chunk_bytes = CHUNK_BYTES_MIN
    bits = size_sectors * SECTOR_BYTES // chunk_bytes + 1
    while room and bits > bits_max:
        chunk_bytes *= 2
        bits = (bits + 1) // 2
    return max(chunk_bytes, CHUNK_BYTES_DEFAULT)


def slot_bytes_for(bits: int) -> int:
    """Return the length of one slot: its superblock and its bits, in whole 4 KiB."""
    return round_up(bitmap.SUPER_BYTES + bitmap.bits_bytes(bits), SLOT_ALIGN_BYTES)


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """The addresses of an array on each of its legs; they are the same on all legs.

    ``size_sectors`` is the array's size, which for RAID1 is what each leg holds of it.
    """

    data_offset_sectors: int
    size_sectors: int
    chunk_bytes: int
    nodes: int
    bitmap_offset_sectors: int = BITMAP_OFFSET_SECTORS

    @classmethod
    def of(cls, superblock: Superblock, slot: bitmap.BitmapSuperblock) -> ArrayLayout:
        """Return the layout that an array's superblock and one of its bitmap superblocks describe.

        A slot that a resize has not reached yet says an older size; it tells where slots are all the same.
        """
        found = cls(
            data_offset_sectors=superblock.data_offset_sectors,
            size_sectors=superblock.size_sectors,
            chunk_bytes=slot.chunk_bytes,
            nodes=slot.nodes,
            bitmap_offset_sectors=superblock.bitmap_offset_sectors,
        )
        if slot.sync_size_sectors in (0, superblock.size_sectors):
            return found
        before = dataclasses.replace(found, size_sectors=slot.sync_size_sectors)
        try:
            return resized_layout(before, superblock.size_sectors)
        except SlotsWouldMove:
            return found

    @property
    def data_offset_bytes(self) -> int:
        """Where the data begins on a leg."""
        return self.data_offset_sectors * SECTOR_BYTES

    @property
    def size_bytes(self) -> int:
        """The size of the array."""
        return self.size_sectors * SECTOR_BYTES

    @property
    def end_bytes(self) -> int:
        """Where the data ends on a leg: an image must not be shorter."""
        return self.data_offset_bytes + self.size_bytes

    @property
    def bits(self) -> int:
        """How many chunks the bitmap has."""
        return bitmap.bits_of(self.size_sectors, self.chunk_bytes)

    @property
    def slot_bytes(self) -> int:
        """The length of one slot."""
        return slot_bytes_for(self.bits)

    def slot_offset_bytes(self, slot: int) -> int:
        """Return where a slot begins on a leg; slots count from 0."""
        assert 0 <= slot < self.nodes, (slot, self.nodes)
        return self.bitmap_start_bytes + slot * self.slot_bytes

    @property
    def bitmap_start_bytes(self) -> int:
        """Where slot 0 begins on a leg."""
        return SUPER_OFFSET_BYTES + self.bitmap_offset_sectors * SECTOR_BYTES

    @property
    def bitmap_room_bytes(self) -> int:
        """How many bytes all slots together may have: from the first slot to the data."""
        return self.data_offset_bytes - self.bitmap_start_bytes

    @property
    def nodes_max(self) -> int:
        """How many nodes fit before the data."""
        return min(SLOTS_MAX, max(0, self.bitmap_room_bytes // self.slot_bytes))

    @property
    def slots_fit(self) -> bool:
        """Whether all slots end before the data begins."""
        return self.nodes <= self.nodes_max


def choose_layout(
    device_sectors: int, *, size_sectors: int | None, chunk_bytes: int | None, nodes: int, path: str
) -> ArrayLayout:
    """Return the layout for a new array whose first image, ``path``, has ``device_sectors``.

    ``size_sectors`` None takes all that the device has; either is rounded down to 8 sectors. ``chunk_bytes`` None
    takes mdadm's choice. Raises BadGeometry, ImageTooSmall, TooManyNodes.
    """
    check_nodes(nodes)
    if chunk_bytes is not None:
        check_chunk(chunk_bytes)
    data_offset = data_offset_sectors(device_sectors)
    room = round_down(max(0, device_sectors - data_offset), SIZE_ALIGN_SECTORS)
    size = room if size_sectors is None else round_down(size_sectors, SIZE_ALIGN_SECTORS)
    if not room or size > room:
        need = data_offset + max(size, SIZE_ALIGN_SECTORS)
        raise ImageTooSmall(path=path, have_sectors=device_sectors, need_sectors=need)
    if not size:
        rule = f"an array has at least {SIZE_ALIGN_SECTORS * SECTOR_BYTES} bytes"
        raise BadGeometry(what="size", value=(size_sectors or 0) * SECTOR_BYTES, rule=rule)
    layout = ArrayLayout(data_offset, size, chunk_bytes or default_chunk_bytes(size), nodes)
    check_slots(layout)
    return layout


def resized_layout(layout: ArrayLayout, size_sectors: int, chunk_bytes: int | None = None) -> ArrayLayout:
    """Return the layout of the same array with another size, its slots where they are.

    The chunk stays if it can. Else it is doubled until the bits fit the slot, as md does (md_bitmap_resize), or halved
    until they need all of it: slots never move. Raises SlotsWouldMove when no chunk, or not the one that is asked for,
    leaves the slots in their places.
    """
    stride = layout.slot_bytes
    if chunk_bytes is None:
        chunk_bytes = layout.chunk_bytes
        while _slot_bytes(size_sectors, chunk_bytes) > stride and chunk_bytes < bitmap.CHUNK_BYTES_MAX:
            chunk_bytes *= 2
        while _slot_bytes(size_sectors, chunk_bytes) < stride and chunk_bytes > CHUNK_BYTES_MIN:
            chunk_bytes //= 2
    else:
        check_chunk(chunk_bytes)
    need_bytes = _slot_bytes(size_sectors, chunk_bytes)
    if need_bytes != stride:
        raise SlotsWouldMove(chunk_bytes=chunk_bytes, need_bytes=need_bytes, slot_bytes=stride)
    return dataclasses.replace(layout, size_sectors=size_sectors, chunk_bytes=chunk_bytes)


def _slot_bytes(size_sectors: int, chunk_bytes: int) -> int:
    return slot_bytes_for(bitmap.bits_of(size_sectors, chunk_bytes))


def check_nodes(nodes: int) -> None:
    """Raise BadGeometry unless an array can have that many nodes."""
    if not bitmap.NODES_MIN <= nodes <= NODES_MAX:
        raise BadGeometry(what="number of nodes", value=nodes, rule=f"from {bitmap.NODES_MIN} to {NODES_MAX}")


def check_chunk(chunk_bytes: int) -> None:
    """Raise BadGeometry unless a bitmap can have such chunks."""
    if chunk_bytes & (chunk_bytes - 1) or not CHUNK_BYTES_MIN <= chunk_bytes <= bitmap.CHUNK_BYTES_MAX:
        raise BadGeometry(what="bitmap chunk", value=chunk_bytes, rule="a power of two from 4K to 2G")


def check_slots(layout: ArrayLayout) -> None:
    """Raise TooManyNodes unless all slots fit before the data."""
    if not layout.slots_fit:
        raise TooManyNodes(
            nodes=layout.nodes,
            need_bytes=layout.nodes * layout.slot_bytes,
            have_bytes=layout.bitmap_room_bytes,
            nodes_max=layout.nodes_max,
        )
