"""What a node takes from the machine that it runs on: images, threads, the wall clock, a lock manager.

`LinuxHost` is production's; the simulator has its own, so that the node's code is the same in both.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from raidfs.array.extend import extend
from raidfs.array.head import Candidate, read_candidates
from raidfs.array.images import OpenImage, open_image
from raidfs.array.new_leg import erasing, open_new, write_new
from raidfs.array.port import EnginePort
from raidfs.array.search import Found, find_images, places
from raidfs.backend import LegBackend, ThreadedLegs
from raidfs.errors import ImageAccess, ImageInUse, NeedsBuffered, OtherManager
from raidfs.faults import Fault
from raidfs.faulty_legs import FaultyLegs
from raidfs.format.geometry import ArrayLayout
from raidfs.lock.api import LockManager
from raidfs.lock.autostart import open_manager
from raidfs.node_options import NodeOptions
from raidfs.runtime import Runtime


class Host(Protocol):
    """The machine under a node."""

    def wall_time(self) -> int:
        """Return seconds since the epoch, for superblocks' update times."""

    async def candidates(self, paths: Sequence[str]) -> Sequence[Candidate]:
        """Read the metadata of images, writing nothing."""

    async def open_images(self, paths: Sequence[str], options: NodeOptions) -> list[OpenImage]:
        """Open images for a node; raises NeedsBuffered where direct I/O is needed and not to be had."""

    async def find_images(self, set_uuid: bytes, near: Sequence[str], search: Sequence[str]) -> list[Found]:
        """Look for images of an array, read-only: in the directories of ``near``, in /dev, and in ``search``."""

    def new_uuid(self) -> bytes:
        """Return 16 random bytes."""

    async def open_new(
        self, path: str, options: NodeOptions, layout: ArrayLayout, set_uuid: bytes, block_bytes: int, force: bool
    ) -> OpenImage:
        """Open an image that shall be added, alone, and wipe it; see `raidfs.array.new_leg.open_new`."""

    async def write_new(self, image: OpenImage, writes: Sequence[tuple[int, bytes]]) -> None:
        """Write metadata (offset in bytes, data) to an image of `open_new`, each write durable before the next."""

    async def erase_new(self, image: OpenImage, layout: ArrayLayout) -> None:
        """Take the metadata off an image that was not added after all."""

    async def room_bytes(self, image: OpenImage) -> int:
        """Return how long an open image is now; ``image.size_bytes`` tells it from then on. Raises ImageAccess."""

    async def extend(self, image: OpenImage, size_bytes: int, sparse: bool = False) -> None:
        """Make an open image at least ``size_bytes`` long, or leave it as it is; see `raidfs.array.extend.extend`."""

    async def claim_images(self, images: Sequence[OpenImage], *, alone: bool) -> None:
        """Take the images' flocks; ``alone`` says that the lock manager knows no other node.

        Raises OtherManager when somebody uses the images whom our lock manager does not know.
        """

    def backend(self, port: EnginePort) -> LegBackend:
        """Return what carries the engine's leg operations out."""

    def lock_manager(
        self, runtime: Runtime, options: NodeOptions, array_uuid: str
    ) -> AbstractAsyncContextManager[LockManager]:
        """Reach the lock manager that the options name."""


class LinuxHost:
    """`Host` of production; ``faults`` happen to the legs' I/O, for those who want to see what is made of them."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._faults = faults

    def wall_time(self) -> int:
        """See `Host.wall_time`."""
        return int(time.time())

    async def candidates(self, paths: Sequence[str]) -> Sequence[Candidate]:
        """See `Host.candidates`."""
        return await trio.to_thread.run_sync(read_candidates, paths)

    async def open_images(self, paths: Sequence[str], options: NodeOptions) -> list[OpenImage]:
        """See `Host.open_images`."""
        return await trio.to_thread.run_sync(_open_images, paths, options)

    async def find_images(self, set_uuid: bytes, near: Sequence[str], search: Sequence[str]) -> list[Found]:
        """See `Host.find_images`; a device that does not answer keeps a thread and not the caller."""
        directories = places(near, search)
        return await trio.to_thread.run_sync(find_images, set_uuid, directories, abandon_on_cancel=True)

    def new_uuid(self) -> bytes:
        """See `Host.new_uuid`."""
        return os.urandom(16)

    async def open_new(
        self, path: str, options: NodeOptions, layout: ArrayLayout, set_uuid: bytes, block_bytes: int, force: bool
    ) -> OpenImage:
        """See `Host.open_new`."""

        def opened() -> OpenImage:
            image = open_new(path, layout, set_uuid, block_bytes, force=force, buffered=options.buffered)
            if not (image.direct or options.buffered or _is_one_host(options.lock)):
                image.close()
                raise NeedsBuffered(path=path, lock=options.lock)
            return image

        return await trio.to_thread.run_sync(opened)

    async def write_new(self, image: OpenImage, writes: Sequence[tuple[int, bytes]]) -> None:
        """See `Host.write_new`."""
        await trio.to_thread.run_sync(write_new, image, writes)

    async def erase_new(self, image: OpenImage, layout: ArrayLayout) -> None:
        """See `Host.erase_new`."""
        with contextlib.suppress(ImageAccess):
            await trio.to_thread.run_sync(write_new, image, erasing(layout))

    async def room_bytes(self, image: OpenImage) -> int:
        """See `Host.room_bytes`."""
        return await trio.to_thread.run_sync(image.refresh_size)

    async def extend(self, image: OpenImage, size_bytes: int, sparse: bool = False) -> None:
        """See `Host.extend`."""
        await trio.to_thread.run_sync(lambda: extend(image, size_bytes, sparse=sparse))

    async def claim_images(self, images: Sequence[OpenImage], *, alone: bool) -> None:
        """See `Host.claim_images`."""
        await trio.to_thread.run_sync(_claim_images, images, alone)

    def backend(self, port: EnginePort) -> LegBackend:
        """See `Host.backend`."""
        return FaultyLegs(port, self._faults) if self._faults else ThreadedLegs(port)

    def lock_manager(
        self, runtime: Runtime, options: NodeOptions, array_uuid: str
    ) -> AbstractAsyncContextManager[LockManager]:
        """See `Host.lock_manager`; the owners of the images are trusted to run it, since they own the data."""
        owners = {os.stat(path).st_uid for path in options.images}
        return open_manager(
            options.lock,
            array_uuid=array_uuid,
            runtime=runtime,
            trusted_uids=owners,
            allow_unfenced=options.allow_unfenced,
        )


def _is_one_host(lock: str) -> bool:
    return lock == "auto" or lock.startswith(("unix:", "abstract:"))


def _open_images(paths: Sequence[str], options: NodeOptions) -> list[OpenImage]:
    images: list[OpenImage] = []
    with contextlib.ExitStack() as opened:
        for path in paths:
            image = open_image(path, writable=not options.read_only, direct=not options.buffered, exclusive=False)
            opened.callback(image.close)
            if not (image.direct or options.buffered or _is_one_host(options.lock)):
                raise NeedsBuffered(path=path, lock=options.lock)
            images.append(image)
        opened.pop_all()
    return images


def _claim_images(images: Sequence[OpenImage], alone: bool) -> None:
    # The first node of a lock manager proves with LOCK_EX that nobody else is there, and goes on with LOCK_SH; the
    # change from one to the other is not atomic, but whoever slips in between makes it fail. Later nodes take LOCK_SH.
    for image in images:
        try:
            if alone:
                image.lock(exclusive=True)
            image.lock(exclusive=False)
        except ImageInUse:
            raise OtherManager(path=image.path) from None
