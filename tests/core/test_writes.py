"""What a write does, and in which order."""

from __future__ import annotations

import errno

import pytest
from support.engines import DATA_OFFSET, SteppedEngine

from raidfs._core import BYTES_MAX, OpKind


def test_a_bit_is_durable_on_all_legs_before_the_first_byte_of_data_goes_out() -> None:
    s = SteppedEngine()
    s.engine.submit_write(0, b"a" * 512)
    first, second = s.page_writes()
    assert {first.leg, second.leg} == {0, 1}
    s.complete([first])
    assert not s.data_writes()
    s.complete([second])
    assert s.bit_on_disk(0, leg=0)
    assert s.bit_on_disk(0, leg=1)
    assert {op.leg for op in s.data_writes()} == {0, 1}


def test_a_write_into_a_dirty_chunk_needs_no_bitmap_write() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.submit_write(0, b"a" * 512)
    assert not s.page_writes()
    assert len(s.data_writes()) == 2


def test_bits_that_come_while_a_page_is_written_go_out_together_with_the_next_write() -> None:
    s = SteppedEngine()
    tags = [s.engine.submit_write(0, b"a" * 512)]
    running = s.page_writes()
    tags += [s.engine.submit_write(chunk * 4096, b"a" * 512) for chunk in (1, 2, 3)]
    assert s.page_writes() == running
    s.complete(running)
    (first, _) = s.page_writes()
    assert first.data is not None
    assert first.data[256] == 0b1111
    s.settle()
    assert [s.result(tag) for tag in tags] == [512] * 4
    assert s.engine.statistics()["page_writes"] == 2


def test_both_legs_of_a_write_are_in_flight_at_the_same_time_and_both_must_end() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = s.engine.submit_write(0, b"a" * 512)
    first, second = s.data_writes()
    s.complete([second])
    assert s.result(tag) is None
    s.complete([first])
    assert s.result(tag) == 512


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize(("offset", "length"), [(1, 1), (4095, 2), (100, 8192), (0, 100), (4000, 96), (511, 4097)])
def test_a_write_of_parts_of_blocks_keeps_the_rest_of_them(block: int, offset: int, length: int) -> None:
    s = SteppedEngine(block=block)
    s.write(0, bytes(range(256)) * 64)
    expected = bytearray(s.content(0))
    expected[offset : offset + length] = b"!" * length
    s.write(offset, b"!" * length)
    assert s.content(0) == expected
    assert s.content(1) == expected


def test_leg_operations_are_always_whole_blocks() -> None:
    s = SteppedEngine(block=4096, dirty=tuple(range(64)))
    s.engine.submit_write(4095, b"ab")
    s.engine.submit_read(1, 1)
    while s.pending():
        for op in s.pending():
            assert op.offset % 4096 == 0
            assert op.length % 4096 == 0
        s.complete(s.pending()[:1])


def test_overlapping_writes_reach_the_legs_in_the_order_in_which_they_came() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    tags = [s.engine.submit_write(i * 256, bytes([i]) * 1024) for i in range(8)]
    assert len(s.data_writes()) + len(s.pending(OpKind.READ)) <= 2
    expected = bytearray(4096)
    for i in range(8):
        expected[i * 256 : i * 256 + 1024] = bytes([i]) * 1024
    s.settle()
    assert all(s.result(tag) == 1024 for tag in tags)
    assert s.content(0)[:4096] == s.content(1)[:4096] == expected


def test_writes_that_share_two_regions_wait_for_each_other_once() -> None:
    s = SteppedEngine(size=4 << 20, chunk=1 << 20, dirty=(0, 1, 2, 3))
    first = s.engine.submit_write((1 << 20) - 4096, b"1" * 8192)
    second = s.engine.submit_write((1 << 20) - 4096, b"2" * 8192)
    assert len(s.data_writes()) == 2
    s.complete(s.data_writes())
    assert s.result(first) == 8192
    assert len(s.data_writes()) == 2
    s.settle()
    assert s.result(second) == 8192
    assert s.content(1)[(1 << 20) - 4096 : (1 << 20) + 4096] == b"2" * 8192


def test_writes_apart_from_each_other_do_not_wait() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    for i in range(16):
        s.engine.submit_write(i * 512, b"a" * 512)
    assert len(s.data_writes()) == 32


def test_a_durable_write_asks_the_legs_for_stable_storage() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.submit_write(0, b"a" * 512, durable=True)
    assert {op.kind for op in s.data_writes()} == {OpKind.WRITE_DURABLE}


def test_at_the_end_of_the_array_a_write_is_short_and_behind_it_there_is_no_space() -> None:
    s = SteppedEngine(size=64 * 1024)
    crossing = s.engine.submit_write(64 * 1024 - 100, b"a" * 200)
    behind = s.engine.submit_write(64 * 1024, b"a")
    s.settle()
    assert s.result(crossing) == 100
    assert s.result(behind) == -errno.ENOSPC
    assert len(s.legs.images[0]) == DATA_OFFSET + 64 * 1024


