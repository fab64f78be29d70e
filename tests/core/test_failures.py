"""Legs that fail, ranges that are suspended, membership that is lost."""

from __future__ import annotations

import errno

from support.engines import SteppedEngine

from raidfs._core import EventKind, LegState, OpKind

NEEDED = 0x8000


def kinds(s: SteppedEngine) -> list[tuple[EventKind, int]]:
    return [(kind, leg) for kind, leg, *_ in s.engine.events()]


def failed_write(s: SteppedEngine, leg: int) -> int:
    """Submit a write that fails on one leg and succeeds on the others."""
    tag = s.engine.submit_write(0, b"n" * 512)
    for op in s.data_writes():
        if op.leg == leg:
            s.legs.fail(op, errno.EIO)
        else:
            s.legs.complete(op)
    return tag


def test_a_write_that_failed_on_a_leg_returns_only_after_the_failure_is_recorded() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = failed_write(s, leg=1)
    assert kinds(s) == [(EventKind.LEG_FAILED, 1)]
    assert s.result(tag) is None
    assert s.waiting() == {"failure": 1}
    s.engine.leg_failure(1, recorded=True)
    assert s.result(tag) == 512
    assert s.engine.counters()[0] & NEEDED


def test_writes_that_meet_a_leg_whose_failure_is_not_recorded_wait() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    failed_write(s, leg=1)
    tag = s.engine.submit_write(8192, b"n" * 512)
    assert s.waiting() == {"failure": 1, "blocked": 1}
    s.engine.leg_failure(1, recorded=True)
    assert {op.leg for op in s.data_writes()} == {0}
    s.settle()
    assert s.result(tag) == 512


