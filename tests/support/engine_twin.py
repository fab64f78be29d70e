"""A slow twin of the engine: the same rules in plain Python, written as rules and not as an event machine.

After each input `TwinEngine.settle` looks at every request again and lets everything move that can. It keeps sets and
lists where the engine keeps counters and queues; a mistake in the engine's book-keeping shows as a difference.
"""

from __future__ import annotations

import dataclasses
import errno

from raidfs._core import LegState, OpKind, SyncAction

PAGE = 4096
BITS_START = 256
NEEDED = 0x8000
RESYNC = 0x4000
SECTOR = 512


@dataclasses.dataclass(eq=False)
class TwinOp:
    kind: OpKind
    leg: int | None  # None: a read, the leg is the engine's choice
    offset: int  # in the image; of a read in the array
    length: int
    data: bytes | None
    owner: TwinRequest | TwinPage | TwinFlush | TwinBlock
    reader: int | None = None  # of a read for which the leg is no choice
    tried: set[int] = dataclasses.field(default_factory=set)

    def key(self) -> tuple[OpKind, int | None, int, int, bytes | None]:
        return (self.kind, self.leg, self.offset, self.length, self.data)


@dataclasses.dataclass(eq=False)
class TwinRequest:
    tag: int
    kind: str
    serial: int
    start: int = 0
    end: int = 0
    span: tuple[int, int] = (0, 0)
    data: bytes = b""
    durable: bool = False
    state: str = "start"
    ops: list[TwinOp] = dataclasses.field(default_factory=list)
    sent: set[int] = dataclasses.field(default_factory=set)
    ok: set[int] = dataclasses.field(default_factory=set)
    error: int = 0
    started: int = 0
    submitted: bool = False
    blocks: dict[int, bytes] = dataclasses.field(default_factory=dict)
    pages: set[int] = dataclasses.field(default_factory=set)
    drained: set[TwinRequest] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class TwinSync:
    tag: int
    action: SyncAction
    cursor: int
    end: int
    leg: int
    error: int = 0
    copied: int = 0


@dataclasses.dataclass(eq=False)
class TwinBlock:
    sync: TwinSync
    serial: int
    span: tuple[int, int]
    state: str = "order"
    source: int = -1
    error: int = 0
    ops: list[TwinOp] = dataclasses.field(default_factory=list)
    ok: set[int] = dataclasses.field(default_factory=set)
    tried: set[int] = dataclasses.field(default_factory=set)
    data: dict[int, bytes] = dataclasses.field(default_factory=dict)
    counted: bool = False
    submitted: bool = False
    page: TwinPage | None = None  # that it waits for
    held: bool = False  # by a resize


@dataclasses.dataclass(eq=False)
class TwinResize:
    tag: int
    size: int
    chunk: int
    header: bytes
    needed_from: int | None
    state: str = "wait"
    error: int = 0
    old_size: int = 0
    old_chunk: int = 0
    old_header: bytes = b""
    old_counters: dict[int, int] = dataclasses.field(default_factory=dict)
    old_doubt: set[int] = dataclasses.field(default_factory=set)
    keep: set[int] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(eq=False)
class TwinPage:
    index: int
    due: bool = False
    needs_write: bool = False
    pending: bool = False
    snapshot: bytes | None = None
    snapshot_bits: frozenset[int] = frozenset()
    ops: list[TwinOp] = dataclasses.field(default_factory=list)
    sent: set[int] = dataclasses.field(default_factory=set)
    ok: set[int] = dataclasses.field(default_factory=set)
    for_sweep: bool = False


@dataclasses.dataclass(eq=False)
class TwinFlush:
    requests: list[TwinRequest] = dataclasses.field(default_factory=list)
    ops: list[TwinOp] = dataclasses.field(default_factory=list)
    sent: set[int] = dataclasses.field(default_factory=set)
    ok: set[int] = dataclasses.field(default_factory=set)


