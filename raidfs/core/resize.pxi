# Resize: the bitmap of the own slot for another size of the array, or with chunks of another size.
#
# What requests may address (the capacity) is not changed by it; control lowers that before and raises it after.
#
# A slot is not written in one piece, and its header says what its bits mean. So that every moment of it, on every leg,
# tells of every chunk whose bit is set here, it is written in three rounds, each durable on all good legs before the
# next one:
#
#     both     all pages: the bits of the old layout and those of the new one, below the old header
#     header   page 0: the new header above them
#     clean    pages that hold bits of the old layout: those of the new one alone
#
# Meanwhile no write starts, and those that have their bits but not yet sent their data wait too: a bit counts only
# below the header that it was made for. Data that is on its way to the legs is told of by the bits of both layouts.
# Nothing is cleared. A leg that begins to count meanwhile has missed rounds: all of them are done again.
#
# When the last leg refuses a page before the header is durable, the old layout is in force again. Afterwards the new
# one is, and what could not be cleaned up is written by the next sweep.

cdef enum:                       # Resize.phase
    RESIZE_WAIT                  # for page writes in flight, and for data on its way to what lies behind the new size
    RESIZE_BOTH
    RESIZE_HEADER
    RESIZE_CLEAN


cdef inline Resize *resize_of(Request *r) noexcept nogil:
    return <Resize *> r.data


cdef inline bint resize_waits(EngineState *e) noexcept nogil:
    return e.resize != NULL and resize_of(e.resize).phase == RESIZE_WAIT and not e.fenced


cdef inline uint64_t chunks_in(uint64_t size, uint32_t shift) noexcept nogil:
    return (size + (<uint64_t> 1 << shift) - 1) >> shift


cdef void resize_admit(EngineState *e, Request *r) noexcept nogil:
    if e.resize != NULL:
        park(e, r, &e.resizes, STAGE_ORDER)
    else:
        resize_start(e, r)


cdef void resize_start(EngineState *e, Request *r) noexcept nogil:
    """Hold up what waits for bits; the rest is done by `resize_advance`."""
    cdef Resize *z = resize_of(r)
    cdef Request *waiter
    cdef uint32_t i
    if e.capacity > z.size:
        reply(e, r, -EINVAL)
        return
    e.resize = r
    z.phase = RESIZE_WAIT
    z.old_size = e.size
    z.old_chunk_shift = e.chunk_shift
    set_stage(e, r, STAGE_PAGES)
    for i in range(e.pages_count):
        waiter = queue_pop(&e.pages[i].waiters)
        while waiter != NULL:
            if waiter.kind == REQUEST_WRITE:
                drains_release(e, waiter)
                set_stage(e, waiter, STAGE_RESIZE)
            queue_push(&e.held, waiter)
            waiter = queue_pop(&e.pages[i].waiters)


cdef void resize_advance(EngineState *e) noexcept nogil:
    """Take the resize under way to its next round when there is nothing left of this one."""
    cdef Request *r = e.resize
    cdef Resize *z = resize_of(r)
    cdef uint32_t i
    if e.fenced:
        resize_end(e, -e.fenced)
        return
    for i in range(e.pages_count):
        if e.pages[i].writing or (z.phase != RESIZE_WAIT and e.pages[i].due):
            return
    if z.phase == RESIZE_WAIT:
        if data_beyond(e, z.size):
            return
        resize_keep(e, z)
        memset(z.counters, 0, counters_bytes(e))
        memset(z.doubt, 0, <size_t> e.pages_count * PAGE_BYTES)
        if not layout_change(e, z, z.size, z.chunk_shift):
            return
        layout_need(e, z)
        if e.read_only:                      # it never writes a page
            header_put(e, z.header)
            resize_bits(e, NULL)
            resize_end(e, 0)
        else:
            resize_begin(e)
    elif r.error and z.phase != RESIZE_CLEAN:
        resize_undo(e, z)
        resize_end(e, -r.error)
    elif z.phase == RESIZE_BOTH:
        z.phase = RESIZE_HEADER
        header_put(e, z.header)
        page_due(e, &e.pages[0])
    elif z.phase == RESIZE_HEADER:
        z.phase = RESIZE_CLEAN
        resize_bits(e, NULL)
        for i in range(e.pages_count):
            if page_bits_differ(e, i):
                page_due(e, &e.pages[i])
        resize_advance(e)
    else:
        resize_end(e, 0)


cdef void resize_begin(EngineState *e) noexcept nogil:
    """Begin the first round; no bit is durable before it has been written."""
    cdef Resize *z = resize_of(e.resize)
    cdef uint32_t i
    z.phase = RESIZE_BOTH
    e.resize.error = 0
    header_put(e, z.old_header)
    resize_bits(e, z.keep)
    memset(e.durable, 0, <size_t> e.pages_count * PAGE_BYTES)
    for i in range(e.pages_count):
        page_due(e, &e.pages[i])