def test_reads_leave_a_failed_leg_out_at_once() -> None:
    s = SteppedEngine(dirty=(0,))
    failed_write(s, leg=0)
    for i in range(4):
        s.engine.submit_read(i * 512, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {1}


def test_when_the_record_is_refused_the_write_fails_and_the_leg_counts_again() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = failed_write(s, leg=1)
    s.engine.leg_failure(1, recorded=False)
    assert s.result(tag) == -errno.EIO
    assert s.engine.counters()[0] & NEEDED
    s.settle()
    s.write(0, b"m" * 512)
    assert s.content(0)[:512] == s.content(1)[:512] == b"m" * 512


def test_no_data_goes_out_while_a_leg_that_missed_the_bits_is_not_recorded_as_failed() -> None:
    s = SteppedEngine(legs=3)
    tag = s.engine.submit_write(0, b"n" * 512)
    for op in s.page_writes():
        if op.leg == 2:
            s.legs.fail(op, errno.EIO)
        else:
            s.legs.complete(op)
    assert not s.data_writes()
    assert s.waiting() == {"blocked": 1}
    s.engine.leg_failure(2, recorded=True)
    assert {op.leg for op in s.data_writes()} == {0, 1}
    s.settle()
    assert s.result(tag) == 512


def test_a_leg_that_missed_a_bitmap_write_and_counts_again_gets_the_bits_before_any_data() -> None:
    s = SteppedEngine(legs=3)
    tag = s.engine.submit_write(0, b"n" * 512)
    for op in s.page_writes():
        if op.leg == 2:
            s.legs.fail(op, errno.EIO)
        else:
            s.legs.complete(op)
    s.engine.leg_failure(2, recorded=False)
    assert not s.data_writes()
    s.settle()
    assert s.result(tag) == 512
    assert s.bit_on_disk(0, leg=2)


def test_the_last_leg_in_sync_is_never_failed_and_its_error_goes_to_the_user() -> None:
    s = SteppedEngine(states=(LegState.IN_SYNC, LegState.FAULTY), dirty=(0,))
    tag = failed_write(s, leg=0)
    assert s.result(tag) == -errno.EIO
    assert kinds(s) == [(EventKind.LAST_LEG, 0)]
    s.write(0, b"m" * 512)


def test_when_both_legs_fail_one_write_one_of_them_stays() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = s.engine.submit_write(0, b"n" * 512)
    for op in s.data_writes():
        s.legs.fail(op, errno.ENOSPC)
    assert s.result(tag) == -errno.ENOSPC
    assert kinds(s) == [(EventKind.LEG_FAILED, 0), (EventKind.LAST_LEG, 1)]


def test_a_transfer_that_ends_short_is_an_error() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.submit_write(0, b"n" * 1024)
    first, second = s.data_writes()
    s.legs.cut_short(first, 512)
    s.legs.complete(second)
    assert s.engine.events() == [(EventKind.LEG_FAILED, first.leg, errno.EIO, first.offset, 0)]


def test_a_read_error_is_tried_on_every_other_leg_before_the_user_hears_of_it() -> None:
    s = SteppedEngine(legs=3)
    tag = s.engine.submit_read(0, 512)
    tried = []
    for _ in range(3):
        (op,) = s.pending(OpKind.READ)
        tried.append(op.leg)
        s.legs.fail(op, errno.EIO)
    assert sorted(tried) == [0, 1, 2]
    assert s.result(tag) == -errno.EIO
    assert {kind for kind, _ in kinds(s)} == {EventKind.READ_ERROR}
    tag = s.engine.submit_read(0, 512)
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    s.settle()
    assert s.result(tag) == 512


def test_the_rest_of_a_block_is_read_from_another_leg_when_one_fails() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = s.engine.submit_write(1, b"n")
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    s.settle()
    assert s.result(tag) == 1


def test_a_write_whose_block_cannot_be_read_fails_and_touches_nothing() -> None:
    s = SteppedEngine(dirty=(0,))
    tag = s.engine.submit_write(1, b"n")
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    assert s.result(tag) == -errno.EIO
    assert not s.pending()


def test_a_failed_flush_of_one_leg_fails_the_leg_and_returns_when_that_is_recorded() -> None:
    s = SteppedEngine()
    tag = s.engine.submit_flush()
    first, second = s.pending(OpKind.FLUSH)
    s.legs.fail(first, errno.EIO)
    s.complete([second])
    assert s.result(tag) is None
    s.engine.leg_failure(first.leg, recorded=True)
    assert s.result(tag) == 0


def test_a_failed_flush_of_the_last_leg_is_never_retried_into_success() -> None:
    s = SteppedEngine(states=(LegState.IN_SYNC, LegState.FAULTY))
    tag = s.engine.submit_flush()
    s.legs.fail(s.pending(OpKind.FLUSH)[0], errno.EIO)
    assert s.result(tag) == -errno.EIO
    for _ in range(3):
        tag = s.engine.submit_flush()
        s.settle()
        assert s.result(tag) == -errno.EIO


def test_when_the_last_leg_refuses_a_bitmap_page_no_data_goes_out() -> None:
    s = SteppedEngine(states=(LegState.IN_SYNC, LegState.FAULTY))
    tag = s.engine.submit_write(0, b"n" * 512)
    s.legs.fail(s.page_writes()[0], errno.EIO)
    assert s.result(tag) == -errno.EIO
    assert not s.data_writes()
    s.write(0, b"m" * 512)
    assert s.bit_on_disk(0)


# ---- the suspended range -----------------------------------------------------------------------------------------


def test_a_thousand_writes_parked_in_a_suspended_range_leave_reads_and_other_writes_going() -> None:
    s = SteppedEngine(size=1 << 20, chunk=1 << 20, dirty=(0,))
    s.engine.suspend(0, 512 * 1024)
    parked = [s.engine.submit_write(i * 512, b"p" * 512) for i in range(1000)]
    assert s.waiting() == {"suspended": 1000}
    for i in range(50):
        read, write = s.engine.submit_read(i * 512, 512), s.engine.submit_write(600 * 1024 + i * 512, b"w" * 512)
        s.settle()
        assert s.data(read) == bytes(512)
        assert s.result(write) == 512
    s.engine.suspend(0, 0)
    s.settle()
    assert [s.result(tag) for tag in parked] == [512] * 1000


def test_reads_of_a_suspended_range_use_the_first_leg_in_sync() -> None:
    s = SteppedEngine(legs=3, states=(LegState.FAULTY, LegState.IN_SYNC, LegState.IN_SYNC))
    s.engine.suspend(4096, 8192)
    for _ in range(4):
        s.engine.submit_read(4096, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {1}


def test_a_drain_ends_when_the_last_older_request_in_its_range_has_ended() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    inside, outside = s.engine.submit_write(0, b"a" * 512), s.engine.submit_write(65536, b"a" * 512)
    read = s.engine.submit_read(512, 512)
    s.engine.suspend(0, 4096)
    drain = s.engine.submit_drain(0, 4096)
    younger = s.engine.submit_write(0, b"b" * 512)
    s.complete(s.pending(OpKind.READ))
    assert s.result(read) == 512
    assert s.result(drain) is None
    s.complete([op for op in s.data_writes() if op.data == b"a" * 512 and op.offset < 65536 * 2])
    assert s.result(inside) == 512
    assert s.result(drain) == 0
    assert s.result(outside) is None
    assert s.result(younger) is None


def test_a_write_that_waited_for_an_older_one_is_not_counted_by_a_drain_before_it_starts() -> None:
    s = SteppedEngine(dirty=(0,))
    first = s.engine.submit_write(0, b"a" * 512)
    second = s.engine.submit_write(0, b"b" * 512)
    s.engine.suspend(0, 4096)
    drain = s.engine.submit_drain(0, 4096)
    s.settle()
    assert s.result(first) == 512
    assert s.result(drain) == 0
    assert s.result(second) is None


def test_a_drain_does_not_wait_for_a_write_that_only_waits_for_a_record() -> None:
    s = SteppedEngine(dirty=(0,))
    write = failed_write(s, leg=1)
    drain = s.engine.submit_drain(0, 4096)
    assert s.result(drain) == 0
    assert s.result(write) is None


# ---- the lost membership -------------------------------------------------------------------------------------------


def test_after_the_fence_nothing_goes_to_a_leg_and_everything_fails() -> None:
    s = SteppedEngine(dirty=(0,))
    in_flight = s.engine.submit_write(0, b"a" * 512)
    taken = s.pending()
    behind = s.engine.submit_write(0, b"b" * 512)
    for_bitmap = s.engine.submit_write(65536, b"c" * 512)
    s.engine.suspend(4096, 8192)
    parked = s.engine.submit_write(4096, b"d" * 512)
    sweep, flush = s.engine.submit_sweep(), s.engine.submit_flush()
    drain = s.engine.submit_drain(0, 4096)
    s.engine.fence(errno.EIO)
    assert not s.engine.take_ops()
    s.legs.pending = taken
    s.complete(list(taken))
    assert not s.engine.take_ops()
    for tag in (in_flight, behind, for_bitmap, parked, sweep, flush):
        assert s.result(tag) == -errno.EIO
    assert s.result(drain) == 0
    assert s.result(s.engine.submit_write(0, b"x")) == -errno.EIO
    assert s.result(s.engine.submit_read(0, 1)) == -errno.EIO
    assert s.result(s.engine.submit_leg_write(0, 4096, bytes(512))) == -errno.EIO
    assert not s.waiting()
    assert not s.engine.events()


def test_after_the_fence_a_drain_still_waits_for_what_has_gone_out() -> None:
    """A fenced node may be asked to keep out of a window: it can say so when nothing of it is in flight."""
    s = SteppedEngine(dirty=(0,))
    write = s.engine.submit_write(0, b"a" * 512)
    taken = s.pending()
    s.engine.fence(errno.EIO)
    drain = s.engine.submit_drain(0, 4096)
    assert s.result(s.engine.submit_drain(65536, 65536 + 4096)) == 0
    assert s.result(drain) is None
    s.legs.pending = taken
    s.complete(list(taken))
    assert s.result(write) == -errno.EIO
    assert s.result(drain) == 0


def test_control_can_still_read_a_leg_after_the_fence() -> None:
    s = SteppedEngine()
    s.engine.fence(errno.EIO)
    tag = s.engine.submit_leg_read(0, 8192, 4096)
    s.settle()
    assert s.result(tag) == 4096
