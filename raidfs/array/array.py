"""A running array on this node: its legs, its engine, its metadata and its own bitmap slot.

Locks are not its business: whoever calls a method that changes metadata holds what the method asks for. The order of
calls is load, then (not read-only) `Array.make_active`, then `Array.activate`; from there the engine serves.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from errno import EIO

from raidfs._core import LEGS_LIMIT, Engine, EventKind, LegState
from raidfs.array.assemble import Assembly
from raidfs.array.doubt import Doubts
from raidfs.array.images import OpenImage
from raidfs.array.legs import ArrayLeg, LegImage, assembled_legs
from raidfs.array.metadata import Metadata
from raidfs.array.new_leg import check_fits
from raidfs.array.port import EnginePort
from raidfs.array.read_errors import ReadErrors
from raidfs.array.resync import Span
from raidfs.array.slots import laid_out
from raidfs.array.spares import Standing, vacant_positions
from raidfs.errors import BlockTooLarge, ImageError, LegNotWritable, NoSuchLeg, TooManyLegs
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapState, BitmapSuperblock
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import MAX_SECTOR, ROLE_FAULTY, Superblock
from raidfs.runtime import Runtime
from raidfs.units import PAGE_BYTES, SECTOR_BYTES, round_down, round_up

log = logging.getLogger(__name__)

SWEEPS_OF_A_FLUSH = 3  # from the last write to a clear bit on disk, as md_bitmap_flush


class Array:
    """One assembled array; ``images`` are those of the assembly's legs and spares, by path."""

    def __init__(
        self,
        runtime: Runtime,
        assembly: Assembly,
        images: Sequence[LegImage],
        *,
        wall_time: Callable[[], int],
        read_only: bool,
    ) -> None:
        self.assembly = assembly
        self.layout = assembly.layout
        self.read_only = read_only
        self.block_bytes = max(image.logical_block_bytes for image in images)
        if self.block_bytes > PAGE_BYTES:
            worst = max(images, key=lambda image: image.logical_block_bytes)
            raise BlockTooLarge(path=worst.path, block_bytes=self.block_bytes)
        self.legs, metadata_legs = assembled_legs(assembly, images)
        self.port = EnginePort(runtime, Engine(len(self.legs)))
        self.port.on_event = self._on_event
        self.metadata = Metadata(
            self.port,
            metadata_legs,
            assembly.superblock,
            wall_time,
            self._on_superblock_failed,
        )
        self.size_bytes = self.served_bytes(assembly.agreed_size_sectors)  # what requests may address
        self.on_capacity: Callable[[int], Awaitable[None]] = _nobody_to_tell
        self._lacking_slots = {leg.index for leg in self.legs if leg.path in assembly.incomplete_bitmap_paths}
        self.slot: int | None = None
        self.fenced = False
        self.doubts = Doubts(self.layout, self.port.engine)
        self.failed: list[tuple[int, int]] = []  # (leg, errno) that the engine reported and nobody has answered
        self.failures = runtime.wait_queue()
        self.read_errors = ReadErrors()
        self._runtime = runtime
        self.legs_changed = runtime.wait_queue()  # woken whenever a leg, its state or the number of positions changes

    @property
    def superblock(self) -> Superblock:
        """The array's superblock as last read or written here."""
        return self.metadata.superblock

    @property
    def is_degraded(self) -> bool:
        """Whether fewer legs are in sync than the array has positions."""
        return sum(leg.state == LegState.IN_SYNC for leg in self.legs) < self.superblock.raid_disks

    @property
    def is_between_sizes(self) -> bool:
        """Whether a resize is under way, or was left half-done: more or less is served than the bitmap is made for."""
        return self.size_bytes != self.served_bytes(self.layout.size_sectors)

    # ---- starting ------------------------------------------------------------------------------------------------

    async def read_slot(self, slot: int) -> bytes:
        """Return a whole bitmap slot from the first leg in sync that has all slots (md: read_sb_page).

        One that a resize has not reached yet, or has reached before this node, is returned as the layout has it here.
        """
        leg = self._first_with_slots()
        data = await self.port.leg_read(leg.index, self.layout.slot_offset_bytes(slot), self.layout.slot_bytes)
        return laid_out(data, self.layout, path=leg.path, slot=slot)

    async def copy_slot(self, slot: int, legs: Sequence[ArrayLeg]) -> None:
        """Write a whole slot as `read_slot` returns it to other legs, durably; nobody may be writing it.

        Raises LegNotWritable for the first leg that does not take it.
        """
        data = await self.read_slot(slot)
        offset = self.layout.slot_offset_bytes(slot)
        errors = await self.port.leg_writes([(leg.index, offset, data) for leg in legs])
        for leg, error in zip(legs, errors, strict=True):
            if error is not None:
                raise LegNotWritable(path=leg.path, reason=error.strerror)

    async def complete_slots(self) -> None:
        """Copy all slots to legs in sync that lack some, before anything relies on them; needs the token.

        Linux and ``mdadm --add`` leave them so (W13); a node that runs has completed them when it joined. Then make all
        slots say how many there are, where an update was cut off. Raises LegNotWritable.
        """
        legs = [leg for leg in self.legs if leg.index in self._lacking_slots]
        for slot in range(self.layout.nodes if legs else 0):
            await self.copy_slot(slot, legs)
        self._lacking_slots.clear()
        if legs:
            log.info("bitmap slots were lacking, and were written, on %s", ", ".join(leg.path for leg in legs))
        if self.assembly.half_updated:
            await self._finish_update()

    async def _finish_update(self) -> None:
        wanted = self.assembly.bitmap
        for leg in self.legs:
            for slot in range(self.layout.nodes if leg.state in (LegState.IN_SYNC, LegState.RECOVERING) else 0):
                offset = self.layout.slot_offset_bytes(slot)
                page = await self.port.leg_read(leg.index, offset, PAGE_BYTES)
                own = _slot_superblock(page, leg.path, slot)
                if own is None or (own.nodes, own.cluster_name) == (wanted.nodes, wanted.cluster_name):
                    continue
                own = dataclasses.replace(own, nodes=wanted.nodes, cluster_name=wanted.cluster_name)
                [error] = await self.port.leg_writes([(leg.index, offset, own.encode() + page[BITMAP_SUPER_BYTES:])])
                if error is not None:
                    raise LegNotWritable(path=leg.path, reason=error.strerror)
        log.warning(
            "an update was cut off: the array has %d slots and is of cluster %s now; repeat `raidfs update` when it is "
            "stopped if that is not what was wanted", wanted.nodes, wanted.cluster_name_text,
        )  # fmt: skip

    def _first_with_slots(self) -> ArrayLeg:
        legs = [leg for leg in self.legs if leg.state == LegState.IN_SYNC and leg.index not in self._lacking_slots]
        return min(legs, key=lambda leg: (leg.role is None, leg.role), default=self.first_in_sync())

    async def load(self, slot: int) -> None:
        """Take a slot as the own one and load its bits (md: md_bitmap_load)."""
        data = await self.read_slot(slot)
        own = BitmapSuperblock.decode(data, path=self.legs[0].path, slot=slot)
        bits = data[BITMAP_SUPER_BYTES:]
        if own.is_stale:
            bits = b"\xff" * len(bits)
        own = dataclasses.replace(
            own,
            state=own.state & ~BitmapState.STALE,
            sync_size_sectors=self.layout.size_sectors,
            events=self.superblock.events,
        )
        self.slot = slot
        engine = self.port.engine
        engine.configure(
            block_bytes=self.block_bytes,
            size_bytes=self.served_bytes(self.layout.size_sectors),
            capacity_bytes=self.size_bytes,
            data_offsets=[self.layout.data_offset_bytes] * len(self.legs),
            raid_disks=self.superblock.raid_disks,
            slot_offset=self.layout.slot_offset_bytes(slot),
            chunk_bytes=self.layout.chunk_bytes,
            bitmap=own.encode() + bits,
            events=self.superblock.events,
            events_cleared=own.events_cleared,
            in_sync_below=self._in_sync_below(own),
            read_only=self.read_only,
        )
        self.publish_legs()

    def import_slot(self, data: bytes) -> int:
        """Add the bits of another node's slot, which is idle, to the own ones; returns how many it had.

        The other slot keeps them (md: load_bitmaps calls md_bitmap_copy_from_slot without clearing).
        """
        other = BitmapSuperblock.decode(data, path=self.legs[0].path, slot=-1)
        return self.port.engine.import_bits(data, in_sync_below=self._in_sync_below(other))

    async def clear_slot(self, slot: int, data: bytes) -> None:
        """Clear all bits of another node's slot on all legs, durably; ``data`` is what it holds.

        A leg that cannot be written is reported as failed.
        """
        await self.write_slot(slot, data[:BITMAP_SUPER_BYTES] + bytes(len(data) - BITMAP_SUPER_BYTES))

    async def sweep_under_token(self) -> None:
        """Make the own bits durable; raises OSError EIO as soon as no leg takes them before a failure is recorded.

        A sweep would wait for that, and who records a failure waits for the token that the caller has.
        """
        refused = OSError(EIO, "no leg takes writes before the failure of one is recorded")
        error: OSError | None = refused
        async with self._runtime.open_nursery() as nursery:

            async def sweep() -> None:
                nonlocal error
                try:
                    await self.port.sweep()
                    error = None
                except OSError as e:
                    error = e
                nursery.cancel_scope.cancel()

            nursery.start_soon(sweep, name="sweep")
            await self.failures.wait_event(lambda: not self.takes_writes(), what="all legs to fail")
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error

    def takes_writes(self) -> bool:
        """Whether a leg does, before failures are recorded that wait for it."""
        writable = (LegState.IN_SYNC, LegState.RECOVERING)
        return any(leg["state"] in writable and not leg["blocked"] for leg in self.port.engine.statistics()["legs"])

    def has_blocked_legs(self) -> bool:
        """Whether a leg has failed, and that is not recorded yet."""
        return any(leg["blocked"] for leg in self.port.engine.statistics()["legs"])

    def is_blocked(self, leg: ArrayLeg) -> bool:
        """Whether a leg has failed, and that is not recorded yet."""
        return bool(self.port.engine.statistics()["legs"][leg.index]["blocked"])

    def chunks_of(self, span: Span) -> range:
        """Return the numbers of the chunks that a range touches."""
        chunk_bytes = self.layout.chunk_bytes
        return range(span.start // chunk_bytes, -(-span.end // chunk_bytes))

    def only_one_in_sync(self) -> bool:
        """Whether all reads go to one leg in any case."""
        return sum(leg.state == LegState.IN_SYNC for leg in self.legs) < 2

    def _in_sync_below(self, bitmap: BitmapSuperblock) -> int:
        # md_bitmap_init_from_disk: a set bit below resync_offset needs no resync, unless the array is degraded and the
        # bits stand for what the missing leg lacks.
        if self.is_degraded and bitmap.events_cleared != self.superblock.events:
            return 0
        offset_sectors = self.superblock.resync_offset_sectors
        end_of_chunks = self.layout.bits * self.layout.chunk_bytes  # the last chunk may be a part only
        return end_of_chunks if offset_sectors == MAX_SECTOR else offset_sectors * SECTOR_BYTES

    async def make_active(self) -> None:
        """Make ``resync_offset = 0`` durable, so that set bits count from now on (P2); needs the token.

        Positions without a usable leg become faulty in the superblock (md: super_1_sync writes the roles of present
        devices only): a leg that misses what is written now must not come back as good. Raises LegNotWritable: a node
        does not join with a leg that cannot be told.
        """
        await self.metadata.update(self._active)
        if self.failed:
            index, number = self.failed[0]
            raise LegNotWritable(path=self.leg(index).path, reason=os.strerror(number))

    def _active(self, superblock: Superblock) -> Superblock:
        for number, role in enumerate(superblock.dev_roles):
            if role in self.assembly.missing_roles:
                superblock = superblock.with_role(number, ROLE_FAULTY)
        return dataclasses.replace(superblock, resync_offset_sectors=0)

    async def activate(self) -> None:
        """Write the own slot, so that imported bits are durable; the array may be written afterwards."""
        self.publish_events()
        await self.port.sweep()

    def publish_events(self) -> None:
        """Tell the engine the event count, for the bitmap superblock (md: md_bitmap_update_sb)."""
        self.port.engine.set_events(self.superblock.events)

    # ---- running -------------------------------------------------------------------------------------------------

    def _on_event(self, kind: EventKind, leg: int, errno: int, offset: int, length: int) -> None:
        if all(one.index != leg for one in self.legs):
            return  # of a leg that was removed
        path, reason = self.leg(leg).path, os.strerror(errno)
        if kind == EventKind.LEG_FAILED:
            log.error("%s: write or flush failed at byte %d: %s", path, offset, reason)
            self.report_failed(leg, errno)
        elif kind == EventKind.LAST_LEG:
            log.error("%s: write or flush failed at byte %d on the last leg: %s", path, offset, reason)
        else:
            log.warning("%s: read failed at byte %d (%d bytes), another leg is tried: %s", path, offset, length, reason)
            self._read_failed(self.leg(leg), offset, length)

    def _read_failed(self, leg: ArrayLeg, offset: int, length: int) -> None:
        """Have it written anew from another leg, if there is one and this node may write."""
        if leg.state == LegState.IN_SYNC and not (self.is_last(leg) or self.read_only):
            at = offset - self.layout.data_offset_bytes
            self.read_errors.add(leg.index, Span(at, at + length), self._runtime.now())
            self.legs_changed.wake_up()

    def give_up(self, leg: ArrayLeg) -> None:
        """Fail a leg in sync that is not the last one, though it takes what is written to it."""
        self.port.engine.block_leg(leg.index)
        self.report_failed(leg.index, EIO)

    def report_failed(self, index: int, errno: int) -> None:
        """Hand a leg that is blocked to the task that records failures."""
        self.failed.append((index, errno))
        self.failures.wake_up()

    def fence(self, errno: int) -> None:
        """Serve nothing any more: every request fails with ``errno`` and nothing more goes to a leg."""
        self.fenced = True
        self.port.engine.fence(errno)

    def _on_superblock_failed(self, index: int, error: OSError) -> None:
        if self.fenced:
            return  # it was the fence that refused the write, not the leg
        log.error("%s: the superblock could not be written: %s", self.leg(index).path, error.strerror)
        if self.leg(index).state != LegState.FAULTY:  # a spare too: it would not have what the others have
            self.port.engine.block_leg(index)
            self.report_failed(index, error.errno or 0)

    def find_leg(self, path: str) -> ArrayLeg:
        """Return the leg with that image; raises NoSuchLeg."""
        real = os.path.realpath(path)
        for leg in self.legs:
            if leg.path and os.path.realpath(leg.path) == real:
                return leg
        raise NoSuchLeg(path=path, legs=", ".join(leg.path for leg in self.legs if leg.path))

    def leg(self, index: int) -> ArrayLeg:
        """Return the leg with an index of the engine."""
        return next(leg for leg in self.legs if leg.index == index)

    def leg_of(self, number: int) -> ArrayLeg | None:
        """Return the leg with a device number, if this node has it."""
        return next((leg for leg in self.legs if leg.number == number), None)

    def first_in_sync(self) -> ArrayLeg:
        """Return the leg in sync with the lowest position: the same one on all nodes."""
        legs = [leg for leg in self.legs if leg.state == LegState.IN_SYNC]
        return min(legs, key=lambda leg: (leg.role is None, leg.role))

    def recovering(self) -> list[ArrayLeg]:
        """Return the legs that are being rebuilt."""
        return [leg for leg in self.legs if leg.state == LegState.RECOVERING]

    def vacant_positions(self) -> tuple[int, ...]:
        """Return the positions that no leg has."""
        return vacant_positions(self.superblock)

    def spares_to_activate(self) -> list[ArrayLeg]:
        """Return the spares that are here and that a vacant position waits for, by device number."""
        spares = sorted((leg for leg in self.legs if leg.is_spare), key=lambda leg: leg.number)
        return spares[: len(self.vacant_positions())]

    def is_last(self, leg: ArrayLeg) -> bool:
        """Whether the array would have no leg in sync without this one."""
        return not any(other.state == LegState.IN_SYNC and other is not leg for other in self.legs)

    def good_number(self) -> int:
        """Return the device number of the first leg in sync: the one that others shall read."""
        return self.first_in_sync().number

    def mark_faulty(self, leg: ArrayLeg) -> None:
        """Leave a leg out from now on; writes wait until `release` (md: Faulty and Blocked)."""
        leg.state, leg.role, leg.blocked = LegState.FAULTY, None, True
        self.metadata.drop(leg.index)
        self.read_errors.forget(leg.index)
        self.port.engine.block_leg(leg.index)
        log.error("%s: the leg is faulty and left out; the array is degraded", leg.path)
        self.legs_changed.wake_up()

    def release(self, leg: ArrayLeg) -> None:
        """All nodes have left a faulty leg out and its record is durable (P1): writes that waited for that go on."""
        if leg.blocked:
            leg.blocked = False
            self.port.engine.leg_failure(leg.index, recorded=True)

    def stand(self, leg: ArrayLeg, found: Standing) -> bool:
        """Give a leg that is not faulty its place, to be published; returns whether it became writable by that."""
        was_writable = leg.state in (LegState.IN_SYNC, LegState.RECOVERING)
        if (leg.state, leg.role) != (found.state, found.role):
            place = "spare" if found.role is None else f"position {found.role}, {found.state.name.lower()}"
            log.info("%s: %s", leg.path, place.replace("_", " "))
        leg.state, leg.role = found.state, found.role
        leg.recovery_offset = found.recovery_offset_sectors * SECTOR_BYTES
        return not was_writable and leg.state in (LegState.IN_SYNC, LegState.RECOVERING)

    def publish_legs(self) -> None:
        """Tell the engine what the legs are and how many positions there are; wakes who waits for a change."""
        legs = {leg.index: leg for leg in self.legs}
        count = max(legs) + 1
        states = [LegState.MISSING] * count
        positions, offsets = [count] * count, [0] * count
        for index, leg in legs.items():
            # A leg that is blocked keeps its place in the engine until its failure is released.
            states[index] = LegState.IN_SYNC if leg.blocked else leg.state
            positions[index] = LEGS_LIMIT if leg.role is None else leg.role
            offsets[index] = leg.recovery_offset
        self.port.engine.publish_legs(
            states, positions=positions, recovery_offsets=offsets, raid_disks=self.superblock.raid_disks
        )
        self.legs_changed.wake_up()

    # ---- the size ------------------------------------------------------------------------------------------------

    def served_bytes(self, size_sectors: int) -> int:
        """Return what can be served of such a size: all, or whole blocks where a leg ends within the last one."""
        size = size_sectors * SECTOR_BYTES
        end = self.layout.data_offset_bytes + round_up(size, self.block_bytes)
        fits = all(leg.image_bytes >= end for leg in self.legs if leg.image_bytes)
        return size if fits else round_down(size, self.block_bytes)

    def too_short(self, layout: ArrayLayout) -> ArrayLeg | None:
        """Return a leg whose image ends before the data of such an array would, of those that were looked at."""
        counting = [leg for leg in self.legs if leg.state != LegState.FAULTY]
        return next((leg for leg in counting if 0 < leg.image_bytes < layout.end_bytes), None)

    async def set_layout(self, layout: ArrayLayout, *, needed_from_sectors: int | None = None) -> None:
        """Take another size or chunk for the bitmap and the own slot, which is durable on return (`EnginePort.resize`).

        Nothing more is served than before. ``needed_from_sectors``: the chunks from there on are to be resynced.
        """
        assert self.slot is not None
        head = BitmapSuperblock.decode(self.port.engine.bitmap_image()[:BITMAP_SUPER_BYTES], slot=self.slot)
        head = dataclasses.replace(head, sync_size_sectors=layout.size_sectors, chunk_bytes=layout.chunk_bytes)
        await self.port.resize(
            self.served_bytes(layout.size_sectors),
            layout.chunk_bytes,
            head.encode(),
            needed_from=None if needed_from_sectors is None else needed_from_sectors * SECTOR_BYTES,
        )
        self.layout = layout
        self.doubts.resized(layout)

    async def need_from(self, from_sectors: int) -> None:
        """Have all chunks from there on resynced: NEEDED here, and their bits durable on return."""
        first = from_sectors * SECTOR_BYTES // self.layout.chunk_bytes
        bits = (1 << self.layout.bits) - (1 << first)
        slot_bits = bits.to_bytes(self.layout.slot_bytes - BITMAP_SUPER_BYTES, "little")
        self.port.engine.import_bits(bytes(BITMAP_SUPER_BYTES) + slot_bits)
        await self.sweep_under_token()

    async def set_capacity(self, size_sectors: int) -> None:
        """Serve that much from now on, and tell whoever shows the size to users (md: set_capacity_and_notify)."""
        size = self.served_bytes(size_sectors)
        if size != self.size_bytes:
            log.info("the array is served with %d bytes, before with %d", size, self.size_bytes)
            self.size_bytes = size
            self.port.engine.set_capacity(size)
            await self.on_capacity(size)

    async def slot_heads(self) -> list[tuple[int, BitmapSuperblock]]:
        """Return what each slot says of itself on each leg that counts; the caller has the token.

        A leg that cannot be read now says nothing.
        """
        legs = [leg.index for leg in self.legs if leg.state == LegState.IN_SYNC]
        heads = []
        for slot in range(self.layout.nodes):
            found = await self.port.leg_reads(legs, self.layout.slot_offset_bytes(slot), PAGE_BYTES)
            heads += [
                (slot, BitmapSuperblock.decode(data, path=f"leg {index}", slot=slot))
                for index, data in zip(legs, found, strict=True)
                if not isinstance(data, OSError)
            ]
        return heads

    async def write_slot(self, slot: int, data: bytes) -> None:
        """Write a whole slot of another node, which is idle, to all legs that count, durably; the caller has the token.

        A leg that cannot be written is reported as failed.
        """
        legs = [leg for leg in self.legs if leg.state in (LegState.IN_SYNC, LegState.RECOVERING)]
        offset = self.layout.slot_offset_bytes(slot)
        errors = await self.port.leg_writes([(leg.index, offset, data) for leg in legs])
        for leg, error in zip(legs, errors, strict=True):
            if error is not None and not self.fenced:
                log.error("%s: slot %d could not be written: %s", leg.path, slot, error.strerror)
                self.port.engine.block_leg(leg.index)
                self.report_failed(leg.index, error.errno or 0)

    # ---- legs that come and go -----------------------------------------------------------------------------------

    def check_fits(self, image: OpenImage) -> None:
        """Raise ImageTooSmall or BlocksDiffer unless an image can be a leg of this array as it runs."""
        check_fits(image, self.layout, self.block_bytes)

    def attach(self, image: LegImage, number: int) -> ArrayLeg:
        """Take in an open image as a leg that nothing is written to yet (MISSING); raises TooManyLegs."""
        try:
            index = self.port.engine.add_leg(self.layout.data_offset_bytes)
        except ValueError:
            raise TooManyLegs(legs=len(self.legs)) from None
        leg = ArrayLeg(index, image.path, number, None, LegState.MISSING, image.direct, image_bytes=image.size_bytes)
        self.legs = [*self.legs, leg]
        return leg

    def detach(self, leg: ArrayLeg) -> None:
        """Forget a leg that is faulty or a spare; `free` its index when nothing is in flight on it any more."""
        self.release(leg)
        self.metadata.drop(leg.index)
        self.legs = [other for other in self.legs if other is not leg]
        self.failed = [entry for entry in self.failed if entry[0] != leg.index]
        self.legs_changed.wake_up()

    def free(self, index: int) -> bool:
        """Give the engine's number of a leg that was detached back; returns whether nothing is in flight on it."""
        try:
            self.port.engine.remove_leg(index)
        except OSError:
            return False
        return True

    def keep(self, leg: ArrayLeg) -> None:
        """Keep a leg although it failed: what was written meanwhile fails with EIO, nothing was acknowledged."""
        self.port.engine.leg_failure(leg.index, recorded=False)

    async def flush_bitmap(self) -> None:
        """Bring everything to the disk and clear the bits that may be cleared (md: md_bitmap_flush)."""
        await self.port.flush()
        for _ in range(SWEEPS_OF_A_FLUSH):
            await self.port.sweep()


def _slot_superblock(page: bytes, path: str, slot: int) -> BitmapSuperblock | None:
    try:
        return BitmapSuperblock.decode(page, path=path, slot=slot)
    except ImageError:
        return None  # of a leg that is being recovered, and gets all slots then


async def _nobody_to_tell(size_bytes: int) -> None:
    return
