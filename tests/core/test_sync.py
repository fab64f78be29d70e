"""Passes over the array: what is copied, compared and repaired, from which leg, and when not."""

from __future__ import annotations

import errno

import pytest
from support.engines import DATA_OFFSET, SLOT_OFFSET, SteppedEngine

from raidfs._core import EventKind, LegState, OpKind, SyncAction

NEEDED = 0x8000
RESYNC = 0x4000
CHUNK = 4096
SIZE = 256 * 1024
HEAL, CHECK, REPAIR, REWRITE = SyncAction
IN_SYNC, RECOVERING, FAULTY, MISSING = LegState.IN_SYNC, LegState.RECOVERING, LegState.FAULTY, LegState.MISSING


def filled(s: SteppedEngine, *letters: str) -> SteppedEngine:
    """Fill the data of each leg with a letter of its own."""
    for image, letter in zip(s.legs.images, letters, strict=True):
        image[DATA_OFFSET:] = letter.encode() * (len(image) - DATA_OFFSET)
    return s


def letters(s: SteppedEngine, leg: int) -> str:
    """Return the first byte of each chunk of a leg."""
    return s.content(leg)[::CHUNK].decode()


def sync(s: SteppedEngine, action: SyncAction, start: int = 0, end: int = SIZE, leg: int = 0) -> int | None:
    """Do a sync, every operation succeeds; return its result."""
    tag = s.engine.submit_sync(action, start, end, leg=leg)
    s.settle()
    return s.result(tag)


# ---- what needs a sync -------------------------------------------------------------------------------------------


def test_the_next_range_to_sync_is_the_next_run_of_needed_chunks() -> None:
    s = SteppedEngine(dirty=(2, 3, 9, 63))
    assert s.engine.next_to_sync(0) == (2 * CHUNK, 4 * CHUNK)
    assert s.engine.next_to_sync(3 * CHUNK + 512) == (3 * CHUNK + 512, 4 * CHUNK)
    assert s.engine.next_to_sync(4 * CHUNK) == (9 * CHUNK, 10 * CHUNK)
    assert s.engine.next_to_sync(10 * CHUNK) == (63 * CHUNK, SIZE)
    assert s.engine.next_to_sync(SIZE) is None


def test_the_next_range_to_sync_has_all_from_the_lowest_recovery_offset() -> None:
    s = SteppedEngine(legs=3, dirty=(2,))
    s.engine.publish_legs([IN_SYNC, RECOVERING, RECOVERING], recovery_offsets=[0, 20 * CHUNK + 512, 8 * CHUNK + 512])
    assert s.engine.next_to_sync(0) == (2 * CHUNK, 3 * CHUNK)
    assert s.engine.next_to_sync(3 * CHUNK) == (8 * CHUNK + 512, SIZE)
    assert s.engine.next_to_sync(30 * CHUNK) == (30 * CHUNK, SIZE)


def test_a_range_that_reaches_the_recovery_offset_goes_on_to_the_end() -> None:
    s = SteppedEngine(dirty=(7, 8))
    s.engine.publish_legs([IN_SYNC, RECOVERING], recovery_offsets=[0, 8 * CHUNK + 512])
    assert s.engine.next_to_sync(0) == (7 * CHUNK, SIZE)


def test_the_end_of_an_array_that_is_not_whole_chunks_ends_the_last_range() -> None:
    s = SteppedEngine(size=SIZE - 512, dirty=(63,))
    assert s.engine.next_to_sync(0) == (63 * CHUNK, SIZE - 512)
    s.engine.sync_start(0, SIZE - 512)
    s.engine.sync_end(63 * CHUNK, SIZE - 512, aborted=False)
    assert s.engine.counters()[63] == 2


def test_a_sync_that_starts_makes_needed_chunks_resync_also_those_it_touches_in_part() -> None:
    s = SteppedEngine(dirty=(0, 1, 2, 3))
    s.engine.sync_start(CHUNK - 512, 2 * CHUNK + 512)
    assert s.engine.counters()[:5] == [RESYNC | 2, RESYNC | 2, RESYNC | 2, NEEDED | 2, 0]
    assert s.engine.statistics()["chunks_needed"] == 1
    assert s.engine.statistics()["chunks_resyncing"] == 3


