"""Sizes and sectors: the only place that knows how a number of bytes is written and read by people.

A *sector* is always 512 bytes, as in md, whatever the block size of a disk.
"""

from __future__ import annotations

import re

from raidfs.errors import BadSize

SECTOR_BYTES = 512
PAGE_BYTES = 4096

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_SUFFIX_BYTES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the number of bytes that ``text`` names: ``4096``, ``64K``, ``1.5G``, ``2T`` (binary units).

    Raises BadSize for anything else and for a fraction that is not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadSize(text=text)
    number, suffix = match.groups()
    size = (
        float(number) * _SUFFIX_BYTES[suffix.upper()] if "." in number else int(number) * _SUFFIX_BYTES[suffix.upper()]
    )
    if size != int(size):
        raise BadSize(text=text)
    return int(size)


def format_size(size_bytes: int) -> str:
    """Return a size for people, with the largest binary unit that keeps it at 1 or more: ``64 MiB``."""
    for unit, unit_bytes in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes >= unit_bytes:
            value = size_bytes / unit_bytes
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.2f} {unit}"
    return f"{size_bytes} B"


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step


def round_down(value: int, step: int) -> int:
    """Return the largest multiple of ``step`` that is at most ``value``."""
    return value // step * step
