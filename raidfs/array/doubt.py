"""Chunks that other nodes' bits put in doubt: their legs may differ, so they are read from the first leg only.

A node learns of them when it joins and when another node goes, from the slots on disk, always under the token: bits
change their slot under the token only, so what it then reads is one consistent snapshot. Chunks that a node merely was
writing to are included, since a bit does not tell the difference. A chunk is trusted again when no slot of another node
has its bit any more, or when a resync elsewhere has gone over the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from raidfs._core import Engine
from raidfs.array.resync import Span
from raidfs.format.bitmap import SUPER_BYTES, rechunked
from raidfs.format.geometry import ArrayLayout
from raidfs.units import SECTOR_BYTES


class Doubts:
    """The chunks in doubt, as a number whose bit n is chunk n; slots are given whole, superblock included."""

    def __init__(self, layout: ArrayLayout, engine: Engine) -> None:
        self._layout = layout
        self._engine = engine
        self._chunks = 0

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, slots: Iterable[bytes]) -> None:
        """Doubt every chunk whose bit is set in one of the slots."""
        self._set(self._chunks | _union(slots))

    def keep(self, slots: Iterable[bytes]) -> None:
        """Trust every chunk whose bit is set in none of the slots."""
        self._set(self._chunks & _union(slots))

    def trust(self, span: Span) -> None:
        """Trust the chunks in a range that begins and ends with whole chunks."""
        first = span.start // self._layout.chunk_bytes
        last = -(-span.end // self._layout.chunk_bytes)
        self._set(self._chunks & ~((1 << last) - (1 << first)))

    def resized(self, layout: ArrayLayout) -> None:
        """The array has another size or other chunks from now on, which cover what the doubted ones do.

        New space is doubted: whoever resized the array has its bits, and legs may differ there until it is resynced.
        """
        old_sectors = self._layout.size_sectors
        data = self._chunks.to_bytes(layout.slot_bytes, "little")
        chunk_bytes, new_chunk_bytes = self._layout.chunk_bytes, layout.chunk_bytes
        data = rechunked(data, self._layout.bits, chunk_bytes=chunk_bytes, new_chunk_bytes=new_chunk_bytes)
        self._layout = layout
        self._chunks = int.from_bytes(data, "little")
        if layout.size_sectors > old_sectors:
            self._chunks |= -1 << old_sectors * SECTOR_BYTES // layout.chunk_bytes
        self._chunks &= (1 << layout.bits) - 1
        self._publish()

    def _set(self, chunks: int) -> None:
        if chunks != self._chunks:
            self._chunks = chunks
            self._publish()

    def _publish(self) -> None:
        self._engine.read_first_where((self._chunks << 8 * SUPER_BYTES).to_bytes(self._layout.slot_bytes, "little"))


def _union(slots: Iterable[bytes]) -> int:
    chunks = 0
    for slot in slots:
        chunks |= int.from_bytes(slot, "little") >> 8 * SUPER_BYTES
    return chunks
