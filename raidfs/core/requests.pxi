# The life of a request. `advance` is called whenever the thing that a request waited for may have come; it looks at
# the situation anew and either goes on, parks the request again, or replies.

cdef void engine_submit(EngineState *e, Request *r) noexcept nogil:
    """Take a request; it is replied through its port, always."""
    pthread_mutex_lock(&e.mutex)
    engine_submit_locked(e, r)
    run(e)
    engine_unlock(e)


cdef void engine_submit_locked(EngineState *e, Request *r) noexcept nogil:
    e.serial += 1
    r.serial = e.serial
    r.next = NULL
    r.result = 0
    r.error = 0
    r.sent_legs = 0
    r.ok_legs = 0
    r.ops_left = 0
    r.waits_for = 0
    r.bounce = NULL
    r.started = 0
    r.counted = False
    r.submitted = False
    r.edges_done = False
    r.stage = STAGE_NEW
    e.stages[STAGE_NEW] += 1
    memset(r.ranges, 0, sizeof(r.ranges))
    memset(r.ops, 0, sizeof(r.ops))
    admit(e, r)


cdef bint engine_run_locked(EngineState *e, bint pages_later) noexcept nogil:
    """Go on with what has been submitted and completed; the caller holds the mutex and does this before it leaves.

    With `pages_later` bitmap pages that are due are left for a second call, so that what is submitted until then shares
    their writes; returns whether there are any.
    """
    run_ready(e)
    if e.pages_due != NULL and pages_later:
        return True
    pages_write_due(e)
    return False


cdef void admit(EngineState *e, Request *r) noexcept nogil:
    cdef int kind = r.kind
    if kind == REQUEST_LEG_READ or kind == REQUEST_LEG_WRITE or kind == REQUEST_LEG_FLUSH:
        leg_request(e, r)
        return
    if e.fenced and kind != REQUEST_DRAIN:   # what has gone out can still be waited for
        reply(e, r, -e.fenced)
        return
    if not e.configured:
        reply(e, r, -ENXIO)
        return
    if kind == REQUEST_FLUSH:
        queue_push(&e.ready, r)
        return
    if kind == REQUEST_SWEEP:
        if e.sweep != NULL or e.sweeps.head != NULL:
            park(e, r, &e.sweeps, STAGE_ORDER)
        else:
            sweep_start(e, r)
        return
    if kind == REQUEST_DRAIN:
        drain_start(e, r)
        return
    if kind == REQUEST_SYNC:
        sync_admit(e, r)
        return
    if kind == REQUEST_RESIZE:
        resize_admit(e, r)
        return
    if kind == REQUEST_WRITE and e.read_only:
        reply(e, r, -EROFS)
        return
    if r.length > REQUEST_BYTES_MAX:
        reply(e, r, -EINVAL)
        return
    if r.length == 0:
        reply(e, r, 0)
        return
    if r.offset >= e.capacity:
        reply(e, r, -ENOSPC if kind == REQUEST_WRITE else 0)
        return
    r.length = min(r.length, e.capacity - r.offset)
    r.span_start = r.offset & ~(e.block - 1)
    r.span_end = (r.offset + r.length + e.block - 1) & ~(e.block - 1)
    if r.flags & (REQUEST_PUNCH | REQUEST_ZERO):
        if r.span_start != r.offset or r.span_end != r.offset + r.length:
            reply(e, r, -EINVAL)
            return
    elif r.span_start != r.offset or r.span_end != r.offset + r.length or <size_t> r.data & (e.block - 1):
        r.bounce = buffer_get(e, r.span_end - r.span_start)
        if r.bounce == NULL:
            reply(e, r, -ENOMEM)
            return
    active_add(e, r)
    if kind == REQUEST_READ:
        e.reads += 1
        mark_started(e, r)
        read_start(e, r)
        return
    e.writes += 1
    ranges_insert(e, r)
    if r.waits_for:
        set_stage(e, r, STAGE_ORDER)
    else:
        queue_push(&e.ready, r)


cdef void run(EngineState *e) noexcept nogil:
    """Let every ready request go on until none is left; then the bitmap pages that they made due."""
    run_ready(e)
    pages_write_due(e)


