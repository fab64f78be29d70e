"""A leg backend that makes the faults of `raidfs.faults` happen: threads in Python, used only when there are faults."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import queue
import threading
from collections.abc import Sequence

import trio

from raidfs._backend_threads import notify_eventfd, notify_ops_eventfd
from raidfs._core import OpKind
from raidfs.array.port import EnginePort
from raidfs.faults import Fault, IoKind, LegFaults, Strike, faults_of_leg
from raidfs.units import PAGE_BYTES, round_up

log = logging.getLogger(__name__)

WORKERS = 16  # an I/O that is delayed keeps one of them
LOGGED_MAX = 20  # strikes that the log tells of, for each leg

_IO_KINDS = {
    OpKind.READ: IoKind.READ,
    OpKind.WRITE: IoKind.WRITE,
    OpKind.WRITE_DURABLE: IoKind.WRITE,
    OpKind.FLUSH: IoKind.FLUSH,
}

_Op = tuple[int, OpKind, int, int, int, bytes | None]


class _Leg:
    def __init__(self, fd: int, path: str, faults: LegFaults) -> None:
        self.fd = fd
        self.path = path
        self.size_bytes = os.lseek(fd, 0, os.SEEK_END)
        self.faults = faults


class FaultyLegs:
    """`raidfs.backend.LegBackend` with faults; one thread takes operations from the engine, some carry them out."""

    def __init__(self, port: EnginePort, faults: Sequence[Fault]) -> None:
        self._port = port
        self._faults = faults
        self._legs: dict[int, _Leg] = {}
        self._replies_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ops_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._ops: queue.SimpleQueue[tuple[_Op, Strike | None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def attach(self, leg: int, fd: int) -> None:
        """See `LegBackend.attach`."""
        if fd < 0:
            self._legs.pop(leg, None)
            return
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._legs[leg] = _Leg(fd, path, faults_of_leg(self._faults, leg, path))

    async def run(self) -> None:
        """See `LegBackend.run`."""
        engine = self._port.engine
        notify_eventfd(engine, self._replies_fd)
        notify_ops_eventfd(engine, self._ops_fd)
        os.eventfd_write(self._ops_fd, 1)  # for what came before
        self._start(self._take, "leg-faults")
        for number in range(WORKERS):
            self._start(self._work, f"leg-io-{number}")
        while True:
            await trio.lowlevel.wait_readable(self._replies_fd)
            os.eventfd_read(self._replies_fd)
            self._port.pump()

    def close(self) -> None:
        """See `LegBackend.close`; delays end at once."""
        if self._replies_fd < 0:
            return
        self._closing.set()
        os.eventfd_write(self._ops_fd, 1)
        for thread in self._threads:
            thread.join()
        notify_ops_eventfd(self._port.engine, -1)
        notify_eventfd(self._port.engine, -1)
        trio.lowlevel.notify_closing(self._replies_fd)
        os.close(self._replies_fd)
        os.close(self._ops_fd)
        self._replies_fd = -1

    def _start(self, work: object, name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _take(self) -> None:
        while not self._closing.is_set():
            os.eventfd_read(self._ops_fd)
            for op in self._port.engine.take_ops():
                self._ops.put((op, self._decide(*op[1:5])))
        for _ in range(WORKERS):
            self._ops.put(None)

    def _decide(self, kind: OpKind, number: int, offset: int, length: int) -> Strike | None:
        leg = self._legs.get(number)
        strike = None if leg is None else leg.faults.decide(_IO_KINDS[kind], offset, length)
        if leg is not None and strike is not None and leg.faults.struck <= LOGGED_MAX:
            where = "" if kind is OpKind.FLUSH else f" of {length} bytes at {offset}"
            log.warning("fault %s: %s%s, %s", " and ".join(strike.texts), kind.name.lower(), where, leg.path)
        return strike

    def _work(self) -> None:
        while (item := self._ops.get()) is not None:
            (op_id, kind, number, offset, length, data), strike = item
            leg = self._legs.get(number)
            found: bytes | None = None
            try:
                if leg is None:
                    result = -errno.ENODEV
                elif strike is None:
                    result, found = _do(leg, kind, offset, length, data)
                else:
                    self._closing.wait(strike.delay_s)
                    result, found = _do_struck(leg, strike, kind, offset, length, data)
            except OSError as e:
                result = -(e.errno or errno.EIO)
            self._port.engine.complete_op(op_id, result, found)


def _do_struck(
    leg: _Leg, strike: Strike, kind: OpKind, offset: int, length: int, data: bytes | None
) -> tuple[int, bytes | None]:
    if kind is OpKind.FLUSH:
        if strike.is_flushed and not strike.errno:
            os.fdatasync(leg.fd)
        return strike.result(0), None
    keep = strike.done_bytes(length)
    result = strike.result(length)
    if kind is OpKind.READ:
        if result < 0:
            return result, None
        done, found = _do(leg, kind, offset, length, None)
        return min(done, result), (found or b"")[:result]
    assert data is not None
    if not strike.is_flushed:
        kind = OpKind.WRITE
    if keep < length:
        # Direct I/O may want more than 512 bytes at once: what stays as it was is read and written again.
        _, before = _do(leg, OpKind.READ, offset, length, None)
        data = data[:keep] + (before or b"")[keep:]
    done = 0
    if keep:
        done, _ = _do(leg, kind, strike.place(offset, length, leg.size_bytes), length, data)
    return (result if done == length or not keep else done), None


def _do(leg: _Leg, kind: OpKind, offset: int, length: int, data: bytes | None) -> tuple[int, bytes | None]:
    """Carry an operation out; return the bytes done and what was read. Raises OSError."""
    if kind is OpKind.FLUSH:
        os.fdatasync(leg.fd)
        return 0, None
    with memoryview(mmap.mmap(-1, round_up(length, PAGE_BYTES))) as buffer:  # begins on a page, as O_DIRECT wants it
        if data is not None:
            buffer[:length] = data
        flags = os.RWF_DSYNC if kind is OpKind.WRITE_DURABLE else 0
        done = 0
        while done < length:
            part = [buffer[done:length]]
            if kind is OpKind.READ:
                count = os.preadv(leg.fd, part, offset + done)
            else:
                count = os.pwritev(leg.fd, part, offset + done, flags)
            if count == 0:
                break
            done += count
        return done, bytes(buffer[:done]) if kind is OpKind.READ else None
