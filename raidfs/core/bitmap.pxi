# The write-intent bitmap of the own slot: a counter per chunk, the page images, their group commit, the lazy clear.
#
# Counter of a chunk, as in md (drivers/md/md-bitmap.h): bit 15 NEEDED, bit 14 RESYNC, below them
#     0      clean, the bit on disk is clear
#     1      the bit is set, the next sweep may clear it
#     2      the bit is set, no write in flight
#     2 + n  n writes in flight
#
# Two images of the slot: `image` is how it shall be, `durable` has only bits that are on every good leg whatever
# happens now. A write of data starts when all of its bits are in `durable`. When a page write is issued, bits that it
# clears leave `durable` at once (the legs may have either); when it is complete `durable` becomes what was written.

cdef enum:
    NEEDED = 0x8000
    RESYNC = 0x4000
    COUNTER_MAX = 0x3fff
    BITS_START = HEADER_BYTES
    SB_EVENTS = 24               # offsets in the bitmap superblock, little-endian u64
    SB_EVENTS_CLEARED = 32


cdef inline uint64_t bit_byte(uint64_t chunk) noexcept nogil:
    return BITS_START + (chunk >> 3)


cdef inline Page *page_of(EngineState *e, uint64_t chunk) noexcept nogil:
    return &e.pages[bit_byte(chunk) // PAGE_BYTES]


cdef inline bint bit_test(const unsigned char *bits, uint64_t chunk) noexcept nogil:
    return (bits[bit_byte(chunk)] >> (chunk & 7)) & 1


cdef inline void bit_set(unsigned char *bits, uint64_t chunk) noexcept nogil:
    bits[bit_byte(chunk)] |= <unsigned char> (1 << (chunk & 7))


cdef inline void bit_clear(unsigned char *bits, uint64_t chunk) noexcept nogil:
    bits[bit_byte(chunk)] &= <unsigned char> ~(1 << (chunk & 7))


cdef inline void put_u64(unsigned char *data, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        data[i] = <unsigned char> (value >> (8 * i))


cdef inline void counter_put(EngineState *e, uint64_t chunk, uint16_t value) noexcept nogil:
    cdef uint16_t old = e.counters[chunk]
    if old == 1:
        e.ones -= 1
    if value == 1:
        e.ones += 1
    if old & NEEDED:
        e.needed -= 1
    if value & NEEDED:
        e.needed += 1
    if old & RESYNC:
        e.resyncing -= 1
    if value & RESYNC:
        e.resyncing += 1
    e.counters[chunk] = value


cdef inline bint degraded(EngineState *e) noexcept nogil:
    return <uint32_t> popcount(e.in_sync) < e.raid_disks


# ---- counting writes ---------------------------------------------------------------------------------------------

cdef bint chunks_saturated(EngineState *e, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t chunk
    for chunk in range(first, last + 1):
        if e.counters[chunk] & COUNTER_MAX == COUNTER_MAX:
            return True
    return False


cdef void bitmap_startwrite(EngineState *e, uint64_t first, uint64_t last) noexcept nogil:
    """Count a write in chunks first..last; pages that get new bits are due."""
    cdef uint64_t chunk
    cdef uint16_t value
    for chunk in range(first, last + 1):
        value = e.counters[chunk]
        if value == 0:
            bit_set(e.image, chunk)
            page_due(e, page_of(e, chunk))
            value = 2
        elif value == 1:
            value = 2
        counter_put(e, chunk, value + 1)


cdef void bitmap_endwrite(EngineState *e, uint64_t first, uint64_t last, bint written) noexcept nogil:
    """Uncount a write; `written` says that every leg that counts has it. Else legs differ: the chunks are NEEDED.

    What a missing leg lacks needs no mark here: while the array is degraded no bit is cleared on disk.
    """
    cdef uint64_t chunk
    cdef uint16_t value
    if written and not degraded(e) and e.events_cleared < e.events:
        e.events_cleared = e.events
        e.need_sync = True
    for chunk in range(first, last + 1):
        value = e.counters[chunk]
        ENSURE(value & COUNTER_MAX > 2)
        value -= 1
        if not written:
            value |= NEEDED
        counter_put(e, chunk, value)
        if value <= 2:
            page_of(e, chunk).scan = True
    if e.counter_queue.head != NULL:
        wake_all(e, &e.counter_queue)


cdef void bitmap_whole_again(EngineState *e) noexcept nogil:
    """No position is vacant any more, so bits may go that tell what a leg has missed which is not in the array now: it
    must not come back by the bitmap. md raises events_cleared with the next write only, and clears bits without one."""
    if e.events_cleared < e.events:
        e.events_cleared = e.events
        e.need_sync = True


cdef Page *page_not_durable(EngineState *e, uint64_t first, uint64_t last) noexcept nogil:
    """Return the page of the first chunk whose bit is not durable, or NULL when all are."""
    cdef uint64_t chunk
    if e.header_lost:                        # no bit means anything without it
        return &e.pages[0]
    for chunk in range(first, last + 1):
        if not bit_test(e.durable, chunk):
            return page_of(e, chunk)
    return NULL


# ---- pages -------------------------------------------------------------------------------------------------------

cdef void page_due(EngineState *e, Page *page) noexcept nogil:
    """Have a page written as soon as all requests that can go on have gone on, or behind the write in flight.

    That is the group commit: bits of all these requests go out together.
    """
    page.due = True
    if not page.queued and not page.writing:
        page.queued = True
        page.next_due = e.pages_due
        e.pages_due = page


cdef void pages_write_due(EngineState *e) noexcept nogil:
    cdef Page *page
    if resize_waits(e):
        return
    while e.pages_due != NULL:
        page = e.pages_due
        e.pages_due = page.next_due
        page.queued = False
        page_write(e, page)


cdef void page_write(EngineState *e, Page *page) noexcept nogil:
    """Write a page image to all good legs, durably; one write per page at a time."""
    cdef uint64_t start = <uint64_t> page.index * PAGE_BYTES
    cdef uint64_t i
    cdef uint32_t leg
    if e.fenced or not e.writable:       # no leg: it stays due, see legs_unblocked
        return
    ENSURE(not page.writing)
    page.due = False
    page.needs_write = False
    page.sweep_writing = page.sweep_wanted
    page.sweep_wanted = False
    page.writing = True
    page.sent_legs = e.writable | e.blocked
    page.ok_legs = 0
    page.ops_left = 0
    memcpy(page.snapshot, e.image + start, PAGE_BYTES)
    for i in range(<uint64_t> PAGE_BYTES):
        e.durable[start + i] &= page.snapshot[i]
    e.page_writes += 1
    for leg in range(e.legs_count):
        if e.writable & (<uint32_t> 1 << leg):
            page.ops_left += 1
            op_submit(e, &page.ops[leg], OP_WRITE_DURABLE, leg, e.slot_offset + start, PAGE_BYTES, page.snapshot,
                      OWNER_PAGE, page)
    ENSURE(page.ops_left > 0)


cdef void bitmap_distrust(EngineState *e) noexcept nogil:
    """A leg counts again that may have missed page writes: no bit is durable before all pages are written anew."""
    cdef uint32_t i
    if e.read_only:                          # it never writes a page, and has no writes that wait for bits
        return
    memset(e.durable, 0, <size_t> e.pages_count * PAGE_BYTES)
    for i in range(e.pages_count):
        page_due(e, &e.pages[i])
    resize_restart(e)


cdef void page_op_done(EngineState *e, Page *page, LegOp *op, int error) noexcept nogil:
    cdef bint swept = page.sweep_writing
    cdef Request *r
    if error:
        leg_error(e, op.leg, error, op.offset)
    else:
        page.ok_legs |= <uint32_t> 1 << op.leg
    page.ops_left -= 1
    if page.ops_left:
        return
    page.writing = False
    page.sweep_writing = False
    if e.writable & ~page.ok_legs == 0:
        memcpy(e.durable + <uint64_t> page.index * PAGE_BYTES, page.snapshot, PAGE_BYTES)
        if page.index == 0:
            e.header_lost = False
        wake_all(e, &page.waiters)
    elif e.writable & page.sent_legs & ~page.ok_legs == 0:
        page.due = True                      # legs came meanwhile and lack it
        page.sweep_wanted = page.sweep_wanted or swept
        swept = False
        wake_all(e, &page.waiters)
    else:                                    # the last leg refused it: who waits gets the error, others try again
        page.needs_write = True
        r = queue_pop(&page.waiters)
        while r != NULL:
            r.error = EIO
            if r.kind == REQUEST_BLOCK:
                block_advance(e, <SyncBlock *> r)
            else:
                write_finish(e, r)
            r = queue_pop(&page.waiters)
        if swept:
            e.sweep.error = EIO
        if e.resize != NULL and not page.due:
            e.resize.error = EIO
    if swept:
        ENSURE(e.sweep != NULL and e.sweep.waits_for > 0)
        e.sweep.waits_for -= 1
    if page.due:
        page_due(e, page)
    sweep_advance(e)


# ---- the sweep ---------------------------------------------------------------------------------------------------
#
# Three rounds from the last write to a clear bit on disk, as md's daemon: 2 -> 1; then, after a flush of all good legs,
# 1 -> 0 with the bit cleared in the image; then the page is written. The flush is issued after the chunk has reached 1,
# so it follows the chunk's last data write; a write that comes meanwhile lifts the chunk off 1 again. events_cleared
# goes to disk in a round of its own before anything is cleared.

cdef bint clear_allowed(EngineState *e) noexcept nogil:
    """Bits may go only while every position has every write, and events_cleared on disk says so."""
    if e.resize != NULL or e.header_lost:    # a bit may stand for a chunk of the other layout as well
        return False
    return not (degraded(e) or e.blocked or e.need_sync or e.fenced or legs_lost_a_flush(e))


cdef void sweep_start(EngineState *e, Request *r) noexcept nogil:
    cdef bint clearing
    cdef uint32_t i
    cdef uint32_t leg
    e.sweep = r
    r.waits_for = 0
    r.error = 0
    for i in range(e.pages_count):
        if e.pages[i].pending:
            e.pages[i].pending = False
            e.pages[i].needs_write = True
    clearing = e.ones > 0 and clear_allowed(e)
    if e.need_sync:
        put_u64(e.image + SB_EVENTS_CLEARED, e.events_cleared)
        e.pages[0].needs_write = True
        e.need_sync = False
    if not clearing:
        sweep_age(e, r)
        return
    set_stage(e, r, STAGE_LEGS)
    r.ok_legs = 0
    r.ops_left = 0
    for leg in range(e.legs_count):
        if e.writable & (<uint32_t> 1 << leg):
            r.ops_left += 1
            op_submit(e, &r.ops[leg], OP_FLUSH, leg, 0, 0, NULL, OWNER_REQUEST, r)


cdef void sweep_flushed(EngineState *e, Request *r) noexcept nogil:
    """All legs have answered the flush: clear what is still at 1, unless a leg failed or left meanwhile."""
    cdef uint32_t i
    cdef uint64_t chunk
    if clear_allowed(e) and not r.error and e.writable & ~r.ok_legs == 0:
        for i in range(e.pages_count):
            if not e.pages[i].scan:
                continue
            for chunk in range(page_first_chunk(i), page_end_chunk(e, i)):
                if e.counters[chunk] == 1:
                    counter_put(e, chunk, 0)
                    bit_clear(e.image, chunk)
                    e.pages[i].pending = True
    r.error = 0
    sweep_age(e, r)


cdef void sweep_age(EngineState *e, Request *r) noexcept nogil:
    """Let idle chunks age and write the pages that are due."""
    cdef uint32_t i
    cdef uint64_t chunk
    cdef bint more
    for i in range(e.pages_count):
        if e.pages[i].scan:
            more = False
            for chunk in range(page_first_chunk(i), page_end_chunk(e, i)):
                if e.counters[chunk] == 2:
                    counter_put(e, chunk, 1)
                if e.counters[chunk] == 1:
                    more = True
            e.pages[i].scan = more
    set_stage(e, r, STAGE_PAGES)
    for i in range(e.pages_count):
        if e.pages[i].needs_write or e.pages[i].due:
            e.pages[i].sweep_wanted = True
            r.waits_for += 1
            page_due(e, &e.pages[i])
        elif e.pages[i].writing:
            e.pages[i].sweep_writing = True
            r.waits_for += 1
    sweep_advance(e)


cdef void sweep_advance(EngineState *e) noexcept nogil:
    cdef Request *r = e.sweep
    if r == NULL or r.stage != STAGE_PAGES or (r.waits_for and not e.fenced):
        return
    e.sweep = NULL
    if e.fenced:
        sweep_forget(e)
        reply(e, r, -e.fenced)
    else:
        reply(e, r, -r.error if r.error else 0)
    r = queue_pop(&e.sweeps)
    if r != NULL:
        queue_push(&e.ready, r)


cdef void sweep_forget(EngineState *e) noexcept nogil:
    cdef uint32_t i
    for i in range(e.pages_count):
        e.pages[i].sweep_wanted = False
        e.pages[i].sweep_writing = False


cdef inline uint64_t page_first_chunk(uint32_t page) noexcept nogil:
    return 0 if page == 0 else (<uint64_t> page * PAGE_BYTES - BITS_START) * 8


cdef inline uint64_t page_end_chunk(EngineState *e, uint32_t page) noexcept nogil:
    return min(((<uint64_t> page + 1) * PAGE_BYTES - BITS_START) * 8, e.chunks)


# ---- loading and resync ------------------------------------------------------------------------------------------

cdef void bitmap_set_memory_bits(EngineState *e, uint64_t chunk, bint needed) noexcept nogil:
    """Count a bit that is set on disk; `needed` says that its chunk must be resynced."""
    cdef uint16_t value = e.counters[chunk]
    if value == 0 or (value == 1 and needed):    # NEEDED and RESYNC sit on 2 at least
        value = 2
        page_of(e, chunk).scan = True
    if needed:
        value |= NEEDED
    counter_put(e, chunk, value)


cdef void bitmap_start_sync(EngineState *e, uint64_t start, uint64_t end) noexcept nogil:
    """NEEDED becomes RESYNC in every chunk that [start, end) touches (md: start_sync)."""
    cdef uint64_t chunk
    for chunk in range(start >> e.chunk_shift, min((end - 1) >> e.chunk_shift, e.chunks - 1) + 1):
        if e.counters[chunk] & NEEDED:
            counter_put(e, chunk, (e.counters[chunk] & ~NEEDED) | RESYNC)


cdef void bitmap_end_sync(EngineState *e, uint64_t start, uint64_t end, bint aborted) noexcept nogil:
    """RESYNC ends in the chunks wholly in [start, end): their sync is done (md: end_sync).

    Aborted, it ends in all chunks that the range touches, and they are NEEDED again.
    """
    cdef uint64_t mask = (<uint64_t> 1 << e.chunk_shift) - 1
    cdef uint64_t chunk = start >> e.chunk_shift
    cdef uint64_t stop = (end + mask) >> e.chunk_shift
    cdef uint16_t value
    if not aborted:
        chunk = (start + mask) >> e.chunk_shift
        if end < e.size:
            stop = end >> e.chunk_shift
    stop = min(stop, e.chunks)
    while chunk < stop:
        value = e.counters[chunk]
        if value & RESYNC:
            value &= ~RESYNC
            if aborted:
                value |= NEEDED
            counter_put(e, chunk, value)
            if value <= 2:
                page_of(e, chunk).scan = True
        chunk += 1


cdef bint chunks_differ(EngineState *e, uint64_t start, uint64_t end) noexcept nogil:
    """Tell whether a resync of a chunk in [start, end) is due or under way."""
    cdef uint64_t chunk
    if not e.needed and not e.resyncing:
        return False
    for chunk in range(start >> e.chunk_shift, min((end - 1) >> e.chunk_shift, e.chunks - 1) + 1):
        if e.counters[chunk] & (NEEDED | RESYNC):
            return True
    return False