def test_a_sync_that_ends_ends_only_chunks_that_lie_in_it_wholly() -> None:
    s = SteppedEngine(dirty=(0, 1, 2, 3))
    s.engine.sync_start(0, 4 * CHUNK)
    s.engine.sync_end(512, 3 * CHUNK - 512, aborted=False)
    assert s.engine.counters()[:4] == [RESYNC | 2, 2, RESYNC | 2, RESYNC | 2]


def test_an_aborted_sync_makes_all_chunks_that_it_touches_needed_again() -> None:
    s = SteppedEngine(dirty=(0, 1, 2, 3))
    s.engine.sync_start(0, 3 * CHUNK)
    s.engine.sync_end(CHUNK - 512, CHUNK + 512, aborted=True)
    assert s.engine.counters()[:4] == [NEEDED | 2, NEEDED | 2, RESYNC | 2, NEEDED | 2]


def test_a_chunk_that_was_synced_is_cleared_on_disk_by_the_sweeps() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.sync_start(0, CHUNK)
    s.sweep(4)
    assert s.bit_on_disk(0)
    s.engine.sync_end(0, CHUNK, aborted=False)
    s.sweep(3)
    assert not s.bit_on_disk(0)


def test_a_chunk_that_is_imported_while_it_ages_can_be_written() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.sweep()
    assert s.engine.counters()[0] == 1
    other = bytearray(4096)
    other[256] = 1
    s.engine.import_bits(bytes(other))
    s.write(0, b"b" * 512)
    assert s.engine.counters()[0] == NEEDED | 2


def test_bits_that_are_set_become_needed_for_a_leg_that_comes_back() -> None:
    s = SteppedEngine(states=(IN_SYNC, FAULTY))
    s.write(0, b"a" * 512)
    s.write(3 * CHUNK, b"a" * 512)
    assert s.engine.next_to_sync(0) is None
    assert s.engine.need_dirty() == 2
    assert s.engine.next_to_sync(CHUNK) == (3 * CHUNK, 4 * CHUNK)


# ---- heal --------------------------------------------------------------------------------------------------------


def test_a_heal_copies_the_first_leg_where_chunks_are_needed_and_nothing_else() -> None:
    s = filled(SteppedEngine(legs=3, dirty=(1, 3)), "a", "b", "c")
    s.engine.sync_start(CHUNK, 2 * CHUNK)
    assert sync(s, HEAL, 0, 8 * CHUNK) == 2 * CHUNK
    assert letters(s, 0)[:8] == "aaaaaaaa"
    assert letters(s, 1)[:8] == "bababbbb"
    assert letters(s, 2)[:8] == "cacacccc"
    counts = s.engine.statistics()["sync"]
    assert counts["bytes_read"] == 2 * CHUNK
    assert counts["bytes_written"] == 4 * CHUNK
    assert counts["bytes_skipped"] == 6 * CHUNK


