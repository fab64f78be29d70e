"""Resizing a running array, on the node that is asked: all nodes follow, or none does (P4).

The superblock's size is the aim, and what every slot of the bitmap says of itself is how far its node has come. So a
resize is one list of steps, `STEPS`, and each of them can be done again at any time with the same or another size:

* doing it: the list with the new size;
* taking it back, when a node cannot follow: the same list with the old size. The superblock is written with the old
  size *before* that is announced (W8: Linux announces what still has the new one);
* when whoever was at it has died: the list with the size that the superblock says, by the first of the others to get
  ``resync`` (or who opens the array next); if a node then cannot follow, with the other size that slots say.

The capacity, which is what users are served, is raised by the last step alone, when all slots on all legs say one size.
Until then nobody addresses anything behind the smaller of the two sizes, so a node that dies leaves the array at one of
them. ``resync`` is held in EX all the time: no sync runs, no spare is given a position, nobody else resizes.

New space is NEEDED in the bitmap of the node that resizes before the superblock speaks of it, and is resynced
afterwards, unless it is said to be the same on all legs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from raidfs._core import LegState
from raidfs.array.array import Array
from raidfs.array.request import LEGS_MAX
from raidfs.array.signatures import NEEDED_HEAD_BYTES, needed_bytes
from raidfs.array.spares import positions_in_use, with_raid_disks
from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.devices import Devices
from raidfs.errors import (
    BadArraySize,
    BadGeometry,
    BadRaidDevices,
    DegradedAssumeClean,
    MessageError,
    NoRoomOnLeg,
    OwnSizeStays,
    PositionsInUse,
    RaidfsError,
    ReadOnlyNode,
    ResizeRefused,
    ResizeUnfinished,
    ShrinkLosesData,
    SlotsDisagree,
    SlotsWouldMove,
    SyncElsewhere,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.geometry import SIZE_ALIGN_SECTORS, ArrayLayout, resized_layout
from raidfs.format.superblock import Superblock
from raidfs.mddev import Mddev
from raidfs.resize_plan import Aim, Change
from raidfs.resync_lock import ResyncLock
from raidfs.units import SECTOR_BYTES, format_size, round_down

log = logging.getLogger(__name__)

LOCK_TRIES = 20  # a sync that has just ended may still have the lock
LOCK_RETRY_S = 0.1
CAPACITY_TRIES = 3  # to announce what is decided already; each waits for a node that does not answer


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: its name for people, what it looks at before anything is changed, and what it does.

    ``look`` returns its finding or raises what stands against the change. A step that is ``again`` done with the old
    size takes itself back, and with the size of the superblock ends what another node has begun.
    """

    name: str
    look: Callable[[Resize, Change, Aim], Awaitable[str]]
    do: Callable[[Resize, Change, Aim], Awaitable[None]]
    again: bool = True


