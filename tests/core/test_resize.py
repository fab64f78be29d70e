"""Another size of the bitmap, or other chunks: what a slot tells meanwhile, and what becomes of writes."""

from __future__ import annotations

import errno
import random

import pytest
from support.engines import BITS_START, DATA_OFFSET, PAGE, SLOT_OFFSET, SteppedEngine

from raidfs._core import EventKind, LegState, OpKind, SyncAction
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.sim.legs import PendingOp

NEEDED = 0x8000
RESYNC = 0x4000
KIB = 1024
SIZE = 256 * KIB
CHUNK = 4 * KIB


def header(size: int, chunk: int) -> bytes:
    return BitmapSuperblock(
        uuid=bytes(16),
        events=1,
        events_cleared=1,
        sync_size_sectors=size // 512,
        chunk_bytes=chunk,
        nodes=2,
        cluster_name=b"c",
    ).encode()


def engine(**options: object) -> SteppedEngine:
    given = {"size": SIZE, "chunk": CHUNK, "room": 1024 * KIB, **options}
    return SteppedEngine(header=header(given["size"], given["chunk"]), **given)  # type: ignore[arg-type]


def resize(s: SteppedEngine, size: int, chunk: int, *, needed_from: int | None = None) -> int:
    return s.engine.submit_resize(size, chunk, header(size, chunk), needed_from=needed_from)


def resized(s: SteppedEngine, size: int, chunk: int, *, needed_from: int | None = None) -> None:
    tag = resize(s, size, chunk, needed_from=needed_from)
    s.settle()
    assert s.result(tag) == 0