cdef void resize_restart(EngineState *e) noexcept nogil:
    """A leg counts again that may have missed a round."""
    if e.resize != NULL and resize_of(e.resize).phase != RESIZE_WAIT:
        resize_begin(e)


cdef void resize_undo(EngineState *e, Resize *z) noexcept nogil:
    """Have the old layout again, with what it knew and what has come since.

    What the legs hold is not known but for the bits of both layouts: all of them count as set, and none is durable
    before the header is. Whatever has ended meanwhile behind the new size was not counted: those chunks are NEEDED.
    """
    cdef uint64_t chunk
    cdef uint32_t i
    for chunk in range(chunks_in(z.old_size, z.old_chunk_shift)):
        if not z.counters[chunk]:
            continue
        if z.counters[chunk] & (NEEDED | RESYNC) or (chunk + 1) << z.old_chunk_shift > z.size:
            z.counters[chunk] = 2 | NEEDED
        else:
            z.counters[chunk] = 2
    ENSURE(layout_change(e, z, z.old_size, z.old_chunk_shift))
    header_put(e, z.old_header)
    for chunk in range(e.chunks):
        if bit_test(e.image, chunk):
            bitmap_set_memory_bits(e, chunk, False)
        elif e.counters[chunk]:
            bit_set(e.image, chunk)
    e.header_lost = True
    memset(e.durable, 0, <size_t> e.pages_count * PAGE_BYTES)
    for i in range(e.pages_count):
        e.pages[i].needs_write = True


cdef void resize_end(EngineState *e, int64_t result) noexcept nogil:
    """Reply; what was held up goes on, or the next resize begins."""
    cdef Request *r = e.resize
    e.resize = NULL
    reply(e, r, result)
    wake_all(e, &e.held)
    wake_all(e, &e.counter_queue)
    while e.resize == NULL and e.resizes.head != NULL:
        r = queue_pop(&e.resizes)
        if e.fenced:
            reply(e, r, -e.fenced)
        else:
            resize_start(e, r)
    if e.resize != NULL:
        resize_advance(e)


# ---- the slot ----------------------------------------------------------------------------------------------------

cdef void resize_keep(EngineState *e, Resize *z) noexcept nogil:
    """Remember the slot as it was: its header, and the bits of the chunks that there were."""
    cdef uint64_t chunk
    memcpy(z.old_header, e.image, HEADER_BYTES)
    memset(z.keep, 0, <size_t> e.pages_count * PAGE_BYTES)
    for chunk in range(chunks_in(z.old_size, z.old_chunk_shift)):
        if bit_test(e.image, chunk):
            bit_set(z.keep, chunk)


cdef void header_put(EngineState *e, const unsigned char *header) noexcept nogil:
    """Put a bitmap superblock into the image; the event counts in it are the engine's own."""
    memcpy(e.image, header, SB_EVENTS)
    memcpy(e.image + SB_EVENTS_CLEARED + 8, header + SB_EVENTS_CLEARED + 8, HEADER_BYTES - SB_EVENTS_CLEARED - 8)


cdef bint page_bits_differ(EngineState *e, uint32_t page) noexcept nogil:
    """Tell whether the legs have other bits in a page than the image."""
    cdef uint64_t start = max(<uint64_t> page * PAGE_BYTES, <uint64_t> BITS_START)
    return memcmp(e.image + start, e.durable + start, (<uint64_t> page + 1) * PAGE_BYTES - start) != 0


cdef void resize_bits(EngineState *e, const unsigned char *keep) noexcept nogil:
    """Make the bits of the image those of the counters, and those of `keep` if there is one."""
    cdef size_t length = <size_t> e.pages_count * PAGE_BYTES - BITS_START
    cdef uint64_t chunk
    if keep == NULL:
        memset(e.image + BITS_START, 0, length)
    else:
        memcpy(e.image + BITS_START, keep + BITS_START, length)
    for chunk in range(e.chunks):
        if e.counters[chunk]:
            bit_set(e.image, chunk)


cdef inline size_t counters_bytes(EngineState *e) noexcept nogil:
    return (<size_t> e.pages_count * PAGE_BYTES - BITS_START) * 8 * sizeof(uint16_t)


# ---- counters ----------------------------------------------------------------------------------------------------

