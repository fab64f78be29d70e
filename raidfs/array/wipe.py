"""Making unrecognisable what a new array replaces."""

from __future__ import annotations

from collections.abc import Sequence

from raidfs.array.images import OpenImage
from raidfs.array.signatures import Signature
from raidfs.format.superblock import SUPER_BYTES
from raidfs.units import PAGE_BYTES, round_down, round_up


def wipe(image: OpenImage, found: Sequence[Signature], data_offset_bytes: int) -> None:
    """Make unrecognisable what the new array replaces: every md superblock, and magics before the data area.

    A magic inside the data area is content, which ``--assume-clean`` keeps; md superblocks are not, wherever they
    are, or another program could still assemble the old array.
    """
    for signature in found:
        if signature.is_md:
            _zero(image, signature.offset_bytes, SUPER_BYTES)
        elif not signature.is_data and signature.offset_bytes < data_offset_bytes:
            _zero(image, signature.offset_bytes, signature.length_bytes)
    if found:
        image.sync()


def _zero(image: OpenImage, offset_bytes: int, length_bytes: int) -> None:
    """Write zeros over these bytes and leave the rest of their pages as it is."""
    start = round_down(offset_bytes, PAGE_BYTES)
    end = min(round_up(offset_bytes + length_bytes, PAGE_BYTES), round_down(image.size_bytes, PAGE_BYTES))
    last = min(offset_bytes + length_bytes, end)
    if start < last:
        pages = bytearray(image.read(start, end - start))
        pages[offset_bytes - start : last - start] = bytes(last - offset_bytes)
        image.write(start, bytes(pages))