cdef void run_ready(EngineState *e) noexcept nogil:
    cdef Request *r
    while True:
        r = queue_pop(&e.ready)
        if r == NULL and e.syncs.head != NULL:
            sync_advance(e)                  # may make user writes ready, by blocks that end at once
            r = queue_pop(&e.ready)
        if r == NULL and e.resize != NULL:
            resize_advance(e)                # makes those ready that it held up
            r = queue_pop(&e.ready)
        if r == NULL:
            break
        if r.kind == REQUEST_FLUSH:
            flush_advance(e, r)
        elif r.kind == REQUEST_SWEEP:
            sweep_start(e, r)
        elif r.kind == REQUEST_BLOCK:
            block_advance(e, <SyncBlock *> r)
        elif r.stage == STAGE_FAILURE:
            write_finish(e, r)
        else:
            write_advance(e, r)


cdef inline void mark_started(EngineState *e, Request *r) noexcept nogil:
    e.serial += 1
    r.started = e.serial


cdef void active_add(EngineState *e, Request *r) noexcept nogil:
    r.active_next = NULL
    r.active_previous = e.active_tail
    if e.active_tail == NULL:
        e.active_head = r
    else:
        e.active_tail.active_next = r
    e.active_tail = r


cdef void finish(EngineState *e, Request *r, int64_t result) noexcept nogil:
    """End a read or write: free what it holds, release who waits for it, reply."""
    if r.kind == REQUEST_READ:
        if result > 0:
            e.bytes_read += <uint64_t> result
    else:
        ranges_remove(e, r)
        if result > 0:
            e.bytes_written += <uint64_t> result
    if r.active_previous == NULL:
        e.active_head = r.active_next
    else:
        r.active_previous.active_next = r.active_next
    if r.active_next == NULL:
        e.active_tail = r.active_previous
    else:
        r.active_next.active_previous = r.active_previous
    buffer_put(e, r.bounce, r.span_end - r.span_start)
    r.bounce = NULL
    drains_release(e, r)
    reply(e, r, result)


cdef void drains_release(EngineState *e, Request *r) noexcept nogil:
    """A request has no leg operation in flight any more, and will have none: drains wait for it no longer."""
    cdef Request *drain
    cdef uint32_t i
    if not r.started:
        return
    for i in range(e.drains.count):
        drain = queue_pop(&e.drains)
        if r.started < drain.serial and r.span_start < drain.span_end and r.span_end > drain.span_start:
            drain.waits_for -= 1
        if drain.waits_for:
            queue_push(&e.drains, drain)
        else:
            reply(e, drain, 0)
    r.started = 0


# ---- reads -------------------------------------------------------------------------------------------------------

cdef void read_start(EngineState *e, Request *r) noexcept nogil:
    cdef int leg = read_leg(e, r.span_start, r.span_end, 0)
    if leg < 0:
        finish(e, r, -EIO)
        return
    set_stage(e, r, STAGE_LEGS)
    read_submit(e, &r.ops[0], leg, r.span_start, r.span_end - r.span_start,
                r.bounce if r.bounce != NULL else r.data, r)


cdef void read_op_done(EngineState *e, Request *r, LegOp *op, int error) noexcept nogil:
    if error:
        if not read_retry(e, r, op, error):
            finish(e, r, -e.fenced if e.fenced else -error)
        return
    if e.fenced:
        finish(e, r, -e.fenced)
        return
    if r.bounce != NULL:
        memcpy(r.data, r.bounce + (r.offset - r.span_start), r.length)
    finish(e, r, <int64_t> r.length)


# ---- writes: the path that architecture and README tell ----------------------------------------------------------

