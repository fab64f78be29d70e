"""A FUSE file on our native plane with nothing behind it but memory: what FUSE itself allows on this machine.

Each write is copied once for each of two legs, each read once; there is no engine, no bitmap and no order of writes.
``python -m benchmarks.null_server MOUNTPOINT SIZE_BYTES [on]`` says ``ready`` and serves until it is unmounted;
``on`` takes requests through io_uring.
"""

from __future__ import annotations

import contextlib
import os
import sys

import pyfuse3
import trio

from raidfs._backend_threads import ThreadBackend
from raidfs._core import Engine
from raidfs._plane import NullPlane, Plane
from raidfs.mount import mountpoint
from raidfs.mount.operations import BlockFileOperations
from raidfs.mount.plane import NativePlane

LEGS = 2


class _Volume:
    """Enough of `raidfs.mount.volume.BlockVolume` for the name space."""

    name = "null"
    block_size_bytes = 512

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    async def write(self, offset: int, data: bytes, *, durable: bool) -> int:
        raise NotImplementedError

    async def flush(self) -> None:
        raise NotImplementedError


class _Served(NativePlane):
    def __init__(self, fuse_fd: int, size_bytes: int, fuse_uring: bool) -> None:
        self._size_bytes = size_bytes
        super().__init__(fuse_fd, Engine(LEGS), None, fuse_uring=fuse_uring)

    def _make_workers(self, engine: Engine, legs: ThreadBackend | None, count: int) -> Plane:
        fds = self._fuse_fd, self._ours.fileno(), self._done_fd
        return NullPlane(
            engine,
            None,
            *fds,
            workers=count,
            ring=False,
            uring=self._uring,
            size_bytes=self._size_bytes,
            legs_count=LEGS,
        )


async def _serve(path: str, size_bytes: int, fuse_uring: bool) -> None:
    operations = BlockFileOperations(
        _Volume(size_bytes), uid=os.geteuid(), gid=os.getegid(), created_ns=0, read_only=False
    )
    with contextlib.closing(_Served(mountpoint.mount(path, source="null"), size_bytes, fuse_uring)) as plane:
        pyfuse3.init(operations, f"/dev/fd/{plane.hand_over()}", set())
        try:
            async with trio.open_nursery() as nursery:
                initialised = trio.Event()
                nursery.start_soon(pyfuse3.main, 1, 4)
                nursery.start_soon(_say_ready, initialised)
                await plane.run(initialised)
                pyfuse3.terminate()
        finally:
            pyfuse3.close(unmount=False)


async def _say_ready(initialised: trio.Event) -> None:
    await initialised.wait()
    print("ready", flush=True)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["on"])
