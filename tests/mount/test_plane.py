"""The native plane between two socket pairs: one plays the kernel's ``/dev/fuse``, the other is the one for pyfuse3."""

from __future__ import annotations

import errno
import os
import pathlib
import select
import struct
import tempfile
from collections.abc import Iterator

import pytest
from support.mounted import eventually
from support.plane_stress import FSYNC, READ, SIZE, WRITE, Rig, request, stress

from raidfs._core import OpKind
from raidfs.mount import wire

LOOKUP, FLUSH, FORGET = 1, 25, 2


def _read(unique: int, offset: int, size: int) -> bytes:
    return request(READ, unique, struct.pack("=QQIIQII", 2, offset, size, 0, 0, 0, 0))


def _write(unique: int, offset: int, data: bytes, flags: int = os.O_WRONLY) -> bytes:
    return request(WRITE, unique, struct.pack("=QQIIQII", 2, offset, len(data), 0, 0, flags, 0) + data)


def _interrupt(unique: int) -> bytes:
    return request(wire.INTERRUPT, 1_000_000 + unique, struct.pack("=Q", unique))


@pytest.fixture(params=[False, True], ids=["pool", "io_uring"])
def rig(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, ring=request.param, workers=2)
    yield rig
    rig.close()


def _ask(rig: Rig, message: bytes) -> tuple[int, int, bytes]:
    rig.kernel.send(message)
    return _answer(rig)


def _answer(rig: Rig) -> tuple[int, int, bytes]:
    assert select.select([rig.kernel], [], [], 20)[0], "no answer"
    answer = rig.kernel.recv(wire.MESSAGE_BYTES_MAX)
    return *wire.decode_answer(answer), answer[wire.OUT_HEADER_BYTES :]


def test_data_requests_are_answered_here(rig: Rig) -> None:
    assert _ask(rig, _write(1, 512, b"hello")) == (0, 1, struct.pack("=II", 5, 0))
    assert _ask(rig, _read(2, 510, 9)) == (0, 2, b"\0\0hello\0\0")
    assert _ask(rig, request(FSYNC, 3, bytes(16))) == (0, 3, b"")
    assert _ask(rig, request(FLUSH, 4, bytes(24))) == (0, 4, b"")
    assert rig.engine.statistics()["flushes"] == 1
    eventually(lambda: rig.plane.in_flight == 0, "an answer is counted just after it is written")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (os.O_WRONLY, OpKind.WRITE),
        (os.O_WRONLY | os.O_DSYNC, OpKind.WRITE_DURABLE),
        (os.O_WRONLY | os.O_SYNC, OpKind.WRITE_DURABLE),
        (os.O_WRONLY | os.O_DIRECT, OpKind.WRITE),
    ],
)
def test_the_flags_of_a_write_say_whether_it_is_durable(tmp_path: pathlib.Path, flags: int, kind: OpKind) -> None:
    rig = Rig(tmp_path, ring=False, workers=1, take_ops=True)
    rig.kernel.send(_write(1, 0, b"x" * 512, flags))
    kinds: list[OpKind] = []
    while len(kinds) < 4:  # the bitmap's page on both legs, then the data
        for op, found, _leg, _offset, length, _data in rig.engine.take_ops():
            kinds.append(found)
            rig.engine.complete_op(op, length)
    assert kinds == [OpKind.WRITE_DURABLE] * 2 + [kind] * 2
    assert _answer(rig) == (0, 1, struct.pack("=II", 512, 0))
    rig.close()


def test_writes_that_wait_to_be_read_share_the_write_of_their_bitmap_page(tmp_path: pathlib.Path) -> None:
    writes = [_write(number + 1, number << 16, b"x" * 512) for number in range(16)]
    rig = Rig(tmp_path, ring=True, workers=1, take_ops=True, first=writes)
    pages: list[bytes] = []
    data = 0
    while data < 32:
        for op, kind, _leg, _offset, length, content in rig.engine.take_ops():
            if kind is OpKind.WRITE_DURABLE and content is not None:
                pages.append(content[256:258])
            data += kind is OpKind.WRITE
            rig.engine.complete_op(op, length)
    assert pages == [b"\xff\xff"] * 2  # once on each leg
    assert sorted(_answer(rig)[1] for _ in writes) == list(range(1, 17))
    rig.close()


def test_what_the_engine_refuses_is_the_callers_errno(rig: Rig) -> None:
    assert _ask(rig, _write(1, SIZE, b"x")) == (errno.ENOSPC, 1, b"")
    assert _ask(rig, _read(2, SIZE, 1)) == (0, 2, b"")
    rig.engine.fence(errno.EIO)
    assert _ask(rig, _write(3, 0, b"x")) == (errno.EIO, 3, b"")
    assert _ask(rig, _read(4, 0, 1)) == (errno.EIO, 4, b"")
    assert _ask(rig, request(FSYNC, 5, bytes(16))) == (errno.EIO, 5, b"")


