"""The clustered write-intent bitmap: each slot's superblock, and the bits that follow it.

A slot is one node's bitmap. It begins with 256 bytes of superblock; bit ``i`` of what follows says that the two legs
may differ in chunk ``i`` of the array. Where a slot lies on the leg is told by `raidfs.format.geometry`. The layout
is that of ``bitmap_super_t`` (Linux, ``drivers/md/md-bitmap.h``); a bitmap has no checksum.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import struct
from collections.abc import Iterator

from raidfs.errors import NoBitmapSuperblock, NotClusteredBitmap, SuperblockField
from raidfs.format.superblock import printable, uuid_text

MAGIC = 0x6D746962
VERSION_CLUSTERED = 5
SUPER_BYTES = 256
CLUSTER_NAME_BYTES_MAX = 63  # 64 with the NUL that ends it
CHUNK_BYTES_MIN = 512  # md_bitmap_read_sb
CHUNK_BYTES_MAX = 1 << 31  # the largest power of two that the field holds
WRITE_BEHIND_MAX = 16383  # COUNTER_MAX
NODES_MIN = 2
DAEMON_SLEEP_S_DEFAULT = 5

_HEADER = struct.Struct("<II16sQQQIIIIII64s120s")
assert _HEADER.size == SUPER_BYTES

_NOT_ZERO = re.compile(rb"[^\0]+")


class BitmapState(enum.IntFlag):
    """The bits of a bitmap superblock's ``state``."""

    STALE = 2
    WRITE_ERROR = 4
    HOSTENDIAN = 1 << 15


@dataclasses.dataclass(frozen=True)
class BitmapSuperblock:
    """The head of one slot. ``cluster_name`` and ``trailing`` are raw bytes without their trailing NULs."""

    uuid: bytes
    events: int
    events_cleared: int
    sync_size_sectors: int
    chunk_bytes: int
    nodes: int
    cluster_name: bytes
    state: int = 0
    daemon_sleep_s: int = DAEMON_SLEEP_S_DEFAULT
    write_behind: int = 0
    sectors_reserved: int = 0
    trailing: bytes = b""

    @classmethod
    def decode(cls, data: bytes, *, path: str = "image", slot: int = 0) -> BitmapSuperblock:
        """Return the bitmap superblock in the first 256 bytes of ``data``.

        ``path`` and ``slot`` only name the place in errors: NoBitmapSuperblock, NotClusteredBitmap, SuperblockField.
        The rules are those of ``md_bitmap_read_sb``.
        """
        if len(data) < SUPER_BYTES:
            raise NoBitmapSuperblock(path=path, slot=slot, magic="missing")
        (
            magic, version, uuid, events, events_cleared, sync_size, state, chunk, daemon_sleep, write_behind,
            sectors_reserved, nodes, cluster_name, trailing,
        ) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise NoBitmapSuperblock(path=path, slot=slot, magic=f"{magic:08x}")
        if version != VERSION_CLUSTERED:
            raise NotClusteredBitmap(path=path, version=version)

        def require(field: str, value: int, holds: bool, rule: str) -> None:
            if not holds:
                place = f"bitmap superblock (slot {slot})"
                raise SuperblockField(path=path, place=place, field=field, value=value, rule=rule)

        is_power = chunk & (chunk - 1) == 0 and chunk >= CHUNK_BYTES_MIN
        require("chunksize", chunk, is_power, f"it must be a power of two from {CHUNK_BYTES_MIN}")
        require("daemon_sleep", daemon_sleep, daemon_sleep >= 1, "it must be 1 or more")
        require("write_behind", write_behind, write_behind <= WRITE_BEHIND_MAX, f"the most is {WRITE_BEHIND_MAX}")
        require("nodes", nodes, nodes >= NODES_MIN, f"it must be {NODES_MIN} or more")
        return cls(
            uuid=uuid,
            events=events,
            events_cleared=events_cleared,
            sync_size_sectors=sync_size,
            chunk_bytes=chunk,
            nodes=nodes,
            cluster_name=cluster_name.rstrip(b"\0"),
            state=state,
            daemon_sleep_s=daemon_sleep,
            write_behind=write_behind,
            sectors_reserved=sectors_reserved,
            trailing=trailing.rstrip(b"\0"),
        )

    def encode(self) -> bytes:
        """Return the 256 bytes of the slot's head."""
        return _HEADER.pack(
            MAGIC, VERSION_CLUSTERED, self.uuid, self.events, self.events_cleared, self.sync_size_sectors, self.state,
            self.chunk_bytes, self.daemon_sleep_s, self.write_behind, self.sectors_reserved, self.nodes,
            self.cluster_name, self.trailing,
        )  # fmt: skip

    @property
    def cluster_name_text(self) -> str:
        """The cluster's name."""
        return printable(self.cluster_name)

    @property
    def uuid_text(self) -> str:
        """The array's UUID as md prints it."""
        return uuid_text(self.uuid)

    @property
    def bits(self) -> int:
        """How many chunks, and so bits, the array has."""
        return bits_of(self.sync_size_sectors, self.chunk_bytes)

    @property
    def is_stale(self) -> bool:
        """Whether the bits must not be believed."""
        return bool(self.state & BitmapState.STALE)


def bits_of(size_sectors: int, chunk_bytes: int) -> int:
    """Return the number of chunks of ``chunk_bytes`` that cover an array of ``size_sectors``, the last one partly."""
    return -(-size_sectors * 512 // chunk_bytes)


def bits_bytes(bits: int) -> int:
    """Return how many bytes hold ``bits`` bits."""
    return -(-bits // 8)


def count_dirty(data: bytes | memoryview, bits: int) -> int:
    """Return how many of the first ``bits`` bits of ``data`` are set; what lies behind them means nothing.

    ``data`` begins with bit 0, without the slot's superblock.
    """
    covered = int.from_bytes(data[: bits_bytes(bits)], "little")
    return (covered & ((1 << bits) - 1)).bit_count()


def rechunked(data: bytes, bits: int, *, chunk_bytes: int, new_chunk_bytes: int) -> bytes:
    """Return the first ``bits`` bits of ``data`` for chunks of another size, in as many bytes; nothing dirty is lost.

    Two chunks that become one are dirty if either was, one that becomes two makes both dirty (md_bitmap_resize). What
    does not fit into ``data`` any more is behind the end of every array that has such chunks.
    """
    found = bytearray(len(data))
    for bit in iter_dirty(data, bits):
        first = bit * chunk_bytes // new_chunk_bytes
        last = ((bit + 1) * chunk_bytes - 1) // new_chunk_bytes
        for new_bit in range(first, min(last + 1, 8 * len(data))):
            set_dirty(found, new_bit)
    return bytes(found)


def iter_dirty(data: bytes | memoryview, bits: int) -> Iterator[int]:
    """Give the numbers of the set bits among the first ``bits``, in order; clean stretches cost next to nothing."""
    for match in _NOT_ZERO.finditer(data[: bits_bytes(bits)]):
        for at in range(match.start(), match.end()):
            byte = data[at]
            for bit in range(8):
                if byte >> bit & 1 and at * 8 + bit < bits:
                    yield at * 8 + bit


def is_dirty(data: bytes | bytearray | memoryview, bit: int) -> bool:
    """Tell whether one bit is set."""
    return bool(data[bit // 8] >> bit % 8 & 1)


def set_dirty(data: bytearray | memoryview, bit: int) -> None:
    """Set one bit."""
    data[bit // 8] |= 1 << bit % 8


def set_clean(data: bytearray | memoryview, bit: int) -> None:
    """Clear one bit."""
    data[bit // 8] &= ~(1 << bit % 8)