cdef void write_advance(EngineState *e, Request *r) noexcept nogil:
    """Take a write as far as it can go now."""
    cdef uint64_t first = r.span_start >> e.chunk_shift
    cdef uint64_t last = min((r.span_end - 1) >> e.chunk_shift, e.chunks - 1)
    cdef Page *page
    if e.fenced:
        write_finish(e, r)
        return
    if r.offset + r.length > e.capacity:     # which became less since it came
        r.error = ENOSPC
        write_finish(e, r)
        return
    if e.resize != NULL:                     # its chunks are about to be others
        drains_release(e, r)
        park(e, r, &e.held, STAGE_RESIZE)
        return
    if not r.counted:
        # 1. may it start? Nothing that has not started is waited for by a drain.
        if r.span_start < e.suspend_end and r.span_end > e.suspend_start:
            park(e, r, &e.suspended, STAGE_SUSPENDED)
            return
        if e.blocked:
            park(e, r, &e.blocked_queue, STAGE_BLOCKED)
            return
        if not e.writable:
            write_finish(e, r)
            return
        # 2. its chunks' bits: set in the image, and on their way to all legs
        if chunks_saturated(e, first, last):
            park(e, r, &e.counter_queue, STAGE_COUNTER)
            return
        mark_started(e, r)
        r.counted = True
        bitmap_startwrite(e, first, last)
    # 3. blocks that it covers only in part: the rest of them is read first
    if r.bounce != NULL and not r.edges_done:
        r.edges_done = True
        if edges_submit(e, r):
            return
    if r.error:
        write_finish(e, r)
        return
    # 4. no byte of data before the bits are durable
    page = page_not_durable(e, first, last)
    if page != NULL:
        park(e, r, &page.waiters, STAGE_BITMAP)
        if not page.writing:
            page_due(e, page)
        return
    # 5. no data while a leg's failure is not recorded: it may lack the bits, and counts as good after a crash
    if e.blocked:
        drains_release(e, r)                 # nothing of it is in flight; it looks at the suspended range again
        park(e, r, &e.blocked_queue, STAGE_BLOCKED)
        return
    if not e.writable:
        write_finish(e, r)
        return
    if not r.started:
        if r.span_start < e.suspend_end and r.span_end > e.suspend_start:
            park(e, r, &e.suspended, STAGE_SUSPENDED)
            return
        mark_started(e, r)
    # 6. data to all legs at once
    data_submit(e, r)


cdef bint edges_submit(EngineState *e, Request *r) noexcept nogil:
    """Read the first and last block where the request covers only a part of them; return whether it must wait."""
    cdef uint64_t end = r.offset + r.length
    cdef uint64_t tail = r.span_end - e.block
    cdef uint64_t starts[2]
    cdef uint32_t count = 0
    cdef uint32_t i
    cdef int leg
    if r.offset != r.span_start:
        starts[count] = r.span_start
        count += 1
    if end != r.span_end and (count == 0 or tail != r.span_start):
        starts[count] = tail
        count += 1
    if count == 0:
        memcpy(r.bounce, r.data, r.length)
        return False
    set_stage(e, r, STAGE_EDGES)
    r.ops_left = 0
    for i in range(count):
        leg = read_leg(e, starts[i], starts[i] + e.block, 0)
        if leg < 0:
            r.error = EIO
            break
        r.ops_left += 1
        read_submit(e, &r.ops[i], leg, starts[i], e.block, r.bounce + (starts[i] - r.span_start), r)
    return r.ops_left > 0


cdef void edge_op_done(EngineState *e, Request *r, LegOp *op, int error) noexcept nogil:
    if error:
        if read_retry(e, r, op, error):
            return
        r.error = error
    op.tried = 0
    r.ops_left -= 1
    if r.ops_left == 0:
        memcpy(r.bounce + (r.offset - r.span_start), r.data, r.length)
        queue_push(&e.ready, r)


cdef inline int write_kind(Request *r) noexcept nogil:
    if r.flags & REQUEST_PUNCH:
        return OP_PUNCH
    if r.flags & REQUEST_ZERO:
        return OP_ZERO
    return OP_WRITE_DURABLE if r.flags & REQUEST_DURABLE else OP_WRITE