def test_a_parked_write_keeps_nobody_waiting_and_is_answered_by_who_lifts_the_range(rig: Rig) -> None:
    rig.engine.suspend(0, 4096)
    rig.kernel.send(_write(1, 0, b"x"))
    assert _ask(rig, _write(2, 4096, b"y"))[:2] == (0, 2)
    assert _ask(rig, _read(3, 0, 1)) == (0, 3, b"\0")
    eventually(lambda: rig.plane.in_flight == 1, "only the parked write is left")
    rig.engine.suspend(0, 0)
    assert _answer(rig)[:2] == (0, 1)
    assert _ask(rig, _read(4, 0, 1)) == (0, 4, b"x")


def test_everything_else_goes_to_pyfuse3_and_back_to_who_asked(rig: Rig) -> None:
    message = request(LOOKUP, 5, b"md0\0")
    rig.kernel.send(message)
    assert rig.passed.recv(1000) == message
    assert rig.plane.waiting_for(5) == LOOKUP
    answer = wire.answer_header(5, 4) + b"body"
    assert rig.plane.answer(answer) == 0
    assert rig.plane.waiting_for(5) == 0
    assert _answer(rig) == (0, 5, b"body")
    long = request(LOOKUP, 6, b"n" * 200 + b"\0")
    rig.kernel.send(long)
    assert rig.passed.recv(1000) == long


def test_an_interrupt_is_passed_on_only_while_pyfuse3_has_the_request_that_it_means(rig: Rig) -> None:
    rig.engine.suspend(0, 4096)
    rig.kernel.send(_write(1, 0, b"x"))
    rig.kernel.send(request(LOOKUP, 2, b"md0\0"))
    assert rig.passed.recv(1000) == request(LOOKUP, 2, b"md0\0")
    rig.kernel.send(_interrupt(1))
    rig.kernel.send(_interrupt(2))
    assert rig.passed.recv(1000) == _interrupt(2)
    rig.plane.answer(wire.answer_header(2, 0))
    rig.kernel.send(_interrupt(2))
    rig.kernel.send(request(FORGET, 9, bytes(8)))
    assert rig.passed.recv(1000) == request(FORGET, 9, bytes(8))
    assert rig.plane.waiting_for(9) == 0
    rig.engine.suspend(0, 0)
    assert [_answer(rig)[:2], _answer(rig)[:2]] == [(0, 2), (0, 1)]


def test_init_loses_splice_on_its_way(rig: Rig) -> None:
    splice = wire.SPLICE_READ | wire.SPLICE_WRITE | wire.SPLICE_MOVE
    rig.kernel.send(request(wire.INIT, 2, struct.pack("=IIII", 7, 42, 0, splice | 1)))
    assert struct.unpack_from("=IIII", rig.passed.recv(1000), 40)[3] == 1
    assert rig.plane.waiting_for(2) == wire.INIT


def test_a_lost_mount_ends_the_workers_and_is_told_after_the_last_answer(rig: Rig) -> None:
    rig.engine.suspend(0, 4096)
    rig.kernel.send(_write(1, 0, b"x"))
    assert _ask(rig, _read(2, 0, 1)) == (0, 2, b"\0")
    rig.kernel.close()
    for thread in rig.threads:
        thread.join(20)
    assert not select.select([rig.done], [], [], 0)[0]
    rig.engine.suspend(0, 0)
    assert select.select([rig.done], [], [], 20)[0]
    eventually(lambda: rig.plane.in_flight == 0, "an answer is counted just after it is written")


def test_a_plane_that_is_closed_with_requests_under_way_drops_their_answers(rig: Rig) -> None:
    rig.engine.suspend(0, 4096)
    rig.kernel.send(_write(1, 0, b"x"))
    assert _ask(rig, _read(2, 0, 1)) == (0, 2, b"\0")
    for thread in rig.threads:
        while thread.is_alive():
            rig.plane.stop()
            thread.join(0.01)
    rig.plane.close()
    rig.plane.close()
    rig.engine.suspend(0, 0)
    rig.legs.close()
    assert not select.select([rig.kernel], [], [], 0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("directory", ["/dev/shm", "/var/tmp"])
def test_all_at_once(directory: str, ring: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="raidfs-", dir=directory) as place:
        answers, faults = stress(pathlib.Path(place), seconds=1, ring=ring, workers=3)
    assert faults == []
    assert answers > 100
