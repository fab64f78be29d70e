"""The array that simulated clusters use: small, and as mdadm could have laid it out.

::

    0          8 KiB             64 KiB                 64 KiB + chunks * 4 KiB
    |  | superblock | slots 0 .. |  data, in chunks of 4 KiB  |
"""

from __future__ import annotations

from collections.abc import Sequence

from raidfs.array.create import max_dev_for, slot_image
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import MAX_SECTOR, ROLE_SPARE, SUPER_OFFSET_BYTES, Superblock
from raidfs.sim.disks import SimDisk
from raidfs.units import KIB, SECTOR_BYTES

CHUNK_BYTES = 4 * KIB
DATA_OFFSET_BYTES = 64 * KIB
NODES = 5  # slots; as many machines as a simulated cluster has at most
SET_UUID = bytes(range(0x10, 0x20))
CLUSTER_NAME = "simulated"
CREATED_S = 1_700_000_000


def sim_layout(chunks: int) -> ArrayLayout:
    """Return the layout of an array of ``chunks`` chunks of 4 KiB."""
    return ArrayLayout(
        data_offset_sectors=DATA_OFFSET_BYTES // SECTOR_BYTES,
        size_sectors=chunks * CHUNK_BYTES // SECTOR_BYTES,
        chunk_bytes=CHUNK_BYTES,
        nodes=NODES,
    )


def format_disks(disks: Sequence[SimDisk], layout: ArrayLayout, *, clean: bool, legs: int | None = None) -> None:
    """Put a new array on the disks: so many legs (None: all of them), the rest are spares.

    One that is ``clean`` has no chunk to resync (``--assume-clean``).
    """
    legs = len(disks) if legs is None else legs
    unused = max_dev_for(len(disks)) - legs
    for number, disk in enumerate(disks):
        for slot in range(layout.nodes):
            image = slot_image(layout, slot, set_uuid=SET_UUID, cluster_name=CLUSTER_NAME)
            if clean or number >= legs:
                image = image[:256] + bytes(len(image) - 256)
            disk.put(layout.slot_offset_bytes(slot), image)
        superblock = Superblock(
            set_uuid=SET_UUID,
            set_name=b"sim:md0",
            ctime=CREATED_S,
            size_sectors=layout.size_sectors,
            raid_disks=legs,
            dev_number=number,
            device_uuid=bytes([0xD0 + number]) * 16,
            data_offset_sectors=layout.data_offset_sectors,
            data_size_sectors=disk.size_bytes // SECTOR_BYTES - layout.data_offset_sectors,
            utime=CREATED_S,
            events=0,
            resync_offset_sectors=MAX_SECTOR if clean else 0,
            dev_roles=(*range(legs), *[ROLE_SPARE] * unused),
        )
        disk.put(SUPER_OFFSET_BYTES, superblock.encode())
