"""The engine and its slow twin agree, step by step, whatever is asked and in whatever order the legs answer."""

from __future__ import annotations

import errno
from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine_twin import BITS_START, NEEDED, PAGE, RESYNC, SECTOR, TwinBlock, TwinEngine, TwinOp

from raidfs._core import Engine, EventKind, LegState, OpKind, SyncAction
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.sim.legs import PendingOp, SimulatedLegs

DATA_OFFSET = 64 * 1024
SLOT_OFFSET = 8192
REGION = 1024 * 1024  # of the engine's range buckets
SIZE = REGION + 20 * 1024  # of the array; requests meet at its start and where two regions do
PAGES = 2
SIZES = (REGION // 2, SIZE - 3 * 512, SIZE, SIZE + 512, SIZE + 70 * 1024)  # after a resize
ODD = REGION + 8192  # legs may differ here without a bit, which only a repair finds


def header(size: int, chunk: int) -> bytes:
    return BitmapSuperblock(
        uuid=bytes(16), events=1, events_cleared=0, sync_size_sectors=size // SECTOR, chunk_bytes=chunk, nodes=2,
        cluster_name=b"c",
    ).encode()  # fmt: skip


class Pair:
    """Engine and twin with the same inputs; every step compares all that can be seen of them."""

    def __init__(self, legs: int, block: int, chunk: int, dirty: list[int]) -> None:
        bitmap = bytearray(PAGE * PAGES)
        bitmap[:BITS_START] = header(SIZE, chunk)
        for bit in dirty:
            if bit < -(-SIZE // chunk):
                bitmap[BITS_START + bit // 8] |= 1 << bit % 8
        self.engine = Engine(legs)
        self.engine.configure(
            block_bytes=block, size_bytes=SIZE, data_offsets=[DATA_OFFSET] * legs, raid_disks=legs,
            slot_offset=SLOT_OFFSET, chunk_bytes=chunk, bitmap=bytes(bitmap), events=1, events_cleared=0,
        )  # fmt: skip
        self.engine.publish_legs([LegState.IN_SYNC] * legs)
        self.twin = TwinEngine(
            legs=legs, block=block, size=SIZE, data_offset=DATA_OFFSET, slot_offset=SLOT_OFFSET, chunk=chunk,
            bitmap=bytes(bitmap),
        )  # fmt: skip
        image = bytearray(DATA_OFFSET + max(SIZES) + PAGE)
        image[SLOT_OFFSET : SLOT_OFFSET + len(bitmap)] = bitmap
        self.legs = SimulatedLegs(self.engine, [bytearray(image) for _ in range(legs)])
        for leg, own in enumerate(self.legs.images):
            own[DATA_OFFSET + ODD] = leg
            for chunk_number in {bit for bit in dirty if bit < self.twin.chunks}:
                start = DATA_OFFSET + chunk_number * chunk
                own[start : start + 2048] = bytes([100 + leg]) * 2048
        self.dirty = dirty
        self.matched: dict[int, TwinOp] = {}
        self.answered: set[int] = set()
        self.sizes = {SIZE}  # that it had or may have had
        self.away_in_sync: set[int] = set()  # legs that were in sync when they failed: bits tell what they lack
        self.set_limits(1, 3)
        self.check()

    def submit(self, kind: str, start: int, data: bytes, length: int, durable: bool) -> None:
        if kind == "write":
            tag = self.engine.submit_write(start, data, durable=durable)
            self.twin.submit(tag, kind, start, data, durable=durable)
        elif kind == "read":
            tag = self.engine.submit_read(start, length)
            self.twin.submit(tag, kind, start, end=start + length)
        elif kind == "flush":
            self.twin.submit(self.engine.submit_flush(), kind)
        elif kind == "drain":
            self.twin.submit(self.engine.submit_drain(start, start + length), kind, start, end=start + length)
        else:
            self.twin.submit(self.engine.submit_sweep(), kind)
        self.check()

    def end(self, which: int, outcome: str) -> None:
        op = self.legs.pending[which % len(self.legs.pending)]
        twin_op = self.matched.pop(op.op_id)
        data = bytes(self.legs.images[op.leg][op.offset : op.offset + op.length]) if op.kind == OpKind.READ else None
        if outcome == "short" and op.length:
            self.twin.complete(twin_op, op.leg, errno.EIO, None)
            self.legs.cut_short(op, op.length // 2)
        elif outcome == "fail":
            self.twin.complete(twin_op, op.leg, errno.ENOSPC, None)
            self.legs.fail(op, errno.ENOSPC)
        else:
            self.twin.complete(twin_op, op.leg, 0, data)
            self.legs.complete(op)
        self.check()

    def answer(self, recorded: bool) -> None:
        for leg in sorted(self.twin.failed_events):
            if recorded and self.twin.states[leg] == LegState.IN_SYNC:
                self.away_in_sync.add(leg)
            self.twin.answer(leg, recorded)
            self.engine.leg_failure(leg, recorded=recorded)
            self.check()

    def set_limits(self, blocks: int, in_flight: int) -> None:
        self.twin.set_sync_limits(blocks * 4096, in_flight)
        self.engine.set_sync_limits(blocks * 4096, in_flight)

    def publish(self) -> None:
        self.engine.publish_legs(self.twin.states, recovery_offsets=self.twin.recovery)

    def leave(self, leg: int) -> None:
        """A leg is not there from the start."""
        self.twin.states[leg] = LegState.FAULTY
        self.away_in_sync.add(leg)
        self.publish()

    def join(self, which: int, guided: bool) -> None:
        """A leg comes back and recovers, from the start or by the bitmap if it was in sync when it failed."""
        away = [leg for leg, state in enumerate(self.twin.states) if state == LegState.FAULTY]
        if not away:
            return
        leg = away[which % len(away)]
        guided = guided and leg in self.away_in_sync
        if guided:
            self.twin.need_dirty()
            self.engine.need_dirty()
        self.twin.join(leg, self.twin.size if guided else 0)
        self.publish()
        self.away_in_sync.discard(leg)
        self.check()

    def sync(self, action: SyncAction, start: int, end: int, leg: int) -> None:
        leg %= len(self.twin.states)
        tag = self.engine.submit_sync(action, start, end, leg=leg)
        self.twin.submit_sync(tag, action, start, end, leg)
        self.check()

    def mark(self, how: str, start: int, end: int) -> None:
        if start == end:
            return
        if how == "start":
            self.twin.sync_start(start, end)
            self.engine.sync_start(start, end)
        else:
            self.twin.sync_end(start, end, how == "abort")
            self.engine.sync_end(start, end, aborted=how == "abort")
        self.check()

    def abort(self) -> None:
        self.twin.abort_sync()
        self.engine.abort_sync()
        self.check()

    def heal(self) -> None:
        """Heal everything, and have the recovering legs in sync."""
        size = self.twin.size
        self.capacity(size)
        self.mark("start", 0, size)
        self.sync(SyncAction.HEAL, 0, size, 0)
        self.quiet(True)
        assert not self.twin.failed_events
        for bit in self.dirty:  # a chunk that is ended in part is not ended
            self.mark("end", 0, min(bit * self.twin.chunk + 512, size))
        self.mark("end", 0, size)
        assert not any(self.engine.counters()[chunk] & (NEEDED | RESYNC) for chunk in range(self.twin.chunks))
        for leg, state in enumerate(self.twin.states):
            if state == LegState.RECOVERING:
                self.twin.recovered(leg)
        self.publish()
        self.quiet(True)
        assert self.engine.next_to_sync(0) is None

    def resize(self, size: int, chunk: int, needed: bool) -> None:
        """Ask for another size; only space that no leg has ever had is taken as it is, if at all."""
        chunk = max(chunk, self.twin.block)
        if self.twin.capacity > size:
            self.capacity(size)
        needed_from = min(self.sizes) if needed or size <= max(self.sizes) else None
        self.sizes.add(size)
        tag = self.engine.submit_resize(size, chunk, header(size, chunk), needed_from=needed_from)
        self.twin.submit_resize(tag, size, chunk, header(size, chunk), needed_from)
        self.check()

    def capacity(self, capacity: int) -> None:
        """Set it as near to what is asked for as can be."""
        capacity = min(capacity, self.twin.size)
        if self.twin.resize is not None:
            capacity = min(capacity, self.twin.resize.size, self.twin.resize.old_size)
        self.twin.set_capacity(capacity)
        self.engine.set_capacity(capacity)
        self.check()

    def doubt(self, bits: int) -> None:
        slot = bytes(BITS_START) + bits.to_bytes(PAGE * PAGES - BITS_START, "little")
        self.twin.doubt = {chunk for chunk in range(min(32, self.twin.chunks)) if bits >> chunk & 1}
        self.engine.read_first_where(slot)

    def suspend(self, start: int, end: int) -> None:
        self.twin.suspend(start, end)
        self.engine.suspend(start, end)
        self.check()

    def check(self) -> None:
        self.legs.take()
        self.match([op for op in self.legs.pending if op.op_id not in self.matched])
        replies = self.engine.replies()
        assert sorted(replies, key=lambda r: r[0]) == sorted(self.twin.replies, key=lambda r: r[0])
        for tag, _, _ in replies:
            assert tag not in self.answered
            self.answered.add(tag)
        self.twin.replies.clear()
        for kind, leg, *_ in self.engine.events():
            assert kind != EventKind.LEG_FAILED or leg in self.twin.failed_events
        assert self.engine.counters() == [self.twin.counter(c) for c in range(self.twin.chunks)]
        assert self.engine.bitmap_image() == b"".join(self.twin.page_bytes(page) for page in range(PAGES))
        durable = int.from_bytes(self.engine.bitmap_durable()[BITS_START:], "little")
        assert durable == sum(1 << chunk for chunk in self.twin.durable)
        sectors, ranges, _ = self.engine.mismatches()
        assert sectors == self.twin.mismatch_sectors
        found = {s for start, length in ranges for s in range(start // SECTOR, (start + length) // SECTOR)}
        assert found == self.twin.mismatches

    def match(self, new: list[PendingOp]) -> None:
        """Pair the engine's new operations with the twin's; both must have asked for the same."""
        wanted = self.twin.new_ops
        self.twin.new_ops = []
        assert Counter(map(self.key, new)) == Counter(op.key() for op in wanted)
        for op in new:
            found = [t for t in wanted if t.key() == self.key(op) and op.leg not in t.tried]
            found = [t for t in found if t.reader in (None, op.leg)]
            twin_op = min(found, key=lambda t: t.reader is None)
            wanted.remove(twin_op)
            self.matched[op.op_id] = twin_op
            if op.kind == OpKind.READ:
                self.check_read(op, twin_op)
            elif op.offset >= DATA_OFFSET and not self.is_copy(twin_op):
                self.check_bits_are_on_all_good_legs(op)

    def check_read(self, op: PendingOp, twin_op: TwinOp) -> None:
        if twin_op.reader is not None:
            return
        candidates = self.twin.in_sync - twin_op.tried
        assert op.leg in candidates
        start, end = self.twin.suspended
        size = self.twin.chunk
        first, last = twin_op.offset // size, (twin_op.offset + twin_op.length - 1) // size
        chunks = range(first, min(last, self.twin.chunks - 1) + 1)
        needed = any(self.twin.counter(chunk) & (NEEDED | RESYNC) or chunk in self.twin.doubt for chunk in chunks)
        if needed or (twin_op.offset < end and twin_op.offset + twin_op.length > start):
            assert op.leg == min(candidates)

    def check_bits_are_on_all_good_legs(self, op: PendingOp) -> None:
        first = (op.offset - DATA_OFFSET) // self.twin.chunk
        last = min((op.offset + op.length - DATA_OFFSET - 1) // self.twin.chunk, self.twin.chunks - 1)
        for leg in self.twin.writable:
            on_disk = BitmapSuperblock.decode(bytes(self.legs.images[leg][SLOT_OFFSET : SLOT_OFFSET + BITS_START]))
            assert on_disk.chunk_bytes == self.twin.chunk
            for chunk in range(first, last + 1):
                assert self.legs.images[leg][SLOT_OFFSET + BITS_START + chunk // 8] >> chunk % 8 & 1

    @staticmethod
    def is_copy(op: TwinOp) -> bool:
        """Whether it copies what the first leg has: no bit needs to be durable for that."""
        return isinstance(op.owner, TwinBlock) and op.owner.sync.action != SyncAction.REPAIR

    @staticmethod
    def key(op: PendingOp) -> tuple[OpKind, int | None, int, int, bytes | None]:
        if op.kind == OpKind.READ:
            return (op.kind, None, op.offset - DATA_OFFSET, op.length, None)
        return (op.kind, op.leg, op.offset, op.length, op.data)

    def quiet(self, recorded: bool) -> None:
        """Let everything end: the range is lifted, failures are answered, operations succeed."""
        self.suspend(0, 0)
        while self.legs.pending or self.twin.failed_events:
            self.answer(recorded)
            if self.legs.pending:
                self.end(0, "done")


places = st.one_of(st.integers(0, 20_000), st.integers(REGION - 9000, SIZE + 600))
actions = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(["write", "write", "write", "read", "flush", "sweep", "sweep", "drain"]),
        places,
        st.integers(0, 9000),
        st.booleans(),
    ),
    st.tuples(
        st.just("end"), st.integers(0, 50), st.sampled_from(["done"] * 12 + ["fail", "short"])
    ),
    st.tuples(st.just("end"), st.integers(0, 50), st.just("done")),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("suspend"), places, places),
    st.tuples(st.just("events"), st.integers(2, 99)),
    st.tuples(st.just("join"), st.integers(0, 2), st.booleans()),
    st.tuples(st.just("sync"), st.sampled_from(list(SyncAction)), places, places, st.integers(0, 2)),
    st.tuples(st.just("mark"), st.sampled_from(["start", "abort"]), places, places),
    st.tuples(st.just("limits"), st.sampled_from([1, 2, 8, 256]), st.integers(1, 4)),
    st.tuples(st.just("abort")),
    st.tuples(st.just("resize"), st.sampled_from(SIZES), st.sampled_from([512, 4096, 8192, 65536]), st.booleans()),
    st.tuples(st.just("capacity"), st.one_of(places, st.just(max(SIZES)))),
    st.tuples(st.just("doubt"), st.integers(0, 2**32 - 1)),
)  # fmt: skip


def run(pair: Pair, steps: list[tuple[object, ...]]) -> None:
    for number, step in enumerate(steps):
        match step:
            case ("submit", str(kind), int(start), int(length), bool(durable)):
                if kind != "read" and kind != "drain":
                    start, length = start // 7 * 7, length % 6000
                pair.submit(kind, start, bytes([number % 251 + 1]) * length, length, durable)
            case ("end", int(which), str(outcome)):
                if pair.legs.pending:
                    pair.end(which, outcome)
            case ("answer", bool(recorded)):
                pair.answer(recorded)
            case ("suspend", int(a), int(b)):
                pair.suspend(min(a, b), max(a, b))
            case ("events", int(events)):
                pair.twin.set_events(events)
                pair.engine.set_events(events)
                pair.check()
            case ("join", int(which), bool(guided)):
                pair.join(which, guided)
            case ("sync", SyncAction() as action, int(a), int(b), int(leg)):
                pair.sync(action, min(a, b), max(a, b), leg)
            case ("mark", str(how), int(a), int(b)):
                pair.mark(how, min(a, b), max(a, b))
            case ("limits", int(blocks), int(in_flight)):
                pair.set_limits(blocks, in_flight)
                pair.check()
            case ("abort",):
                pair.abort()
            case ("resize", int(size), int(chunk), bool(needed)):
                pair.resize(size, chunk, needed)
            case ("capacity", int(capacity)):
                pair.capacity(capacity)
            case ("doubt", int(bits)):
                pair.doubt(bits)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    legs=st.integers(1, 3),
    block=st.sampled_from([512, 4096]),
    chunk=st.sampled_from([4096, 8192, 65536]),
    dirty=st.lists(st.integers(0, 9), max_size=3),
    steps=st.lists(actions, max_size=60),
    recorded=st.booleans(),
    away=st.booleans(),
    guided=st.booleans(),
)
def test_engine_and_twin_ask_and_answer_the_same(
    legs: int,
    block: int,
    chunk: int,
    dirty: list[int],
    steps: list[tuple[object, ...]],
    recorded: bool,
    away: bool,
    guided: bool,
) -> None:
    pair = Pair(legs, block, chunk, dirty)
    if away and legs > 1:
        pair.leave(legs - 1)
    run(pair, steps)
    pair.quiet(recorded)
    assert not pair.engine.statistics()["waiting"]
    good = sorted(pair.twin.in_sync)
    chunk, size = pair.twin.chunk, pair.twin.size
    clean = [c for c in range(pair.twin.chunks) if not pair.twin.counter(c) and c != ODD // chunk]
    for chunk_number in clean:
        part = slice(
            DATA_OFFSET + chunk_number * chunk, min(DATA_OFFSET + (chunk_number + 1) * chunk, DATA_OFFSET + size)
        )
        assert len({bytes(pair.legs.images[leg][part]) for leg in good}) == 1
    for _ in range(legs):
        pair.join(0, guided)
    pair.heal()
    pair.sync(SyncAction.REPAIR, 0, size, 0)
    pair.quiet(True)
    assert len({bytes(pair.legs.images[leg][DATA_OFFSET : DATA_OFFSET + size]) for leg in pair.twin.in_sync}) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(actions, max_size=80), block=st.sampled_from([512, 4096]))
def test_without_errors_the_array_holds_what_was_written_in_order_and_three_sweeps_clean_it(
    steps: list[tuple[object, ...]], block: int
) -> None:
    pair = Pair(2, block, 4096, [])
    for image in pair.legs.images:
        image[DATA_OFFSET + ODD] = 0
    model = bytearray(SIZE)
    for number, step in enumerate(steps):
        match step:
            case ("submit", "write", int(start), int(length), bool()):
                start, length = start // 7 * 7, length % 6000
                data = bytes([number % 251 + 1]) * length
                model[start : start + length] = data[: max(0, SIZE - start)] if start < SIZE else b""
                del model[SIZE:]
            case ("end", int(which), str()):
                step = ("end", which, "done")
            case ("resize", int(), int(chunk), bool(needed)):
                step = ("resize", SIZE, chunk, needed)
            case ("capacity", int()):
                continue
        run_one(pair, step, number)
    pair.quiet(True)
    assert pair.legs.images[0][DATA_OFFSET : DATA_OFFSET + SIZE] == model
    assert pair.legs.images[1][DATA_OFFSET : DATA_OFFSET + SIZE] == model
    for _ in range(4):
        pair.submit("sweep", 0, b"", 0, False)
        pair.quiet(True)
    assert pair.engine.statistics()["chunks_dirty"] == 0
    assert not any(pair.legs.images[0][SLOT_OFFSET + BITS_START : SLOT_OFFSET + PAGE * PAGES])


def run_one(pair: Pair, step: tuple[object, ...], number: int) -> None:
    if step[0] == "submit":
        _, kind, start, length, durable = step
        assert isinstance(kind, str)
        assert isinstance(start, int)
        assert isinstance(length, int)
        if kind not in ("read", "drain"):
            start, length = start // 7 * 7, length % 6000
        pair.submit(kind, start, bytes([number % 251 + 1]) * length, length, bool(durable))
    else:
        run(pair, [step])
