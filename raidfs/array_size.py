"""The size of the array on one node, as it follows the others; `raidfs.resize` is the side of the node that is asked.

A node has two sizes. Its *layout* is what superblock, bitmap and own slot are made for; its *capacity* is what requests
may address and what the mounted file shows. The capacity is never more than what every node has said in its slot, on
every leg (P4). So a larger array comes to a node in two messages: METADATA_UPDATED gives it the layout, and
CHANGE_CAPACITY the capacity, when all have the layout. A smaller one takes the capacity first: when a node acknowledges
METADATA_UPDATED, it addresses nothing behind the new end any more.

Who cannot follow in size says so and stays as it was, unlike in everything else: the others go back to the old size.
"""

from __future__ import annotations

import logging

from raidfs.array.array import Array
from raidfs.cluster.messages import Result
from raidfs.devices import Devices
from raidfs.errors import BadGeometry, ImageAccess, SlotsWouldMove
from raidfs.format.geometry import ArrayLayout, resized_layout
from raidfs.format.superblock import Superblock
from raidfs.runtime import Runtime
from raidfs.units import SECTOR_BYTES

log = logging.getLogger(__name__)

DRAIN_S = 20.0  # for requests behind the new end: longer than a slow disk takes, less than a sender waits

# Answers of a node that keeps its size and goes on; with any other one it is fenced.
STAYS_AS_IT_WAS = frozenset(
    {Result.NO_ROOM, Result.READ_ONLY, Result.SLOTS_WOULD_MOVE, Result.BUSY, Result.SIZE, Result.FAILED}
)


class ArraySize:
    """Layout and capacity of the array on this node."""

    def __init__(self, array: Array, devices: Devices, runtime: Runtime) -> None:
        self._array = array
        self._devices = devices
        self._runtime = runtime

    async def follow(self, superblock: Superblock) -> Result:
        """Take the size that a superblock says, if it is another one (md: update_size)."""
        array = self._array
        if superblock.size_sectors == array.layout.size_sectors:
            return Result.APPLIED
        try:
            layout = resized_layout(array.layout, superblock.size_sectors)
        except SlotsWouldMove as e:
            log.error("%s", e)
            return Result.SLOTS_WOULD_MOVE
        return await self.take(layout)

    async def set_chunk(self, chunk_bytes: int, size_sectors: int) -> Result:
        """Take another chunk for the bitmap (BITMAP_RESIZE)."""
        array = self._array
        if size_sectors != array.layout.size_sectors:
            return Result.SIZE
        if chunk_bytes == array.layout.chunk_bytes:
            return Result.APPLIED
        try:
            layout = resized_layout(array.layout, size_sectors, chunk_bytes)
        except (SlotsWouldMove, BadGeometry) as e:
            log.error("%s", e)
            return Result.SLOTS_WOULD_MOVE
        return await self.take(layout)

    async def take(self, layout: ArrayLayout, *, needed_from_sectors: int | None = None) -> Result:
        """Take a layout: the own slot is durable with it on return. See `Array.set_layout`."""
        array = self._array
        if array.read_only:
            return Result.READ_ONLY
        if layout.size_sectors > array.layout.size_sectors and not await self._has_room(layout):
            return Result.NO_ROOM
        if not await self.lower(layout.size_sectors):
            return Result.BUSY
        if layout.chunk_bytes != array.layout.chunk_bytes and array.has_blocked_legs():
            return Result.BUSY  # writes that wait for the record of a failure, which waits for the token
        if not array.takes_writes():
            return Result.BUSY  # the record of the failure waits for the token too
        try:
            await array.set_layout(layout, needed_from_sectors=needed_from_sectors)
        except OSError as e:
            log.error("the own slot of the bitmap was not written: %s", e.strerror)
            return Result.FAILED
        return Result.APPLIED

    async def lower(self, size_sectors: int) -> bool:
        """Serve no more than that; returns whether no request is in flight behind it any more."""
        array = self._array
        if array.size_bytes <= size_sectors * SECTOR_BYTES:
            return True
        end = array.size_bytes
        await array.set_capacity(size_sectors)
        with self._runtime.cancel_scope(deadline=self._runtime.now() + DRAIN_S):
            await array.port.drain(array.size_bytes, end)
            return True
        return False

    async def change_capacity(self, size_sectors: int) -> Result:
        """Serve the size that all nodes have agreed on (CHANGE_CAPACITY)."""
        if size_sectors != self._array.layout.size_sectors:
            return Result.SIZE
        await self._array.set_capacity(size_sectors)
        return Result.APPLIED

    async def _has_room(self, layout: ArrayLayout) -> bool:
        try:
            await self._devices.look_at_rooms()
        except ImageAccess as e:
            log.error("%s", e)
            return False
        short = self._array.too_short(layout)
        if short is not None:
            log.error("%s has %d bytes, and %d are needed", short.path, short.image_bytes, layout.end_bytes)
        return short is None
