"""When a bit may be cleared, and how it gets to the disk."""

from __future__ import annotations

import errno

import pytest
from support.engines import SLOT_OFFSET, SteppedEngine

from raidfs._core import EventKind, LegState, OpKind

NEEDED = 0x8000


def events_cleared_on_disk(s: SteppedEngine) -> int:
    return int.from_bytes(s.legs.images[0][SLOT_OFFSET + 32 : SLOT_OFFSET + 40], "little")


def test_a_bit_is_clear_on_disk_three_sweeps_after_the_last_write() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    states = []
    for _ in range(3):
        states.append((s.engine.counters()[0], s.bit_on_disk(0)))
        s.sweep()
    states.append((s.engine.counters()[0], s.bit_on_disk(0)))
    assert states == [(2, True), (1, True), (0, True), (0, False)]


def test_before_a_bit_is_cleared_all_legs_are_flushed() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep()
    s.engine.submit_sweep()
    first, second = s.pending(OpKind.FLUSH)
    s.complete([first])
    assert s.engine.counters()[0] == 1
    s.complete([second])
    assert s.engine.counters()[0] == 0


def test_a_write_during_that_flush_keeps_the_bit() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep()
    s.engine.submit_sweep()
    s.engine.submit_write(0, b"b" * 512)
    s.complete(s.pending(OpKind.FLUSH))
    assert s.engine.counters()[0] == 3
    s.sweep(2)
    assert s.bit_on_disk(0)


def test_a_new_write_waits_until_the_bit_is_back_when_its_clearing_is_on_the_way() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep(2)
    s.engine.submit_sweep()
    clearing = s.page_writes()
    assert clearing
    tag = s.engine.submit_write(0, b"b" * 512)
    assert not s.data_writes()
    s.complete(clearing)
    assert not s.data_writes()
    assert not s.bit_on_disk(0)
    s.complete(s.page_writes())
    assert s.bit_on_disk(0)
    assert s.data_writes()
    s.settle()
    assert s.result(tag) == 512


def test_events_cleared_is_on_disk_before_any_bit_is_cleared() -> None:
    s = SteppedEngine(events=41)
    s.write(0, b"a" * 512)
    assert events_cleared_on_disk(s) == 0
    s.sweep()
    assert events_cleared_on_disk(s) == 41
    assert s.bit_on_disk(0)


def test_a_flush_that_fails_keeps_the_bits_and_fails_the_leg() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep()
    s.engine.submit_sweep()
    first, second = s.pending(OpKind.FLUSH)
    s.legs.fail(first, errno.EIO)
    s.complete([second])
    s.settle()
    assert s.engine.counters()[0] == 1
    assert [(kind, leg) for kind, leg, *_ in s.engine.events()] == [(EventKind.LEG_FAILED, first.leg)]


@pytest.mark.parametrize("state", [LegState.MISSING, LegState.FAULTY, LegState.RECOVERING])
def test_a_degraded_array_keeps_its_bits(state: LegState) -> None:
    s = SteppedEngine(states=(LegState.IN_SYNC, state))
    s.write(0, b"a" * 512)
    s.sweep(5)
    assert s.engine.counters()[0] == 1
    assert s.bit_on_disk(0)


def test_bits_that_were_idle_when_a_leg_failed_stay() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep()
    s.engine.publish_legs([LegState.IN_SYNC, LegState.FAULTY])
    s.sweep(5)
    assert s.engine.counters()[0] == 1
    assert s.bit_on_disk(0)


def test_a_recovering_leg_gets_every_write_and_no_read() -> None:
    s = SteppedEngine(states=(LegState.IN_SYNC, LegState.RECOVERING), dirty=tuple(range(64)))
    s.engine.submit_write(0, b"a" * 512)
    assert {op.leg for op in s.data_writes()} == {0, 1}
    s.settle()
    for i in range(6):
        s.engine.submit_read(i * 4096, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}


def test_bits_below_the_point_that_is_in_sync_age_and_those_above_are_needed() -> None:
    s = SteppedEngine(dirty=(0, 1, 2), in_sync_below=2 * 4096)
    assert s.engine.counters()[:4] == [2, 2, NEEDED | 2, 0]
    s.sweep(4)
    assert s.engine.counters()[:4] == [0, 0, NEEDED | 2, 0]
    assert [s.bit_on_disk(i) for i in range(4)] == [False, False, True, False]
    assert s.engine.statistics()["chunks_needed"] == 1


def test_a_needed_chunk_stays_needed_through_writes() -> None:
    s = SteppedEngine(dirty=(0,))
    s.write(0, b"a" * 512)
    s.sweep(4)
    assert s.engine.counters()[0] == NEEDED | 2


def test_another_slots_bits_are_added_and_made_durable_by_a_sweep() -> None:
    s = SteppedEngine(dirty=(1,))
    other = bytearray(4096)
    other[256] = 0b110
    assert s.engine.import_bits(bytes(other)) == 2
    s.sweep()
    assert [s.bit_on_disk(i, leg=1) for i in range(4)] == [False, True, True, False]
    assert s.engine.counters()[:3] == [0, NEEDED | 2, NEEDED | 2]


def test_the_event_count_reaches_the_bitmap_superblock_with_the_next_sweep() -> None:
    s = SteppedEngine(events=7)
    s.engine.set_events(9)
    s.sweep()
    for image in s.legs.images:
        assert int.from_bytes(image[SLOT_OFFSET + 24 : SLOT_OFFSET + 32], "little") == 9


def test_an_idle_array_writes_nothing() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep(4)
    writes = [leg["writes"] for leg in s.engine.statistics()["legs"]]
    s.sweep(10)
    assert [leg["writes"] for leg in s.engine.statistics()["legs"]] == writes


def test_sweeps_that_come_together_run_one_after_the_other() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    tags = [s.engine.submit_sweep() for _ in range(3)]
    s.settle()
    assert [s.result(tag) for tag in tags] == [0, 0, 0]
    assert not s.bit_on_disk(0)


def test_bits_in_the_second_page_of_a_slot_have_their_own_writes() -> None:
    chunk = (4096 - 256) * 8 + 5
    s = SteppedEngine(size=160 << 20, pages=2)
    s.engine.submit_write(chunk * 4096, b"a" * 512)
    (first, _) = s.page_writes()
    assert first.offset == SLOT_OFFSET + 4096
    s.settle()
    assert s.bit_on_disk(chunk)
    s.sweep(3)
    assert not s.bit_on_disk(chunk)
