from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.mount import wire

# Laid out by hand after struct fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding.
HEADER = "=IIQQIIIHH"


def _message(opcode: int, body: bytes, unique: int = 7) -> bytes:
    return struct.pack(HEADER, 40 + len(body), opcode, unique, 2, 0, 0, 1234, 0, 0) + body


def _init_answer(flags: int, max_write: int = 1 << 20, max_pages: int = 256) -> bytes:
    # major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages ...
    body = struct.pack("=IIIIHHIIHHII", 7, 38, 131072, flags, 0, 0, max_write, 1, max_pages, 0, 0, 0) + bytes(24)
    return struct.pack("=IiQ", 16 + len(body), 0, 2) + body


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_header_gives_opcode_and_unique(unique: int, opcode: int) -> None:
    assert wire.decode_header(_message(opcode, b"", unique)) == wire.Header(opcode, unique)


@given(st.integers(0, 2**63), st.integers(0, 2**20))
def test_read_gives_offset_and_size(offset: int, size: int) -> None:
    body = struct.pack("=QQIIQII", 2, offset, size, 0, 0, os.O_DIRECT, 0)
    assert wire.decode_read(_message(wire.READ, body)) == wire.ReadRequest(offset, size)


def test_write_gives_offset_size_and_flags_and_its_data_follow() -> None:
    body = struct.pack("=QQIIQII", 2, 4096, 5, 0, 99, os.O_WRONLY | os.O_DSYNC, 0)
    message = _message(wire.WRITE, body + b"bytes")
    assert wire.decode_write(message) == wire.WriteRequest(4096, 5, os.O_WRONLY | os.O_DSYNC)
    assert message[wire.WRITE_DATA_OFFSET :] == b"bytes"


def test_interrupt_names_the_request() -> None:
    assert wire.decode_interrupt(_message(wire.INTERRUPT, struct.pack("=Q", 4711))) == 4711


def test_a_write_answer_tells_its_length_and_the_bytes_taken() -> None:
    assert struct.unpack("=IiQII", wire.write_answer(9, 512)) == (24, 0, 9, 512, 0)


def test_an_error_is_negative_on_the_wire_and_positive_here() -> None:
    answer = wire.answer_header(9, 0, error=5)
    assert struct.unpack("=IiQ", answer) == (16, -5, 9)
    assert wire.decode_answer(answer) == (5, 9)


@pytest.mark.parametrize("flags", [0, 0xFFFFFFFF])
def test_init_loses_splice_and_nothing_else_on_its_way_to_libfuse(flags: int) -> None:
    message = _message(wire.INIT, struct.pack("=IIIII", 7, 42, 131072, flags, 3) + bytes(44))
    changed = wire.without_splice(message)
    splice = wire.SPLICE_READ | wire.SPLICE_WRITE | wire.SPLICE_MOVE
    assert struct.unpack_from("=IIIII", changed, 40) == (7, 42, 131072, flags & ~splice, 3)
    assert len(changed) == len(message)


@pytest.mark.parametrize("flags", [0, 0xFFFFFFFF])
def test_init_is_answered_without_atomic_o_trunc_with_async_dio_and_room_for_parked_writes(flags: int) -> None:
    changed = wire.with_our_limits(_init_answer(flags))
    fields = struct.unpack_from("=IIIIHHI", changed, 16)
    assert fields[3] == flags & ~wire.ATOMIC_O_TRUNC | wire.ASYNC_DIO
    assert fields[4:6] == (65535, 65535)
    assert fields[6] == 1 << 20
    assert changed[40:] == _init_answer(flags)[40:]


@pytest.mark.parametrize(("max_write", "max_pages"), [(1 << 17, 32), (1 << 20, 256)])
def test_init_leaves_requests_as_small_as_libfuse_wants_them(max_write: int, max_pages: int) -> None:
    changed = wire.with_our_limits(_init_answer(0, max_write, max_pages))
    assert struct.unpack_from("=IIIIHHIIH", changed, 16)[6:] == (max_write, 1, max_pages)


def test_init_allows_no_request_that_our_buffer_could_not_hold() -> None:
    changed = wire.with_our_limits(_init_answer(0, 1 << 24, 4096))
    assert struct.unpack_from("=IIIIHHIIH", changed, 16)[6:] == (1 << 20, 1, 256)


def test_open_of_the_block_file_allows_parallel_writes() -> None:
    answer = struct.pack("=IiQQII", 32, 0, 3, 2, wire.FOPEN_DIRECT_IO, 0)
    changed = wire.with_parallel_writes(answer)
    assert struct.unpack("=IiQQII", changed)[4] == wire.FOPEN_DIRECT_IO | wire.FOPEN_PARALLEL_DIRECT_WRITES


def test_open_past_the_page_cache_only_is_changed() -> None:
    answer = struct.pack("=IiQQII", 32, 0, 3, 2, 2, 0)
    assert wire.with_parallel_writes(answer) == answer
