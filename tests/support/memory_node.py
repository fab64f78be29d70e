"""A node over a bytearray: what the FUSE side and the daemon are tested against without an array.

It keeps the promises of `raidfs.mount.volume` and records what it was asked. As a program it is a daemon::

    python -m support.memory_node MOUNTPOINT [--size BYTES] [--read-only] [--fail WHERE]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable

import trio

from raidfs._backend_threads import ThreadBackend
from raidfs._core import Engine
from raidfs.control.schema import (
    ArrayStatus,
    BitmapStatus,
    EngineStatus,
    LegStatus,
    LockStatus,
    MemberStatus,
    NodeStatus,
    PlaceStatus,
)
from raidfs.errors import ImageNotFound, LastLeg, LockspaceLost, RaidfsError
from raidfs.mount.options import MountOptions
from raidfs.mount.volume import CapacityHook
from raidfs.node_options import NodeOptions
from raidfs.resize_plan import Change
from raidfs.runtime import Runtime

UUID = "00000000:11111111:22222222:33333333"

FAIL_AT_OPEN = "open"
HANG_AT_OPEN = "hang"
FAIL_AT_LEAVE = "leave"


def sample_status(*, size_bytes: int = 64 << 20, read_only: bool = False, name: str = "md0") -> NodeStatus:
    """A two-legged array in good health, as a node of it would tell."""
    return NodeStatus(
        array=ArrayStatus(
            name=name,
            uuid=UUID,
            cluster_name="testing",
            size_bytes=size_bytes,
            block_size_bytes=512,
            raid_disks=2,
            nodes=4,
            events=17,
            state="clean",
            sync="idle",
            created_s=1_700_000_000,
            updated_s=1_700_000_060,
        ),
        legs=(
            LegStatus(path="/srv/a.img", number=0, role=0, state="in_sync", direct=True, read_errors=0, write_errors=0),
            LegStatus(path="/srv/b.img", number=1, role=1, state="in_sync", direct=True, read_errors=0, write_errors=0),
        ),
        node=PlaceStatus(slot=0, mountpoint="", pid=0, host="", since_s=0.0, read_only=read_only, plane="", lost=None),
        members=(MemberStatus(slot=0, client="host-a:1"), MemberStatus(slot=1, client="host-b:2")),
        bitmap=BitmapStatus(chunk_bytes=64 << 20, bits=1, dirty=0, needed=0, pages=1, pages_allocated=0),
        lock=LockStatus(manager="embedded", address="@raidfs/00000000"),
        engine=EngineStatus(
            in_flight=0,
            parked=0,
            reads=0,
            writes=0,
            flushes=0,
            read_bytes=0,
            written_bytes=0,
            suspend_lo_bytes=0,
            suspend_hi_bytes=0,
        ),
        waits=(),
    )


class MemoryVolume:
    """The bytes, and what was asked of them: ``durable`` lists the offsets of durable writes, ``flushes`` counts."""

    def __init__(self, name: str, size_bytes: int, *, read_only: bool = False) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.block_size_bytes = 512
        self.content = bytearray(size_bytes)
        self.durable: list[int] = []
        self.flushes = 0
        self.reads = 0
        self.writes = 0
        self.parked = 0
        self.error: int | None = None
        self._read_only = read_only
        self._suspended = (0, 0)
        self._lifted = trio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        self._refuse_if_broken()
        self.reads += 1
        return bytes(self.content[offset : offset + length])

    async def write(self, offset: int, data: bytes, *, durable: bool) -> int:
        self._refuse_if_broken()
        if self._read_only:
            raise OSError(errno.EROFS, "read-only")
        if offset >= self.size_bytes:
            raise OSError(errno.ENOSPC, "beyond the end")
        taken = data[: self.size_bytes - offset]
        while offset < self._suspended[1] and offset + len(taken) > self._suspended[0]:
            self.parked += 1
            await self._lifted.wait()
            self.parked -= 1
        self.writes += 1
        if durable:
            self.durable.append(offset)
        self.content[offset : offset + len(taken)] = taken
        return len(taken)

    async def flush(self) -> None:
        self._refuse_if_broken()
        self.flushes += 1

    def suspend(self, lo_bytes: int, hi_bytes: int) -> None:
        self._suspended = (lo_bytes, hi_bytes)
        self._lifted.set()
        self._lifted = trio.Event()

    def _refuse_if_broken(self) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))


class MemoryNode:
    """`raidfs.mount.volume.ServedNode` over a `MemoryVolume`."""

    def __init__(self, volume: MemoryVolume, *, read_only: bool = False) -> None:
        self.volume = volume
        self.uuid = UUID
        self._status = sample_status(size_bytes=volume.size_bytes, read_only=read_only, name=volume.name)

    @property
    def engine(self) -> Engine | None:
        return None

    def tell_capacity(self, hook: CapacityHook) -> None:
        return

    @property
    def lifelines(self) -> tuple[int, ...]:
        return ()

    def leg_threads(self) -> ThreadBackend | None:
        return None

    def status(self) -> NodeStatus:
        volume = self.volume
        engine = dataclasses.replace(
            self._status.engine,
            in_flight=volume.parked,
            parked=volume.parked,
            reads=volume.reads,
            writes=volume.writes,
            flushes=volume.flushes,
            # The count of durable writes has no field of its own.
            written_bytes=len(volume.durable),
        )
        return dataclasses.replace(self._status, engine=engine)

    async def refresh(self) -> None:
        return

    async def fail(self, path: str) -> None:
        raise LastLeg(path=path)

    async def sync_action(self, action: str) -> None:
        return

    async def remove(self, path: str) -> None:
        return

    async def add(self, path: str, *, spare: bool, force: bool) -> None:
        return

    async def re_add(self, path: str) -> None:
        return

    async def grow(self, change: Change) -> None:
        return

    async def check_grow(self, change: Change) -> tuple[list[tuple[str, str]], RaidfsError | None]:
        return [], None

    async def touch(self) -> None:
        return

    async def explain(self) -> dict[str, object]:
        return {}

    async def suspend_range(self, lo_bytes: int, hi_bytes: int) -> None:
        self.volume.suspend(lo_bytes, hi_bytes)


def opener(
    size_bytes: int, *, fail: str = "", on_left: Callable[[MemoryVolume], None] = lambda volume: None
) -> Callable[[Runtime, NodeOptions], contextlib.AbstractAsyncContextManager[MemoryNode]]:
    """Return an ``open_node``."""

    @contextlib.asynccontextmanager
    async def open_node(runtime: Runtime, options: NodeOptions) -> AsyncIterator[MemoryNode]:
        if fail == FAIL_AT_OPEN:
            raise ImageNotFound(path="/nowhere/a.img")
        if fail == HANG_AT_OPEN:
            print("opening", flush=True)
            await trio.sleep_forever()
        volume = MemoryVolume("md0", size_bytes, read_only=options.read_only)
        yield MemoryNode(volume, read_only=options.read_only)
        on_left(volume)
        if fail == FAIL_AT_LEAVE:
            raise LockspaceLost(name="array", reason="the lock server ended")

    return open_node


def main() -> int:
    from raidfs.control import paths
    from raidfs.mount import daemon, logs, mountpoint

    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--size", type=int, default=64 << 20)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--fail", default="")
    args = parser.parse_args()
    logs.set_up()
    files = paths.node_paths(paths.runtime_directory(), os.path.abspath(args.mountpoint))

    def left(volume: MemoryVolume) -> None:
        # What of the daemon is still there at the moment when the node leaves.
        there = {
            "mounted": mountpoint.mount_at(os.path.abspath(args.mountpoint)) is not None,
            "parked": volume.parked > 0,
            "owned": os.path.exists(files.lock),
            "control": os.path.exists(files.socket),
        }
        print("left with", " ".join(name for name, is_there in there.items() if is_there), flush=True)

    options = MountOptions(
        mountpoint=os.path.abspath(args.mountpoint),
        node=NodeOptions(images=(), client_name="test", read_only=args.read_only),
    )
    try:
        daemon.run_daemon(
            options,
            opener(args.size, fail=args.fail, on_left=left),
            on_ready=lambda: print("ready", flush=True),
        )
    except RaidfsError as error:
        print(f"failed: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
