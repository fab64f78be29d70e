"""The array that the enumerator uses, as small as an array can be: two legs, two slots, three chunks of 4 KiB.

::

    0        4 KiB         8 KiB    12 KiB   16 KiB                    28 KiB
    |        | superblock  | slot 0 | slot 1 | data, in 3 chunks       | room for 2 more
"""

from __future__ import annotations

from raidfs.format.geometry import ArrayLayout
from raidfs.units import KIB, SECTOR_BYTES

LEGS = 2
NODES = 2
CHUNK_BYTES = 4 * KIB
CHUNKS = 3
SECTORS = CHUNKS * CHUNK_BYTES // SECTOR_BYTES
SMALLER_SECTORS = SECTORS - CHUNK_BYTES // SECTOR_BYTES  # what a resize makes of the array
LARGER_SECTORS = SECTORS + 2 * CHUNK_BYTES // SECTOR_BYTES  # legs have room for that
LEG_BYTES = 16 * KIB + LARGER_SECTORS * SECTOR_BYTES
LAYOUT = ArrayLayout(
    data_offset_sectors=16 * KIB // SECTOR_BYTES, size_sectors=SECTORS, chunk_bytes=CHUNK_BYTES, nodes=NODES
)
