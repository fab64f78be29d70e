"""The images of a running node: found, opened, confirmed, attached and closed while it serves.

A leg that another node adds is a *candidate* here from the time when NEWDISK (or RE_ADD) has named its UUID and this
node has found and opened the image, until the metadata says what became of it: it is a leg when its own superblock was
written by that metadata update, and forgotten when it was not (W7). Looking takes place in the directories of the legs
at hand, in ``/dev``, and where ``mount --search`` says; the images are only read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging

from raidfs._core import LegState
from raidfs.array.array import Array
from raidfs.array.images import OpenImage
from raidfs.array.legs import ArrayLeg
from raidfs.array.metadata import MetadataLeg
from raidfs.array.search import Found
from raidfs.array.spares import EVENTS_BEHIND_MAX
from raidfs.backend import LegBackend
from raidfs.cluster.messages import Result
from raidfs.errors import BlocksDiffer, ImageAccess, ImageError, ImageTooSmall, NodeError
from raidfs.format.superblock import ROLE_FAULTY, Superblock
from raidfs.host import Host
from raidfs.node_options import NodeOptions
from raidfs.runtime import Runtime

log = logging.getLogger(__name__)

# For a look at all places, once per message: long enough for slow disks in /dev, and less than a sender waits (B5, W6).
LOOK_S = 20.0


@dataclasses.dataclass
class Candidate:
    """An image that this node has confirmed; ``slot`` is the node that adds it."""

    slot: int
    number: int
    device_uuid: bytes
    image: OpenImage


class Devices:
    """Who has which image open; ``backend`` is set once there is one."""

    def __init__(self, runtime: Runtime, host: Host, options: NodeOptions, array: Array) -> None:
        self.host = host
        self.options = options
        self.candidates: dict[int, Candidate] = {}
        self.backend: LegBackend
        self._runtime = runtime
        self._array = array
        self._images: dict[int, OpenImage] = {}  # by the engine's number of the leg
        self._leaving: list[int] = []  # of legs that are gone and have operations in flight

    def began(self, images: list[OpenImage]) -> None:
        """The array has started with these images open."""
        by_path = {image.path: image for image in images}
        for leg in self._array.legs:
            if leg.path in by_path:
                self._images[leg.index] = by_path[leg.path]
                self.backend.attach(leg.index, by_path[leg.path].fd)

    def close(self) -> None:
        """Close every image; the backend has ended."""
        for image in [*self._images.values(), *(candidate.image for candidate in self.candidates.values())]:
            image.close()
        self._images.clear()
        self.candidates.clear()

    # ---- looking ---------------------------------------------------------------------------------------------------

    async def look(self) -> list[Found]:
        """Return the images of this array that are to be seen from here."""
        paths = [*self.options.images, *(leg.path for leg in self._array.legs)]
        return await self.host.find_images(self._array.superblock.set_uuid, paths, self.options.search)

    async def confirm(self, slot: int, device_uuid: bytes, number: int) -> Result:
        """Another node adds an image or takes one back: find it by its UUID and open it, or say why not (NEWDISK)."""
        known = self._array.leg_of(number)
        if known is not None and known.state != LegState.FAULTY:
            return Result.NUMBER_IN_USE
        self.forget(number)
        found: list[Found] | None = None
        with self._runtime.cancel_scope(deadline=self._runtime.now() + LOOK_S):
            found = [one for one in await self.look() if one.superblock.device_uuid == device_uuid]
        if found is None:
            return Result.LOOK_TOO_LONG
        if not found:
            return Result.NO_IMAGE
        if len(found) > 1:
            log.error("several images have the UUID of the one to be added: %s", ", ".join(one.path for one in found))
            return Result.SEVERAL_IMAGES
        if found[0].superblock.dev_number != number:
            return Result.NO_IMAGE
        try:
            image = await self.open(found[0].path)
        except (ImageTooSmall, BlocksDiffer) as e:
            log.error("%s", e)
            return Result.IMAGE_UNFIT
        except (ImageError, NodeError) as e:
            log.error("%s", e)
            return Result.NO_IMAGE
        self.candidates[number] = Candidate(slot, number, device_uuid, image)
        log.info("%s: seen, and open for slot %d that adds it", image.path, slot)
        return Result.APPLIED

    async def open(self, path: str) -> OpenImage:
        """Open an image that shall be a leg here, after the checks that every leg has to pass."""
        [image] = await self.host.open_images([path], self.options)
        try:
            self._array.check_fits(image)
            await self.host.claim_images([image], alone=False)
        except BaseException:
            image.close()
            raise
        return image

    async def own_superblock(self, path: str) -> Superblock | None:
        """Return an image's superblock as it is now, None when it has none of this array."""
        [head] = await self.host.candidates([path])
        found = head.superblock
        return found if isinstance(found, Superblock) and found.set_uuid == self._array.superblock.set_uuid else None

    # ---- room ------------------------------------------------------------------------------------------------------

    async def look_at_rooms(self) -> None:
        """Look how long the images of all legs are now that are not faulty; raises ImageAccess."""
        for leg in self._counting():
            if leg.index in self._images:  # still: legs may go meanwhile
                leg.image_bytes = await self.host.room_bytes(self._images[leg.index])

    async def extend(self, size_bytes: int, *, sparse: bool) -> None:
        """Make all images at least that long; raises DeviceNotExtendable, ImageNotExtended, ImageAccess."""
        for leg in self._counting():
            if leg.index in self._images:
                await self.host.extend(self._images[leg.index], size_bytes, sparse)
        await self.look_at_rooms()

    def _counting(self) -> list[ArrayLeg]:
        return [leg for leg in self._array.legs if leg.state != LegState.FAULTY and leg.index in self._images]

    # ---- candidates ------------------------------------------------------------------------------------------------

    def forget(self, number: int) -> None:
        """Close a candidate that does not become a leg."""
        candidate = self.candidates.pop(number, None)
        if candidate is not None:
            log.info("%s: not added", candidate.image.path)
            candidate.image.close()

    async def before_following(self, superblock: Superblock) -> Result:
        """Have every leg of ``superblock`` at hand: candidates that it made legs, and legs that others know.

        A node that cannot open a leg which others write must not go on.
        """
        array = self._array
        for number, candidate in list(self.candidates.items()):
            own = await self._own_or_none(candidate.image.path)
            was_added = own is not None and own.events == superblock.events and own.dev_number == number
            if own is None or not was_added or own.device_uuid != candidate.device_uuid:
                self.forget(number)
                continue
            del self.candidates[number]
            former = array.leg_of(number)
            if former is not None:
                self.detach(former)
            self.attach(candidate.image, own)
        for leg in list(array.legs):  # B18: a copy, since legs go while we walk
            role = superblock.role_of(leg.number)
            if leg.state == LegState.FAULTY and role != ROLE_FAULTY:
                self.detach(leg)  # removed, or taken back: then it is looked for like any other
        for leg in list(array.legs):
            if (
                leg.is_spare
                and superblock.role_of(leg.number) < superblock.raid_disks
                and await self._is_former(leg, superblock)
            ):
                self.detach(leg)
        for number in self._strangers(superblock):
            if not array.read_only and not await self._attach_stranger(superblock, number):
                return Result.NO_IMAGE
        return Result.APPLIED

    async def _is_former(self, leg: ArrayLeg, superblock: Superblock) -> bool:
        """Whether a spare that gets a position is another image: this one was removed, and its number given again.

        Not one that has just failed to take its superblock: its failure is on its way.
        """
        known = self._array.metadata.own(leg.index)
        if known is None or known.events + EVENTS_BEHIND_MAX >= superblock.events or self._array.is_blocked(leg):
            return False
        own = await self._own_or_none(leg.path)  # if it cannot be read its writes will tell
        return own is not None and own.events + EVENTS_BEHIND_MAX < superblock.events

    def _strangers(self, superblock: Superblock) -> list[int]:
        known = {leg.number for leg in self._array.legs}
        positions = range(superblock.raid_disks)
        return [number for number, role in enumerate(superblock.dev_roles) if role in positions and number not in known]

    async def _attach_stranger(self, superblock: Superblock, number: int) -> bool:
        found = [one for one in await self.look() if one.superblock.dev_number == number]
        freshest = max((one.superblock.events for one in found), default=0)
        found = [one for one in found if one.superblock.events == freshest]
        if len(found) != 1:
            return False
        try:
            self.attach(await self.open(found[0].path), found[0].superblock)
        except (ImageError, NodeError) as e:
            log.error("%s", e)
            return False
        return True

    async def _own_or_none(self, path: str) -> Superblock | None:
        with contextlib.suppress(ImageAccess):
            return await self.own_superblock(path)
        return None

    # ---- legs ------------------------------------------------------------------------------------------------------

    def attach(self, image: OpenImage, own: Superblock) -> ArrayLeg:
        """Make an open image a leg that nothing is written to yet; raises TooManyLegs."""
        self.reap()
        leg = self._array.attach(image, own.dev_number)
        self._images[leg.index] = image
        self.backend.attach(leg.index, image.fd)
        self._array.metadata.include(MetadataLeg(leg.index, leg.path, own))
        return leg

    def detach(self, leg: ArrayLeg) -> None:
        """Take a leg out that is faulty or a spare; its image is closed when nothing is in flight on it any more."""
        log.info("%s: removed", leg.path)
        self._array.detach(leg)
        self._leaving.append(leg.index)
        self.reap()

    def reap(self) -> None:
        """Close what was taken out and has no operation in flight any more."""
        for index in list(self._leaving):
            if self._array.free(index):
                self._leaving.remove(index)
                self.backend.attach(index, -1)
                image = self._images.pop(index, None)
                if image is not None:
                    image.close()
