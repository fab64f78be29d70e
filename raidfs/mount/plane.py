"""Who serves data requests: the native plane, or the relay in Python where that one cannot work."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Sequence
from typing import Protocol

import trio

from raidfs._backend_threads import ThreadBackend
from raidfs._backend_uring import why_not as why_no_uring
from raidfs._core import Engine
from raidfs._plane import Plane as NativeWorkers
from raidfs._plane import lock_memory
from raidfs.mount import wire
from raidfs.mount.options import Plane
from raidfs.mount.relay import Relay
from raidfs.mount.volume import ServedNode

log = logging.getLogger(__name__)

# Threads that read /dev/fuse: one per processor, and no more than were measured to help (docs/performance.md).
WORKERS_MAX = 4
WORKERS_MIN = 2

# Without io_uring each operation of a leg that waits for a device occupies a thread.
POOL_WORKERS = 32

_STOP_AGAIN_S = 0.01

_ENABLE_URING = "/sys/module/fuse/parameters/enable_uring"


class ServingPlane(Protocol):
    """What serves one mount until it is gone; `raidfs.mount.relay.Relay` and `NativePlane` are two."""

    @property
    def name(self) -> str:
        """What `raidfs status` calls it; to be asked when the mount is initialised."""

    @property
    def in_flight(self) -> int:
        """How many data requests have no answer yet."""

    def hand_over(self) -> int:
        """Return the descriptor that pyfuse3 uses in place of ``/dev/fuse`` and will close with its session."""

    async def run(self, initialised: trio.Event) -> None:
        """Serve until the file system is unmounted and every data request has its answer.

        Sets ``initialised`` when the kernel has got the answer to INIT and the mount can be used.
        """

    def notify(self, message: bytes) -> None:
        """Send the kernel a message that it has not asked for; one that it has no use for is lost."""

    def close(self) -> None:
        """Close the mount's descriptor and the socket pair; a second call does nothing."""


def open_plane(wanted: Plane, fuse_fd: int, node: ServedNode, *, fuse_uring: bool = False) -> ServingPlane:
    """Return the plane that ``wanted`` names, or the portable one and a line in the log that says why."""
    if wanted == "native":
        engine = node.engine
        if engine is not None:
            return NativePlane(fuse_fd, engine, node.leg_threads(), node.lifelines, fuse_uring=fuse_uring)
        log.warning("there is no engine behind this volume that the native plane could feed; pyfuse3 serves the data")
    return Relay(fuse_fd, node.volume)