class TwinEngine:
    def __init__(
        self, *, legs: int, block: int, size: int, data_offset: int, slot_offset: int, chunk: int, bitmap: bytes
    ) -> None:
        self.block, self.size, self.chunk = block, size, chunk
        self.capacity = size
        self.data_offset, self.slot_offset = data_offset, slot_offset
        self.states = [LegState.IN_SYNC] * legs
        self.raid_disks = legs
        self.blocked: set[int] = set()
        self.flush_lost: set[int] = set()
        self.fenced = 0
        self.suspended = (0, 0)
        self.chunks = -(-size // chunk)
        self.superblock = bytearray(bitmap[:BITS_START])
        self.pages = [TwinPage(i) for i in range(len(bitmap) // PAGE)]
        self.image = {c for c in range(self.chunks) if bitmap[BITS_START + c // 8] >> c % 8 & 1}
        self.durable = set(self.image)
        self.counters = dict.fromkeys(self.image, 2 | NEEDED)
        self.events = 1
        self.events_cleared = 1  # the array is whole: what was cleared before tells nothing of legs that are not in it
        self.need_sync = True
        self.serial = 0
        self.writes: list[TwinRequest] = []
        self.reads: list[TwinRequest] = []
        self.flush = TwinFlush()
        self.flush_waiting: list[TwinRequest] = []
        self.flush_failed: list[TwinRequest] = []
        self.drains: list[TwinRequest] = []
        self.sweeps: list[TwinRequest] = []
        self.new_ops: list[TwinOp] = []
        self.replies: list[tuple[int, int, bytes | None]] = []
        self.failed_events: set[int] = set()
        self.recovery = [0] * legs
        self.syncs: list[TwinSync] = []
        self.blocks: list[TwinBlock] = []
        self.block_bytes, self.blocks_max = 1 << 20, 8
        self.mismatch_sectors = 0
        self.mismatches: set[int] = set()
        self.doubt: set[int] = set()
        self.resize: TwinResize | None = None
        self.resizes: list[TwinResize] = []
        self.header_lost = False

    # ---- what is so ----

    @property
    def writable(self) -> set[int]:
        good = (LegState.IN_SYNC, LegState.RECOVERING)
        return {i for i, state in enumerate(self.states) if state in good and i not in self.blocked}

    @property
    def in_sync(self) -> set[int]:
        return {i for i in self.writable if self.states[i] == LegState.IN_SYNC}

    @property
    def degraded(self) -> bool:
        return len(self.in_sync) < self.raid_disks

    def counter(self, chunk: int) -> int:
        return self.counters.get(chunk, 0)

    def page_of(self, chunk: int) -> TwinPage:
        return self.pages[(BITS_START + chunk // 8) // PAGE]

    def page_bytes(self, index: int) -> bytes:
        whole = bytearray(len(self.pages) * PAGE)
        whole[:BITS_START] = self.superblock
        for chunk in self.image:
            whole[BITS_START + chunk // 8] |= 1 << chunk % 8
        return bytes(whole[index * PAGE : (index + 1) * PAGE])

    def chunks_of(self, request: TwinRequest | TwinBlock) -> range:
        return range(request.span[0] // self.chunk, min((request.span[1] - 1) // self.chunk, self.chunks - 1) + 1)

    # ---- inputs ----

    def submit(
        self, tag: int, kind: str, start: int = 0, data: bytes = b"", end: int = 0, durable: bool = False
    ) -> None:
        self.serial += 1
        request = TwinRequest(tag, kind, self.serial, start, end or start + len(data), data=data, durable=durable)
        if kind in ("read", "write") and not self.fenced:
            if request.end == request.start:
                self.reply(request, 0, b"" if kind == "read" else None)
            elif start >= self.capacity:
                self.reply(request, *((0, b"") if kind == "read" else (-errno.ENOSPC, None)))
            else:
                request.end = min(request.end, self.capacity)
                request.data = data[: request.end - start]
                block = self.block
                request.span = (start // block * block, -(-request.end // block) * block)
                (self.writes if kind == "write" else self.reads).append(request)
                if kind == "read":
                    self.start(request)
                    self.op(OpKind.READ, None, request.span[0], request.span[1] - request.span[0], None, request)
        elif self.fenced and kind != "drain":
            self.reply(request, -self.fenced)
        elif kind == "flush":
            self.flush_waiting.append(request)
        elif kind == "drain":
            request.drained = {
                r
                for r in self.reads + self.writes
                if r.started and r.state != "finish" and r.span[0] < request.end and r.span[1] > start
            }
            self.drains.append(request)
        else:
            self.sweeps.append(request)
        self.settle()

    def complete(self, op: TwinOp, leg: int, error: int, data: bytes | None) -> None:
        owner = op.owner
        owner.ops.remove(op)
        if op.kind == OpKind.READ:
            if isinstance(owner, TwinBlock):
                self.block_read_done(owner, leg, error, data)
            else:
                assert isinstance(owner, TwinRequest)
                self.read_done(owner, op, leg, error, data)
        else:
            if error:
                self.leg_error(leg)
                if isinstance(owner, TwinRequest | TwinBlock):
                    owner.error = error
                if isinstance(owner, TwinBlock) and leg in self.writable:
                    owner.sync.error = owner.sync.error or error
                if op.kind == OpKind.FLUSH and leg in self.writable:
                    self.flush_lost.add(leg)
            else:
                owner.ok.add(leg)
        self.settle()

    def read_done(self, request: TwinRequest, op: TwinOp, leg: int, error: int, data: bytes | None) -> None:
        if error:
            op.tried.add(leg)
            if self.in_sync - op.tried and not self.fenced:
                request.ops.append(op)
                self.new_ops.append(op)
                return
            request.error = error
        else:
            assert data is not None
            request.blocks[op.offset] = data

    def leg_error(self, leg: int) -> None:
        if self.fenced or leg not in self.writable or self.in_sync == {leg}:
            return
        self.blocked.add(leg)
        self.failed_events.add(leg)

    def answer(self, leg: int, recorded: bool) -> None:
        self.blocked.discard(leg)
        self.failed_events.discard(leg)
        if recorded:
            self.states[leg] = LegState.FAULTY
        else:
            self.distrust()
        self.settle()

    def distrust(self) -> None:
        self.durable.clear()
        for page in self.pages:
            page.due = True
        if self.resize is not None and self.resize.state != "wait":
            self.begin_resize(self.resize)

    def join(self, leg: int, recovery_offset: int) -> None:
        self.states[leg] = LegState.RECOVERING
        self.recovery[leg] = recovery_offset
        self.flush_lost.discard(leg)
        for request in (*self.writes, *self.flush_failed, *self.sweeps[:1]):
            request.sent.discard(leg)
            request.ok.discard(leg)
        for page in self.pages:
            page.sent.discard(leg)
            page.ok.discard(leg)
        for block in self.blocks:
            block.ok.discard(leg)
        self.flush.sent.discard(leg)
        self.distrust()
        self.settle()

    def recovered(self, leg: int) -> None:
        self.states[leg] = LegState.IN_SYNC
        self.settle()

    def need_dirty(self) -> None:
        for chunk, value in self.counters.items():
            if value:
                self.counters[chunk] = max(value, 2 | value & NEEDED) | NEEDED

    def sync_start(self, start: int, end: int) -> None:
        for chunk, value in self.counters.items():
            if value & NEEDED and chunk * self.chunk < end and (chunk + 1) * self.chunk > start:
                self.counters[chunk] = value & ~NEEDED | RESYNC

    def sync_end(self, start: int, end: int, aborted: bool) -> None:
        for chunk, value in self.counters.items():
            low, high = chunk * self.chunk, (chunk + 1) * self.chunk
            whole = start <= low and end >= min(high, self.size)
            if value & RESYNC and (low < end and high > start if aborted else whole):
                self.counters[chunk] = value & ~RESYNC | (NEEDED if aborted else 0)

    def submit_sync(self, tag: int, action: SyncAction, start: int, end: int, leg: int) -> None:
        block = self.block
        first, last = start // block * block, -(-min(end, self.capacity) // block) * block
        self.syncs.append(TwinSync(tag, action, first, max(first, last), leg))
        self.settle()

    def set_sync_limits(self, block_bytes: int, blocks_max: int) -> None:
        self.block_bytes, self.blocks_max = block_bytes, blocks_max
        self.settle()

    def abort_sync(self) -> None:
        self.stop_syncs(errno.ECANCELED)
        self.settle()

    def suspend(self, start: int, end: int) -> None:
        self.suspended = (start, end)
        self.settle()

    def set_capacity(self, capacity: int) -> None:
        self.capacity = capacity
        end = -(-capacity // self.block) * self.block
        for sync in self.syncs:
            sync.end, sync.cursor = min(sync.end, end), min(sync.cursor, end)
        for block in self.blocks:
            block.page, block.held = None, False
        self.settle()

    def submit_resize(self, tag: int, size: int, chunk: int, header: bytes, needed_from: int | None) -> None:
        self.resizes.append(TwinResize(tag, size, chunk, header, needed_from))
        self.next_resize()
        self.settle()

    def set_events(self, events: int) -> None:
        self.events = events
        self.superblock[24:32] = events.to_bytes(8, "little")
        self.pages[0].needs_write = True

    # ---- rules ----

    def settle(self) -> None:
        moved = True
        while moved:
            moved = any(self.move_write(r) for r in list(self.writes))
            moved |= any(self.move_read(r) for r in list(self.reads))
            moved |= self.move_flush()
            moved |= self.move_sweep()
            moved |= any(self.move_drain(r) for r in list(self.drains))
            moved |= any(self.move_page_end(p) for p in self.pages)
            moved |= any(self.move_block(b) for b in list(self.blocks))
            moved = moved or self.move_syncs()
            moved = moved or self.move_resize()
            if not moved and not (self.resize is not None and self.resize.state == "wait"):
                for page in self.pages:
                    if page.due and page.snapshot is None and not self.fenced:
                        self.write_page(page)

    def op(
        self, kind: OpKind, leg: int | None, offset: int, length: int, data: bytes | None,
        owner: TwinRequest | TwinPage | TwinFlush | TwinBlock, reader: int | None = None,
    ) -> None:  # fmt: skip
        op = TwinOp(kind, leg, offset, length, data, owner, reader)
        owner.ops.append(op)
        self.new_ops.append(op)

    def reply(self, request: TwinRequest, result: int, data: bytes | None = None) -> None:
        self.replies.append((request.tag, result, data))
        request.state = "done"

    def start(self, request: TwinRequest) -> None:
        self.serial += 1
        request.started = self.serial

    def move_read(self, r: TwinRequest) -> bool:
        if r.ops:
            return False
        self.reads.remove(r)
        if r.error:
            self.reply(r, -r.error)
        else:
            data = r.blocks[r.span[0]][r.start - r.span[0] : r.end - r.span[0]]
            self.reply(r, len(data), data)
        return True

    def move_write(self, r: TwinRequest) -> bool:
        before = r.state
        if r.state == "start" and r.end > self.capacity and not self.has_older(r):
            self.writes.remove(r)
            self.reply(r, -errno.ENOSPC)
        if r.state == "start" and self.may_start(r):
            self.start(r)
            self.count(r)
            r.state = "edges"
            ends = {r.span[0]} if r.start != r.span[0] else set()
            if r.end != r.span[1]:
                ends.add(r.span[1] - self.block)
            for offset in sorted(ends):
                self.op(OpKind.READ, None, offset, self.block, None, r)
        if r.state == "edges" and not r.ops:
            r.state = "bitmap"
        if r.state == "bitmap":
            page = self.lacking_page(r)
            if r.end > self.capacity:
                r.error = errno.ENOSPC
                r.state = "finish"
            elif self.resize is not None:
                r.started = 0
            elif r.error:
                r.state = "finish"
            elif page is None:
                self.may_send(r)
            elif page.snapshot is None:
                page.due = True
        if r.state == "legs" and not r.ops:
            r.state = "finish"
        if r.state == "finish":
            self.finish_write(r)
        return r.state != before

    def lacking_page(self, r: TwinRequest | TwinBlock) -> TwinPage | None:
        if self.header_lost:
            return self.pages[0]
        lacking = [chunk for chunk in self.chunks_of(r) if chunk not in self.durable]
        return self.page_of(lacking[0]) if lacking else None

    def has_older(self, r: TwinRequest | TwinBlock) -> bool:
        others: list[TwinRequest | TwinBlock] = [*self.writes, *self.blocks]
        return any(o.serial < r.serial and o.span[0] < r.span[1] and r.span[0] < o.span[1] for o in others)

    def count(self, r: TwinRequest | TwinBlock) -> None:
        for chunk in self.chunks_of(r):
            value = self.counter(chunk)
            if value == 0:
                self.image.add(chunk)
                self.page_of(chunk).due = True
            self.counters[chunk] = max(value, 2 | value & (NEEDED | RESYNC)) + 1

    def uncount(self, r: TwinRequest | TwinBlock, written: bool) -> None:
        if written and not self.degraded and self.events_cleared < self.events:
            self.events_cleared = self.events
            self.need_sync = True
        for chunk in self.chunks_of(r):
            self.counters[chunk] = (self.counters[chunk] - 1) | (0 if written else NEEDED)

    def may_start(self, r: TwinRequest) -> bool:
        older = self.has_older(r)
        held = r.span[0] < self.suspended[1] and r.span[1] > self.suspended[0]
        return not older and not held and not self.blocked and self.resize is None

    def may_send(self, r: TwinRequest) -> None:
        held = r.span[0] < self.suspended[1] and r.span[1] > self.suspended[0]
        if self.blocked:
            r.started = 0
        elif r.started or not held:
            if not r.started:
                self.start(r)
            self.send_data(r)

    def send_data(self, r: TwinRequest) -> None:
        whole = bytearray(r.span[1] - r.span[0])
        for offset, block in r.blocks.items():
            whole[offset - r.span[0] : offset - r.span[0] + self.block] = block
        whole[r.start - r.span[0] : r.end - r.span[0]] = r.data
        r.submitted = True
        r.sent = self.writable | self.blocked
        kind = OpKind.WRITE_DURABLE if r.durable else OpKind.WRITE
        for leg in sorted(self.writable):
            self.op(kind, leg, self.data_offset + r.span[0], len(whole), bytes(whole), r)
        r.state = "legs"

    def finish_write(self, r: TwinRequest) -> None:
        if self.blocked and r.ok:
            return
        done = bool(r.ok & self.in_sync) and self.writable & r.sent <= r.ok
        self.uncount(r, written=not r.submitted or (done and self.writable <= r.ok))
        self.writes.remove(r)
        self.reply(r, r.end - r.start if done else -(r.error or errno.EIO))

    def write_page(self, page: TwinPage) -> None:
        page.due = page.needs_write = False
        page.snapshot = self.page_bytes(page.index)
        page.snapshot_bits = frozenset(c for c in self.image if self.page_of(c) is page)
        self.durable -= {c for c in self.durable if self.page_of(c) is page and c not in page.snapshot_bits}
        page.sent = self.writable | self.blocked
        page.ok = set()
        for sweep in self.sweeps[:1]:
            page.for_sweep = page.index in sweep.pages
        for leg in sorted(self.writable):
            offset = self.slot_offset + page.index * PAGE
            self.op(OpKind.WRITE_DURABLE, leg, offset, PAGE, page.snapshot, page)

    def move_page_end(self, page: TwinPage) -> bool:
        if page.snapshot is None or page.ops:
            return False
        page.snapshot = None
        for block in self.blocks:
            if block.page is page:
                block.page = None
                if not self.writable & page.sent <= page.ok:
                    block.error = errno.EIO
        good = self.writable <= page.ok
        if good:
            self.durable |= page.snapshot_bits
            if page.index == 0:
                self.header_lost = False
        elif self.writable & page.sent <= page.ok:  # a leg has joined, and gets it next
            page.due = True
            page.for_sweep = False
            return True
        else:
            page.needs_write = True
            for r in self.writes:
                if r.state == "bitmap" and self.resize is None and self.lacking_page(r) is page:
                    r.error = errno.EIO
            if self.resize is not None and not page.due:
                self.resize.error = errno.EIO
        if page.for_sweep:
            page.for_sweep = False
            self.sweeps[0].pages.discard(page.index)
            if not good:
                self.sweeps[0].error = errno.EIO
        return True

    def move_flush(self) -> bool:
        moved = False
        if not self.flush.ops:
            for r in self.flush.requests:
                r.sent, r.ok = set(self.flush.sent), set(self.flush.ok)
                self.flush_failed.append(r)
                moved = True
            self.flush = TwinFlush()
            if self.flush_waiting:
                self.flush.requests, self.flush_waiting = self.flush_waiting, []
                self.flush.sent = self.writable | self.blocked
                for leg in sorted(self.writable):
                    self.op(OpKind.FLUSH, leg, 0, 0, None, self.flush)
                moved = True
        if not self.blocked:
            for r in self.flush_failed:
                good = bool(r.ok & self.in_sync) and self.writable & r.sent <= r.ok
                good = good and not self.flush_lost & self.writable
                self.reply(r, 0 if good else -errno.EIO)
                moved = True
            self.flush_failed = []
        return moved

    def clear_allowed(self) -> bool:
        if self.resize is not None or self.header_lost:
            return False
        return not (self.degraded or self.blocked or self.need_sync or self.flush_lost & self.writable)

    def move_sweep(self) -> bool:
        if not self.sweeps:
            return False
        r = self.sweeps[0]
        if r.state == "start":
            for page in self.pages:
                page.needs_write |= page.pending
                page.pending = False
            allowed = self.clear_allowed() and 1 in self.counters.values()
            if self.need_sync:
                self.superblock[32:40] = self.events_cleared.to_bytes(8, "little")
                self.pages[0].needs_write = True
                self.need_sync = False
            if allowed:
                r.state = "flush"
                for leg in sorted(self.writable):
                    self.op(OpKind.FLUSH, leg, 0, 0, None, r)
            else:
                self.age(r)
            return True
        if r.state == "flush" and not r.ops:
            if self.clear_allowed() and not r.error and self.writable <= r.ok:
                for chunk, value in self.counters.items():
                    if value == 1:
                        self.counters[chunk] = 0
                        self.image.discard(chunk)
                        self.page_of(chunk).pending = True
            r.error = 0
            self.age(r)
            return True
        if r.state == "pages" and not r.pages:
            self.sweeps.pop(0)
            self.reply(r, -r.error)
            return True
        return False

    def age(self, r: TwinRequest) -> None:
        for chunk, value in self.counters.items():
            if value == 2:
                self.counters[chunk] = 1
        r.state = "pages"
        for page in self.pages:
            if page.needs_write or page.due:
                page.due = True
                r.pages.add(page.index)
            elif page.snapshot is not None:
                page.for_sweep = True
                r.pages.add(page.index)

    def move_drain(self, r: TwinRequest) -> bool:
        r.drained = {o for o in r.drained if o.started and o.state not in ("done", "finish")}
        if r.drained:
            return False
        self.drains.remove(r)
        self.reply(r, 0)
        return True

    # ---- resize ----

    def next_resize(self) -> None:
        while self.resize is None and self.resizes:
            z = self.resizes.pop(0)
            if self.capacity > z.size:
                self.replies.append((z.tag, -errno.EINVAL, None))
                continue
            self.resize = z
            z.old_size, z.old_chunk = self.size, self.chunk
            for r in self.writes:
                if r.state == "bitmap":
                    r.started = 0
            for b in self.blocks:
                if b.page is not None:
                    b.page, b.held = None, True

    def move_resize(self) -> bool:
        z = self.resize
        if z is None or any(p.snapshot is not None or (p.due and z.state != "wait") for p in self.pages):
            return False
        if z.state == "wait":
            end = -(-z.size // self.block) * self.block
            writes: list[TwinRequest | TwinBlock] = [*self.writes, *self.blocks]
            if any(r.submitted and r.ops and r.span[1] > end for r in writes):
                return False
            z.old_header, z.old_counters, z.old_doubt = bytes(self.superblock), dict(self.counters), set(self.doubt)
            z.keep = {chunk for chunk in self.image if chunk < self.chunks}
            self.relayout(z.size, z.chunk, {}, set())
            if z.needed_from is not None and z.size > z.old_size:
                for chunk in range(z.needed_from // z.chunk, self.chunks):
                    self.counters[chunk] = max(self.counter(chunk), 2 | self.counter(chunk) & RESYNC) | NEEDED
            self.begin_resize(z)
        elif z.error and z.state != "clean":
            self.undo_resize(z)
            self.end_resize(z, -z.error)
        elif z.state == "both":
            z.state = "header"
            self.put_header(z.header)
            self.pages[0].due = True
        elif z.state == "header":
            z.state = "clean"
            self.image = {chunk for chunk, value in self.counters.items() if value}
            for page in self.pages:
                page.due |= any(self.page_of(chunk) is page for chunk in self.image ^ self.durable)
        else:
            self.end_resize(z, 0)
        return True

    def begin_resize(self, z: TwinResize) -> None:
        z.state, z.error = "both", 0
        self.put_header(z.old_header)
        self.image = z.keep | {chunk for chunk, value in self.counters.items() if value}
        self.durable.clear()
        for page in self.pages:
            page.due = True

    def undo_resize(self, z: TwinResize) -> None:
        base = {}
        for chunk, value in z.old_counters.items():
            if value:
                unsure = value & (NEEDED | RESYNC) or (chunk + 1) * z.old_chunk > z.size
                base[chunk] = 2 | (NEEDED if unsure else 0)
        self.relayout(z.old_size, z.old_chunk, base, z.old_doubt)
        self.put_header(z.old_header)
        self.image |= {chunk for chunk, value in self.counters.items() if value}
        for chunk in self.image:
            if chunk < self.chunks:
                self.counters[chunk] = self.counter(chunk) or 2
        self.header_lost = True
        self.durable.clear()
        for page in self.pages:
            page.needs_write = True

    def end_resize(self, z: TwinResize, result: int) -> None:
        self.resize = None
        self.replies.append((z.tag, result, None))
        for block in self.blocks:
            block.held = False
        self.next_resize()

    def put_header(self, header: bytes) -> None:
        self.superblock[:24], self.superblock[40:] = header[:24], header[40:]

    def relayout(self, size: int, chunk: int, base: dict[int, int], doubt: set[int]) -> None:
        chunks = -(-size // chunk)

        def others(old: int) -> range:
            start, end = old * self.chunk, min((old + 1) * self.chunk, self.size)
            return range(start // chunk, min(-(-end // chunk), chunks))

        counters = dict(base)
        for old, value in self.counters.items():
            for new in others(old) if value else ():
                counters[new] = counters.get(new, 0) | 2 | value & (NEEDED | RESYNC)
        self.doubt = doubt | {new for old in self.doubt for new in others(old)}
        self.size, self.chunk, self.chunks, self.counters = size, chunk, chunks, counters
        counted: list[TwinRequest | TwinBlock] = [r for r in self.writes if r.state != "start"]
        counted += [b for b in self.blocks if b.counted]
        for r in counted:
            for new in self.chunks_of(r):
                counters[new] = max(counters.get(new, 0), 2 | counters.get(new, 0) & (NEEDED | RESYNC)) + 1
        for page in self.pages:
            page.pending = False

    # ---- sync ----

    def need(self, start: int) -> int:
        """Return what healing a block at ``start`` has to do: 0 nothing, 1 recovering legs, 2 all legs."""
        if self.counter(min(start // self.chunk, self.chunks - 1)) & (NEEDED | RESYNC):
            return 2
        recovering = [self.recovery[leg] for leg in self.writable - self.in_sync]
        return int(bool(recovering) and start + self.block > min(recovering))

    def heal_targets(self, b: TwinBlock) -> set[int]:
        if any(self.counter(chunk) & (NEEDED | RESYNC) for chunk in self.chunks_of(b)):
            return self.writable
        return {leg for leg in self.writable - self.in_sync if self.recovery[leg] < b.span[1]}

    def stop_syncs(self, error: int) -> None:
        for sync in self.syncs:
            sync.error = sync.error or error
        for block in list(self.blocks):
            if block.state == "order" and self.has_older(block):
                self.end_block(block, 0)

    def move_syncs(self) -> bool:
        moved = False
        if self.blocked and self.syncs:
            moved = any(not sync.error for sync in self.syncs)
            self.stop_syncs(errno.EAGAIN)
        for sync in self.syncs:
            while not sync.error and sync.cursor < sync.end and len(self.blocks) < self.blocks_max:
                self.start_block(sync)
                moved = True
        for sync in list(self.syncs):
            if (sync.error or sync.cursor == sync.end) and not any(b.sync is sync for b in self.blocks):
                self.syncs.remove(sync)
                self.replies.append((sync.tag, -sync.error if sync.error else sync.copied, None))
                moved = True
        return moved

    def start_block(self, sync: TwinSync) -> None:
        start = sync.cursor
        end = min(start + self.block_bytes, sync.end)
        if sync.action == SyncAction.HEAL:
            need = self.need(start)
            end = start
            while end < sync.end and self.need(end) == need and (not need or end - start < self.block_bytes):
                end += self.block
            if not need:
                sync.cursor = end
                return
        sync.cursor = end
        self.serial += 1
        block = TwinBlock(sync, self.serial, (start, end))
        self.blocks.append(block)
        self.move_block(block)

    def end_block(self, b: TwinBlock, error: int) -> bool:
        if b.counted:
            self.uncount(b, written=not b.submitted or (not b.error and self.writable <= b.ok))
        b.sync.error = b.sync.error or error
        b.state = "done"
        self.blocks.remove(b)
        return True

    def move_block(self, b: TwinBlock) -> bool:
        if b.state == "done" or b.ops or b.held or b.page is not None or (b.state == "order" and self.has_older(b)):
            return False
        if b.state in ("order", "bits"):
            if b.sync.error:
                return self.end_block(b, 0)
            if self.blocked:
                return self.end_block(b, errno.EAGAIN)
        return {
            "order": self.block_turn, "read": self.block_was_read, "bits": self.block_bits,
            "write": self.block_was_written, "verify": self.block_was_verified,
        }[b.state](b)  # fmt: skip

    def block_turn(self, b: TwinBlock) -> bool:
        action = b.sync.action
        if action in (SyncAction.CHECK, SyncAction.REPAIR):
            return self.block_read(b, self.in_sync) if len(self.in_sync) > 1 else self.end_block(b, 0)
        readers = self.in_sync - ({b.sync.leg} if action == SyncAction.REWRITE else set())
        if not readers:
            return self.end_block(b, errno.ENODATA)
        if action == SyncAction.HEAL and not self.heal_targets(b) - {min(readers)}:
            return self.end_block(b, 0)
        return self.block_read(b, {min(readers)})

    def block_read(self, b: TwinBlock, legs: set[int], state: str = "read") -> bool:
        b.state = state
        b.ok = set()
        for leg in sorted(legs):
            self.op(OpKind.READ, None, b.span[0], b.span[1] - b.span[0], None, b, leg)
        return True

    def block_read_done(self, b: TwinBlock, leg: int, error: int, data: bytes | None) -> None:
        if not error:
            assert data is not None
            b.ok.add(leg)
            b.data[leg] = data
        elif b.state == "verify":
            b.error = error
        else:
            b.tried.add(leg)

    def block_was_read(self, b: TwinBlock) -> bool:
        if b.sync.error:
            return self.end_block(b, 0)
        rewritten = {b.sync.leg} if b.sync.action == SyncAction.REWRITE else set()
        if not b.ok:
            others = self.in_sync - b.tried - rewritten
            if not others:
                return self.end_block(b, errno.ENODATA)
            return self.end_block(b, errno.EAGAIN) if self.blocked else self.block_read(b, {min(others)})
        b.source = min(b.ok)
        b.sync.copied += b.span[1] - b.span[0]
        if b.sync.action in (SyncAction.HEAL, SyncAction.REWRITE):
            return self.block_write(b)
        data = [b.data[leg] for leg in b.ok]
        found = {
            b.span[0] // SECTOR + i
            for i in range((b.span[1] - b.span[0]) // SECTOR)
            if len({d[i * SECTOR : (i + 1) * SECTOR] for d in data}) > 1
        }
        self.mismatch_sectors += len(found)
        self.mismatches |= found
        if b.sync.action == SyncAction.CHECK or not (found or b.tried):
            return self.end_block(b, 0)
        b.state = "bits"
        return self.block_bits(b)

    def block_bits(self, b: TwinBlock) -> bool:
        if self.resize is not None:
            b.held = True
            return True
        if not b.counted:
            b.counted = True
            self.count(b)
        if b.error:
            return self.end_block(b, errno.EIO)
        b.page = self.lacking_page(b)
        if b.page is None:
            return self.block_write(b)
        if b.page.snapshot is None:
            b.page.due = True
        return True

    def block_write(self, b: TwinBlock) -> bool:
        if b.sync.error or self.blocked or b.source not in self.in_sync:
            return self.end_block(b, errno.EAGAIN)
        targets = self.heal_targets(b) if b.sync.action == SyncAction.HEAL else self.writable
        if b.sync.action == SyncAction.REWRITE:
            targets = targets & {b.sync.leg}
        targets = targets - {b.source}
        if not targets:
            return self.end_block(b, 0)
        b.state, b.submitted, b.ok = "write", True, {b.source}
        data = b.data[b.source]
        for leg in sorted(targets):
            self.op(OpKind.WRITE, leg, self.data_offset + b.span[0], len(data), data, b)
        return True

    def block_was_written(self, b: TwinBlock) -> bool:
        if b.error:
            return self.end_block(b, errno.EAGAIN)
        if b.sync.action != SyncAction.REWRITE or b.sync.error:
            return self.end_block(b, 0)
        return self.block_read(b, {b.sync.leg}, "verify")

    def block_was_verified(self, b: TwinBlock) -> bool:
        same = not b.error and b.data[b.sync.leg] == b.data[b.source]
        return self.end_block(b, 0 if same else b.error or errno.EIO)
