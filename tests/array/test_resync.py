"""What a series of windows has finished, how large they are, how fast a sync goes."""

from __future__ import annotations

import random

import pytest

from raidfs.array.resync import (
    BLOCKS_BESIDE_USERS,
    BLOCKS_IN_FLIGHT,
    Coverage,
    Pace,
    Progress,
    Span,
    WindowPolicy,
)
from raidfs.units import KIB, MIB

CHUNK = 64 * KIB
SIZE = 10 * CHUNK + 5 * KIB


# ---- coverage ------------------------------------------------------------------------------------------------------


def test_a_chunk_is_finished_when_all_of_it_is_done_and_only_once() -> None:
    coverage = Coverage(CHUNK)
    coverage.restart(0)
    assert coverage.reach(CHUNK - 1, SIZE) is None
    assert coverage.reach(CHUNK, SIZE) == Span(0, CHUNK)
    assert coverage.reach(CHUNK, SIZE) is None
    assert coverage.reach(3 * CHUNK + 1, SIZE) == Span(CHUNK, 3 * CHUNK)


def test_a_chunk_whose_beginning_was_not_covered_is_not_finished() -> None:
    coverage = Coverage(CHUNK)
    coverage.restart(4 * KIB)
    assert coverage.reach(CHUNK, SIZE) is None
    assert coverage.reach(2 * CHUNK, SIZE) == Span(CHUNK, 2 * CHUNK)


