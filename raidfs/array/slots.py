"""A slot of the bitmap as a node finds it and as its layout has it, while a resize reaches one node after the other.

Each slot says of which size its array was and how large its chunks are when it was last written as a whole. Where that
is not what this node has, the bits are those of other chunks; none of them is lost on the way from one to the other.
"""

from __future__ import annotations

import dataclasses

from raidfs.format.bitmap import SUPER_BYTES, BitmapSuperblock, bits_of, rechunked
from raidfs.format.geometry import ArrayLayout


def laid_out(data: bytes, layout: ArrayLayout, *, path: str, slot: int) -> bytes:
    """Return a whole slot with the size and the chunks of ``layout``; bits behind its end are clear."""
    head = BitmapSuperblock.decode(data, path=path, slot=slot)
    wanted = dataclasses.replace(head, sync_size_sectors=layout.size_sectors, chunk_bytes=layout.chunk_bytes)
    if head == wanted:
        return data
    # Bits mean something as far as the larger of both sizes: a node may have set some before its slot said so.
    size_sectors = max(head.sync_size_sectors, layout.size_sectors)
    bits = min(bits_of(size_sectors, head.chunk_bytes), 8 * (len(data) - SUPER_BYTES))
    found = rechunked(data[SUPER_BYTES:], bits, chunk_bytes=head.chunk_bytes, new_chunk_bytes=layout.chunk_bytes)
    kept = int.from_bytes(found, "little") & ((1 << layout.bits) - 1)
    return wanted.encode() + kept.to_bytes(len(found), "little")
