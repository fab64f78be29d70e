"""`raidfs.host.Host` of a simulated machine: simulated disks, the stepped engine, the lock manager in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from raidfs._core import OpKind
from raidfs.array.head import READINGS_MAX, Candidate, read_candidate
from raidfs.array.images import OpenImage
from raidfs.array.new_leg import check_fits, erasing
from raidfs.array.port import EnginePort
from raidfs.array.search import Found
from raidfs.errors import (
    DeviceNotExtendable,
    ImageAccess,
    ImageClosed,
    ImageHoldsData,
    ImageInUse,
    ImageNotExtended,
    ImageNotFound,
    OtherManager,
)
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.lock.api import LockManager
from raidfs.lock.machine import Action
from raidfs.node_options import NodeOptions
from raidfs.runtime import Future, Runtime
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.layout import CREATED_S, DATA_OFFSET_BYTES
from raidfs.sim.locks import SimulatedClient, SimulatedLocks
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Group, Stepper
from raidfs.sim.strikes import Decide, submit_struck
from raidfs.units import SECTOR_BYTES

OpWatcher = Callable[["SimHost", SimDisk, OpKind, int, bytes | None], None]


class SimImage(OpenImage):
    """A disk as an open image; ``head`` is what was read of its metadata when it was opened."""

    def __init__(self, disk: SimDisk, number: int, head: bytes) -> None:
        self.path = disk.name
        self.writable = True
        self.direct = True
        self.is_block_device = True
        self.identity = ("device", number, 0)
        self.size_bytes = disk.size_bytes
        self.logical_block_bytes = SECTOR_BYTES
        self.users: dict[SimImage, None] | None = None  # of the disk, while this one holds its flock
        self._fd = number
        self._head = head

    @property
    def fd(self) -> int:
        """The number of the disk."""
        if self._fd < 0:
            raise ImageClosed(path=self.path)
        return self._fd

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return bytes of the metadata that was read."""
        return self._head[offset_bytes : offset_bytes + length_bytes]

    def close(self) -> None:
        """See `OpenImage.close`."""
        self._fd = -1
        if self.users is not None:
            self.users.pop(self, None)


class _Inbox:
    """Messages of the lock manager that have reached the machine: each is taken in a step of the machine, in order."""

    def __init__(self, stepper: Stepper, group: Group, deliver: Callable[[Action], None]) -> None:
        self._stepper = stepper
        self._group = group
        self._deliver = deliver
        self._actions: list[Action] = []

    def put(self, action: Action) -> None:
        self._actions.append(action)
        self._stepper.soon(self._group, "messages of the lock manager", self._take)

    def _take(self) -> None:
        self._deliver(self._actions.pop(0))


class SimStorage:
    """What the machines share: disks by name, and who holds a flock on them."""

    def __init__(self, disks: Sequence[SimDisk]) -> None:
        self.disks = tuple(disks)
        self.numbers = {disk.name: number for number, disk in enumerate(disks)}
        self.uuids = 0xA0  # of images that were added
        self.flocks: list[dict[SimImage, None]] = [{} for _ in disks]


