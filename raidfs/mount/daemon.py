"""The daemon of a node: join the array, mount, serve until unmounted, leave.

Start: take the mount point's ownership, check it, join the array, open the control socket, mount, answer INIT, say
ready. So the block file appears only when it is usable, and whatever fails before leaves nothing behind.

Stop, in this order, whoever asks for it (``raidfs umount``, a signal, ``umount``, ``fusermount3 -u``):

1. *stop taking requests*: the file system is unmounted first. While anybody has a file open this fails with EBUSY and
   nothing else has happened; afterwards nobody can send another request.
2. *drain*: every data request that was taken gets its answer.
3. *clear intent, mark clean, release locks, leave*: the node's part, on leaving ``open_node``.
4. *ownership, watcher*: the mount point is free for the next node, and only then is the one who asked told so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pyfuse3
import trio

from raidfs import __version__
from raidfs.control import ownership, paths, server
from raidfs.control.protocol import Hello
from raidfs.control.schema import NodeStatus
from raidfs.errors import BadRange, MountError, MountInterrupted, MountpointServed, NoNode, RaidfsError, UnmountFailed
from raidfs.mount import mountpoint
from raidfs.mount.capacity import KernelSize
from raidfs.mount.operations import BlockFileOperations
from raidfs.mount.options import MountOptions
from raidfs.mount.plane import ServingPlane, open_plane
from raidfs.mount.volume import ServedNode
from raidfs.mount.watcher import Watcher
from raidfs.node_options import NodeOptions
from raidfs.resize_plan import Change
from raidfs.runtime import Runtime, TrioRuntime

log = logging.getLogger(__name__)

OpenNode = Callable[[Runtime, NodeOptions], AbstractAsyncContextManager[ServedNode]]

# pyfuse3's handlers answer without waiting, so a few tasks serve any number of requests of the name space.
_NAME_SPACE_TASKS = 4

# SIGHUP: the terminal of a node in the foreground is closed.
_UNMOUNTING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# A lock manager that does not answer must not keep `status` from answering.
_REFRESH_S = 0.5

# For the last answers on the control socket, when the node has left already; a client that does not read them is on
# its own.
_GOODBYE_S = 5.0


class _Phase(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"


def run_daemon(options: MountOptions, open_node: OpenNode, on_ready: Callable[[], None]) -> None:
    """Be the node until it is unmounted; ``on_ready`` is called when the block file can be used.

    Raises the RaidfsError that ended it; a node that was told to stop and did ends without one.
    """
    try:
        trio.run(_Daemon(options, open_node, on_ready).run)
    except BaseExceptionGroup as error:
        ours = _first_of_ours(error)
        if ours is None:
            raise
        log.debug("the node ends", exc_info=error)
        raise ours from error


def _first_of_ours(error: BaseException) -> RaidfsError | None:
    # trio's nurseries wrap what their tasks raise; a user wants the error and not the tree of tasks.
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_first_of_ours, error.exceptions)), None)
    return error if isinstance(error, RaidfsError) else None


class _Daemon:
    def __init__(self, options: MountOptions, open_node: OpenNode, on_ready: Callable[[], None]) -> None:
        self._options = options
        self._mountpoint = options.mountpoint
        self._open_node = open_node
        self._on_ready = on_ready
        self._phase = _Phase.STARTING
        self._since_s = 0.0
        self._plane = ""
        self._device: str | None = None
        self._failure: RaidfsError | None = None
        self._unmounting = trio.Lock()
        self._usable = trio.Event()
        self._stopped = trio.Event()

    async def run(self) -> None:
        node_paths = paths.node_paths(paths.ensure_runtime_directory(), self._mountpoint)
        owned = ownership.acquire(node_paths)
        if owned is None:
            raise MountpointServed(path=self._mountpoint)
        with contextlib.closing(owned):
            mountpoint.check(self._mountpoint)
            with trio.open_signal_receiver(*_UNMOUNTING_SIGNALS) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                    await self._live(nursery, node_paths, owned)
                    nursery.cancel_scope.cancel()
            if self._phase is _Phase.STARTING:
                raise MountInterrupted(path=self._mountpoint)

    async def _live(self, nursery: trio.Nursery, node_paths: paths.NodePaths, owned: ownership.Ownership) -> None:
        try:
            async with self._open_node(TrioRuntime(), self._options.node) as node:
                control = server.ControlServer(_listener(node_paths), self._hello(node), self._methods(node))
                nursery.start_soon(control.run)
                # A watcher that is not dismissed takes the mount away when this process is gone: what is wanted after
                # any error below.
                watcher = Watcher(self._mountpoint)
                await self._serve(node)
                await trio.to_thread.run_sync(self._detach)
                watcher.dismiss()
                log.info("unmounted; leaving the array")
        except (RaidfsError, ExceptionGroup) as error:
            self._failure = _first_of_ours(error)
            if self._failure is None or self._phase is not _Phase.LEAVING:
                raise
        owned.close()
        self._stopped.set()
        with trio.move_on_after(_GOODBYE_S):
            await control.wait_idle()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, node: ServedNode) -> None:
        fuse_fd = await trio.to_thread.run_sync(self._mount, node)
        plane = open_plane(self._options.plane, fuse_fd, node, fuse_uring=self._options.fuse_uring)
        operations = self._operations(node)
        file = os.path.join(self._mountpoint, node.volume.name)
        kernel_size = KernelSize(file, plane.notify, lambda: operations.asked)
        with contextlib.closing(plane), _capacity_told(node, kernel_size):
            async with _pyfuse3(operations, plane.hand_over()), trio.open_nursery() as nursery:
                initialised = trio.Event()
                nursery.start_soon(self._announce, initialised, plane)
                await plane.run(initialised)
                self._phase = _Phase.LEAVING
                nursery.cancel_scope.cancel()

    def _mount(self, node: ServedNode) -> int:
        fuse_fd = mountpoint.mount(self._mountpoint, source=node.volume.name, read_only=self._options.node.read_only)
        mounted = mountpoint.mount_at(self._mountpoint)
        self._device = mounted.device if mounted is not None else None
        return fuse_fd

    def _is_mounted(self) -> bool:
        # Whether our mount, and not one that was made there since, is the topmost.
        mounted = mountpoint.mount_at(self._mountpoint)
        return mounted is not None and mounted.device == self._device

    def _detach(self) -> None:
        # ``umount -f`` of a busy mount ends the connection and leaves the dead mount in place.
        if self._is_mounted():
            mountpoint.detach(self._mountpoint)

    def _operations(self, node: ServedNode) -> BlockFileOperations:
        return BlockFileOperations(
            node.volume,
            uid=os.geteuid(),
            gid=os.getegid(),
            created_ns=node.status().array.created_s * 1_000_000_000,
            read_only=self._options.node.read_only,
        )

    async def _announce(self, initialised: trio.Event, plane: ServingPlane) -> None:
        await initialised.wait()
        self._plane = plane.name
        self._phase = _Phase.SERVING
        self._since_s = time.time()
        self._usable.set()
        log.info("mounted at %s", self._mountpoint)
        self._on_ready()

    async def _obey(self, signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
        async for number in signals:
            log.info("%s", signal.Signals(number).name)
            if self._phase is _Phase.STARTING:
                everything.cancel()
                return
            try:
                await self._unmount()
            except MountError as error:
                log.warning("%s", error)

    async def _unmount(self) -> None:
        # In a thread: the kernel may ask this daemon something before the unmount is done. Somebody else may be faster.
        async with self._unmounting:
            if self._phase is not _Phase.SERVING:
                return
            try:
                await trio.to_thread.run_sync(mountpoint.unmount, self._mountpoint)
            except UnmountFailed:
                if self._is_mounted():
                    raise
            self._phase = _Phase.LEAVING

    def _hello(self, node: ServedNode) -> Hello:
        return Hello(
            mountpoint=self._mountpoint,
            name=node.volume.name,
            uuid=node.uuid,
            pid=os.getpid(),
            version=__version__,
        )

    def _methods(self, node: ServedNode) -> dict[str, server.Method]:
        async def status(params: dict[str, Any]) -> dict[str, Any]:
            with trio.move_on_after(_REFRESH_S), contextlib.suppress(RaidfsError):
                await node.refresh()
            return self._status(node).to_json()

        async def statistics(params: dict[str, Any]) -> dict[str, Any]:
            return dataclasses.asdict(self._status(node).engine)

        async def suspend(params: dict[str, Any]) -> None:
            lo, hi = server.integer(params, "lo_bytes"), server.integer(params, "hi_bytes")
            size = node.volume.size_bytes
            if (lo, hi) != (0, 0) and not 0 <= lo < hi <= size:
                raise BadRange(lo=lo, hi=hi, size=size)
            await node.suspend_range(lo, hi)

        async def fail(params: dict[str, Any]) -> None:
            await node.fail(server.text(params, "image"))

        async def sync_action(params: dict[str, Any]) -> None:
            await node.sync_action(server.text(params, "action"))

        async def remove(params: dict[str, Any]) -> None:
            await node.remove(server.text(params, "path"))

        async def add(params: dict[str, Any]) -> None:
            spare, force = server.boolean(params, "spare"), server.boolean(params, "force")
            await node.add(server.text(params, "path"), spare=spare, force=force)

        async def re_add(params: dict[str, Any]) -> None:
            await node.re_add(server.text(params, "path"))

        async def grow(params: dict[str, Any]) -> None:
            await node.grow(Change.from_json(params))

        async def check_grow(params: dict[str, Any]) -> dict[str, Any]:
            found, error = await node.check_grow(Change.from_json(params))
            return {"steps": found, "failure": None if error is None else error.to_json()}

        async def touch(params: dict[str, Any]) -> None:
            await node.touch()

        async def explain(params: dict[str, Any]) -> dict[str, Any]:
            return await node.explain()

        async def umount(params: dict[str, Any]) -> None:
            await self._usable.wait()
            await self._unmount()
            await self._stopped.wait()
            if self._failure is not None:
                raise self._failure

        return {
            "status": status,
            "statistics": statistics,
            "suspend": suspend,
            "fail": fail,
            "sync_action": sync_action,
            "remove": remove,
            "add": add,
            "re_add": re_add,
            "grow": grow,
            "check_grow": check_grow,
            "touch": touch,
            "explain": explain,
            "umount": umount,
        }

    def _status(self, node: ServedNode) -> NodeStatus:
        if self._stopped.is_set():
            raise NoNode(path=self._mountpoint)
        status = node.status()
        place = dataclasses.replace(
            status.node,
            mountpoint=self._mountpoint,
            pid=os.getpid(),
            host=socket.gethostname(),
            since_s=self._since_s,
            plane=self._plane,
        )
        return dataclasses.replace(status, node=place)


def _listener(node_paths: paths.NodePaths) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node_paths.socket)  # of a daemon that is dead, else its ownership had not been to be had
    return server.listen(node_paths.socket)


async def _to_nobody(size_bytes: int) -> None:
    """Nobody sees the size when nothing is mounted."""


@contextlib.contextmanager
def _capacity_told(node: ServedNode, kernel_size: KernelSize) -> Iterator[None]:
    node.tell_capacity(kernel_size.tell)
    try:
        yield
    finally:
        node.tell_capacity(_to_nobody)


@contextlib.asynccontextmanager
async def _pyfuse3(operations: BlockFileOperations, fd: int) -> AsyncIterator[None]:
    # pyfuse3 on an open descriptor, which its session closes.
    pyfuse3.init(operations, f"/dev/fd/{fd}", set())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main, 1, _NAME_SPACE_TASKS)
            yield
            pyfuse3.terminate()
    finally:
        pyfuse3.close(unmount=False)