def told(slot: bytes) -> set[int]:
    """Return the 512-byte sectors that the bits of a slot stand for, read by the header that is in it."""
    found = BitmapSuperblock.decode(slot)
    sectors = found.chunk_bytes // 512
    dirty = (chunk for chunk in range(found.bits) if slot[BITS_START + chunk // 8] >> chunk % 8 & 1)
    return {s for chunk in dirty for s in range(chunk * sectors, (chunk + 1) * sectors) if s < found.sync_size_sectors}


def slot_on(s: SteppedEngine, leg: int) -> bytes:
    return bytes(s.legs.images[leg][SLOT_OFFSET : SLOT_OFFSET + len(s.engine.bitmap_image())])


def told_by(s: SteppedEngine, leg: int) -> set[int]:
    return told(slot_on(s, leg))


def sectors_of(start: int, end: int) -> set[int]:
    return set(range(start // 512, end // 512))


def raw_bits(s: SteppedEngine, leg: int = 0) -> set[int]:
    slot = slot_on(s, leg)
    return {bit for bit in range((len(slot) - BITS_START) * 8) if slot[BITS_START + bit // 8] >> bit % 8 & 1}


def fail(s: SteppedEngine, ops: list[PendingOp]) -> None:
    for op in ops:
        s.legs.fail(op, errno.EIO)


# ---- the slot ----------------------------------------------------------------------------------------------------


def test_the_bits_of_new_space_are_durable_on_all_legs_below_the_new_header_before_the_reply() -> None:
    s = engine(dirty=(3,))
    tag = resize(s, 2 * SIZE, CHUNK, needed_from=SIZE)
    while s.result(tag) is None:
        s.complete(s.pending()[:1])
    assert not s.pending()
    for leg in (0, 1):
        assert slot_on(s, leg)[40:] == s.engine.bitmap_durable()[40:]
        assert BitmapSuperblock.decode(slot_on(s, leg)).sync_size_sectors == 2 * SIZE // 512
        assert told_by(s, leg) == sectors_of(3 * CHUNK, 4 * CHUNK) | sectors_of(SIZE, 2 * SIZE)
    counters = s.engine.counters()
    assert counters[64:] == [2 | NEEDED] * 64
    assert s.engine.statistics()["chunks_needed"] == 65


def test_without_that_wish_new_space_has_no_bits_whatever_the_slot_held_behind_the_old_end() -> None:
    s = engine(dirty=(3, *range(64, 200)))
    resized(s, 2 * SIZE, CHUNK)
    assert raw_bits(s, 0) == raw_bits(s, 1) == {3}
    assert s.engine.statistics()["chunks_dirty"] == 1


def test_a_shrunken_tail_leaves_no_bit() -> None:
    s = engine(dirty=(3, 40, 63), capacity=SIZE // 2)
    doubt = bytearray(PAGE)
    doubt[BITS_START + 40 // 8] = 1
    s.engine.read_first_where(bytes(doubt))
    resized(s, SIZE // 2, CHUNK)
    assert raw_bits(s, 0) == raw_bits(s, 1) == {3}
    assert len(s.engine.counters()) == 32
    assert s.engine.statistics()["chunks_needed"] == 1
    resized(s, SIZE, CHUNK)
    s.engine.set_capacity(SIZE)
    assert raw_bits(s) == {3}
    assert s.engine.counters()[32:] == [0] * 32
    for _ in range(4):
        s.engine.submit_read(40 * CHUNK, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0, 1}


def test_the_bit_of_a_doubled_chunk_is_that_of_either_half() -> None:
    s = engine(dirty=(2, 5, 6, 7), in_sync_below=6 * CHUNK)
    doubt = bytearray(PAGE)
    doubt[BITS_START] = 1 << 1
    s.engine.read_first_where(bytes(doubt))
    resized(s, SIZE, 2 * CHUNK)
    assert s.engine.counters()[:5] == [0, 2, 2, 2 | NEEDED, 0]
    assert raw_bits(s, 0) == raw_bits(s, 1) == {1, 2, 3}
    for _ in range(4):
        s.engine.submit_read(0, 512)  # the other half of what is in doubt
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}


def test_both_halves_of_a_chunk_have_its_bit() -> None:
    s = engine(dirty=(1, 2), in_sync_below=2 * CHUNK)
    s.engine.sync_start(2 * CHUNK, 3 * CHUNK)
    doubt = bytearray(PAGE)
    doubt[BITS_START] = 1 << 4
    s.engine.read_first_where(bytes(doubt))
    resized(s, SIZE, CHUNK // 4)
    assert s.engine.counters()[:20] == [0] * 4 + [2] * 4 + [2 | RESYNC] * 4 + [0] * 8
    assert raw_bits(s, 0) == raw_bits(s, 1) == set(range(4, 12))
    for _ in range(4):
        s.engine.submit_read(5 * CHUNK - 512, 512)
    assert {op.leg for op in s.pending(OpKind.READ)} == {0}


def test_the_last_chunk_of_an_odd_size_says_nothing_of_new_space() -> None:
    s = engine(size=SIZE + 512, dirty=(64,))
    resized(s, 2 * SIZE, 512)
    assert raw_bits(s) == {512}


def test_the_event_counts_in_the_header_stay_the_engines() -> None:
    s = engine(events=41)
    s.sweep()
    s.engine.set_events(77)
    resized(s, 2 * SIZE, CHUNK)
    found = BitmapSuperblock.decode(slot_on(s, 1))
    assert (found.events, found.events_cleared, found.chunk_bytes) == (77, 41, CHUNK)


@pytest.mark.parametrize(("before", "after"), [(512, 1024), (1024, 512), (1024, 1024), (512, 4096)])
@pytest.mark.parametrize("sizes", [(16384, 16384), (16384, 10000), (10000, 16384)])
@pytest.mark.parametrize("seed", range(3))
def test_at_every_moment_a_slot_read_by_its_own_header_tells_of_every_chunk(
    before: int, after: int, sizes: tuple[int, int], seed: int
) -> None:
    size, new_size = (kib * KIB for kib in sizes)
    rng = random.Random(seed)
    dirty = tuple(sorted(rng.sample(range(size // before), 40)))
    s = engine(
        size=size, chunk=before, pages=3, room=16384 * KIB, dirty=dirty, capacity=min(size, new_size), in_sync_below=0
    )
    common = sectors_of(0, min(size, new_size))
    must = told_by(s, 0) & common
    tag = resize(s, new_size, after, needed_from=size)
    while s.result(tag) is None:
        op = rng.choice(s.pending())
        assert op.data is not None
        for sector in rng.sample(range(0, op.length, 512), 8):
            at = op.offset + sector
            s.legs.images[op.leg][at : at + 512] = op.data[sector : sector + 512]
            assert must <= told_by(s, op.leg)
        s.complete([op])
        assert must <= told_by(s, op.leg)
    for leg in (0, 1):
        found = told_by(s, leg)
        assert must <= found
        assert sectors_of(size, new_size) <= found
        assert slot_on(s, leg)[40:] == s.engine.bitmap_image()[40:]


# ---- writes ------------------------------------------------------------------------------------------------------


def test_a_write_that_waited_for_its_bit_goes_on_with_the_new_chunks_and_sets_the_right_bit() -> None:
    s = engine()
    write = s.engine.submit_write(6 * CHUNK, b"a" * 512)
    waiting = s.page_writes()
    tag = resize(s, SIZE, 2 * CHUNK)
    assert s.page_writes() == waiting
    while s.result(tag) is None:
        assert not s.data_writes()
        s.complete(s.pending()[:1])
    assert {op.leg for op in s.data_writes()} == {0, 1}  # its bit was written with the rest
    assert raw_bits(s, 0) == raw_bits(s, 1) == {3}
    s.settle()
    assert s.result(write) == 512
    assert s.engine.counters()[:7] == [0, 0, 0, 2, 0, 0, 0]


def test_a_write_that_comes_meanwhile_waits_and_sets_the_bit_of_its_new_chunk_before_its_data_goes_out() -> None:
    s = engine()
    tag = resize(s, 2 * SIZE, 2 * CHUNK)
    write = s.engine.submit_write(6 * CHUNK, b"a" * 512)
    assert s.waiting() == {"pages": 1, "resize": 1}
    while s.result(tag) is None:
        assert not s.data_writes()
        s.complete(s.pending()[:1])
    assert not s.data_writes()
    s.complete(s.page_writes())
    assert raw_bits(s, 0) == raw_bits(s, 1) == {3}
    assert len(s.data_writes()) == 2
    s.settle()
    assert s.result(write) == 512


def test_data_that_is_on_its_way_is_counted_in_its_new_chunk() -> None:
    s = engine(dirty=(6, 7), in_sync_below=SIZE)
    writes = [s.engine.submit_write(6 * CHUNK, b"a" * 512), s.engine.submit_write(7 * CHUNK, b"a" * 1024)]
    data = s.data_writes()
    tag = resize(s, SIZE, 2 * CHUNK)
    s.complete(s.page_writes())
    assert s.engine.counters()[3] == 4
    s.complete(data[:1])
    fail(s, data[1:2])
    s.settle()
    assert s.result(tag) == 0
    assert [s.result(write) for write in writes] == [None, None]
    s.engine.leg_failure(data[1].leg, recorded=False)
    assert [s.result(write) for write in writes] == [-errno.EIO, 1024]
    assert s.engine.counters()[3] == 2 | NEEDED


def test_data_on_its_way_to_what_is_cut_off_is_waited_for() -> None:
    s = engine(dirty=tuple(range(64)))
    write = s.engine.submit_write(SIZE // 2, b"a" * 512)
    data = s.data_writes()
    s.engine.set_capacity(SIZE // 2)
    tag = resize(s, SIZE // 2, CHUNK)
    s.engine.set_events(99)
    s.engine.submit_sweep()
    assert not s.page_writes()
    s.complete(data)
    assert s.result(write) == 512
    s.settle()
    assert s.result(tag) == 0


def test_a_leg_that_fails_in_what_is_cut_off_holds_nothing_up() -> None:
    s = engine(dirty=tuple(range(64)))
    write = s.engine.submit_write(SIZE // 2, b"a" * 512)
    first, second = s.data_writes()
    s.engine.set_capacity(SIZE // 2)
    tag = resize(s, SIZE // 2, CHUNK)
    fail(s, [first])
    s.complete([second])
    s.settle()
    assert s.result(tag) == 0
    assert s.result(write) is None
    s.engine.leg_failure(first.leg, recorded=True)
    assert s.result(write) == 512
    assert len(s.engine.counters()) == 32


def test_a_repair_that_waits_for_its_bit_goes_on_with_the_new_chunks() -> None:
    s = engine()
    s.legs.images[1][DATA_OFFSET + 6 * CHUNK] = 1
    repair = s.engine.submit_sync(SyncAction.REPAIR, 6 * CHUNK, 7 * CHUNK)
    s.complete(s.pending(OpKind.READ))
    assert s.page_writes()
    tag = resize(s, SIZE, 2 * CHUNK)
    while s.result(tag) is None:
        assert not s.data_writes()
        s.complete(s.pending()[:1])
    assert raw_bits(s, 1) == {3}
    s.settle()
    assert s.result(repair) == CHUNK
    assert s.content(0) == s.content(1)
    assert s.engine.counters()[3] == 2


def test_a_chunk_that_would_have_too_many_writes_is_waited_for() -> None:
    s = engine(size=16 << 20, chunk=8 << 20, room=16 << 20, dirty=(0, 1), in_sync_below=16 << 20)
    tags = [s.engine.submit_write(i * 512, b"a" * 512) for i in range(8192)]
    tags += [s.engine.submit_write((8 << 20) + i * 512, b"a" * 512) for i in range(8192)]
    data = s.data_writes()
    tag = resize(s, 16 << 20, 16 << 20)
    assert not s.page_writes()
    s.complete([op for op in data if op.offset < DATA_OFFSET + 4 * 512])
    assert s.page_writes()
    s.settle()
    assert s.result(tag) == 0
    assert all(s.result(one) == 512 for one in tags)
    assert s.engine.counters() == [2]


# ---- sweeps ------------------------------------------------------------------------------------------------------


def test_a_sweep_under_way_ends_and_clears_nothing() -> None:
    s = engine(dirty=(3,), in_sync_below=SIZE)
    s.sweep()
    assert s.engine.counters()[3] == 1
    sweep = s.engine.submit_sweep()
    flushes = s.pending(OpKind.FLUSH)
    assert flushes
    tag = resize(s, SIZE, CHUNK // 2)
    s.complete(flushes)
    s.settle()
    assert s.result(sweep) == s.result(tag) == 0
    assert raw_bits(s) == {6, 7}
    s.sweep(4)
    assert raw_bits(s, 0) == raw_bits(s, 1) == set()


def test_no_bit_is_cleared_while_two_layouts_share_the_slot() -> None:
    s = engine(dirty=(3,), in_sync_below=SIZE)
    s.sweep()
    resize(s, SIZE, CHUNK // 2)
    s.engine.submit_sweep()
    s.engine.submit_sweep()
    s.complete(s.page_writes())
    s.complete(s.pending(OpKind.FLUSH))
    assert s.page_writes()  # of the second round
    assert s.engine.counters()[6:8] == [1, 1]
    s.settle()


def test_a_drain_does_not_wait_for_what_a_resize_holds_up() -> None:
    s = engine()
    s.engine.submit_write(0, b"a" * 512)
    resize(s, SIZE, 2 * CHUNK)
    assert s.page_writes()
    assert s.result(s.engine.submit_drain(0, SIZE)) == 0
    s.settle()


def test_what_a_sweep_is_writing_is_waited_for_and_what_it_would_write_comes_with_the_resize() -> None:
    s = engine(dirty=(3,), in_sync_below=SIZE, events=9)
    first = s.engine.submit_sweep()
    writing = s.page_writes()
    s.engine.set_events(10)
    second = s.engine.submit_sweep()
    tag = resize(s, SIZE, 2 * CHUNK)
    assert s.page_writes() == writing
    s.settle()
    assert s.result(first) == s.result(second) == s.result(tag) == 0
    assert BitmapSuperblock.decode(slot_on(s, 0)).events == 10
    assert raw_bits(s) == {1}


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(3))
def test_a_leg_that_fails_meanwhile_is_left_out(writes: int) -> None:
    s = engine(dirty=(2, 5))
    tag = resize(s, SIZE, 2 * CHUNK)
    for _ in range(writes):
        s.complete(s.page_writes())
    first, second = s.page_writes()
    fail(s, [first])
    s.complete([second])
    s.settle()
    assert s.result(tag) == 0
    assert [(kind, leg) for kind, leg, *_ in s.engine.events()] == [(EventKind.LEG_FAILED, first.leg)]
    assert raw_bits(s, second.leg) == {1, 2}
    s.engine.leg_failure(first.leg, recorded=True)
    s.write(0, b"a" * 512)
    assert raw_bits(s, second.leg) == {0, 1, 2}


@pytest.mark.parametrize("rounds", range(3))
def test_a_leg_that_counts_again_gets_all_of_it_once_more(rounds: int) -> None:
    s = engine(dirty=(2, 5))
    tag = resize(s, SIZE, 2 * CHUNK)
    for _ in range(rounds):
        s.complete(s.page_writes())
    fail(s, s.pending(leg=1))
    s.engine.leg_failure(1, recorded=False)
    while s.result(tag) is None:
        assert sectors_of(2 * CHUNK, 3 * CHUNK) | sectors_of(5 * CHUNK, 6 * CHUNK) <= told_by(s, 1)
        s.complete(s.pending()[:1])
    assert raw_bits(s, 0) == raw_bits(s, 1) == {1, 2}
    assert slot_on(s, 0)[40:] == slot_on(s, 1)[40:]


@pytest.mark.parametrize("rounds", range(3))
def test_a_leg_that_joins_meanwhile_has_all_of_it_at_the_reply(rounds: int) -> None:
    s = engine(dirty=(2, 5), states=(LegState.IN_SYNC, LegState.MISSING))
    tag = resize(s, SIZE, 2 * CHUNK)
    for _ in range(rounds):
        s.complete(s.page_writes())
    s.engine.publish_legs([LegState.IN_SYNC, LegState.RECOVERING])
    s.settle()
    assert s.result(tag) == 0
    assert slot_on(s, 0)[40:] == slot_on(s, 1)[40:] == s.engine.bitmap_image()[40:]


@pytest.mark.parametrize("rounds", range(2))
@pytest.mark.parametrize("landed", [False, True])
def test_when_the_last_leg_refuses_a_page_the_old_layout_is_in_force_again(rounds: int, landed: bool) -> None:
    s = engine(dirty=(2, 5, 40), states=(LegState.IN_SYNC, LegState.FAULTY), in_sync_below=4 * CHUNK)
    s.engine.set_capacity(SIZE // 2)
    must = told_by(s, 0)
    tag = resize(s, SIZE // 2, 2 * CHUNK)
    held = s.engine.submit_write(10 * CHUNK, b"a" * 512)
    for _ in range(rounds):
        s.complete(s.page_writes())
    (op,) = s.page_writes()
    assert op.data is not None
    if landed:  # a write that failed may have come there all the same
        s.legs.images[0][op.offset : op.offset + op.length] = op.data
    s.legs.fail(op, errno.EIO)
    assert s.result(tag) == -errno.EIO
    assert len(s.engine.counters()) == 64
    assert s.engine.counters()[2] & NEEDED == 0
    assert s.engine.counters()[5] & s.engine.counters()[40] & NEEDED
    while s.result(held) is None:
        if s.data_writes():
            assert sectors_of(10 * CHUNK, 11 * CHUNK) <= told_by(s, 0)
        s.complete(s.pending()[:1])
    assert must <= told_by(s, 0)
    assert slot_on(s, 0)[40:BITS_START] == header(SIZE, CHUNK)[40:]
    s.engine.set_capacity(SIZE)
    resized(s, 2 * SIZE, CHUNK)
    assert must <= told_by(s, 0)


def test_after_that_no_data_goes_out_before_the_old_header_is_back() -> None:
    size = 16384 * KIB
    s = engine(size=size, chunk=512, pages=3, room=size, states=(LegState.IN_SYNC, LegState.FAULTY))
    tag = resize(s, size, 1024)
    s.complete(s.page_writes())
    (op,) = s.page_writes()
    assert op.data is not None
    s.legs.images[0][op.offset : op.offset + op.length] = op.data  # it failed, and has come there all the same
    s.legs.fail(op, errno.EIO)
    assert s.result(tag) == -errno.EIO
    s.engine.submit_write(size - 512, b"a" * 512)
    while not s.data_writes():
        s.complete(s.pending()[:1])
    assert size // 512 - 1 in told_by(s, 0)


def test_when_that_is_so_the_chunks_that_were_to_be_cut_off_are_resynced() -> None:
    s = engine(dirty=(5, 40), states=(LegState.IN_SYNC, LegState.FAULTY), in_sync_below=SIZE, capacity=SIZE // 2)
    tag = resize(s, SIZE // 2, CHUNK)
    fail(s, s.page_writes())
    assert s.result(tag) == -errno.EIO
    assert s.engine.counters()[5] == 2
    assert s.engine.counters()[40] == 2 | NEEDED


def test_a_leg_that_missed_the_first_round_gets_it_before_the_new_header() -> None:
    size = 16384 * KIB
    s = engine(size=size, chunk=512, pages=3, room=size, dirty=(32000,))
    tag = resize(s, size, 1024)
    fail(s, s.pending(leg=1))
    s.complete(s.pending(leg=0))
    assert [op.offset for op in s.page_writes()] == [SLOT_OFFSET]
    s.engine.leg_failure(1, recorded=False)
    while s.result(tag) is None:
        s.complete(s.pending()[:1])
        assert 32000 in told_by(s, 1)
    assert slot_on(s, 0)[40:] == slot_on(s, 1)[40:]


def test_a_last_leg_that_refuses_only_to_be_cleaned_up_has_the_new_layout() -> None:
    s = engine(dirty=(2, 5), states=(LegState.IN_SYNC, LegState.FAULTY))
    tag = resize(s, SIZE, 2 * CHUNK)
    s.complete(s.page_writes())
    s.complete(s.page_writes())
    assert raw_bits(s) == {1, 2, 5}
    fail(s, s.page_writes())
    assert s.result(tag) == 0
    s.sweep()
    assert raw_bits(s) == {1, 2}


@pytest.mark.parametrize("rounds", range(3))
def test_a_node_that_is_fenced_ends_it_and_what_it_held_up(rounds: int) -> None:
    s = engine(dirty=(2, 5))
    tags = [resize(s, SIZE, 2 * CHUNK), resize(s, SIZE, CHUNK), s.engine.submit_write(0, b"a" * 512)]
    for _ in range(rounds):
        s.complete(s.page_writes())
    s.pending()
    s.engine.fence(errno.ENOTCONN)
    assert [s.result(tag) for tag in tags] == [-errno.ENOTCONN] * 3
    s.settle()
    assert s.result(resize(s, SIZE, CHUNK)) == -errno.ENOTCONN


def test_resizes_are_done_one_after_the_other() -> None:
    s = engine(dirty=(2, 5))
    tags = [resize(s, 2 * SIZE, 2 * CHUNK), resize(s, SIZE, CHUNK)]
    s.engine.set_capacity(SIZE // 2)
    tags.append(resize(s, SIZE // 2, CHUNK))
    s.engine.set_capacity(SIZE)
    write = s.engine.submit_write(0, b"a" * 512)
    s.settle()
    assert [s.result(tag) for tag in tags] == [0, 0, -errno.EINVAL]  # the capacity is all of it again
    assert s.result(write) == 512
    assert raw_bits(s) == {0, 2, 3, 4, 5}


def test_a_read_only_node_follows_in_memory() -> None:
    s = engine(dirty=(2,), read_only=True)
    tag = resize(s, 2 * SIZE, 2 * CHUNK)
    assert s.result(tag) == 0
    assert not s.pending()
    assert len(s.engine.counters()) == 64
    s.engine.set_capacity(2 * SIZE)
    read = s.engine.submit_read(2 * SIZE - 512, 1024)
    s.settle()
    assert s.data(read) == bytes(512)


def test_what_cannot_be_is_refused_at_once() -> None:
    s = engine()
    good = header(SIZE, CHUNK)
    for size, chunk, head, message in (
        (0, CHUNK, good, "at least one sector"),
        (SIZE, 3 * 512, good, "power of two"),
        (SIZE, 256, good, "power of two"),
        (30721 * CHUNK, CHUNK, good, "do not fit"),
        (SIZE, CHUNK, good[:-1], "256 bytes"),
        (SIZE - 512, CHUNK, good, "capacity"),
    ):
        with pytest.raises(ValueError, match=message):
            s.engine.submit_resize(size, chunk, head)
    resized(s, 30720 * CHUNK, CHUNK)
    assert len(s.engine.counters()) == 30720


# ---- the capacity ------------------------------------------------------------------------------------------------


def test_requests_end_at_the_capacity_from_the_moment_on_in_which_it_is_set() -> None:
    s = engine(dirty=tuple(range(64)))
    s.engine.set_capacity(SIZE // 2 - 100)
    refused = s.engine.submit_write(SIZE // 2 - 100, b"a")
    zero = s.engine.submit_zero(SIZE // 2, CHUNK, punch=True)
    nothing = s.engine.submit_read(SIZE // 2, 512)
    assert [s.result(tag) for tag in (refused, zero, nothing)] == [-errno.ENOSPC, -errno.ENOSPC, 0]
    crossing = s.engine.submit_write(SIZE // 2 - 200, b"a" * 200)
    read = s.engine.submit_read(SIZE // 2 - 200, 200)
    s.settle()
    assert s.result(crossing) == 100
    assert len(s.data(read)) == 100
    s.engine.set_capacity(SIZE)
    s.write(SIZE - 512, b"b" * 512)
    assert s.content(1)[SIZE // 2 - 100 : SIZE // 2] == bytes(100)


def test_it_can_be_less_than_the_size_from_the_start() -> None:
    s = engine(capacity=CHUNK)
    assert s.result(s.engine.submit_write(CHUNK, b"a")) == -errno.ENOSPC
    assert len(s.engine.counters()) == 64
    with pytest.raises(ValueError, match="not within"):
        engine(capacity=SIZE + 1)


def test_it_is_never_more_than_the_bitmap_covers_now_and_will_cover() -> None:
    s = engine()
    with pytest.raises(ValueError, match="not within"):
        s.engine.set_capacity(SIZE + 1)
    tag = resize(s, 2 * SIZE, CHUNK)
    s.complete(s.page_writes())
    with pytest.raises(ValueError, match="not within"):
        s.engine.set_capacity(2 * SIZE)
    s.settle()
    assert s.result(tag) == 0
    s.engine.set_capacity(2 * SIZE)
    s.engine.set_capacity(SIZE)
    tag = resize(s, SIZE, CHUNK)
    with pytest.raises(ValueError, match="not within"):
        s.engine.set_capacity(2 * SIZE)
    s.settle()


def test_writes_that_wait_and_reach_beyond_it_write_nothing_at_all() -> None:
    s = engine()
    s.engine.suspend(0, SIZE)
    suspended = s.engine.submit_write(SIZE // 2 - 512, b"a" * 1024)
    below = s.engine.submit_write(SIZE // 2 - 1024, b"a" * 512)
    s.engine.set_capacity(SIZE // 2)
    assert s.result(suspended) == -errno.ENOSPC
    s.engine.suspend(0, 0)
    s.settle()
    assert s.result(below) == 512
    s.engine.set_capacity(SIZE)
    for_bits = s.engine.submit_write(SIZE // 2, b"a" * 512)
    behind = s.engine.submit_write(SIZE // 2, b"b" * 512)
    s.engine.set_capacity(SIZE // 2)
    assert [s.result(tag) for tag in (for_bits, behind)] == [-errno.ENOSPC] * 2
    s.settle()
    assert s.content(0)[SIZE // 2 - 512 :] == s.content(1)[SIZE // 2 - 512 :] == bytes(1024 * KIB - SIZE // 2 + 512)
    s.sweep(4)
    assert not raw_bits(s)


def test_data_that_has_gone_out_is_replied_as_it_was_and_a_drain_tells_when() -> None:
    s = engine(dirty=tuple(range(64)))
    write = s.engine.submit_write(SIZE // 2 - 512, b"a" * 1024)
    s.engine.set_capacity(SIZE // 2)
    drain = s.engine.submit_drain(SIZE // 2, SIZE)
    assert s.result(drain) is None
    s.settle()
    assert s.result(write) == 1024
    assert s.result(drain) == 0


def test_healing_and_comparing_end_at_it() -> None:
    s = engine(dirty=(1, 40))
    s.engine.set_capacity(SIZE // 2)
    assert s.engine.next_to_sync(2 * CHUNK) is None
    tag = s.engine.submit_sync(SyncAction.CHECK, 0, SIZE)
    s.settle()
    assert s.result(tag) == SIZE // 2
    assert s.result(s.engine.submit_sync(SyncAction.CHECK, SIZE // 2, SIZE)) == 0
    s.engine.set_capacity(SIZE)
    assert s.engine.next_to_sync(2 * CHUNK) == (40 * CHUNK, 41 * CHUNK)
    s.engine.set_sync_limits(CHUNK, 1)
    tag = s.engine.submit_sync(SyncAction.CHECK, 0, SIZE)
    s.engine.set_capacity(SIZE // 2)
    s.settle()
    assert s.result(tag) == SIZE // 2