class SimHost:
    """The machine under one run of a node.

    ``on_op`` sees each operation of the engine before the disk gets it; ``decide`` may let any I/O go wrong.
    """

    def __init__(
        self,
        name: str,
        stepper: Stepper,
        group: Group,
        storage: SimStorage,
        locks: SimulatedLocks,
        *,
        on_op: OpWatcher | None = None,
        decide: Decide | None = None,
    ) -> None:
        self.name = name
        self.group = group
        self.storage = storage
        self.on_op = on_op
        self.decide = decide
        self.port: EnginePort | None = None
        self.disks: dict[int, SimDisk] = {}  # by the engine's number of the leg
        self.hidden: set[str] = set()  # disks that this machine does not find by looking
        self.slot: int | None = None  # once the node has joined, for those who watch
        self._stepper = stepper
        self._runtime = SimRuntime(stepper, group)
        self._locks = locks
        self._client: SimulatedClient | None = None
        self._images: list[SimImage] = []

    def wall_time(self) -> int:
        """See `raidfs.host.Host.wall_time`."""
        return CREATED_S + int(self._runtime.now())

    async def candidates(self, paths: Sequence[str]) -> Sequence[Candidate]:
        """See `raidfs.host.Host.candidates`; read until they are those of one moment, as `read_candidates` does."""
        images = await self._opened(paths)
        for _ in range(READINGS_MAX if len(paths) > 1 else 0):
            again = await self._opened(paths)
            agreed = all(_superblock(one) == _superblock(other) for one, other in zip(images, again, strict=True))
            images = again
            if agreed:
                break
        return [read_candidate(image) for image in images]

    async def open_images(self, paths: Sequence[str], options: NodeOptions) -> list[OpenImage]:
        """See `raidfs.host.Host.open_images`."""
        images = await self._opened(paths)
        self._images += images
        return list(images)

    async def find_images(self, set_uuid: bytes, near: Sequence[str], search: Sequence[str]) -> list[Found]:
        """See `raidfs.host.Host.find_images`: all disks that this machine sees."""
        found = []
        for path in self.storage.numbers:
            if path not in self.hidden:
                superblock = (await self.candidates([path]))[0].superblock
                if isinstance(superblock, Superblock) and superblock.set_uuid == set_uuid:
                    found.append(Found(path, superblock))
        return found

    def new_uuid(self) -> bytes:
        """See `raidfs.host.Host.new_uuid`."""
        self.storage.uuids += 1
        return self.storage.uuids.to_bytes(16, "big")

    async def open_new(
        self, path: str, options: NodeOptions, layout: ArrayLayout, set_uuid: bytes, block_bytes: int, force: bool
    ) -> OpenImage:
        """See `raidfs.host.Host.open_new`."""
        [image] = await self.open_images([path], options)
        assert isinstance(image, SimImage)
        try:
            if self.storage.flocks[image.fd]:
                raise ImageInUse(path=path)
            check_fits(image, layout, block_bytes)
            if any(image.read(SUPER_OFFSET_BYTES, SUPER_BYTES)) and not force:
                raise ImageHoldsData(path=path, found="an md superblock")
        except BaseException:
            image.close()
            raise
        return image

    async def write_new(self, image: OpenImage, writes: Sequence[tuple[int, bytes]]) -> None:
        """See `raidfs.host.Host.write_new`."""
        for offset, data in writes:
            result, _ = await self._disk_op(image.fd, OpKind.WRITE_DURABLE, offset, data, len(data))
            if result < 0:
                raise ImageAccess(path=image.path, doing="write it", reason="Input/output error")

    async def erase_new(self, image: OpenImage, layout: ArrayLayout) -> None:
        """See `raidfs.host.Host.erase_new`."""
        with contextlib.suppress(ImageAccess):
            await self.write_new(image, erasing(layout))

    async def room_bytes(self, image: OpenImage) -> int:
        """See `raidfs.host.Host.room_bytes`; takes as long as a read does."""
        disk = self.storage.disks[image.fd]
        result, _ = await self._disk_op(image.fd, OpKind.READ, 0, None, SECTOR_BYTES)
        if result < 0:
            raise ImageAccess(path=image.path, doing="look at it", reason="Input/output error")
        image.size_bytes = disk.size_bytes
        return image.size_bytes

    async def extend(self, image: OpenImage, size_bytes: int, sparse: bool = False) -> None:
        """See `raidfs.host.Host.extend`; a disk of fixed size is a device, others are as good as files."""
        have_bytes = await self.room_bytes(image)
        if size_bytes <= have_bytes:
            return
        disk = self.storage.disks[image.fd]
        if disk.size_max_bytes == have_bytes:
            raise DeviceNotExtendable(path=image.path, have_bytes=have_bytes, need_bytes=size_bytes)
        if size_bytes > disk.size_max_bytes:
            reason = "No space left on device"
            raise ImageNotExtended(path=image.path, have_bytes=have_bytes, need_bytes=size_bytes, reason=reason)
        disk.extend(size_bytes)
        image.size_bytes = size_bytes

    async def claim_images(self, images: Sequence[OpenImage], *, alone: bool) -> None:
        """See `raidfs.host.Host.claim_images`; all machines' flocks meet, as those of processes on one host do."""
        for image in images:
            assert isinstance(image, SimImage)
            users = self.storage.flocks[image.fd]
            if alone and users:
                raise OtherManager(path=image.path)
            users[image] = None
            image.users = users

    def backend(self, port: EnginePort) -> SimBackend:
        """See `raidfs.host.Host.backend`."""
        self.port = port
        return SimBackend(self, port, self._runtime)

    def lock_manager(
        self, runtime: Runtime, options: NodeOptions, array_uuid: str
    ) -> AbstractAsyncContextManager[LockManager]:
        """See `raidfs.host.Host.lock_manager`."""
        return self._manager()

    @contextlib.asynccontextmanager
    async def _manager(self) -> AsyncIterator[LockManager]:
        self._client = client = self._locks.connect()
        inbox = _Inbox(self._stepper, self.group, client.deliver)
        client.deliver = inbox.put  # type: ignore[method-assign]
        try:
            yield client.hub
        finally:
            await client.hub.close()

    def sever(self) -> None:
        """The machine dies: locks and disks know nothing more of it, but it is not fenced yet."""
        if self._client is not None:
            self._client.hub.lost = "this machine is dead"
        for disk in self.storage.disks:
            disk.sever(self.group)

    def fence(self) -> None:
        """Nothing of the dead machine takes place any more: its locks may go to others."""
        for disk in self.storage.disks:
            disk.fence(self.group)
        for image in self._images:
            image.close()
        if self._client is not None:
            self._client.kill()

    def lose_locks(self, reason: str) -> None:
        """Let this machine lose its lock manager; what it holds stays held until its run has ended.

        So does the embedded server with a client that hangs up without a word: its process may still write.
        """
        client = self._client
        if client is not None:
            client.close = lambda: None  # type: ignore[method-assign]
            client.hub.lose(reason)

    def submit(self, disk: SimDisk, op: DiskOp) -> None:
        """Give an operation to a disk, or to what shall go wrong."""
        strike = None if self.decide is None else self.decide(disk, op)
        if strike is None:
            disk.submit(op)
        else:
            submit_struck(self._stepper, disk, op, strike)

    async def _opened(self, paths: Sequence[str]) -> list[SimImage]:
        images = []
        for path in paths:
            if path not in self.storage.numbers:
                raise ImageNotFound(path=path)
            number = self.storage.numbers[path]
            result, head = await self._disk_op(number, OpKind.READ, 0, None, DATA_OFFSET_BYTES)
            if result < DATA_OFFSET_BYTES or head is None:
                raise ImageAccess(path=path, doing="read it", reason="Input/output error")
            images.append(SimImage(self.storage.disks[number], number, head))
        return images

    async def _disk_op(
        self, number: int, kind: OpKind, offset: int, data: bytes | None, length: int
    ) -> tuple[int, bytes | None]:
        disk = self.storage.disks[number]
        future: Future[tuple[int, bytes | None]] = self._runtime.future()

        def done(result: int, data: bytes | None) -> None:
            future.set((result, data))

        self.submit(disk, DiskOp(self.group, kind, offset, length, data, done))
        return await future.wait(what=f"the metadata of {disk.name}")