def test_what_was_done_before_a_restart_does_not_count() -> None:
    coverage = Coverage(CHUNK)
    coverage.restart(0)
    assert coverage.reach(CHUNK // 2, SIZE) is None
    coverage.restart(CHUNK // 2)
    assert coverage.reach(CHUNK, SIZE) is None
    assert coverage.reach(2 * CHUNK, SIZE) == Span(CHUNK, 2 * CHUNK)


def test_the_end_of_the_array_ends_its_last_chunk() -> None:
    coverage = Coverage(CHUNK)
    coverage.restart(10 * CHUNK)
    assert coverage.reach(SIZE - 1, SIZE) is None
    assert coverage.reach(SIZE, SIZE) == Span(10 * CHUNK, SIZE)


def test_nothing_is_finished_that_was_forgotten() -> None:
    coverage = Coverage(CHUNK)
    assert coverage.is_empty
    assert coverage.reach(SIZE, SIZE) is None
    coverage.restart(0)
    coverage.forget()
    assert coverage.is_empty
    assert coverage.reach(SIZE, SIZE) is None


@pytest.mark.parametrize("seed", range(50))
def test_every_chunk_said_to_be_finished_was_done_byte_by_byte_since_the_last_restart(seed: int) -> None:
    rng = random.Random(seed)
    coverage = Coverage(CHUNK)
    done: set[int] = set()  # in KiB
    at = 0
    coverage.restart(0)
    while at < SIZE:
        step = rng.randrange(1, 3 * CHUNK // KIB) * KIB
        if rng.random() < 0.2:  # bits were found: writes went on below
            coverage.restart(at)
            done.clear()
        if rng.random() < 0.1:  # a gap
            at = min(SIZE, at + step)
            coverage.restart(at)
            continue
        end = min(SIZE, at + step)
        done.update(range(at // KIB, end // KIB))
        at = end
        found = coverage.reach(at, SIZE)
        if found is not None:
            assert set(range(found.start // KIB, found.end // KIB)) <= done


# ---- windows -------------------------------------------------------------------------------------------------------


def test_a_window_grows_while_nobody_waits_long_and_shrinks_when_somebody_does() -> None:
    policy = WindowPolicy(50)
    first = policy.piece_bytes
    assert first == MIB // 2
    for _ in range(10):
        policy.stalled(0.001)
    grown = policy.piece_bytes
    assert grown > 4 * first
    policy.stalled(0.020)  # just what it aims at, below half of the target
    assert policy.piece_bytes == pytest.approx(grown, abs=4 * KIB)
    policy.stalled(0.030)
    assert policy.piece_bytes == pytest.approx(grown * 2 / 3, abs=8 * KIB)
    policy.stalled(9.0)
    assert policy.piece_bytes == pytest.approx(grown / 3, abs=8 * KIB)


def test_slow_messages_do_not_leave_the_legs_idle() -> None:
    bandwidth, message_s = 1e9, 0.030
    policy = WindowPolicy(50)
    for _ in range(200):
        policy.told(message_s)
        policy.stalled(2 * max(policy.piece_bytes / bandwidth, message_s) + message_s)
    assert message_s < policy.piece_bytes / bandwidth < 1.5 * message_s


def test_two_pieces_are_never_more_or_less_than_the_bounds_of_a_window() -> None:
    policy = WindowPolicy(50)
    for _ in range(100):
        policy.stalled(0.0)
    assert 2 * policy.piece_bytes == 64 * MIB
    for _ in range(100):
        policy.stalled(9.0)
    assert 2 * policy.piece_bytes == MIB


@pytest.mark.parametrize(("bandwidth", "message_s"), [(1e9, 0.003), (100e6, 0.006), (5e9, 0.001)])
def test_on_a_medium_of_any_speed_the_wait_settles_below_half_of_the_target(bandwidth: float, message_s: float) -> None:
    policy = WindowPolicy(50)

    def stall_s() -> float:  # until the piece is copied and the next but one is announced
        return 2 * max(policy.piece_bytes / bandwidth, message_s) + message_s

    seen = []
    for _ in range(200):
        seen.append(stall_s())
        policy.stalled(seen[-1])
    assert max(seen[100:]) < 0.050
    assert sum(stall <= 0.025 for stall in seen[100:]) > 60


def test_blocks_are_powers_of_two_and_at_least_four_to_a_piece() -> None:
    policy = WindowPolicy(50, window_bytes_min=2 * KIB, window_bytes_max=16 * KIB, granule_bytes=512)
    assert (policy.piece_bytes, policy.block_bytes) == (KIB, 512)
    policy = WindowPolicy(50)
    for _ in range(100):
        assert policy.block_bytes & policy.block_bytes - 1 == 0
        assert 4 * policy.block_bytes <= policy.piece_bytes
        policy.stalled(0.0)
    assert policy.block_bytes == MIB


# ---- pace ----------------------------------------------------------------------------------------------------------


def test_the_maximum_speed_is_kept_and_not_saved_up() -> None:
    pace = Pace(0, MIB, now=0.0)
    now = 0.0
    for _ in range(10):
        now += pace.rest_s(now)
        pace.took(MIB // 2, now)
    assert now == pytest.approx(4.5)
    pace.took(MIB // 2, now=100.0)  # after a long pause
    assert pace.rest_s(100.0) == pytest.approx(0.5)


def test_without_a_maximum_there_is_no_rest() -> None:
    pace = Pace(1000 * KIB, 0, now=0.0)
    pace.took(64 * MIB, now=0.0)
    assert pace.rest_s(0.0) == 0.0


def test_users_slow_a_sync_down_unless_it_is_below_its_minimum() -> None:
    pace = Pace(1000 * KIB, 0, now=0.0)
    assert pace.blocks_in_flight(50e6, users_active=False) == BLOCKS_IN_FLIGHT
    assert pace.blocks_in_flight(50e6, users_active=True) == BLOCKS_BESIDE_USERS
    assert pace.blocks_in_flight(100 * KIB, users_active=True) == BLOCKS_IN_FLIGHT


# ---- progress ------------------------------------------------------------------------------------------------------


def test_speed_is_that_of_the_last_seconds_and_tells_when_the_end_comes() -> None:
    progress = Progress(100 * MIB, now=0.0)
    assert progress.finish_s(0.0) is None
    for second in range(1, 51):
        progress.moved(second * MIB, MIB, float(second))
    assert progress.speed_bytes_s(50.0) == pytest.approx(MIB)
    assert progress.finish_s(50.0) == pytest.approx(50.0)
    assert progress.speed_bytes_s(80.0) < MIB  # it stands still