cdef bint data_beyond(EngineState *e, uint64_t size) noexcept nogil:
    """Tell whether data is on its way to what lies behind a size: bits for it are about to go."""
    cdef Request *r = e.active_head
    cdef SyncBlock *block = e.oldest_block
    cdef uint64_t end = (size + e.block - 1) & ~(e.block - 1)
    while r != NULL:
        if r.kind == REQUEST_WRITE and r.submitted and r.ops_left and r.span_end > end:
            return True
        r = r.active_next
    while block != NULL:
        if block.r.submitted and block.r.ops_left and block.r.span_end > end:
            return True
        block = block.younger
    return False


cdef bint layout_change(EngineState *e, Resize *z, uint64_t size, uint32_t shift) noexcept nogil:
    """Have counters and doubt for another size and chunk size; return False when a chunk would have too many writes.

    A chunk is dirty, NEEDED, RESYNC or in doubt when any chunk is so that had a part of it, and begins to age anew; or
    when it is so in the arrays of `z`, which hold no writes.
    """
    cdef uint64_t chunks = chunks_in(size, shift)
    cdef uint64_t chunk
    cdef uint64_t other
    cdef uint64_t start
    cdef uint64_t end
    cdef Request *r = e.active_head
    cdef SyncBlock *block = e.oldest_block
    for chunk in range(e.chunks):
        if not (e.counters[chunk] or bit_test(e.doubt, chunk)):
            continue
        start = chunk << e.chunk_shift
        end = min((chunk + 1) << e.chunk_shift, e.size)
        for other in range(start >> shift, min(((end - 1) >> shift) + 1, chunks)):
            if e.counters[chunk]:
                z.counters[other] |= 2 | (e.counters[chunk] & (NEEDED | RESYNC))
            if bit_test(e.doubt, chunk):
                bit_set(z.doubt, other)
    while r != NULL:
        if r.kind == REQUEST_WRITE and r.counted and not layout_count(z.counters, r, shift, chunks):
            return False
        r = r.active_next
    while block != NULL:
        if block.r.counted and not layout_count(z.counters, &block.r, shift, chunks):
            return False
        block = block.younger
    e.counters, z.counters = z.counters, e.counters
    e.doubt, z.doubt = z.doubt, e.doubt
    e.size = size
    e.chunk_shift = shift
    e.chunks = chunks
    layout_derive(e)
    return True


cdef void layout_need(EngineState *e, Resize *z) noexcept nogil:
    """Have the chunks NEEDED that are new, if the request says so."""
    cdef uint64_t chunk
    if z.size > z.old_size and z.needed_from < z.size:
        for chunk in range(z.needed_from >> e.chunk_shift, e.chunks):
            bitmap_set_memory_bits(e, chunk, True)


cdef bint layout_count(uint16_t *counters, Request *r, uint32_t shift, uint64_t chunks) noexcept nogil:
    """Count a write that has been counted in the chunks of the other layout."""
    cdef uint64_t chunk
    for chunk in range(r.span_start >> shift, min((r.span_end - 1) >> shift, chunks - 1) + 1):
        if counters[chunk] & COUNTER_MAX == COUNTER_MAX:
            return False
        if not counters[chunk] & COUNTER_MAX:
            counters[chunk] |= 2
        counters[chunk] += 1
    return True


cdef void layout_derive(EngineState *e) noexcept nogil:
    """Compute what is counted of the counters, and have all pages looked at by the next sweep."""
    cdef uint64_t chunk
    cdef uint32_t i
    e.ones = 0
    e.needed = 0
    e.resyncing = 0
    e.doubtful = False
    for chunk in range(e.chunks):
        e.needed += (e.counters[chunk] & NEEDED) != 0
        e.resyncing += (e.counters[chunk] & RESYNC) != 0
        if bit_test(e.doubt, chunk):
            e.doubtful = True
    for i in range(e.pages_count):
        e.pages[i].scan = True
        e.pages[i].pending = False


# ---- the capacity ------------------------------------------------------------------------------------------------

cdef uint64_t capacity_limit(EngineState *e) noexcept nogil:
    """Return the largest capacity: what both layouts of a resize under way cover."""
    cdef uint64_t limit = e.size
    if e.resize != NULL:
        limit = min(min(limit, resize_of(e.resize).size), resize_of(e.resize).old_size)
    return limit


cdef void capacity_put(EngineState *e, uint64_t capacity) noexcept nogil:
    """Have requests end at another place; those that wait look at it when they go on."""
    cdef Request *r = e.syncs.head
    cdef uint64_t end = (capacity + e.block - 1) & ~(e.block - 1)
    cdef uint32_t i
    e.capacity = capacity
    while r != NULL:
        r.span_end = min(r.span_end, end)
        r.cursor = min(r.cursor, end)
        r = r.next
    wake_all(e, &e.suspended)
    wake_all(e, &e.blocked_queue)
    wake_all(e, &e.counter_queue)
    wake_all(e, &e.held)
    for i in range(e.pages_count):
        wake_all(e, &e.pages[i].waiters)
