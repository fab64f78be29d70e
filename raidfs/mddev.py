"""The array as the cluster changes it (md's ``struct mddev``): one mutex, one way to change, one way to follow.

*Changing*: `Mddev.update_sb` is the metadata transaction that everybody uses. Under ``reconfig_mutex`` it gets the
token, reads the superblocks again and applies what others have changed meanwhile; looks whether its own change is
still needed; writes every leg, durably, with the event count raised by one; and announces it. It returns when every
node has applied it.

*Following*: `Mddev.reload_sb` reads the superblock that a message announces and applies every difference, in the order
of md's check_sb_changes; a node that cannot follow says why and fences itself, since it would go on with a leg that
the others have given up. After a node's death every survivor looks at the superblocks too: the dead one may have
written a change and announced it to some only.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

from raidfs._core import LegState
from raidfs.array.array import Array
from raidfs.array.legs import ArrayLeg
from raidfs.array.spares import EVENTS_BEHIND_MAX, Standing, in_sync, recovering, standing, with_spares
from raidfs.array_size import STAYS_AS_IT_WAS, ArraySize
from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.cluster.mutex import ReconfigMutex
from raidfs.devices import Devices
from raidfs.errors import (
    CannotFollow,
    LastLeg,
    LegNotWritable,
    MessageNotAcknowledged,
    MessageRefused,
    MetadataLost,
    NodeFenced,
)
from raidfs.format.superblock import ROLE_FAULTY, Superblock
from raidfs.lock.api import Mode
from raidfs.remote_resync import RemoteResync
from raidfs.units import SECTOR_BYTES

CORRECTED_MAX = 0xFFFFFFFF  # that a superblock can tell

log = logging.getLogger(__name__)


class Mddev:
    """The array of a node that is a member of a cluster.

    ``fence(reason)`` is called when this node cannot follow, ``heard_of(slot)`` when another node has sent a message.
    """

    def __init__(
        self,
        array: Array,
        devices: Devices,
        channel: Channel,
        reconfig_mutex: ReconfigMutex,
        fence: Callable[[str], None],
        heard_of: Callable[[int], None],
    ) -> None:
        self.array = array
        self.reconfig_mutex = reconfig_mutex
        self.devices = devices
        self.size = ArraySize(array, devices, channel.runtime)
        self.remote = RemoteResync(array, channel.runtime.now)
        self.on_work_left: Callable[[int], None] = lambda slot: None  # a node leaves with work in its slot
        self.on_sync_action: Callable[[bool], None] = lambda frozen: None  # a user stops syncs, or lets them go on
        self.updates = 0
        self._channel = channel
        self._fence = fence
        self._heard_of = heard_of
        self._loaded = False
        self._marked: list[ArrayLeg] = []  # faulty on disk and here, and perhaps not yet on all nodes
        self._unannounced = False  # something was written that some node may not know

    # ---- changing --------------------------------------------------------------------------------------------------

    async def update_sb(
        self,
        change: Callable[[Superblock], Superblock] | None = None,
        *,
        own: Callable[[int, Superblock], Superblock] | None = None,
        without: int | None = None,
        prepare: Callable[[Superblock], Awaitable[None]] | None = None,
        always: bool = False,
    ) -> bool:
        """Change the superblock for all nodes; the caller holds reconfig_mutex. Returns whether anything was written.

        ``own(index, superblock)`` changes what legs say of themselves, ``prepare(superblock)`` is awaited under the
        token before anything is written. Without a change it announces what is on disk if that may be news to somebody,
        or ``always``; ``without`` is a leg that is not to be written. Raises MessageRefused and MessageNotAcknowledged
        *after* the change is durable, NodeFenced, CannotFollow and MetadataLost before anything was written; whatever
        is raised, the token is given back.
        """
        array = self.array
        await self._channel.metadata_update_start()
        try:
            if array.fenced:
                raise NodeFenced()

            async def follow(superblock: Superblock) -> None:
                await self._must_follow(superblock)
                if prepare is not None:
                    await prepare(superblock)

            superblock, written = await array.metadata.update(
                change or _unchanged, without=without, follow=follow, own=own or _as_it_is
            )
            await self._must_follow(superblock)
        except BaseException:
            self._announce_later()
            await self._channel.metadata_update_cancel()
            raise
        if not (written or self._marked or self._unannounced or always):
            await self._channel.metadata_update_cancel()  # someone else did it
            return False
        self.updates += 1
        self._unannounced = True
        message = Message(
            MessageType.METADATA_UPDATED,
            slot=self._channel.slot,
            low=superblock.events,
            high=superblock.size_sectors,
            raid_slot=self._number_to_read(superblock),
        )
        try:
            await self._channel.metadata_update_finish(message)
        except MessageRefused:
            # Who refused has fenced itself, or could not follow in size and in all else did: all have applied the rest.
            self._all_followed()
            raise
        except BaseException:
            self._announce_later()
            raise
        self._all_followed()
        return written

    def _number_to_read(self, superblock: Superblock) -> int:
        holder = self.array.metadata.holder(superblock)
        return self.array.good_number() if holder is None else holder

    def _announce_later(self) -> None:
        """Have the task for failed legs announce what this update could not: writes wait for it."""
        for leg in self._marked:
            self.array.report_failed(leg.index, 0)

    def _all_followed(self) -> None:
        """Every node has applied what is on disk: writes that waited for that go on."""
        self._unannounced = False
        self.barrier_passed()

    def heard_of(self, slot: int) -> None:
        """See `raidfs.cluster.receiver.Mddev`."""
        self._heard_of(slot)

    def barrier_passed(self) -> None:
        """See `raidfs.cluster.receiver.Mddev`."""
        for leg in self._marked:
            self.array.release(leg)
        self._marked.clear()

    async def follow_now(self) -> None:
        """Read the metadata again and apply what others have changed; the caller has reconfig_mutex and the token.

        Raises NodeFenced, MetadataLost, CannotFollow.
        """
        if self.array.fenced:
            raise NodeFenced()
        await self._must_follow(await self.array.metadata.reload())

    async def _must_follow(self, superblock: Superblock) -> None:
        result = await self._applied(superblock)
        if result is not Result.APPLIED and result not in STAYS_AS_IT_WAS:
            self._cannot_follow(result)
            raise CannotFollow(reason=result.text)

    async def announce(self) -> None:
        """Send METADATA_UPDATED although nothing has changed: a node that has joined says that it is there."""
        await self.reconfig_mutex.lock("joined")
        try:
            self._unannounced = True
            await self.update_sb()
        finally:
            self.reconfig_mutex.unlock()

    async def touch(self) -> None:
        """Raise the event count on all nodes and nothing else: a metadata update for tests and measurements."""
        await self.reconfig_mutex.lock("touch")
        try:
            await self.update_sb(touched)
        finally:
            self.reconfig_mutex.unlock()

    async def fail(self, path: str) -> None:
        """Make a leg faulty on all nodes (``raidfs fail``); raises NoSuchLeg, LastLeg, MessageRefused.

        Also when it is faulty already: the token comes after whatever update is still on its way to some node.
        """
        await self.reconfig_mutex.lock("fail")
        try:
            leg = self.array.find_leg(path)
            if leg.state == LegState.IN_SYNC and self.array.is_last(leg):
                raise LastLeg(path=leg.path)
            # Writes go to the leg until its failure is durable: refused, it has missed nothing.
            await self._record(leg)
        finally:
            self.reconfig_mutex.unlock()

    async def leg_failed(self, index: int) -> None:
        """Record a leg's failure that the engine reported; its writes wait for that.

        While a member does not acknowledge, nothing may be acknowledged to users either, so it is announced again.
        """
        leg = self.array.leg(index)
        while not self.array.fenced and (leg.state != LegState.FAULTY or leg in self._marked):
            await self.reconfig_mutex.lock("a leg that failed")
            try:
                await self._record(leg)
            except LastLeg:
                self.array.keep(leg)
                return
            except MessageRefused as e:
                log.error("%s", e)
            except MessageNotAcknowledged as e:
                log.error("%s; trying again", e)
            except BaseException:
                if leg.state != LegState.FAULTY:
                    self.array.keep(leg)  # nothing was written
                raise
            finally:
                self.reconfig_mutex.unlock()

    async def _record(self, leg: ArrayLeg) -> None:
        """Write a leg's failure to the others and announce it, unless that has been done (P1)."""
        await self.update_sb(lambda superblock: self._without(superblock, leg), without=leg.index)

    def _without(self, superblock: Superblock, leg: ArrayLeg) -> Superblock:
        # Looked at under the token: another node may have failed this leg or another one meanwhile.
        if leg.state == LegState.IN_SYNC and self.array.is_last(leg):
            raise LastLeg(path=leg.path)
        if leg not in self.array.legs:
            return superblock  # somebody has removed it
        return superblock.with_role(leg.number, ROLE_FAULTY)

    # ---- recovery, for the task that syncs -------------------------------------------------------------------------

    async def activate_spares(self) -> list[int]:
        """Give vacant positions to spares on all nodes, and make NEEDED what legs have missed that recover.

        Returns the device numbers of these legs. Only for the holder of ``resync`` EX: no two nodes fill one position,
        and none calls a leg in sync that it has not copied (B6). Linux has WAITING_FOR_SYNC for that:
        the others let the adder go first, which may have nothing to sync and then keeps them waiting for ever. Before
        a spare gets its position it has every slot of the bitmap (W13). A spare that cannot be written becomes faulty.
        Raises what `update_sb` raises.
        """
        await self.reconfig_mutex.lock("spares")
        try:
            while spares := self.array.spares_to_activate():
                try:
                    await self.update_sb(self._with_spares, prepare=self._copy_slots_to_spares)
                except LegNotWritable as e:
                    log.error("%s", e)
                    await self._record(next(spare for spare in spares if spare.path == e.path))
            gathered: list[int] = []
            if self.array.recovering():
                # Whoever brought them back may have died before all knew, and then some do not write to them yet.
                self._unannounced = True
                await self.update_sb()
                await self.update_sb(prepare=lambda superblock: self._gather_bits(gathered))
        finally:
            self.reconfig_mutex.unlock()
        return gathered

    async def _gather_bits(self, recovering: list[int]) -> None:
        """Make NEEDED here what a leg may lack that recovers: chunks whose bits are set in any slot (gather_bitmaps).

        All nodes write to the leg by now, and set bits on disk before they write, so nothing is missed though the slots
        of nodes that run are read while they change (W10). Under the token no slot is taken over meanwhile.
        """
        recovering += [leg.number for leg in self.array.recovering()]
        engine = self.array.port.engine
        engine.need_dirty()
        for slot in range(self.array.layout.nodes):
            if slot != self._channel.slot:
                engine.import_bits(await self.array.read_slot(slot))
        await self.array.sweep_under_token()

    def _with_spares(self, superblock: Superblock) -> Superblock:
        return with_spares(superblock, [leg.number for leg in self.array.spares_to_activate()])

    async def _copy_slots_to_spares(self, superblock: Superblock) -> None:
        await self.copy_slots(self.array.spares_to_activate())

    async def copy_slots(self, legs: Sequence[ArrayLeg]) -> None:
        """Write the slots of all other nodes to legs that get a position (W13); the caller has the token.

        Nobody joins, takes a slot over or clears one meanwhile; nodes that run write theirs to the leg when they hear
        of it. Their slots are copied too: one that is read-only writes none. Raises LegNotWritable.
        """
        for slot in range(self.array.layout.nodes):
            if slot != self._channel.slot and legs:
                await self.array.copy_slot(slot, legs)

    async def checkpoint_recovery(self, offset_bytes: int) -> None:
        """Record that all legs that recover have everything below ``offset_bytes``; everything written is flushed.

        What lies below counts as copied if the pass is interrupted, but for chunks whose bits are set.
        """
        copied = self.array.recovering()  # and not one that fails and is back before this comes to writing
        # Before the mutex: a flush that fails waits for the record of it, which wants the mutex.
        await self.array.port.flush()
        await self.reconfig_mutex.lock("a checkpoint of the recovery")
        try:
            last_sectors = self.array.layout.size_sectors - 1  # all of it would mean: guided by the bitmap
            offset_sectors = min(offset_bytes // SECTOR_BYTES, last_sectors)

            def own(index: int, superblock: Superblock) -> Superblock:
                leg = self.array.leg(index)
                is_copied = leg.state == LegState.RECOVERING and leg in copied
                if not is_copied or leg.recovery_offset >= offset_sectors * SECTOR_BYTES:
                    return superblock
                return recovering(superblock, offset_sectors)

            await self.update_sb(own=own)
        finally:
            self.reconfig_mutex.unlock()

    async def record_corrected_reads(self) -> None:
        """Add to the superblocks how many sectors of each leg were written anew (md: cnt_corrected_read)."""
        await self.reconfig_mutex.lock("corrected read errors")
        try:
            corrected = self.array.read_errors.corrected

            def own(index: int, superblock: Superblock) -> Superblock:
                count = min(superblock.cnt_corrected_read + corrected.get(index, 0), CORRECTED_MAX)
                return dataclasses.replace(superblock, cnt_corrected_read=count)

            if await self.update_sb(own=own):
                corrected.clear()
        finally:
            self.reconfig_mutex.unlock()

    async def spares_in_sync(self, numbers: Collection[int]) -> None:
        """Call recovering legs in sync, on all nodes: those with these device numbers, which the pass has copied.

        A leg that began to recover while the pass was under way is not among them. Only for the holder of ``resync``
        EX. Slots whose nodes do not run are copied to the legs first (W13); nodes that run have written theirs.
        """
        copied = [leg for leg in self.array.recovering() if leg.number in numbers]
        # Before the mutex: a flush that fails waits for the record of it, which wants the mutex.
        await self.array.port.flush()
        await self.reconfig_mutex.lock("legs in sync")
        try:
            legs = [leg for leg in self.array.recovering() if leg in copied]
            for slot in range(self.array.layout.nodes):
                if slot != self._channel.slot and legs:
                    async with self._channel.membership.idle_slot(slot) as idle:
                        if idle:
                            await self.array.copy_slot(slot, legs)

            def own(index: int, superblock: Superblock) -> Superblock:
                leg = self.array.leg(index)
                is_copied = leg.state == LegState.RECOVERING and leg in legs
                return in_sync(superblock) if is_copied else superblock

            await self.update_sb(own=own)
        finally:
            self.reconfig_mutex.unlock()

    # ---- following -------------------------------------------------------------------------------------------------

    def loaded(self) -> None:
        """The array is started: from now on messages change it (B3)."""
        self._loaded = True

    def is_loaded(self) -> bool:
        """See `raidfs.cluster.receiver.Mddev`."""
        return self._loaded

    async def reload_sb(self, raid_slot: int | None, events: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`; a result other than APPLIED has fenced this node, or left its size."""
        try:
            superblock = await self.array.metadata.reload(raid_slot)
            if superblock.events < events:
                superblock = await self.array.metadata.reload()  # the leg that was named may have failed since
        except MetadataLost as e:
            log.error("%s", e)
            return self._cannot_follow(Result.UNREADABLE)
        if superblock.events < events:
            return self._cannot_follow(Result.BEHIND)
        result = await self._applied(superblock)
        return result if result is Result.APPLIED or result in STAYS_AS_IT_WAS else self._cannot_follow(result)

    async def _applied(self, superblock: Superblock) -> Result:
        """Apply every difference; then the own slot is durable on every leg that came to be written (W13).

        The size comes first, so that a leg which fails at that is left out already; who cannot follow in size follows
        in all else.
        """
        result = await self.devices.before_following(superblock)
        if result is not Result.APPLIED:
            return result
        sized = await self.size.follow(superblock) if self._loaded else Result.APPLIED
        result, new_legs = self._follow(superblock)
        if result is Result.APPLIED and new_legs and not self.array.read_only and self._loaded:
            try:
                await self.array.sweep_under_token()
            except OSError as e:
                log.error("the bitmap was not written to a new leg: %s", e.strerror)  # the leg's failure is on its way
        return result if result is not Result.APPLIED else sized

    def _follow(self, superblock: Superblock) -> tuple[Result, bool]:
        """Apply every difference, in md's order (check_sb_changes); without an await, so nobody sees half of it.

        A leg that has become faulty is left out at once, but writes that wait for its failure go on only when every
        node has left it out: another node could still read the leg and miss a write that was acknowledged here.
        Returns also whether a leg came to be written that was not before.
        """
        array = self.array
        found = [
            (leg, self._standing(superblock, leg, own))
            for leg in array.legs
            if (own := array.metadata.own(leg.index)) is not None
        ]
        if not any(one.state == LegState.IN_SYNC for _, one in found):
            return Result.LAST_LEG, False
        new_legs = False
        for leg, one in found:
            if one.state == LegState.FAULTY:
                array.mark_faulty(leg)
                self._marked.append(leg)
            else:
                new_legs = array.stand(leg, one) or new_legs
        array.publish_events()
        array.publish_legs()
        return Result.APPLIED, new_legs

    def _standing(self, superblock: Superblock, leg: ArrayLeg, own: Superblock) -> Standing:
        array = self.array
        found = standing(superblock, own)
        was_read = own.events + EVENTS_BEHIND_MAX >= superblock.events
        if leg.state in (LegState.IN_SYNC, LegState.RECOVERING) and found.role is not None and not was_read:
            # It could not be read now, or was not written by who gave it its position: it is copied as far as before.
            found = Standing(leg.state, found.role, leg.recovery_offset // SECTOR_BYTES)
        if found.state == LegState.RECOVERING:
            array.metadata.set_own(leg.index, recovering(own, found.recovery_offset_sectors))
        return found

    def _cannot_follow(self, result: Result) -> Result:
        self._fence(f"this node cannot follow the metadata: {result.text}")
        self._loaded = False  # it serves nothing, so later messages have nothing to change here
        return result

    async def peer_gone(self, slot: int) -> None:
        """A node has left or died: it may have written a change and announced it to some or none (section 3.5).

        Whoever finds something new on the disk announces it, so that all know before writes that wait for it go on.
        """
        await self.reconfig_mutex.lock("a node that has gone")
        try:
            await self.update_sb()
            if self.devices.candidates:
                for number in list(self.devices.candidates):
                    self.devices.forget(number)
            if self._channel.no_new_dev.mode is Mode.NL:
                await self._channel.no_new_dev.convert(Mode.CR)
        finally:
            self.reconfig_mutex.unlock()

    async def remote_resync(self, slot: int, low: int, high: int, code: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`.

        Not while a leg has failed here and nobody else knows: the one who syncs may copy from that leg what a write of
        ours has not reached there, and the write is acknowledged when the failure is recorded.
        """
        await self.remote.moved(slot, low, high, code)
        return Result.LEG_FAILS if high > low and self.array.has_blocked_legs() else Result.APPLIED

    def remote_resync_started(self, slot: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`."""
        self.remote.started(slot)
        return Result.APPLIED

    def bitmap_needs_sync(self, slot: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`; the slot is taken over when the node has gone."""
        self.on_work_left(slot)
        return Result.APPLIED

    def sync_action(self, *, frozen: bool) -> Result:
        """See `raidfs.cluster.receiver.Mddev`; what runs here wants the token to end, so it is not waited for."""
        self.on_sync_action(frozen)
        return Result.APPLIED

    async def new_disk(self, slot: int, device_uuid: bytes, number: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`."""
        result = await self.devices.confirm(slot, device_uuid, number)
        if result is Result.APPLIED:
            await self._channel.no_new_dev.convert(Mode.NL)
        return result

    async def remove_disk(self, device_uuid: bytes, number: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`."""
        if any(device_uuid):
            self.devices.forget(number)
        elif (leg := self.array.leg_of(number)) is not None:
            if leg.state in (LegState.IN_SYNC, LegState.RECOVERING):
                return Result.LEG_IN_USE
            self.devices.detach(leg)
        if not self.devices.candidates and self._channel.no_new_dev.mode is not Mode.CR:
            await self._channel.no_new_dev.convert(Mode.CR)
        return Result.APPLIED

    async def bitmap_resize(self, chunk_bytes: int, size_sectors: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`."""
        return await self.size.set_chunk(chunk_bytes, size_sectors)

    async def change_capacity(self, size_sectors: int) -> Result:
        """See `raidfs.cluster.receiver.Mddev`."""
        return await self.size.change_capacity(size_sectors)


def _unchanged(superblock: Superblock) -> Superblock:
    return superblock


def _as_it_is(index: int, own: Superblock) -> Superblock:
    return own


def touched(superblock: Superblock) -> Superblock:
    """Return a superblock that differs, so that it is written and announced."""
    # The microseconds of the update time, which nobody reads; `Metadata.update` sets the whole field anyway.
    return dataclasses.replace(superblock, utime=superblock.utime ^ 1 << 40)