def _superblock(image: SimImage) -> bytes:
    return image.read(SUPER_OFFSET_BYTES, SUPER_BYTES)


class SimBackend:
    """`raidfs.backend.LegBackend` that steps the real engine over simulated disks.

    The engine's operations are taken after each step of the node; what disks answer waits until the backend's task
    takes it, so that a slow or paused node finds its completions later, in the order in which they came.
    """

    def __init__(self, host: SimHost, port: EnginePort, runtime: Runtime) -> None:
        self._host = host
        self._port = port
        self._disks = host.disks
        self._completed: list[tuple[int, int, bytes | None]] = []
        self._queue = runtime.wait_queue()

    def attach(self, leg: int, fd: int) -> None:
        """See `raidfs.backend.LegBackend.attach`."""
        if fd < 0:
            self._disks.pop(leg, None)
        else:
            self._disks[leg] = self._host.storage.disks[fd]

    async def run(self) -> None:
        """See `raidfs.backend.LegBackend.run`."""
        self._host.group.after_step = self._after_step
        while True:
            await self._queue.wait_event(lambda: bool(self._completed), what="the legs to answer")
            completed, self._completed = self._completed, []
            for op_id, result, data in completed:
                self._port.engine.complete_op(op_id, result, data)
            self._port.pump()

    def close(self) -> None:
        """See `raidfs.backend.LegBackend.close`."""
        self._host.group.after_step = None
        for disk in self._disks.values():
            disk.finish(self._host.group)

    # Production's threads take operations and bring replies at any time; here after every step of the node.
    def _after_step(self) -> None:
        engine = self._port.engine
        ops = engine.take_ops()
        for op_id, kind, leg, offset, length, data in ops:
            self._submit(op_id, kind, self._disks[leg], offset, length, data)
        self._port.pump()

    def _submit(self, op_id: int, kind: OpKind, disk: SimDisk, offset: int, length: int, data: bytes | None) -> None:
        def done(result: int, data: bytes | None) -> None:
            self._completed.append((op_id, result, data))
            self._queue.wake_up()

        if self._host.on_op is not None:
            self._host.on_op(self._host, disk, kind, offset, data)
        self._host.submit(disk, DiskOp(self._host.group, OpKind(kind), offset, length, data, done))