cdef void data_submit(EngineState *e, Request *r) noexcept nogil:
    cdef int kind = write_kind(r)
    cdef unsigned char *data = r.bounce if r.bounce != NULL else r.data
    cdef uint32_t leg
    set_stage(e, r, STAGE_LEGS)
    r.submitted = True
    r.sent_legs = e.writable | e.blocked
    r.ok_legs = 0
    r.ops_left = 0
    for leg in range(e.legs_count):
        if e.writable & (<uint32_t> 1 << leg):
            r.ops_left += 1
            op_submit(e, &r.ops[leg], kind, leg, e.legs[leg].data_offset + r.span_start,
                      r.span_end - r.span_start, data, OWNER_REQUEST, r)
    ENSURE(r.ops_left > 0)


cdef void data_op_done(EngineState *e, Request *r, LegOp *op, int error) noexcept nogil:
    if error:
        r.error = error
        leg_error(e, op.leg, error, op.offset)
    else:
        r.ok_legs |= <uint32_t> 1 << op.leg
    r.ops_left -= 1
    if r.ops_left == 0:
        write_finish(e, r)


cdef void write_finish(EngineState *e, Request *r) noexcept nogil:
    """Reply to a write, or park it while a failed leg is being recorded.

    The rule that P1 asks for: it succeeds when every leg that counts as good *now* has it. A leg whose failure has been
    recorded counts no more; one whose failure control refused to record counts again, and the write fails. A leg that
    has come since the data went out does not make it fail: it lacks the data, so the chunks are NEEDED.
    """
    cdef uint64_t first = r.span_start >> e.chunk_shift
    cdef uint64_t last = min((r.span_end - 1) >> e.chunk_shift, e.chunks - 1)
    cdef bint done = r.ok_legs & e.in_sync != 0 and e.writable & r.sent_legs & ~r.ok_legs == 0
    if e.blocked and not e.fenced and r.ok_legs:
        drains_release(e, r)                 # else a drain could wait for a record that waits for the drain
        park(e, r, &e.failure_queue, STAGE_FAILURE)
        return
    if r.counted:
        r.counted = False
        bitmap_endwrite(e, first, last, not r.submitted or (done and e.writable & ~r.ok_legs == 0))
    if e.fenced:
        finish(e, r, -e.fenced)
    elif done:
        finish(e, r, <int64_t> r.length)
    else:
        finish(e, r, -r.error if r.error else -EIO)


# ---- flush, drain, control I/O -----------------------------------------------------------------------------------

cdef void flush_advance(EngineState *e, Request *r) noexcept nogil:
    """Join the next group of flushes, or start it; a flush in flight may have begun before our writes were done."""
    if r.stage == STAGE_FAILURE:
        flush_reply(e, r)
        return
    park(e, r, &e.flush_queue, STAGE_LEGS)
    if e.flushing.ops_left == 0:
        flush_start(e)


cdef void flush_start(EngineState *e) noexcept nogil:
    cdef FlushGroup *group = &e.flushing
    cdef uint32_t leg
    cdef Request *r
    if e.flush_queue.head == NULL:
        return
    group.requests = e.flush_queue
    memset(&e.flush_queue, 0, sizeof(RequestQueue))
    group.sent_legs = e.writable | e.blocked
    group.ok_legs = 0
    if e.fenced or not e.writable:
        flush_group_done(e)
        return
    e.flushes += 1
    for leg in range(e.legs_count):
        if e.writable & (<uint32_t> 1 << leg):
            group.ops_left += 1
            op_submit(e, &group.ops[leg], OP_FLUSH, leg, 0, 0, NULL, OWNER_FLUSH, group)


cdef void flush_op_done(EngineState *e, LegOp *op, int error) noexcept nogil:
    cdef FlushGroup *group = &e.flushing
    if error:
        flush_lost(e, op.leg, error)
    else:
        group.ok_legs |= <uint32_t> 1 << op.leg
    group.ops_left -= 1
    if group.ops_left == 0:
        flush_group_done(e)
        flush_start(e)


cdef void flush_lost(EngineState *e, uint32_t leg, int error) noexcept nogil:
    """A failed flush is never retried into success: the leg is faulty, or nothing is promised any more."""
    leg_error(e, leg, error, 0)
    if e.writable & (<uint32_t> 1 << leg):
        e.legs[leg].flush_lost = True


