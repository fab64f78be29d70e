"""The engine as control and the portable data plane see it: requests that can be awaited.

`EnginePort` pairs the replies of the engine with the tasks that wait for them. Somebody has to call `EnginePort.pump`
when the engine has something: a backend's eventfd in production, the stepper in the simulator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from raidfs._core import BYTES_MAX, Engine, EventKind, SyncAction
from raidfs.runtime import Future, Runtime

SyncUnderWay = Future[tuple[int, None]]
EventHandler = Callable[[EventKind, int, int, int, int], None]


class EnginePort:
    """Awaitable requests to one engine.

    Errors of requests are OSError with the engine's errno. ``on_event(kind, leg, errno, offset, length)`` is called
    from `pump` for each event; it must not wait.
    """

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self.engine = engine
        self.on_event: EventHandler | None = None
        self._runtime = runtime
        self._waiting: dict[int, Future[Any]] = {}

    def pump(self) -> None:
        """Deliver the replies and events that have come."""
        for tag, result, data in self.engine.replies():
            future = self._waiting.pop(tag, None)
            if future is not None:
                future.set((result, data))
        if self.on_event is not None:
            for event in self.engine.events():
                self.on_event(*event)

    def _expect(self, tag: int) -> Future[Any]:
        future: Future[Any] = self._runtime.future()
        self._waiting[tag] = future
        return future

    async def _reply(self, tag: int, what: str) -> tuple[int, bytes | None]:
        # The request goes on to its end when the waiting task is cancelled; only its reply is dropped.
        future = self._expect(tag)
        try:
            result, data = await future.wait(what=what)
        finally:
            self._waiting.pop(tag, None)
        return _done(result), data

    async def read(self, offset: int, length: int) -> bytes:
        """Return the array's bytes at ``offset``; fewer than ``length`` only at its end."""
        pieces = []
        while length > 0:
            tag = self.engine.submit_read(offset, min(length, BYTES_MAX))
            result, data = await self._reply(tag, "a read of the array")
            assert data is not None
            pieces.append(data)
            if result < min(length, BYTES_MAX):
                break
            offset += result
            length -= result
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def write(self, offset: int, data: bytes, *, durable: bool = False) -> int:
        """Write at ``offset`` and return the bytes taken, short only at the end of the array; ENOSPC behind it."""
        done = 0
        while done < len(data):
            piece = data if len(data) <= BYTES_MAX else memoryview(data)[done : done + BYTES_MAX]
            tag = self.engine.submit_write(offset + done, piece, durable=durable)
            try:
                result, _ = await self._reply(tag, "a write to the array")
            except OSError:
                if done:
                    break
                raise
            done += result
            if result < len(piece):
                break
        return done

    async def flush(self) -> None:
        """Return when everything that was written before is durable on all good legs."""
        await self._reply(self.engine.submit_flush(), "a flush of all legs")

    async def drain(self, start: int, end: int) -> None:
        """Return when no request that has started by now overlaps [start, end) of the array."""
        await self._reply(self.engine.submit_drain(start, end), "older requests in the range")

    async def sweep(self) -> None:
        """Do one round of the lazy clearing of bits and write the bitmap pages that are due."""
        await self._reply(self.engine.submit_sweep(), "a sweep of the bitmap")

    async def resize(self, size_bytes: int, chunk_bytes: int, header: bytes, *, needed_from: int | None = None) -> None:
        """Have the own bitmap cover another size, durably; see `Engine.submit_resize`.

        Raises OSError EIO when no leg takes it, and the bitmap is as before; ValueError for what cannot be.
        """
        tag = self.engine.submit_resize(size_bytes, chunk_bytes, header, needed_from=needed_from)
        await self._reply(tag, "the own bitmap slot to be written for another size")

    def set_capacity(self, capacity_bytes: int) -> None:
        """Have reads and writes end at another byte from now on; see `Engine.set_capacity`."""
        self.engine.set_capacity(capacity_bytes)

    async def sync(self, action: SyncAction, start: int, end: int, *, leg: int = 0) -> int:
        """Do an action over [start, end) of the array and return the bytes read; see `Engine.submit_sync`."""
        return await self.end_sync(self.begin_sync(action, start, end, leg=leg))

    def begin_sync(self, action: SyncAction, start: int, end: int, *, leg: int = 0) -> SyncUnderWay:
        """Submit a sync behind those that wait and return what `end_sync` waits for."""
        return self._expect(self.engine.submit_sync(action, start, end, leg=leg))

    async def end_sync(self, under_way: SyncUnderWay) -> int:
        """Return the bytes read by a sync that `begin_sync` has submitted."""
        result, _ = await under_way.wait(what="sync blocks in flight")
        return _done(result)

    async def leg_reads(self, legs: Sequence[int], offset: int, length: int) -> list[bytes | OSError]:
        """Read the same place of several legs' images at once; an error stands in the place of its bytes."""
        tags = [self.engine.submit_leg_read(leg, offset, length) for leg in legs]
        found = await self._replies(tags, "metadata of all legs")
        return [e if isinstance(e, OSError) else (e[1] or b"") for e in found]

    async def leg_writes(self, writes: Sequence[tuple[int, int, bytes]]) -> list[OSError | None]:
        """Write to several legs at once (leg, offset, data), durable on return; an error for each that failed.

        A task that is cancelled waits for the end all the same: the token that it writes under must not be given back
        while a write is on its way.
        """
        tags = [self.engine.submit_leg_write(leg, offset, data) for leg, offset, data in writes]
        with self._runtime.cancel_scope(shield=True):
            found = await self._replies(tags, "metadata of all legs to be durable")
        return [e if isinstance(e, OSError) else None for e in found]

    async def _replies(self, tags: Sequence[int], what: str) -> list[tuple[int, bytes | None] | OSError]:
        futures = [self._expect(tag) for tag in tags]
        replies: list[tuple[int, bytes | None] | OSError] = []
        try:
            for future in futures:
                result, data = await future.wait(what=what)
                replies.append((result, data) if result >= 0 else OSError(-result, os.strerror(-result)))
        finally:
            for tag in tags:
                self._waiting.pop(tag, None)
        return replies

    async def leg_read(self, leg: int, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes of one leg's image."""
        _, data = await self._reply(self.engine.submit_leg_read(leg, offset, length), f"metadata of leg {leg}")
        assert data is not None
        return data


def _done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
