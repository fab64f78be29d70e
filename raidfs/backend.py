"""Leg backends as a node uses them, and the one for production: threads, with an eventfd into trio."""

from __future__ import annotations

import os
from typing import Protocol

import trio

from raidfs._backend_threads import ThreadBackend, notify_eventfd
from raidfs.array.port import EnginePort

# Measured with `scripts/bench --workers`, see docs/performance.md: on two cores 4 and 8 did about as well as more, and
# one operation that hangs takes one thread with it.
WORKERS = 8


class LegBackend(Protocol):
    """Who carries the engine's leg operations out, and pumps the port."""

    def attach(self, leg: int, fd: int) -> None:
        """Use a file descriptor for a leg, -1 for none any more; the caller keeps owning it."""

    async def run(self) -> None:
        """Carry operations out and pump the port until cancelled."""

    def close(self) -> None:
        """End; operations under way are finished first. A second call does nothing."""


class ThreadedLegs:
    """`LegBackend` of production: a pool of threads; replies come through an eventfd that trio watches."""

    def __init__(self, port: EnginePort, workers: int = WORKERS) -> None:
        self._port = port
        self.threads = ThreadBackend(port.engine)
        self._workers = workers
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def attach(self, leg: int, fd: int) -> None:
        """See `LegBackend.attach`."""
        self.threads.attach(leg, fd)

    async def run(self) -> None:
        """See `LegBackend.run`."""
        notify_eventfd(self._port.engine, self._eventfd)
        self.threads.start(self._workers)
        while True:
            await trio.lowlevel.wait_readable(self._eventfd)
            os.eventfd_read(self._eventfd)
            self._port.pump()

    def close(self) -> None:
        """See `LegBackend.close`."""
        if self._eventfd < 0:
            return
        self.threads.close()
        notify_eventfd(self._port.engine, -1)
        trio.lowlevel.notify_closing(self._eventfd)
        os.close(self._eventfd)
        self._eventfd = -1