def test_the_first_leg_is_the_one_in_sync_with_the_lowest_position() -> None:
    s = filled(SteppedEngine(legs=3, dirty=(0,)), "a", "b", "c")
    s.engine.publish_legs([IN_SYNC, IN_SYNC, RECOVERING], positions=[2, 1, 0], recovery_offsets=[0, 0, SIZE])
    for _ in range(3):
        s.engine.submit_read(0, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {1}
    s.settle()
    sync(s, HEAL)
    assert [letters(s, leg)[0] for leg in range(3)] == ["b", "b", "b"]


def test_a_recovering_leg_gets_all_from_its_recovery_offset_and_needed_chunks_below() -> None:
    s = filled(SteppedEngine(legs=3, dirty=(1,)), "a", "b", "c")
    s.engine.publish_legs([IN_SYNC, IN_SYNC, RECOVERING], recovery_offsets=[0, 0, 4 * CHUNK])
    assert sync(s, HEAL) == CHUNK + 60 * CHUNK
    assert letters(s, 1)[:8] == "babbbbbb"
    assert letters(s, 2)[:8] == "caccaaaa"
    assert set(letters(s, 2)[4:]) == {"a"}


def test_a_recovery_that_the_bitmap_guides_copies_needed_chunks_only() -> None:
    s = filled(SteppedEngine(dirty=(1,)), "a", "b")
    s.engine.publish_legs([IN_SYNC, RECOVERING], recovery_offsets=[0, SIZE])
    assert sync(s, HEAL) == CHUNK
    assert letters(s, 1)[:4] == "babb"


def test_with_one_leg_a_heal_touches_nothing() -> None:
    s = SteppedEngine(states=(IN_SYNC, FAULTY), dirty=(1,))
    assert sync(s, HEAL) == 0
    assert s.engine.statistics()["legs"][0]["reads"] == 0


def test_an_unreadable_block_is_healed_from_the_next_leg_in_sync() -> None:
    s = filled(SteppedEngine(legs=3, dirty=(0,)), "a", "b", "c")
    tag = s.engine.submit_sync(HEAL, 0, CHUNK)
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    assert [op.leg for op in s.pending(OpKind.READ)] == [1]
    s.settle()
    assert s.result(tag) == CHUNK
    assert [letters(s, leg)[0] for leg in range(3)] == ["b", "b", "b"]
    assert s.engine.events() == [(EventKind.READ_ERROR, 0, errno.EIO, DATA_OFFSET, CHUNK)]


def test_a_block_that_no_leg_in_sync_can_read_ends_the_request() -> None:
    s = filled(SteppedEngine(dirty=(0,)), "a", "b")
    s.engine.publish_legs([IN_SYNC, RECOVERING])
    tag = s.engine.submit_sync(HEAL, 0, CHUNK)
    s.legs.fail(s.pending(OpKind.READ)[0], errno.EIO)
    assert not s.pending()
    assert s.result(tag) == -errno.ENODATA


def test_a_leg_that_refuses_a_copy_fails_and_the_request_asks_to_look_again() -> None:
    s = SteppedEngine(legs=3, dirty=(0, 1))
    s.engine.set_sync_limits(CHUNK, 2)
    tag = s.engine.submit_sync(HEAL, 0, 2 * CHUNK)
    behind = s.engine.submit_sync(HEAL, 0, SIZE)
    s.complete(s.pending(OpKind.READ))
    s.legs.fail(s.data_writes()[0], errno.ENOSPC)
    assert s.result(tag) is None
    s.complete(s.data_writes())
    assert s.result(tag) == s.result(behind) == -errno.EAGAIN
    assert [event[:3] for event in s.engine.events()] == [(EventKind.LEG_FAILED, 1, errno.ENOSPC)]


def test_when_the_source_fails_while_a_block_is_read_nothing_is_copied() -> None:
    s = SteppedEngine(dirty=(0, 1), legs=3)
    tag = s.engine.submit_sync(HEAL, 0, CHUNK)
    s.engine.block_leg(0)
    s.engine.leg_failure(0, recorded=True)
    s.complete(s.pending(OpKind.READ))
    assert not s.data_writes()
    assert s.result(tag) == -errno.EAGAIN


def test_when_another_leg_fails_while_a_block_is_read_nothing_is_copied_before_that_is_recorded() -> None:
    s = SteppedEngine(dirty=(0, 1), legs=3)
    tag = s.engine.submit_sync(HEAL, 0, CHUNK)
    s.engine.block_leg(2)
    s.complete(s.pending(OpKind.READ))
    assert not s.data_writes()
    assert s.result(tag) == -errno.EAGAIN


def test_no_block_starts_while_a_failure_is_not_recorded() -> None:
    s = SteppedEngine(legs=3, dirty=(0,))
    s.engine.block_leg(2)
    assert s.result(s.engine.submit_sync(HEAL, 0, SIZE)) == -errno.EAGAIN
    assert not s.pending()
    s.engine.leg_failure(2, recorded=True)
    assert sync(s, HEAL) == CHUNK


# ---- order with own writes ---------------------------------------------------------------------------------------


def test_a_write_to_a_block_that_is_copied_comes_after_the_copy() -> None:
    s = filled(SteppedEngine(dirty=(0, 1)), "a", "b")
    s.engine.submit_sync(HEAL, 0, CHUNK)
    inside, outside = s.engine.submit_write(512, b"w" * 512), s.engine.submit_write(CHUNK, b"w" * 512)
    assert {op.offset - DATA_OFFSET for op in s.data_writes()} == {CHUNK}
    s.complete(s.data_writes())
    assert s.result(outside) == 512
    s.complete(s.pending(OpKind.READ))
    assert [op.data for op in s.data_writes()] == [b"a" * CHUNK]
    s.settle()
    assert s.result(inside) == 512
    assert s.content(0)[:CHUNK] == s.content(1)[:CHUNK] == b"a" * 512 + b"w" * 512 + b"a" * (CHUNK - 1024)


def test_a_copy_comes_after_the_writes_that_were_there_before() -> None:
    s = filled(SteppedEngine(dirty=(0,)), "a", "b")
    s.engine.submit_write(512, b"w" * 512)
    tag = s.engine.submit_sync(HEAL, 0, CHUNK)
    assert not s.pending(OpKind.READ)
    s.settle()
    assert s.result(tag) == CHUNK
    assert s.content(1)[:CHUNK] == s.content(0)[:CHUNK]


def test_a_sync_goes_on_in_the_suspended_range_and_drains_do_not_wait_for_it() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.suspend(0, SIZE)
    tag = s.engine.submit_sync(HEAL, 0, SIZE)
    assert s.pending(OpKind.READ)
    assert s.result(s.engine.submit_drain(0, SIZE)) == 0
    s.settle()
    assert s.result(tag) == CHUNK


# ---- many blocks, many requests ----------------------------------------------------------------------------------


def test_blocks_in_flight_are_limited_over_all_requests_and_the_next_request_fills_up() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    s.engine.set_sync_limits(CHUNK, 3)
    tags = [s.engine.submit_sync(HEAL, i * 2 * CHUNK, (i * 2 + 2) * CHUNK) for i in range(3)]
    assert {(op.offset - DATA_OFFSET) // CHUNK for op in s.pending(OpKind.READ)} == {0, 1, 2}
    assert s.engine.statistics()["sync"]["blocks_in_flight"] == 3
    s.complete(s.pending(OpKind.READ)[:1])
    s.complete(s.data_writes())
    assert {(op.offset - DATA_OFFSET) // CHUNK for op in s.pending(OpKind.READ)} == {1, 2, 3}
    s.engine.set_sync_limits(CHUNK, 64)
    assert {(op.offset - DATA_OFFSET) // CHUNK for op in s.pending(OpKind.READ)} == {1, 2, 3, 4, 5}
    s.settle()
    assert [s.result(tag) for tag in tags] == [2 * CHUNK] * 3
    assert s.engine.statistics()["sync"]["requests"] == 0


def test_an_abort_ends_requests_when_their_blocks_in_flight_have_ended() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    s.engine.set_sync_limits(CHUNK, 2)
    write = s.engine.submit_write(CHUNK, b"w" * 512)
    first, second = s.engine.submit_sync(HEAL, 0, SIZE), s.engine.submit_sync(HEAL, 0, SIZE)
    s.engine.abort_sync()
    assert s.result(second) == -errno.ECANCELED
    assert s.result(first) is None
    s.complete(s.pending(OpKind.READ))
    assert s.result(first) == -errno.ECANCELED
    assert {op.data for op in s.data_writes()} == {b"w" * 512}
    s.settle()
    assert s.result(write) == 512
    assert sync(s, HEAL) == SIZE


def test_after_the_fence_a_sync_touches_nothing_more() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    s.engine.set_sync_limits(CHUNK, 2)
    tag = s.engine.submit_sync(HEAL, 0, SIZE)
    taken = s.pending()
    s.engine.fence(errno.EIO)
    s.complete(taken)
    assert not s.pending()
    assert s.result(tag) == -errno.EIO
    assert s.result(s.engine.submit_sync(HEAL, 0, SIZE)) == -errno.EIO


def test_an_engine_that_ends_in_the_middle_of_a_sync_frees_its_blocks() -> None:
    s = SteppedEngine(dirty=tuple(range(64)))
    s.engine.submit_sync(HEAL, 0, SIZE)
    s.engine.submit_sync(CHECK, 0, SIZE)
    assert s.pending()


def test_a_read_only_node_checks_and_writes_nothing() -> None:
    s = SteppedEngine(read_only=True, dirty=(0,))
    for action in (HEAL, REPAIR, REWRITE):
        assert s.result(s.engine.submit_sync(action, 0, SIZE)) == -errno.EROFS
    assert sync(s, CHECK) == SIZE


def test_a_range_is_widened_to_whole_blocks_and_cut_at_the_end() -> None:
    s = SteppedEngine(size=SIZE - 512, block=4096)
    for image in s.legs.images:
        image += bytes(512)
    assert sync(s, CHECK, 100, 200) == 4096
    assert sync(s, CHECK, SIZE - 1000, 1 << 40) == 4096
    assert sync(s, CHECK, SIZE, SIZE + 1) == 0


@pytest.mark.parametrize(("block", "blocks"), [(3 * CHUNK, 8), (256, 8), (2 << 20, 8), (CHUNK, 0), (CHUNK, 65)])
def test_limits_that_cannot_be_kept_are_refused(block: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="sync blocks"):
        SteppedEngine().engine.set_sync_limits(block, blocks)


# ---- check and repair --------------------------------------------------------------------------------------------


def differing() -> SteppedEngine:
    s = filled(SteppedEngine(legs=3), "a", "a", "a")
    s.legs.images[2][DATA_OFFSET + CHUNK + 512] ^= 1
    s.legs.images[1][DATA_OFFSET + CHUNK + 1024] ^= 1
    s.legs.images[1][DATA_OFFSET + 9 * CHUNK] ^= 1
    return s


def test_a_check_counts_the_sectors_that_differ_and_writes_nothing() -> None:
    s = differing()
    assert sync(s, CHECK) == SIZE
    assert s.engine.mismatches() == (3, [(CHUNK + 512, 1024), (9 * CHUNK, 512)], 0)
    counts = s.engine.statistics()
    assert counts["sync"]["bytes_written"] == counts["chunks_dirty"] == 0
    assert counts["sync"]["bytes_read"] == 3 * SIZE
    s.engine.reset_mismatches()
    assert s.engine.mismatches() == (0, [], 0)


def test_ranges_that_do_not_fit_are_counted() -> None:
    s = filled(SteppedEngine(size=2 << 20), "a", "a")
    for i in range(1500):
        s.legs.images[1][DATA_OFFSET + i * 1024] ^= 1
    sync(s, CHECK, 0, 2 << 20)
    sectors, ranges, lost = s.engine.mismatches()
    assert (sectors, len(ranges), lost) == (1500, 1024, 476)


def test_ranges_are_in_order_and_merged_whatever_the_order_of_the_blocks() -> None:
    s = filled(SteppedEngine(), "a", "b")
    s.engine.set_sync_limits(CHUNK, 8)
    s.engine.submit_sync(CHECK, 0, 3 * CHUNK)
    s.complete([op for op in s.pending(OpKind.READ) if op.offset != DATA_OFFSET + CHUNK])
    assert s.engine.mismatches()[1] == [(0, CHUNK), (2 * CHUNK, CHUNK)]
    s.settle()
    assert s.engine.mismatches()[1] == [(0, 3 * CHUNK)]


def test_a_repair_writes_the_first_legs_data_after_its_bit_is_durable() -> None:
    s = differing()
    s.engine.set_sync_limits(CHUNK, 1)
    tag = s.engine.submit_sync(REPAIR, CHUNK, 2 * CHUNK)
    s.complete(s.pending(OpKind.READ))
    pages = s.page_writes()
    assert len(pages) == 3
    s.complete(pages[:2])
    assert not s.data_writes()
    s.complete(pages[2:])
    assert {op.leg for op in s.data_writes()} == {1, 2}
    assert all(s.bit_on_disk(1, leg) for leg in range(3))
    s.settle()
    assert s.result(tag) == CHUNK
    assert s.content(1)[CHUNK : 2 * CHUNK] == s.content(2)[CHUNK : 2 * CHUNK] == b"a" * CHUNK
    assert s.engine.mismatches()[0] == 2
    assert s.engine.counters()[1] == 2
    s.sweep(3)
    assert not s.bit_on_disk(1)


def test_a_repair_that_a_leg_refuses_leaves_its_chunk_needed() -> None:
    s = differing()
    tag = s.engine.submit_sync(REPAIR, CHUNK, 2 * CHUNK)
    s.complete(s.pending(OpKind.READ))
    s.complete(s.page_writes())
    failing, fine = s.data_writes()
    s.legs.fail(failing, errno.EIO)
    s.complete([fine])
    assert s.result(tag) == -errno.EAGAIN
    assert s.engine.counters()[1] == NEEDED | 2


def test_a_repair_does_not_write_when_a_leg_has_failed_since_it_read() -> None:
    s = differing()
    tag = s.engine.submit_sync(REPAIR, CHUNK, 2 * CHUNK)
    s.complete(s.pending(OpKind.READ))
    s.engine.block_leg(2)
    s.complete(s.page_writes())
    assert not s.data_writes()
    assert s.result(tag) == -errno.EAGAIN
    assert s.engine.counters()[1] == 2


def test_a_repair_rewrites_what_a_leg_could_not_read() -> None:
    s = filled(SteppedEngine(legs=3), "a", "a", "a")
    tag = s.engine.submit_sync(REPAIR, 0, CHUNK)
    s.legs.fail(s.pending(OpKind.READ, leg=0)[0], errno.EIO)
    s.complete(s.pending(OpKind.READ))
    s.complete(s.page_writes())
    assert {op.leg for op in s.data_writes()} == {0, 2}
    s.settle()
    assert s.result(tag) == CHUNK
    assert s.engine.mismatches()[0] == 0


def test_a_check_needs_two_legs_in_sync() -> None:
    s = SteppedEngine(states=(IN_SYNC, RECOVERING))
    assert sync(s, CHECK) == 0
    assert s.engine.statistics()["sync"]["bytes_skipped"] == SIZE


# ---- rewriting what a leg cannot read ----------------------------------------------------------------------------


def test_a_rewrite_reads_another_leg_writes_the_leg_and_reads_it_back() -> None:
    s = filled(SteppedEngine(legs=3), "a", "b", "b")
    tag = s.engine.submit_sync(REWRITE, 0, CHUNK, leg=0)
    assert [op.leg for op in s.pending(OpKind.READ)] == [1]
    s.complete(s.pending())
    assert [op.leg for op in s.data_writes()] == [0]
    s.complete(s.pending())
    assert [op.leg for op in s.pending(OpKind.READ)] == [0]
    s.complete(s.pending())
    assert s.result(tag) == CHUNK
    assert letters(s, 0)[:2] == "ba"
    assert s.engine.statistics()["legs"][0]["corrected_reads"] == 1


def test_a_rewrite_that_reads_back_something_else_fails() -> None:
    s = filled(SteppedEngine(), "a", "b")
    tag = s.engine.submit_sync(REWRITE, 0, CHUNK, leg=0)
    s.complete(s.pending())
    s.complete(s.pending())
    s.legs.images[0][DATA_OFFSET] ^= 1
    s.complete(s.pending())
    assert s.result(tag) == -errno.EIO
    assert s.engine.statistics()["legs"][0]["corrected_reads"] == 0


def test_a_rewrite_that_cannot_be_read_back_fails_and_raises_no_event() -> None:
    s = SteppedEngine()
    tag = s.engine.submit_sync(REWRITE, 0, CHUNK, leg=0)
    s.complete(s.pending())
    s.complete(s.pending())
    s.legs.fail(s.pending()[0], errno.EIO)
    assert s.result(tag) == -errno.EIO
    assert not s.engine.events()


def test_without_another_leg_in_sync_there_is_nothing_to_rewrite_from() -> None:
    s = SteppedEngine(states=(IN_SYNC, RECOVERING))
    assert sync(s, REWRITE, leg=0) == -errno.ENODATA
    assert sync(s, REWRITE, leg=7) == -errno.EINVAL


def test_every_distinct_failed_read_is_told() -> None:
    s = SteppedEngine()
    for offset in (0, 4096, 0):
        s.engine.submit_read(offset, 512)
        op = s.pending(OpKind.READ)[0]
        if op.leg == 1:
            s.settle()
            s.engine.submit_read(offset, 512)
            op = s.pending(OpKind.READ)[0]
        s.legs.fail(op, errno.EIO)
        s.settle()
    places = {(offset - DATA_OFFSET, length) for _, _, _, offset, length in s.engine.events()}
    assert places == {(0, 512), (4096, 512)}
    assert not s.engine.events()


# ---- legs that come and go ---------------------------------------------------------------------------------------


def grown(s: SteppedEngine) -> int:
    """Add an empty leg."""
    s.legs.images.append(bytearray(len(s.legs.images[0])))
    return s.engine.add_leg(DATA_OFFSET)


def test_a_leg_that_is_added_has_no_part_until_it_is_published() -> None:
    s = SteppedEngine(dirty=(0,))
    assert grown(s) == 2
    s.write(0, b"a" * 512)
    assert not any(s.content(2))
    tag = s.engine.submit_leg_write(2, 4096, b"s" * 4096)
    s.settle()
    assert s.result(tag) == 4096
    s.engine.publish_legs([IN_SYNC, IN_SYNC, RECOVERING])
    s.write(0, b"b" * 512)
    assert s.content(2)[:512] == b"b" * 512


def test_before_data_goes_to_a_leg_that_joins_its_own_slot_is_written_to_it() -> None:
    s = SteppedEngine(dirty=(0, 5), states=(IN_SYNC, FAULTY))
    s.legs.images[1][SLOT_OFFSET : SLOT_OFFSET + 4096] = bytes(4096)
    s.engine.publish_legs([IN_SYNC, RECOVERING])
    s.engine.submit_write(0, b"a" * 512)
    assert not s.data_writes()
    sweep = s.engine.submit_sweep()
    s.complete(s.page_writes())
    assert s.result(sweep) == 0
    assert s.bit_on_disk(5, leg=1)
    assert {op.leg for op in s.data_writes()} == {0, 1}


def test_a_sweep_ends_after_the_slot_is_on_a_leg_that_joined_while_a_page_was_written() -> None:
    s = SteppedEngine(states=(IN_SYNC, FAULTY))
    s.legs.images[1][SLOT_OFFSET : SLOT_OFFSET + 4096] = bytes(4096)
    write = s.engine.submit_write(0, b"a" * 512)
    (running,) = s.page_writes()
    sweep = s.engine.submit_sweep()
    s.engine.publish_legs([IN_SYNC, RECOVERING])
    s.complete([running])
    assert s.result(sweep) is None
    assert not s.data_writes()
    s.complete(s.page_writes())
    assert s.result(sweep) == 0
    assert s.bit_on_disk(0, leg=1)
    s.settle()
    assert s.result(write) == 512


def test_a_write_under_way_when_a_leg_joins_succeeds_and_leaves_its_chunk_needed() -> None:
    s = SteppedEngine(states=(IN_SYNC, FAULTY))
    tag = s.engine.submit_write(0, b"a" * 512)
    s.complete(s.page_writes())
    s.engine.publish_legs([IN_SYNC, RECOVERING], recovery_offsets=[0, SIZE])
    s.settle()
    assert s.result(tag) == 512
    assert s.engine.counters()[0] == NEEDED | 2
    assert sync(s, HEAL) == CHUNK
    assert s.content(1) == s.content(0)


def test_a_flush_under_way_when_a_leg_joins_succeeds() -> None:
    s = SteppedEngine(states=(IN_SYNC, FAULTY))
    tag = s.engine.submit_flush()
    running = s.pending()
    s.engine.publish_legs([IN_SYNC, RECOVERING])
    s.complete(running)
    assert s.result(tag) == 0


def test_a_leg_that_failed_and_came_back_within_one_write_lacks_it() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.sync_start(0, CHUNK)
    s.engine.sync_end(0, CHUNK, aborted=False)
    tag = s.engine.submit_write(0, b"a" * 512)
    slow, failing = s.data_writes()
    s.legs.fail(failing, errno.EIO)
    s.engine.leg_failure(1, recorded=True)
    s.engine.publish_legs([IN_SYNC, RECOVERING], recovery_offsets=[0, SIZE])
    s.complete([slow])
    assert s.result(tag) == 512
    assert s.engine.counters()[0] & NEEDED


def test_an_index_is_free_for_the_next_leg_once_nothing_is_in_flight_on_it() -> None:
    s = SteppedEngine(legs=3, dirty=(0,))
    with pytest.raises(ValueError, match="counts"):
        s.engine.remove_leg(1)
    s.engine.submit_write(0, b"a" * 512)
    running = s.data_writes()
    s.engine.publish_legs([IN_SYNC, FAULTY, IN_SYNC])
    assert s.engine.statistics()["legs"][1]["ops_in_flight"] == 1
    with pytest.raises(OSError, match="busy"):
        s.engine.remove_leg(1)
    s.complete(running)
    s.engine.remove_leg(1)
    with pytest.raises(ValueError, match="no leg"):
        s.engine.remove_leg(1)
    with pytest.raises(ValueError, match="no leg"):
        s.engine.publish_legs([IN_SYNC, RECOVERING, IN_SYNC])
    assert s.result(s.engine.submit_leg_read(1, 0, 512)) == -errno.EINVAL
    assert s.engine.add_leg(DATA_OFFSET) == 1
    assert s.engine.statistics()["legs"][1]["writes"] == 0


def test_legs_left_out_at_the_end_are_missing() -> None:
    s = SteppedEngine()
    grown(s)
    s.engine.publish_legs([IN_SYNC, IN_SYNC])
    assert [leg["state"] for leg in s.engine.statistics()["legs"]] == [IN_SYNC, IN_SYNC, MISSING]


def test_an_array_has_at_most_sixteen_legs() -> None:
    s = SteppedEngine(legs=16)
    with pytest.raises(ValueError, match="1 to 16"):
        s.engine.add_leg(DATA_OFFSET)


def test_with_another_number_of_positions_the_array_is_degraded_or_not() -> None:
    s = SteppedEngine()
    s.write(0, b"a" * 512)
    s.engine.publish_legs([IN_SYNC, IN_SYNC], raid_disks=3)
    s.sweep(4)
    assert s.bit_on_disk(0)
    s.engine.publish_legs([IN_SYNC, IN_SYNC], raid_disks=2)
    s.sweep(4)
    assert not s.bit_on_disk(0)


def test_a_node_that_starts_with_a_recovering_leg_writes_its_slot_with_the_first_sweep() -> None:
    s = SteppedEngine(states=(IN_SYNC, RECOVERING), dirty=(3,))
    s.legs.images[1][SLOT_OFFSET : SLOT_OFFSET + 4096] = bytes(4096)
    s.sweep()
    assert s.bit_on_disk(3, leg=1)


def test_all_reads_use_the_first_leg_while_control_asks_for_it() -> None:
    s = SteppedEngine()
    s.engine.read_first(True)
    for i in range(4):
        s.engine.submit_read(i * 8192, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}
    s.settle()
    s.engine.read_first(False)
    for i in range(4):
        s.engine.submit_read(i * 8192, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0, 1}


def test_chunks_being_resynced_are_read_from_the_first_leg() -> None:
    s = SteppedEngine(dirty=(0,))
    s.engine.sync_start(0, CHUNK)
    for _ in range(4):
        s.engine.submit_read(0, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}
