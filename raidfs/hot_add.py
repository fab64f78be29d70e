"""Adding, taking back and removing legs of a running array: the side of the node that is asked.

All of it is one shape. The token is taken and the metadata looked at; a message asks every other node (NEWDISK and
RE_ADD: do you see the image? REMOVE: let go of it); a metadata update under the same token makes it so (md:
MD_CLUSTER_SEND_LOCKED_ALREADY). A node that says no is named, and what the others have prepared is taken back by a
REMOVE under the same token (W7). What the adding node leaves behind when it dies the others forget: a candidate becomes
a leg only by a metadata update that was written to it too.

A leg that comes back is given its position at once and is recovered from what the bitmaps say; every node writes to it
before the bits are gathered (W10, see `raidfs.mddev.Mddev.activate_spares`). A new image becomes a spare, which the
task that syncs gives a position if one is vacant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from raidfs._core import LegState
from raidfs.array.create import slot_image
from raidfs.array.images import OpenImage
from raidfs.array.legs import ArrayLeg
from raidfs.array.new_leg import new_superblock
from raidfs.array.spares import (
    free_number,
    has_diverged,
    has_position,
    readd_offset_sectors,
    recovering,
    vacant_positions,
)
from raidfs.cluster.channel import Channel, State
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.devices import Devices
from raidfs.errors import (
    AlreadyLeg,
    FormerLegDiverged,
    LegInUse,
    LockRefused,
    MessageError,
    MessageRefused,
    NoSuchLeg,
    NotFormerLeg,
    NoVacantPosition,
    RaidfsError,
    ReadOnlyNode,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import ROLE_FAULTY, ROLE_SPARE, SUPER_OFFSET_BYTES, Superblock
from raidfs.lock.api import Mode
from raidfs.mddev import Mddev, touched
from raidfs.units import SECTOR_BYTES

log = logging.getLogger(__name__)

NUMBERS_TRIED_MAX = 16  # device numbers that other nodes may know and this one does not: of their spares

_WORDS = {LegState.IN_SYNC: "in sync", LegState.RECOVERING: "recovering", LegState.MISSING: "spare"}


class HotAdd:
    """The commands that change which legs the array has."""

    def __init__(self, mddev: Mddev, channel: Channel, devices: Devices) -> None:
        self._mddev = mddev
        self._array = mddev.array
        self._channel = channel
        self._devices = devices

    # ---- the commands ----------------------------------------------------------------------------------------------

    async def add(self, path: str, *, spare: bool, force: bool) -> None:
        """Add an image (``raidfs add``); with ``spare`` it is not taken back as the leg that it may have been.

        What it held is lost: without ``force`` only an image that is empty, or was a leg or a spare of this very array,
        is taken. Raises what is wrong with the image before anything is written to it, MessageRefused when a node does
        not see it, and what `Mddev.update_sb` raises.
        """
        leg = self._leg_at(path)
        if leg is not None and leg.state != LegState.FAULTY:
            raise AlreadyLeg(path=path, state=_WORDS[leg.state])
        own = await self._own(path)
        is_ours = own is not None and self._is_ours(own)
        if own is not None and self._is_former(own) and not spare and vacant_positions(self._array.superblock):
            await self.re_add(path)
            return
        if leg is not None:
            await self.remove(path)
        await self._add_new(path, force or is_ours)

    async def re_add(self, path: str) -> None:
        """Take an image back that was a leg (``raidfs re-add``); see `readd_offset_sectors` for what is copied.

        Raises NotFormerLeg, FormerLegDiverged, NoVacantPosition, AlreadyLeg.
        """
        async with self._changing("re-add"):
            await self._mddev.update_sb()  # the failure of the leg may be news to somebody
            leg = self._leg_at(path)
            if leg is not None and leg.state != LegState.FAULTY:
                raise AlreadyLeg(path=path, state=_WORDS[leg.state])
            await self._take_back(path)

    async def remove(self, path: str) -> None:
        """Take a leg that is faulty or a spare out (``raidfs remove``); raises NoSuchLeg, LegInUse."""
        async with self._changing("remove"):
            await self._mddev.update_sb()
            await self._remove(self._array.find_leg(path))

    # ---- steps -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _changing(self, what: str) -> AsyncIterator[None]:
        if self._array.read_only:
            raise ReadOnlyNode()
        mutex = self._mddev.reconfig_mutex
        await mutex.lock(what)
        try:
            yield
        finally:
            mutex.unlock()

    @contextlib.asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        """Hold the token for the block, with the metadata of this moment, and leave it to the update that follows."""
        await self._channel.lock_comm(True)
        try:
            await self._mddev.follow_now()
            yield
        except BaseException:
            await self._channel.unlock_comm()
            raise
        self._channel.state.add(State.SEND_LOCKED_ALREADY)

    async def _send(self, kind: MessageType, number: int, device_uuid: bytes = bytes(16)) -> None:
        low, high = struct.unpack("<QQ", device_uuid)
        await self._channel.send_locked(Message(kind, self._channel.slot, low=low, high=high, raid_slot=number))

    async def _update(
        self,
        change: Callable[[Superblock], Superblock],
        prepare: Callable[[Superblock], Awaitable[None]] | None = None,
    ) -> None:
        """The metadata update that adopts the token."""
        try:
            await self._mddev.update_sb(change, prepare=prepare)
        finally:
            if State.SEND_LOCKED_ALREADY in self._channel.state:  # it did not come to adopting it
                await self._channel.metadata_update_cancel()

    async def _confirmed(self, kind: MessageType, number: int, device_uuid: bytes) -> None:
        """Have every node find and open the image, or take back what some have opened, and say who has not."""
        no_new_dev = self._channel.no_new_dev
        try:
            await self._send(kind, number, device_uuid)
            try:
                # All who have confirmed gave it up (section 7.2); who has not is in the way.
                await no_new_dev.convert(Mode.EX, noqueue=True)
            except LockRefused:
                refusals = "a node has neither confirmed the image nor said why"
                raise MessageRefused(message=kind.name, refusals=refusals) from None
            await no_new_dev.convert(Mode.CR)
        except BaseException as e:
            await self._forget_candidates(number, device_uuid, e)
            raise

    async def _forget_candidates(self, number: int, device_uuid: bytes, error: BaseException) -> None:
        if self._channel.lockspace.lost is not None or not isinstance(error, RaidfsError):
            return  # nobody hears us, or we are being cancelled: the others forget with the next update
        try:
            await self._send(MessageType.REMOVE, number, device_uuid)
        except MessageError as e:
            log.error("some nodes may keep the image open until the next metadata update: %s", e)

    # ---- removing --------------------------------------------------------------------------------------------------

    async def _remove(self, leg: ArrayLeg) -> None:
        async with self._asked():
            if leg not in self._array.legs:
                raise NoSuchLeg(path=leg.path, legs=", ".join(other.path for other in self._array.legs))
            if leg.state in (LegState.IN_SYNC, LegState.RECOVERING):
                raise LegInUse(path=leg.path, state=_WORDS[leg.state])
            await self._send(MessageType.REMOVE, leg.number)
            self._devices.detach(leg)
        await self._update(lambda superblock: touched(superblock.with_role(leg.number, ROLE_SPARE)))

    # ---- adding ----------------------------------------------------------------------------------------------------

    async def _add_new(self, path: str, force: bool) -> None:
        # All of it under the token: somebody else may be adding the same image, and is first.
        async with self._changing("add"):
            async with self._asked():
                leg = self._leg_at(path)
                if leg is not None:
                    raise AlreadyLeg(path=path, state=_WORDS.get(leg.state, "faulty"))
                await self._written_and_attached(path, force)
            await self._update(touched)

    async def _written_and_attached(self, path: str, force: bool) -> None:
        devices, array = self._devices, self._array
        device_uuid = devices.host.new_uuid()
        set_uuid = array.superblock.set_uuid
        image = await devices.host.open_new(path, devices.options, array.layout, set_uuid, array.block_bytes, force)
        try:
            await devices.host.write_new(image, self._new_slots())
            await devices.host.claim_images([image], alone=False)
            devices.attach(image, await self._announced(image, device_uuid))
        except BaseException:
            with self._channel.runtime.cancel_scope(shield=True):
                await devices.host.erase_new(image, array.layout)
                image.close()
            raise

    async def _announced(self, image: OpenImage, device_uuid: bytes) -> Superblock:
        """Write the superblock of a new leg and have all nodes find it; return it with the number that it has got."""
        superblock = self._array.superblock
        taken = {leg.number for leg in self._array.legs}
        tries_max = len(taken) + NUMBERS_TRIED_MAX
        while True:
            own = new_superblock(superblock, free_number(superblock, taken), device_uuid, image.size_bytes)
            await self._devices.host.write_new(image, [(SUPER_OFFSET_BYTES, own.encode())])
            try:
                await self._confirmed(MessageType.NEWDISK, own.dev_number, device_uuid)
            except MessageRefused as e:
                if Result.NUMBER_IN_USE.text not in str(e) or len(taken) >= tries_max:
                    raise
                taken.add(own.dev_number)
            else:
                return own

    def _new_slots(self) -> list[tuple[int, bytes]]:
        # Every slot has its superblock from the start; what counts follows when the leg gets a position.
        layout, superblock = self._array.layout, self._array.superblock
        name = self._array.assembly.cluster_name
        return [
            (layout.slot_offset_bytes(slot), slot_image(layout, slot, set_uuid=superblock.set_uuid, cluster_name=name))
            for slot in range(layout.nodes)
        ]

    # ---- taking back -----------------------------------------------------------------------------------------------

    async def _own(self, path: str) -> Superblock | None:
        try:
            return await self._devices.own_superblock(path)
        except RaidfsError:
            return None  # whoever opens it for adding says what is wrong

    def _is_ours(self, own: Superblock) -> bool:
        """Whether this is what had its number last: faulty, or removed and nobody has got the number since.

        The array has all that it holds, unless it was written without the array.
        """
        superblock = self._array.superblock
        known = self._array.leg_of(own.dev_number)
        role = superblock.role_of(own.dev_number)
        if own.events > superblock.events or has_diverged(superblock, own):
            return False
        return role == ROLE_FAULTY or (role == ROLE_SPARE and known is None)

    def _is_former(self, own: Superblock) -> bool:
        """Whether it is ours and was a leg, with a position."""
        return has_position(own) and self._is_ours(own)

    async def _take_back(self, path: str) -> None:
        devices, array = self._devices, self._array
        async with self._asked():
            own = await self._own(path)
            if own is not None and has_diverged(array.superblock, own):
                raise FormerLegDiverged(path=path)
            if own is None or not self._is_former(own):
                raise NotFormerLeg(path=path)
            vacant = vacant_positions(array.superblock)
            if not vacant:
                raise NoVacantPosition(path=path)
            offset_sectors = readd_offset_sectors(array.superblock, own, await self._events_cleared())
            former = array.leg_of(own.dev_number)
            image = await devices.open(path)
            try:
                kind = MessageType.NEWDISK if former is None else MessageType.RE_ADD
                await self._confirmed(kind, own.dev_number, own.device_uuid)
            except BaseException:
                image.close()
                raise
        position = own.role if own.role in vacant else vacant[0]

        async def attach(superblock: Superblock) -> None:
            if former is not None:
                devices.detach(former)
            # The array may have grown, and the image with it, while the leg was away.
            room_sectors = image.size_bytes // SECTOR_BYTES - own.data_offset_sectors
            known = dataclasses.replace(own, data_size_sectors=max(own.data_size_sectors, room_sectors))
            leg = devices.attach(image, recovering(known, offset_sectors))
            await self._mddev.copy_slots([leg])

        await self._update(lambda superblock: superblock.with_role(own.dev_number, position), attach)
        how = "what the bitmaps say" if offset_sectors >= own.size_sectors else f"all from sector {offset_sectors} on"
        log.info("%s: is back; copied is %s", path, how)

    async def _events_cleared(self) -> int:
        array = self._array
        cleared = 0
        for slot in range(array.layout.nodes):
            data = await array.read_slot(slot)
            cleared = max(cleared, BitmapSuperblock.decode(data, path=array.first_in_sync().path).events_cleared)
        return cleared

    def _leg_at(self, path: str) -> ArrayLeg | None:
        real = os.path.realpath(path)
        return next((leg for leg in self._array.legs if os.path.realpath(leg.path) == real), None)