cdef void flush_group_done(EngineState *e) noexcept nogil:
    cdef FlushGroup *group = &e.flushing
    cdef Request *r = queue_pop(&group.requests)
    while r != NULL:
        r.sent_legs = group.sent_legs
        r.ok_legs = group.ok_legs
        if e.blocked and not e.fenced:
            park(e, r, &e.failure_queue, STAGE_FAILURE)
        else:
            flush_reply(e, r)
        r = queue_pop(&group.requests)


cdef void flush_reply(EngineState *e, Request *r) noexcept nogil:
    if e.fenced:
        reply(e, r, -e.fenced)
    elif not r.ok_legs & e.in_sync or e.writable & r.sent_legs & ~r.ok_legs or legs_lost_a_flush(e):
        reply(e, r, -EIO)
    else:
        reply(e, r, 0)


cdef void drain_start(EngineState *e, Request *r) noexcept nogil:
    """Wait for every started request that overlaps; younger ones and parked ones do not count."""
    cdef Request *other = e.active_head
    r.span_start = r.offset
    r.span_end = r.offset + r.length
    while other != NULL:
        if other.started and other.span_start < r.span_end and other.span_end > r.span_start:
            r.waits_for += 1
        other = other.active_next
    if r.waits_for:
        park(e, r, &e.drains, STAGE_ORDER)
    else:
        reply(e, r, 0)


cdef void leg_request(EngineState *e, Request *r) noexcept nogil:
    """Control's own I/O on one leg: superblocks and other nodes' bitmaps."""
    if r.leg >= e.legs_count or not e.legs[r.leg].used:
        reply(e, r, -EINVAL)
        return
    if e.fenced and r.kind != REQUEST_LEG_READ:
        reply(e, r, -e.fenced)
        return
    set_stage(e, r, STAGE_LEGS)
    if r.kind == REQUEST_LEG_FLUSH:
        op_submit(e, &r.ops[0], OP_FLUSH, r.leg, 0, 0, NULL, OWNER_REQUEST, r)
    else:
        op_submit(e, &r.ops[0], OP_READ if r.kind == REQUEST_LEG_READ else OP_WRITE_DURABLE, r.leg, r.offset, r.length,
                  r.data, OWNER_REQUEST, r)


# ---- completions -------------------------------------------------------------------------------------------------

cdef void engine_complete_op(EngineState *e, LegOp *op, int64_t result) noexcept nogil:
    """Tell that a leg operation has ended: `result` is the number of bytes done (0 for a flush) or -errno.

    A short transfer is an error (EIO): the backend has already tried to go on.
    """
    pthread_mutex_lock(&e.mutex)
    engine_complete_op_locked(e, op, result)
    run(e)
    engine_unlock(e)


cdef void engine_complete_op_locked(EngineState *e, LegOp *op, int64_t result) noexcept nogil:
    cdef int error
    ENSURE(op.pending)
    error = op_ended(e, op, result)
    e.ops_taken -= 1
    if op.owner_kind == OWNER_PAGE:
        page_op_done(e, <Page *> op.owner, op, error)
    elif op.owner_kind == OWNER_FLUSH:
        flush_op_done(e, op, error)
    else:
        request_op_done(e, <Request *> op.owner, op, error)


cdef void request_op_done(EngineState *e, Request *r, LegOp *op, int error) noexcept nogil:
    if r.kind == REQUEST_READ:
        read_op_done(e, r, op, error)
    elif r.kind == REQUEST_WRITE:
        if r.stage == STAGE_EDGES:
            edge_op_done(e, r, op, error)
        else:
            data_op_done(e, r, op, error)
    elif r.kind == REQUEST_SWEEP:
        if error:
            r.error = error
            flush_lost(e, op.leg, error)
        else:
            r.ok_legs |= <uint32_t> 1 << op.leg
        r.ops_left -= 1
        if r.ops_left == 0:
            sweep_flushed(e, r)
    elif r.kind == REQUEST_BLOCK:
        block_op_done(e, <SyncBlock *> r, op, error)
    else:
        reply(e, r, -error if error else <int64_t> r.length)
