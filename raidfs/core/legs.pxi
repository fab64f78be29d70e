# Legs: which one to read, what a failure does, what control answers.

cdef void legs_derive(EngineState *e) noexcept nogil:
    """Compute the masks and the order from what control published and what has failed since."""
    cdef uint32_t leg
    cdef uint32_t bit
    cdef uint32_t i
    e.writable = 0
    e.in_sync = 0
    e.blocked = 0
    e.recovery_from = UINT64_MAX
    for leg in range(e.legs_count):
        i = leg
        while i and e.legs[e.order[i - 1]].position > e.legs[leg].position:
            e.order[i] = e.order[i - 1]
            i -= 1
        e.order[i] = leg
        bit = <uint32_t> 1 << leg
        if e.legs[leg].blocked:
            e.blocked |= bit
        elif e.legs[leg].state == LEG_IN_SYNC:
            e.in_sync |= bit
            e.writable |= bit
        elif e.legs[leg].state == LEG_RECOVERING:
            e.writable |= bit
            e.recovery_from = min(e.recovery_from, e.legs[leg].recovery_offset)


cdef int first_leg(EngineState *e, uint32_t candidates) noexcept nogil:
    """Return the leg of `candidates` with the lowest position, or -1 without any."""
    cdef uint32_t i
    for i in range(e.legs_count):
        if candidates & (<uint32_t> 1 << e.order[i]):
            return <int> e.order[i]
    return -1


cdef void legs_joined(EngineState *e, uint32_t fresh) noexcept nogil:
    """Legs in the mask `fresh` count from now on and did not before: what is under way has not reached them.

    A write that is under way leaves its chunks NEEDED, a bitmap page is written again, a flush asks nothing of them:
    control flushes a leg itself before it is in sync. No bit is durable before all pages have been written anew.
    """
    cdef Request *r = e.active_head
    cdef SyncBlock *block = e.oldest_block
    cdef uint32_t i
    while r != NULL:
        r.sent_legs &= ~fresh
        r.ok_legs &= ~fresh
        r = r.active_next
    while block != NULL:
        block.r.ok_legs &= ~fresh
        block = block.younger
    for i in range(e.pages_count):
        e.pages[i].sent_legs &= ~fresh
        e.pages[i].ok_legs &= ~fresh
    if e.sweep != NULL:
        e.sweep.ok_legs &= ~fresh
    r = e.failure_queue.head
    while r != NULL:
        r.sent_legs &= ~fresh
        r = r.next
    e.flushing.sent_legs &= ~fresh
    for i in range(e.legs_count):
        if fresh & (<uint32_t> 1 << i):
            e.legs[i].flush_lost = False
    bitmap_distrust(e)


cdef bint legs_lost_a_flush(EngineState *e) noexcept nogil:
    cdef uint32_t leg
    for leg in range(e.legs_count):
        if e.writable & (<uint32_t> 1 << leg) and e.legs[leg].flush_lost:
            return True
    return False


cdef void leg_error(EngineState *e, uint32_t leg, int error, uint64_t offset) noexcept nogil:
    """A write or flush failed. The leg is left out at once and writes wait until control has recorded it (P1); the last
    in-sync leg is never left out, its error goes to the user."""
    cdef uint32_t bit = <uint32_t> 1 << leg
    if e.fenced:
        return
    e.legs[leg].write_errors += 1
    if not e.writable & bit:
        return
    if e.in_sync == bit:
        raise_event(e, EVENT_LAST_LEG, leg, error, offset)
        return
    e.legs[leg].blocked = True
    legs_derive(e)
    raise_event(e, EVENT_LEG_FAILED, leg, error, offset)


cdef void legs_unblocked(EngineState *e) noexcept nogil:
    """A failure has been recorded or refused: whoever waited for that goes on."""
    cdef uint32_t i
    for i in range(e.pages_count):
        if e.pages[i].due:
            page_due(e, &e.pages[i])
    if not e.blocked:
        wake_all(e, &e.failure_queue)
        wake_all(e, &e.blocked_queue)


cdef bint legs_may_differ(EngineState *e, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t chunk
    if chunks_differ(e, start, end):
        return True
    if not e.doubtful:
        return False
    for chunk in range(start >> e.chunk_shift, min((end - 1) >> e.chunk_shift, e.chunks - 1) + 1):
        if bit_test(e.doubt, chunk):
            return True
    return False


cdef int read_leg(EngineState *e, uint64_t start, uint64_t end, uint32_t tried) noexcept nogil:
    """Return the leg to read [start, end) of the array from, or -1.

    Where legs may differ the first one, so that every read on every node gives the same (md: choose_first): in a
    suspended range, in chunks that need a resync, where another node may have left such chunks, and everywhere while
    control asks for that. Else the leg where a stream goes on; else the one with the fewest reads in flight, in turn.
    """
    cdef uint32_t candidates = e.in_sync & ~tried
    cdef uint32_t leg
    cdef uint32_t i
    cdef int best = -1
    if not candidates:
        return -1
    if e.read_first or (start < e.suspend_end and end > e.suspend_start) or legs_may_differ(e, start, end):
        return first_leg(e, candidates)
    for leg in range(e.legs_count):
        if candidates & (<uint32_t> 1 << leg) and e.legs[leg].next_read == start and start:
            best = <int> leg
    if best < 0:
        for i in range(e.legs_count):
            leg = (e.read_turn + i) % e.legs_count
            if candidates & (<uint32_t> 1 << leg):
                if best < 0 or e.legs[leg].reads_in_flight < e.legs[best].reads_in_flight:
                    best = <int> leg
        e.read_turn = (<uint32_t> best + 1) % e.legs_count
    e.legs[best].next_read = end
    return best


cdef void read_submit(EngineState *e, LegOp *op, int leg, uint64_t start, uint64_t length, unsigned char *data,
                      Request *r) noexcept nogil:
    op_submit(e, op, OP_READ, <uint32_t> leg, e.legs[leg].data_offset + start, length, data, OWNER_REQUEST, r)


cdef bint read_retry(EngineState *e, Request *r, LegOp *op, int error) noexcept nogil:
    """Try a failed read on another leg; return False when none is left."""
    cdef uint64_t start = op.offset - e.legs[op.leg].data_offset
    cdef int leg
    e.legs[op.leg].read_errors += 1
    raise_read_error(e, op.leg, error, op.offset, op.length)
    op.tried |= <uint32_t> 1 << op.leg
    leg = read_leg(e, start, start + op.length, op.tried)
    if leg < 0 or e.fenced:
        return False
    read_submit(e, op, leg, start, op.length, op.data, r)
    return True