class NativePlane:
    """`ServingPlane` in native code; requests that are not about data go to pyfuse3 and their answers come back here.

    ``fuse_fd`` is the mounted ``/dev/fuse``; it is owned from now on. ``legs`` carries out what control asks of the
    legs, and what the workers leave to it; None leaves all of that to a backend of its own (``--fault``). ``lifelines``
    stay open until no write of this process is in flight any more, even if it is killed (`ServedNode.lifelines`).
    """

    def __init__(
        self,
        fuse_fd: int,
        engine: Engine,
        legs: ThreadBackend | None,
        lifelines: Sequence[int] = (),
        *,
        fuse_uring: bool = False,
    ) -> None:
        self._fuse_fd = fuse_fd
        self._lifelines = lifelines
        self._uring = fuse_uring and _can_use_fuse_uring()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = trio.socket.from_stdlib_socket(ours)
        self._pyfuse3_fd = theirs.detach()
        self._done_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        count = min(max(os.cpu_count() or 1, WORKERS_MIN), WORKERS_MAX)
        self._workers = self._make_workers(engine, legs, count)
        self._prepared = threading.Barrier(count)
        self._threads = [
            threading.Thread(target=self._be_worker, args=(number,), name=f"plane-{number}", daemon=True)
            for number in range(count)
        ]

    def _make_workers(self, engine: Engine, legs: ThreadBackend | None, count: int) -> NativeWorkers:
        fds = self._fuse_fd, self._ours.fileno(), self._done_fd
        wanted = {"ring": _wants_ring(legs), "uring": self._uring}
        return NativeWorkers(engine, legs, *fds, workers=count, lifelines=self._lifelines, **wanted)

    def _be_worker(self, number: int) -> None:
        # Whether every worker has its ring must be known before the kernel's INIT is answered.
        if not self._workers.prepare(number):
            self._uring = False
        self._prepared.wait()
        self._workers.work(number)

    @property
    def name(self) -> str:
        """See `ServingPlane.name`."""
        return "native, FUSE over io_uring" if self._uring else "native"

    def hand_over(self) -> int:
        """See `ServingPlane.hand_over`."""
        fd, self._pyfuse3_fd = self._pyfuse3_fd, -1
        return fd

    @property
    def in_flight(self) -> int:
        """See `ServingPlane.in_flight`."""
        return self._workers.in_flight

    async def run(self, initialised: trio.Event) -> None:
        """See `ServingPlane.run`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_answers, initialised)
            _keep_memory()
            for thread in self._threads:
                thread.start()
            await trio.lowlevel.wait_readable(self._done_fd)
            nursery.cancel_scope.cancel()

    def notify(self, message: bytes) -> None:
        """See `ServingPlane.notify`."""
        _ignore_lost_callers(self._workers.answer(message))

    def close(self) -> None:
        """See `ServingPlane.close`. Requests that still wait for something get no answer."""
        if self._fuse_fd < 0:
            return
        for thread in self._threads:
            while thread.is_alive():
                self._workers.stop()
                thread.join(_STOP_AGAIN_S)
        self._workers.close()
        self._ours.close()
        for fd in (self._fuse_fd, self._pyfuse3_fd, self._done_fd):
            if fd >= 0:
                os.close(fd)
        self._fuse_fd = self._pyfuse3_fd = -1

    async def _pass_answers(self, initialised: trio.Event) -> None:
        while True:
            message = await self._ours.recv(wire.MESSAGE_BYTES_MAX)
            if not message:
                return
            error, unique = wire.decode_answer(message)
            opcode = self._workers.waiting_for(unique)
            if opcode == wire.INIT and not error:
                message = wire.with_our_limits(message)
                if self._uring:
                    message = wire.with_io_uring(message)
            elif opcode == wire.OPEN and not error:
                message = wire.with_parallel_writes(message)
            _ignore_lost_callers(self._workers.answer(message))
            if opcode == wire.INIT:
                if error:
                    raise OSError(error, "pyfuse3 refused the kernel's INIT")
                if self._uring:
                    self._workers.begin_uring()
                initialised.set()


def _can_use_fuse_uring() -> bool:
    try:
        with open(_ENABLE_URING, encoding="ascii") as parameter:
            reason = None if parameter.read().strip() == "Y" else f"{_ENABLE_URING} is not Y"
    except OSError as error:
        reason = f"{_ENABLE_URING}: {error.strerror}"
    reason = reason or why_no_uring(wide=True)
    if reason is not None:
        log.warning("FUSE over io_uring cannot be used (%s); requests come through /dev/fuse", reason)
    return reason is None


def _ignore_lost_callers(number: int) -> None:
    # ENOENT: the caller was killed and the kernel forgot the request; ENODEV: the mount is gone.
    if number not in (0, errno.ENOENT, errno.ENODEV):
        raise OSError(number, os.strerror(number))


def _keep_memory() -> None:
    # A file system over a loop device over our file: it writes to get memory, and must not need memory for that.
    refused = lock_memory()
    if refused:
        log.info("memory is not locked (%s); use no swap below a loop device over the block file", os.strerror(refused))


def _wants_ring(legs: ThreadBackend | None) -> bool:
    """Tell whether workers shall have rings: there are legs that wait for a device, and io_uring is to be had."""
    if legs is None or legs.in_memory():
        return False
    reason = why_no_uring()
    if reason is None:
        return True
    log.info("io_uring cannot be used (%s); %d threads carry out leg operations", reason, POOL_WORKERS)
    legs.start(POOL_WORKERS)
    return False