class Resize:
    """`grow` is the command; ``unfinished`` tells that somebody's resize is to be ended by `recover`."""

    def __init__(self, mddev: Mddev, channel: Channel, devices: Devices) -> None:
        self.resync = ResyncLock(channel)
        self.unfinished = False
        self._mddev = mddev
        self._channel = channel
        self._devices = devices

    @property
    def _array(self) -> Array:
        return self._mddev.array

    # ---- the command -----------------------------------------------------------------------------------------------

    async def check(self, change: Change) -> tuple[list[tuple[str, str]], RaidfsError | None]:
        """Return each step with what its look found, as far as nothing stands against the change, and what does."""
        found: list[tuple[str, str]] = []
        try:
            aim = await self._aim(change)
            for step in STEPS:
                found.append((step.name, await step.look(self, change, aim)))
        except RaidfsError as e:
            return found, e
        return found, None

    async def grow(self, change: Change) -> None:
        """Resize the array on all nodes.

        Raises what `check` finds, before anything is changed; ResizeRefused, which names nodes and reasons, when all
        are back at the old size; ResizeUnfinished when they could not be reached for that.
        """
        array = self._array
        if array.read_only:
            raise ReadOnlyNode()
        await self._lock()
        try:
            await self.recover()
            _, error = await self.check(change)
            if error is not None:
                raise error
            aim = await self._aim(change)
            if not self._is_so(aim):
                await self._go(change, aim)
        finally:
            await self.resync.unlock()
            array.legs_changed.wake_up()  # there may be something to resync, or to recover

    def _is_so(self, aim: Aim) -> bool:
        layout = self._array.layout
        return (
            aim.size_sectors == layout.size_sectors
            and aim.chunk_bytes in (None, layout.chunk_bytes)
            and aim.raid_disks in (None, self._array.superblock.raid_disks)
        )

    async def _lock(self) -> None:
        for left in reversed(range(LOCK_TRIES)):
            try:
                await self.resync.trylock("a resize")
            except SyncElsewhere:
                if not left:
                    raise
                await self._channel.runtime.sleep(LOCK_RETRY_S, what="the end of a sync")
            else:
                return

    async def _aim(self, change: Change) -> Aim:
        array = self._array
        await self._devices.look_at_rooms()
        size = array.layout.size_sectors if change.size_sectors is None else change.size_sectors
        if change.maximum:
            rooms = [leg.image_bytes for leg in array.legs if leg.state != LegState.FAULTY and leg.image_bytes]
            size = (min(rooms) - array.layout.data_offset_bytes) // SECTOR_BYTES
        if size != array.layout.size_sectors:
            size = round_down(size, SIZE_ALIGN_SECTORS)
        if size <= 0:
            rule = f"at least {SIZE_ALIGN_SECTORS * SECTOR_BYTES}"
            raise BadArraySize(size_bytes=(change.size_sectors or 0) * SECTOR_BYTES, rule=rule)
        is_larger = size > array.layout.size_sectors
        if is_larger and change.assume_clean and array.is_degraded:
            raise DegradedAssumeClean()
        marked = array.layout.size_sectors if is_larger and not change.assume_clean else None
        return Aim(size, change.chunk_bytes, change.raid_disks, marked)

    async def _go(self, change: Change, aim: Aim) -> None:
        layout = self._array.layout
        # A smaller array forgets the bits behind its end: given its old size again it does not know what differs there.
        marked = aim.size_sectors if aim.size_sectors < layout.size_sectors else None
        raid_disks = None if aim.raid_disks is None else self._array.superblock.raid_disks
        old = Aim(layout.size_sectors, layout.chunk_bytes, raid_disks, marked)
        self.unfinished = True  # for the task that syncs, should this one not come to its end
        try:
            for step in STEPS:
                log.info("resize to %d sectors: %s", aim.size_sectors, step.name)
                await step.do(self, change, aim)
        except ResizeUnfinished:
            raise
        except RaidfsError as e:
            log.error("the resize is taken back: %s", e)
            try:
                await self._agree(old)
            except RaidfsError as e2:
                raise ResizeUnfinished(reason=f"{e}; and then: {e2}") from e
            self.unfinished = False
            raise ResizeRefused(reason=str(e)) from e
        self.unfinished = False

    async def _agree(self, aim: Aim) -> None:
        for step in STEPS:
            if step.again:
                await step.do(self, Change(), aim)

    # ---- what a dead node has left -----------------------------------------------------------------------------------

    async def look(self) -> None:
        """See whether a node that has gone has left a resize half-done, for `recover`."""
        if not self._array.read_only:
            self.unfinished = await self._is_half_done()

    async def recover(self) -> None:
        """End a resize that somebody has begun, one way or the other; the caller has ``resync`` EX.

        Raises ResizeUnfinished when neither way can be gone now.
        """
        if not await self._is_half_done():
            self.unfinished = False
            return
        array = self._array
        async with self._token():
            said = {_said_by(head) for _, head in await array.slot_heads()}
        size, sizes = array.superblock.size_sectors, {size for size, _ in said if size}
        lowest = min(sizes | {size, array.size_bytes // SECTOR_BYTES})
        log.info("a resize was left half-done: the superblock says %d sectors, slots %s", size, sorted(sizes))
        try:
            await self._agree(Aim(size, self._chunk_for(size, said), None, lowest if lowest < size else None))
        except ResizeUnfinished:
            raise
        except RaidfsError as e:
            others = sorted(sizes - {size})
            if not others:
                raise ResizeUnfinished(reason=str(e)) from e
            log.error("the resize cannot be finished, so it is taken back: %s", e)
            marked = lowest if others[0] > lowest else None
            try:
                await self._agree(Aim(others[0], self._chunk_for(others[0], said), None, marked))
            except RaidfsError as e2:
                raise ResizeUnfinished(reason=f"{e}; and then: {e2}") from e
        self.unfinished = False

    async def _is_half_done(self) -> bool:
        array = self._array
        async with self._token():
            said = {_said_by(head) for _, head in await array.slot_heads()}
        size = array.superblock.size_sectors
        is_here = size == array.layout.size_sectors and not array.is_between_sizes
        return not is_here or said != {(size, array.layout.chunk_bytes)}

    def _chunk_for(self, size_sectors: int, said: set[tuple[int, int]]) -> int | None:
        """Return the largest chunk that a slot says, in which no bit is lost, if the slots can stay where they are."""
        for chunk_bytes in sorted({chunk for _, chunk in said}, reverse=True):
            with contextlib.suppress(SlotsWouldMove, BadGeometry):
                return resized_layout(self._array.layout, size_sectors, chunk_bytes).chunk_bytes
        return None

    @contextlib.asynccontextmanager
    async def _token(self) -> AsyncIterator[None]:
        """Hold reconfig_mutex and the token, with the metadata of this moment."""
        mutex = self._mddev.reconfig_mutex
        await mutex.lock("resize")
        try:
            await self._channel.lock_comm(True)
            try:
                await self._mddev.follow_now()
                yield
            finally:
                await self._channel.unlock_comm()
        finally:
            mutex.unlock()

    # ---- looks -----------------------------------------------------------------------------------------------------

    async def look_sync(self, change: Change, aim: Aim) -> str:
        """Nobody else syncs or resizes."""
        if not self.resync.held and (holder := await self.resync.holder()) is not None:
            raise SyncElsewhere(holder=holder)
        return "nobody syncs the array"

    async def look_content(self, change: Change, aim: Aim) -> str:
        """What would be lost may go."""
        array = self._array
        if aim.size_sectors >= array.layout.size_sectors:
            return "nothing is cut off"
        size_bytes = aim.size_sectors * SECTOR_BYTES
        found = needed_bytes(await array.port.read(0, min(NEEDED_HEAD_BYTES, array.size_bytes)))
        what = ""
        if found is not None and found[1] > size_bytes:
            what = f", and the {found[0]} needs {found[1]}"
        if not change.force:
            raise ShrinkLosesData(size_bytes=size_bytes, what=what)
        return f"given up: all behind the first {size_bytes} bytes{what}"

    async def look_room(self, change: Change, aim: Aim) -> str:
        """Every leg has room, or gets it."""
        array = self._array
        layout = self._layout(aim)
        short = array.too_short(layout)
        if short is None:
            return "every leg has it"
        if not change.extend:
            have_bytes = short.image_bytes - layout.data_offset_bytes
            raise NoRoomOnLeg(path=short.path, have_bytes=have_bytes, need_bytes=layout.size_bytes)
        return f"images that are shorter are made {layout.end_bytes} bytes long"

    async def look_legs(self, change: Change, aim: Aim) -> str:
        """The number of positions is possible."""
        now = self._array.superblock.raid_disks
        if aim.raid_disks in (None, now):
            return f"stays {now}"
        if not 1 <= aim.raid_disks <= LEGS_MAX:
            raise BadRaidDevices(count=aim.raid_disks, rule=f"from 1 to {LEGS_MAX}")
        _with_raid_disks(self._array.superblock, aim.raid_disks)
        return f"{aim.raid_disks}, before {now}"

    async def look_lower(self, change: Change, aim: Aim) -> str:
        """Whether there is such an end."""
        return "waits for requests there" if aim.size_sectors < self._array.layout.size_sectors else "not needed"

    async def look_bitmap(self, change: Change, aim: Aim) -> str:
        """Who has to follow, and what is to be resynced."""
        members = await self._channel.membership.members()
        marked = "" if aim.marked_from_sectors is None else "; the new space is to be resynced"
        return f"{len(members) - 1} other nodes have to follow{marked}"

    async def look_chunk(self, change: Change, aim: Aim) -> str:
        """The slots of the bitmap can stay where they are."""
        was, layout = self._array.layout, self._layout(aim)
        before = "" if layout.chunk_bytes == was.chunk_bytes else f", before {format_size(was.chunk_bytes)}"
        return f"{layout.bits} chunks of {format_size(layout.chunk_bytes)}{before}"

    async def look_absent(self, change: Change, aim: Aim) -> str:
        """Whose slots are written from here."""
        members = await self._channel.membership.members()
        return f"{self._array.layout.nodes - len(members)} slots are written from here"

    async def look_slots(self, change: Change, aim: Aim) -> str:
        """What is compared."""
        legs = sum(leg.state == LegState.IN_SYNC for leg in self._array.legs)
        return f"{self._array.layout.nodes} slots are read from {legs} legs"

    async def look_capacity(self, change: Change, aim: Aim) -> str:
        """What is served in the end."""
        return f"{aim.size_sectors * SECTOR_BYTES} bytes ({format_size(aim.size_sectors * SECTOR_BYTES)})"

    def _layout(self, aim: Aim) -> ArrayLayout:
        return resized_layout(self._array.layout, aim.size_sectors, aim.chunk_bytes)

    # ---- steps -----------------------------------------------------------------------------------------------------

    async def nothing(self, change: Change, aim: Aim) -> None:
        """The step is its look."""

    async def extend(self, change: Change, aim: Aim) -> None:
        """Make images longer that are too short; they stay so when the resize is taken back."""
        layout = self._layout(aim)
        if self._array.too_short(layout) is not None:
            await self._devices.extend(layout.end_bytes, sparse=change.sparse)

    async def lower(self, change: Change, aim: Aim) -> None:
        """Address nothing behind a smaller size any more.

        Without the mutex: a request may wait for the record of a failure, and that for the mutex.
        """
        if not await self._mddev.size.lower(aim.size_sectors):
            raise OwnSizeStays(reason=Result.BUSY.text)

    async def superblock(self, change: Change, aim: Aim) -> None:
        """Write the size to all legs and announce it; each node follows before it acknowledges (the seed)."""
        array, mutex = self._array, self._mddev.reconfig_mutex

        def changed(superblock: Superblock) -> Superblock:
            if aim.raid_disks is not None:
                superblock = _with_raid_disks(superblock, aim.raid_disks)
            return dataclasses.replace(superblock, size_sectors=aim.size_sectors)

        def own(index: int, superblock: Superblock) -> Superblock:
            have_sectors = array.leg(index).image_bytes // SECTOR_BYTES - superblock.data_offset_sectors
            return dataclasses.replace(superblock, data_size_sectors=max(superblock.data_size_sectors, have_sectors))

        async def prepare(superblock: Superblock) -> None:
            if aim.marked_from_sectors is not None:
                await self._mark(aim.size_sectors, aim.marked_from_sectors)

        await mutex.lock("resize")
        try:
            await self._mddev.update_sb(changed, own=own, prepare=prepare, always=True)
        finally:
            mutex.unlock()
        _check(await self._mddev.size.follow(array.superblock))

    async def _mark(self, size_sectors: int, from_sectors: int) -> None:
        """Have the own slot say that new space is to be resynced, before the superblock speaks of it."""
        layout = self._array.layout
        if layout.size_sectors < size_sectors:
            layout = resized_layout(layout, size_sectors)
            _check(await self._mddev.size.take(layout, needed_from_sectors=from_sectors))
        else:
            await self._array.need_from(from_sectors)

    async def chunk(self, change: Change, aim: Aim) -> None:
        """Give the bitmaps of all nodes another chunk, if one is asked for (BITMAP_RESIZE)."""
        array, channel = self._array, self._channel
        if aim.chunk_bytes is None:
            return
        _check(await self._mddev.size.set_chunk(aim.chunk_bytes, aim.size_sectors))
        async with self._token():
            if {head.chunk_bytes for _, head in await array.slot_heads()} != {aim.chunk_bytes}:
                size_sectors = array.layout.size_sectors
                message = Message(MessageType.BITMAP_RESIZE, channel.slot, low=aim.chunk_bytes, high=size_sectors)
                await channel.send_locked(message)

    async def absent(self, change: Change, aim: Aim) -> None:
        """Write the slots of nodes that do not run; what they have to resync stays in them.

        Ours is not among them, though a leg that has just failed may lack it: its lock is not to be given back.
        """
        array = self._array
        async with self._token():
            for slot in sorted(await self._slots_behind(aim) - {self._channel.slot}):
                async with self._channel.membership.idle_slot(slot) as idle:
                    if idle:
                        await array.write_slot(slot, await array.read_slot(slot))

    async def compare(self, change: Change, aim: Aim) -> None:
        """Read every slot on every leg: what all of them say may be served."""
        async with self._token():
            behind = await self._slots_behind(aim)
        if behind:
            raise SlotsDisagree(slots=", ".join(map(str, sorted(behind))))

    async def _slots_behind(self, aim: Aim) -> set[int]:
        array = self._array
        wanted = (aim.size_sectors, array.layout.chunk_bytes)
        own = set() if array.layout.size_sectors == aim.size_sectors else {self._channel.slot}
        return own | {slot for slot, head in await array.slot_heads() if _said_by(head) != wanted}

    async def capacity(self, change: Change, aim: Aim) -> None:
        """Serve it on all nodes (CHANGE_CAPACITY); there is no way back from here.

        Raises ResizeUnfinished.
        """
        channel = self._channel
        message = Message(MessageType.CHANGE_CAPACITY, channel.slot, high=aim.size_sectors)
        _check(await self._mddev.size.change_capacity(aim.size_sectors))
        for left in reversed(range(CAPACITY_TRIES)):
            try:
                await channel.sendmsg(message, mddev_locked=False)
            except MessageError as e:
                if not left:
                    raise ResizeUnfinished(reason=str(e)) from e
                log.error("%s; trying again", e)
            else:
                return


# The story of a resize. What is done `again` ends at `Resize.capacity`, which alone lets users address more.
STEPS = (
    Step("no sync runs", Resize.look_sync, Resize.nothing, again=False),
    Step("what lies behind the new end", Resize.look_content, Resize.nothing, again=False),
    Step("room on every leg", Resize.look_room, Resize.extend, again=False),
    Step("number of legs", Resize.look_legs, Resize.nothing, again=False),
    Step("nothing is addressed behind a smaller end", Resize.look_lower, Resize.lower),
    Step("superblock, and the bitmap of every node", Resize.look_bitmap, Resize.superblock),
    Step("bitmap chunk", Resize.look_chunk, Resize.chunk),
    Step("slots of absent nodes", Resize.look_absent, Resize.absent),
    Step("every slot says the new size", Resize.look_slots, Resize.compare),
    Step("capacity on all nodes", Resize.look_capacity, Resize.capacity),
)


def _with_raid_disks(superblock: Superblock, count: int) -> Superblock:
    found = with_raid_disks(superblock, count)
    if found is None:
        raise PositionsInUse(used=positions_in_use(superblock), count=count)
    return found


def _said_by(head: BitmapSuperblock) -> tuple[int, int]:
    return head.sync_size_sectors, head.chunk_bytes


def _check(result: Result) -> None:
    if result is not Result.APPLIED:
        raise OwnSizeStays(reason=result.text)