def test_reads_are_short_at_the_end_of_the_array_and_empty_behind_it() -> None:
    s = SteppedEngine(size=64 * 1024)
    crossing = s.engine.submit_read(64 * 1024 - 100, 200)
    behind = s.engine.submit_read(1 << 40, 1)
    s.settle()
    assert s.data(crossing) == bytes(100)
    assert s.data(behind) == b""


def test_a_read_only_node_refuses_writes_and_reads_on() -> None:
    s = SteppedEngine(read_only=True)
    assert s.result(s.engine.submit_write(0, b"a")) == -errno.EROFS
    tag = s.engine.submit_read(0, 10)
    s.settle()
    assert s.result(tag) == 10


def test_a_request_larger_than_the_limit_is_refused_before_it_is_taken() -> None:
    s = SteppedEngine()
    with pytest.raises(ValueError, match="at most"):
        s.engine.submit_write(0, bytes(BYTES_MAX + 1))
    with pytest.raises(ValueError, match="at most"):
        s.engine.submit_read(0, BYTES_MAX + 1)


def test_empty_requests_are_answered_at_once() -> None:
    s = SteppedEngine()
    assert s.result(s.engine.submit_write(0, b"")) == 0
    assert s.result(s.engine.submit_read(0, 0)) == 0


def test_a_flush_asks_every_leg_and_flushes_that_wait_share_the_next_one() -> None:
    s = SteppedEngine()
    first = s.engine.submit_flush()
    running = s.pending(OpKind.FLUSH)
    assert {op.leg for op in running} == {0, 1}
    later = [s.engine.submit_flush() for _ in range(5)]
    assert s.pending(OpKind.FLUSH) == running
    s.complete(running)
    assert s.result(first) == 0
    assert [s.result(tag) for tag in later] == [None] * 5
    assert len(s.pending(OpKind.FLUSH)) == 2
    s.settle()
    assert [s.result(tag) for tag in later] == [0] * 5


def test_reads_are_spread_over_the_legs_and_a_stream_stays_on_one() -> None:
    s = SteppedEngine()
    for i in range(8):
        s.engine.submit_read(i * 8192, 512)
    assert {len(s.pending(OpKind.READ, leg=leg)) for leg in (0, 1)} == {4}
    s.settle()
    s.engine.submit_read(128 * 1024, 512)
    (op,) = s.pending(OpKind.READ)
    s.settle()
    for i in range(1, 4):
        s.engine.submit_read(128 * 1024 + i * 512, 512)
        (following,) = s.pending(OpKind.READ)
        assert following.leg == op.leg
        s.settle()


def test_chunks_that_need_a_resync_and_doubted_ones_are_read_from_the_first_leg() -> None:
    s = SteppedEngine(dirty=(0,))
    doubt = bytearray(4096)
    doubt[256] = 0b10
    s.engine.read_first_where(bytes(doubt))
    for chunk in (0, 0, 1, 1):
        s.engine.submit_read(chunk * 4096, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}
    s.settle()
    for _ in range(4):
        s.engine.submit_read(4096 - 512, 1024)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}
    s.settle()
    s.engine.read_first_where(bytes(4096))
    for _ in range(4):
        s.engine.submit_read(4096, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0, 1}


@pytest.mark.slow
def test_the_write_after_16381_in_one_chunk_waits_until_one_has_ended() -> None:
    s = SteppedEngine(size=16 << 20, chunk=16 << 20, dirty=(0,))
    tags = [s.engine.submit_write(i * 512, b"a" * 512) for i in range(16382)]
    assert s.waiting() == {"legs": 16381, "counter": 1}
    s.complete([op for op in s.data_writes() if op.offset == DATA_OFFSET])
    assert s.result(tags[0]) == 512
    assert s.waiting() == {"legs": 16381}
    assert any(op.offset == DATA_OFFSET + 16381 * 512 for op in s.data_writes())


@pytest.mark.parametrize("punch", [False, True])
def test_zeros_need_no_data_and_keep_the_promises_of_a_write(punch: bool) -> None:
    engine = SteppedEngine()
    engine.write(0, b"a" * 8192)
    engine.sweep(4)
    tag = engine.engine.submit_zero(4096, 4096, punch=punch)
    assert engine.data_writes() == []
    engine.complete(engine.page_writes())
    assert [(op.leg, op.data) for op in engine.data_writes()] == [(0, bytes(4096)), (1, bytes(4096))]
    engine.settle()
    assert engine.result(tag) == 4096
    for leg in range(2):
        assert engine.content(leg)[:8192] == b"a" * 4096 + bytes(4096)
    tag = engine.engine.submit_zero(100, 512, punch=punch)
    assert engine.result(tag) == -errno.EINVAL
