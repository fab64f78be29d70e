"""The relay between two socket pairs: one plays the kernel's ``/dev/fuse``, the other is the one for pyfuse3."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from support.memory_node import MemoryVolume

from raidfs.mount import wire
from raidfs.mount.relay import Relay

LOOKUP = 1


def _request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 2, 0, 0, 1, 0, 0) + body


def _read(unique: int, offset: int, size: int) -> bytes:
    return _request(wire.READ, unique, struct.pack("=QQIIQII", 2, offset, size, 0, 0, 0, 0))


def _write(unique: int, offset: int, data: bytes, flags: int = os.O_WRONLY) -> bytes:
    body = struct.pack("=QQIIQII", 2, offset, len(data), 0, 0, flags, 0)
    return _request(wire.WRITE, unique, body + data)


def _interrupt(unique: int) -> bytes:
    return _request(wire.INTERRUPT, 1_000_000 + unique, struct.pack("=Q", unique))


class Ends:
    """What the relay stands between: ``kernel`` sends requests and gets answers, ``pyfuse3`` the other way round."""

    def __init__(self) -> None:
        kernel, fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel = trio.socket.from_stdlib_socket(kernel)
        self.volume = MemoryVolume("md0", 1 << 20)
        self.relay = Relay(fuse.detach(), self.volume)
        self.pyfuse3 = trio.socket.fromfd(self.relay.hand_over(), socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.initialised = trio.Event()

    async def ask(self, request: bytes) -> tuple[int, int, bytes]:
        """Send a request and return errno, unique and body of the next answer."""
        await self.kernel.send(request)
        answer = await self.kernel.recv(wire.MESSAGE_BYTES_MAX)
        return *wire.decode_answer(answer), answer[wire.OUT_HEADER_BYTES :]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.relay.run, ends.initialised)
        yield ends
        nursery.cancel_scope.cancel()
    ends.relay.close()
    ends.relay.close()
    ends.kernel.close()
    ends.pyfuse3.close()


async def test_data_requests_are_answered_here(ends: Ends) -> None:
    assert await ends.ask(_write(1, 512, b"hello")) == (0, 1, struct.pack("=II", 5, 0))
    assert await ends.ask(_read(2, 510, 9)) == (0, 2, b"\0\0hello\0\0")
    assert await ends.ask(_request(wire.FSYNC, 3, bytes(16))) == (0, 3, b"")
    assert (ends.volume.writes, ends.volume.reads, ends.volume.flushes) == (1, 1, 1)


@pytest.mark.parametrize(
    ("flags", "durable"),
    [(os.O_WRONLY, []), (os.O_WRONLY | os.O_DSYNC, [0]), (os.O_WRONLY | os.O_SYNC, [0]), (os.O_DIRECT, [])],
)
async def test_the_flags_of_a_write_say_whether_it_is_durable(ends: Ends, flags: int, durable: list[int]) -> None:
    await ends.ask(_write(1, 0, b"x", flags))
    assert ends.volume.durable == durable


async def test_what_the_volume_raises_is_the_callers_errno(ends: Ends) -> None:
    ends.volume.error = errno.EIO
    assert await ends.ask(_read(1, 0, 1)) == (errno.EIO, 1, b"")
    ends.volume.error = errno.EROFS
    assert await ends.ask(_write(2, 0, b"x")) == (errno.EROFS, 2, b"")
    assert await ends.ask(_request(wire.FSYNC, 3, bytes(16))) == (errno.EROFS, 3, b"")
    ends.volume.error = None
    assert await ends.ask(_write(4, 1 << 20, b"x")) == (errno.ENOSPC, 4, b"")


async def test_a_fault_of_the_program_is_eio_for_one_caller_and_a_traceback_in_the_log(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(offset: int, length: int) -> bytes:
        raise AssertionError("the engine lost count")

    monkeypatch.setattr(ends.volume, "read", broken)
    assert await ends.ask(_read(1, 0, 1)) == (errno.EIO, 1, b"")
    assert "the engine lost count" in caplog.text
    assert (await ends.ask(_write(2, 0, b"x")))[:2] == (0, 2)


async def test_a_parked_write_keeps_nobody_waiting(ends: Ends) -> None:
    ends.volume.suspend(0, 4096)
    await ends.kernel.send(_write(1, 0, b"x"))
    assert (await ends.ask(_write(2, 4096, b"y")))[:2] == (0, 2)
    assert (await ends.ask(_read(3, 0, 1))) == (0, 3, b"\0")
    assert ends.relay.in_flight == 1
    ends.volume.suspend(0, 0)
    answer = await ends.kernel.recv(100)
    assert wire.decode_answer(answer) == (0, 1)
    assert ends.relay.in_flight == 0


async def test_everything_else_goes_to_pyfuse3_and_back_unchanged(ends: Ends) -> None:
    request, answer = _request(LOOKUP, 5, b"md0\0"), wire.answer_header(5, 4) + b"body"
    await ends.kernel.send(request)
    assert await ends.pyfuse3.recv(1000) == request
    await ends.pyfuse3.send(answer)
    assert await ends.kernel.recv(1000) == answer


async def test_an_interrupt_of_a_data_request_stays_here_and_others_pass(ends: Ends) -> None:
    ends.volume.suspend(0, 4096)
    await ends.kernel.send(_write(1, 0, b"x"))
    await ends.kernel.send(_interrupt(1))
    await ends.kernel.send(_interrupt(2))
    assert await ends.pyfuse3.recv(1000) == _interrupt(2)
    ends.volume.suspend(0, 0)
    assert wire.decode_answer(await ends.kernel.recv(100)) == (0, 1)


async def test_the_mount_is_initialised_when_the_kernel_has_the_changed_answer(ends: Ends) -> None:
    await ends.kernel.send(_request(wire.INIT, 2, struct.pack("=IIII", 7, 42, 0, wire.SPLICE_READ)))
    request = await ends.pyfuse3.recv(1000)
    assert struct.unpack_from("=IIII", request, 40)[3] == 0
    assert not ends.initialised.is_set()
    await ends.pyfuse3.send(wire.answer_header(2, 64) + struct.pack("=IIII", 7, 38, 0, wire.ATOMIC_O_TRUNC) + bytes(48))
    answer = await ends.kernel.recv(1000)
    assert struct.unpack_from("=IIIIHH", answer, 16)[3:] == (wire.ASYNC_DIO, 65535, 65535)
    await ends.initialised.wait()


async def test_a_refused_init_ends_the_mount() -> None:
    ends = Ends()
    await ends.kernel.send(_request(wire.INIT, 2, bytes(64)))

    async def refuse() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.relay.run, ends.initialised)
            await ends.pyfuse3.recv(1000)
            await ends.pyfuse3.send(wire.answer_header(2, 0, error=errno.EPROTO))

    with pytest.raises(BaseExceptionGroup) as caught:
        await refuse()
    assert "pyfuse3 refused" in repr(caught.value)
    assert not ends.initialised.is_set()
    ends.relay.close()
    ends.kernel.close()
    ends.pyfuse3.close()


async def test_an_open_is_changed_and_a_failed_one_and_an_opendir_are_not(ends: Ends) -> None:
    opened = struct.pack("=QII", 2, wire.FOPEN_DIRECT_IO, 0)
    opendir = 27
    for unique, opcode, answer, passed in (
        (1, wire.OPEN, wire.answer_header(1, 16) + opened, wire.FOPEN_DIRECT_IO | wire.FOPEN_PARALLEL_DIRECT_WRITES),
        (2, opendir, wire.answer_header(2, 16) + opened, wire.FOPEN_DIRECT_IO),
        (3, wire.OPEN, wire.answer_header(3, 0, error=errno.EPERM), None),
        (3, LOOKUP, wire.answer_header(3, 16) + opened, wire.FOPEN_DIRECT_IO),
    ):
        await ends.kernel.send(_request(opcode, unique, bytes(8)))
        await ends.pyfuse3.recv(1000)
        await ends.pyfuse3.send(answer)
        back = await ends.kernel.recv(1000)
        assert (struct.unpack_from("=QII", back, 16)[1] if passed is not None else None) == passed
        assert wire.decode_answer(back) == wire.decode_answer(answer)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
async def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, failures = os.writev, [number]

    def writev(fd: int, buffers: list[bytes]) -> int:
        if failures:
            raise OSError(failures.pop(), "gone")
        return real(fd, buffers)

    monkeypatch.setattr(os, "writev", writev)
    await ends.kernel.send(_read(1, 0, 1))
    await trio.testing.wait_all_tasks_blocked()
    assert (await ends.ask(_read(2, 0, 1)))[:2] == (0, 2)


@pytest.mark.parametrize(
    ("number", "goes_on"),
    [(errno.EINTR, True), (errno.ENOENT, True), (errno.ENODEV, False), (errno.ECONNABORTED, False)],
)
async def test_a_withdrawn_request_is_nothing_and_a_lost_mount_is_the_end_after_the_last_answer(
    monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    ends = Ends()
    real, failures = os.readv, [number]

    def readv(fd: int, buffers: list[bytearray]) -> int:
        if ends.volume.parked and failures:
            raise OSError(failures.pop(), "x")
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", readv)
    ends.volume.suspend(0, 4096)
    ended = trio.Event()

    async def run() -> None:
        await ends.relay.run(ends.initialised)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await ends.kernel.send(_write(1, 0, b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await ends.kernel.send(_read(2, 0, 1))
        await trio.testing.wait_all_tasks_blocked()
        assert ends.relay.in_flight == 1
        assert not ended.is_set()
        ends.volume.suspend(0, 0)
        if not goes_on:
            await ended.wait()
        nursery.cancel_scope.cancel()
    answers = [wire.decode_answer(await ends.kernel.recv(100)) for _ in range(2 if goes_on else 1)]
    assert answers == ([(0, 2), (0, 1)] if goes_on else [(0, 1)])
    ends.relay.close()
    ends.kernel.close()
    ends.pyfuse3.close()
