# Sync: passes over a range of the array that copy, compare or repair, block by block.
#
# Several sync requests may wait, and are worked on in order; a request that has no block left to start does not hold
# the next one up. A block takes its range like a write of this node (core/ranges.pxi): own writes to the same blocks
# come before or after it, others go on. It does not look at the suspended range: control makes it that range.
#
#     heal      read the first leg in sync; write the others that need it
#     check     read all legs in sync; compare
#     repair    the same, and where they differ a write of the first leg's data, with the bit durable before it
#     rewrite   read another leg in sync; write the leg; read it back; compare
#
# A block decides what to read when its turn comes and whom to write when it has the data: legs may come and go. While
# a leg's failure is not recorded nothing is started, and every request ends with EAGAIN: control has to look again.

cdef enum:                       # SyncBlock.state
    BLOCK_ORDER                  # waits for older overlapping writes
    BLOCK_READ
    BLOCK_COMPARE
    BLOCK_BITMAP                 # waits for bits, or for a full chunk
    BLOCK_WRITE
    BLOCK_VERIFY


cdef void sync_admit(EngineState *e, Request *r) noexcept nogil:
    if e.read_only and r.action != SYNC_CHECK:
        reply(e, r, -EROFS)
        return
    if r.action == SYNC_REWRITE and (r.leg >= e.legs_count or not e.legs[r.leg].used):
        reply(e, r, -EINVAL)
        return
    r.span_start = r.offset & ~(e.block - 1)
    r.span_end = (min(r.offset + r.length, e.capacity) + e.block - 1) & ~(e.block - 1)
    r.cursor = r.span_start
    r.copied = 0
    if r.span_start >= r.span_end:
        reply(e, r, 0)
        return
    park(e, r, &e.syncs, STAGE_SYNC)


cdef void sync_advance(EngineState *e) noexcept nogil:
    """Start blocks as far as the limit allows; reply to requests whose blocks have all ended."""
    cdef Request *r
    cdef uint32_t i
    if e.fenced:
        sync_stop(e, e.fenced)
    elif e.blocked:
        sync_stop(e, EAGAIN)
    r = e.syncs.head
    while r != NULL and e.blocks_in_flight < e.blocks_max:
        if r.error or r.cursor == r.span_end:
            r = r.next
        else:
            block_start(e, r)
    for i in range(e.syncs.count):
        r = queue_pop(&e.syncs)
        if r.waits_for or not (r.error or r.cursor == r.span_end):
            queue_push(&e.syncs, r)
        elif e.fenced:
            reply(e, r, -e.fenced)
        else:
            reply(e, r, -r.error if r.error else <int64_t> r.copied)


cdef void sync_stop(EngineState *e, int error) noexcept nogil:
    """Start no block of the requests that wait now; blocks that only wait for their turn end at once."""
    cdef Request *r = e.syncs.head
    cdef SyncBlock *block = e.oldest_block
    cdef SyncBlock *younger
    while r != NULL:
        if not r.error:
            r.error = error
        r = r.next
    while block != NULL:
        younger = block.younger
        if block.state == BLOCK_ORDER and block.r.waits_for:
            block_end(e, block, 0)
        block = younger


# ---- what to heal ------------------------------------------------------------------------------------------------

cdef uint64_t heal_run(EngineState *e, uint64_t start, uint64_t end, int *need) noexcept nogil:
    """Return the end of the range from `start`, up to `end`, of one need: 0 none, 1 of recovering legs, 2 of all.

    One that needs something is not longer than a block.
    """
    cdef uint64_t recovery_from = e.recovery_from & ~(e.block - 1)
    cdef uint64_t at = start
    cdef uint64_t following
    cdef int found
    need[0] = -1
    while at < end and not (need[0] > 0 and at - start >= e.block_bytes):
        following = min((((at >> e.chunk_shift) + 1) << e.chunk_shift), end)
        if e.counters[min(at >> e.chunk_shift, e.chunks - 1)] & (NEEDED | RESYNC):
            found = 2
        elif at >= recovery_from:
            found = 1
        else:
            found = 0
            if recovery_from < following:
                following = recovery_from
        if need[0] < 0:
            need[0] = found
        elif found != need[0]:
            break
        at = following
    return min(at, start + e.block_bytes) if need[0] > 0 else at


cdef uint32_t heal_targets(EngineState *e, uint64_t start, uint64_t end) noexcept nogil:
    """Return the mask of legs that do not hold what the first leg holds of [start, end); the first one may be in it."""
    cdef uint32_t targets = 0
    cdef uint32_t leg
    if chunks_differ(e, start, end):
        return e.writable
    for leg in range(e.legs_count):
        if e.writable & ~e.in_sync & (<uint32_t> 1 << leg) and e.legs[leg].recovery_offset < end:
            targets |= <uint32_t> 1 << leg
    return targets


# ---- the life of a block -----------------------------------------------------------------------------------------

cdef void block_start(EngineState *e, Request *r) noexcept nogil:
    """Make the next block of a request and let it go as far as it can; what needs no healing is skipped."""
    cdef uint64_t start = r.cursor
    cdef uint64_t end = min(start + e.block_bytes, r.span_end)
    cdef SyncBlock *block
    cdef int need = 2
    if r.action == SYNC_HEAL:
        if e.needed or e.resyncing or e.recovery_from < r.span_end:
            end = heal_run(e, start, r.span_end, &need)
        else:
            need = 0
            end = r.span_end
    r.cursor = end
    if not need:
        e.sync_skipped += end - start
        return
    block = <SyncBlock *> calloc(1, sizeof(SyncBlock))
    if block == NULL:
        r.error = ENOMEM
        return
    r.waits_for += 1
    e.blocks_in_flight += 1
    e.serial += 1
    block.r.kind = REQUEST_BLOCK
    block.r.serial = e.serial
    block.r.span_start = start
    block.r.span_end = end
    block.sync = r
    block.state = BLOCK_ORDER
    block.older = e.youngest_block
    if block.older == NULL:
        e.oldest_block = block
    else:
        block.older.younger = block
    e.youngest_block = block
    ranges_insert(e, &block.r)
    if not block.r.waits_for:
        block_advance(e, block)


cdef void block_end(EngineState *e, SyncBlock *block, int error) noexcept nogil:
    """Release what a block holds; the first error of its blocks is the request's."""
    cdef Request *r = block.sync
    cdef uint64_t length = block.r.span_end - block.r.span_start
    cdef uint32_t leg
    ENSURE(block.r.ops_left == 0)
    if block.r.counted:
        bitmap_endwrite(e, block.r.span_start >> e.chunk_shift,
                        min((block.r.span_end - 1) >> e.chunk_shift, e.chunks - 1),
                        not block.r.submitted or (not block.r.error and e.writable & ~block.r.ok_legs == 0))
    if error and not r.error:
        r.error = error
    ranges_remove(e, &block.r)
    for leg in range(<uint32_t> LEGS_MAX):
        buffer_put(e, block.data[leg], length)
    if block.older == NULL:
        e.oldest_block = block.younger
    else:
        block.older.younger = block.younger
    if block.younger == NULL:
        e.youngest_block = block.older
    else:
        block.younger.older = block.older
    free(block)
    r.waits_for -= 1
    e.blocks_in_flight -= 1


cdef void block_advance(EngineState *e, SyncBlock *block) noexcept nogil:
    """Take a block on that waited for its range or for bits."""
    cdef Request *r = block.sync
    cdef uint32_t legs
    cdef int first
    if e.fenced or r.error:
        block_end(e, block, e.fenced)
    elif e.blocked:
        block_end(e, block, EAGAIN)
    elif block.state == BLOCK_BITMAP:
        block_bits(e, block)
    elif r.action == SYNC_CHECK or r.action == SYNC_REPAIR:
        if popcount(e.in_sync) < 2:
            e.sync_skipped += block.r.span_end - block.r.span_start
            block_end(e, block, 0)
        else:
            block_read(e, block, e.in_sync)
    else:
        legs = e.in_sync
        if r.action == SYNC_REWRITE:
            legs &= ~(<uint32_t> 1 << r.leg)
        first = first_leg(e, legs)
        if first < 0:
            block_end(e, block, ENODATA)
        elif r.action == SYNC_HEAL and not (
                heal_targets(e, block.r.span_start, block.r.span_end) & ~(<uint32_t> 1 << first)):
            e.sync_skipped += block.r.span_end - block.r.span_start
            block_end(e, block, 0)
        else:
            block_read(e, block, <uint32_t> 1 << first)


cdef void block_read(EngineState *e, SyncBlock *block, uint32_t legs) noexcept nogil:
    """Read the block from all legs of a mask."""
    cdef uint32_t leg
    for leg in range(e.legs_count):
        if legs & (<uint32_t> 1 << leg) and block.data[leg] == NULL:
            block.data[leg] = buffer_get(e, block.r.span_end - block.r.span_start)
            if block.data[leg] == NULL:
                block_end(e, block, ENOMEM)
                return
    block.r.ok_legs = 0
    block.r.ops_left = <uint32_t> popcount(legs)
    for leg in range(e.legs_count):
        if legs & (<uint32_t> 1 << leg):
            block_op(e, block, OP_READ, leg, block.data[leg])


cdef void block_op(EngineState *e, SyncBlock *block, int kind, uint32_t leg, unsigned char *data) noexcept nogil:
    if block.state != BLOCK_VERIFY:
        block.state = BLOCK_READ if kind == OP_READ else BLOCK_WRITE
    op_submit(e, &block.r.ops[leg], kind, leg, e.legs[leg].data_offset + block.r.span_start,
              block.r.span_end - block.r.span_start, data, OWNER_REQUEST, block)


cdef void block_op_done(EngineState *e, SyncBlock *block, LegOp *op, int error) noexcept nogil:
    block.r.ops_left -= 1
    if not error:
        block.r.ok_legs |= <uint32_t> 1 << op.leg
        if op.kind == OP_READ:
            e.sync_read += op.length
        else:
            e.sync_written += op.length
    elif e.fenced:
        pass
    elif block.state == BLOCK_WRITE:
        block.r.error = error
        leg_error(e, op.leg, error, op.offset)
        if e.writable & (<uint32_t> 1 << op.leg) and not block.sync.error:
            block.sync.error = error         # the last leg in sync: nothing changes by looking again
    else:
        e.legs[op.leg].read_errors += 1
        if block.state == BLOCK_READ:
            block.tried |= <uint32_t> 1 << op.leg
            raise_read_error(e, op.leg, error, op.offset, op.length)
    if block.r.ops_left:
        return
    if e.fenced:
        block_end(e, block, e.fenced)
    elif block.state == BLOCK_READ:
        block_was_read(e, block)
    elif block.state == BLOCK_WRITE:
        block_was_written(e, block)
    elif error:
        block_end(e, block, error)
    else:
        block_to_compare(e, block)


cdef void block_was_read(EngineState *e, SyncBlock *block) noexcept nogil:
    cdef Request *r = block.sync
    cdef uint32_t others = e.in_sync & ~block.tried
    cdef int leg
    if r.error:
        block_end(e, block, 0)
        return
    if block.r.ok_legs:
        block.source = <uint32_t> first_leg(e, block.r.ok_legs)
        if r.action == SYNC_CHECK or r.action == SYNC_REPAIR:
            block_to_compare(e, block)
        else:
            r.copied += block.r.span_end - block.r.span_start
            block_write(e, block)
        return
    if r.action == SYNC_REWRITE:
        others &= ~(<uint32_t> 1 << r.leg)
    leg = first_leg(e, others)
    if leg < 0:
        block_end(e, block, ENODATA)
    elif e.blocked:
        block_end(e, block, EAGAIN)
    else:
        block_read(e, block, <uint32_t> 1 << leg)


cdef void block_write(EngineState *e, SyncBlock *block) noexcept nogil:
    """Write the data of the source to the legs that shall have it."""
    cdef Request *r = block.sync
    cdef uint32_t source = <uint32_t> 1 << block.source
    cdef uint32_t targets = e.writable
    cdef uint32_t leg
    if r.error or e.blocked or not e.in_sync & source:
        block_end(e, block, EAGAIN)
        return
    if r.action == SYNC_HEAL:
        targets = heal_targets(e, block.r.span_start, block.r.span_end)
    elif r.action == SYNC_REWRITE:
        targets &= <uint32_t> 1 << r.leg
    targets &= ~source
    if not targets:
        block_end(e, block, 0)
        return
    block.r.submitted = True
    block.r.ok_legs = source
    block.r.ops_left = <uint32_t> popcount(targets)
    for leg in range(e.legs_count):
        if targets & (<uint32_t> 1 << leg):
            block_op(e, block, OP_WRITE, leg, block.data[block.source])


cdef void block_was_written(EngineState *e, SyncBlock *block) noexcept nogil:
    cdef Request *r = block.sync
    if block.r.error:
        block_end(e, block, EAGAIN)
    elif r.action != SYNC_REWRITE or r.error:
        block_end(e, block, 0)
    else:
        block.state = BLOCK_VERIFY
        block_read(e, block, <uint32_t> 1 << r.leg)


# ---- comparing ---------------------------------------------------------------------------------------------------

cdef void block_to_compare(EngineState *e, SyncBlock *block) noexcept nogil:
    block.state = BLOCK_COMPARE
    block.compare_next = e.compare
    e.compare = block


cdef void blocks_compare(EngineState *e) noexcept nogil:
    """Compare blocks that have been read; the mutex is given up meanwhile, nobody else touches such a block."""
    cdef SyncBlock *block
    cdef uint64_t length
    cdef uint32_t legs_count = e.legs_count
    cdef uint32_t legs
    cdef uint32_t leg
    cdef bint differs
    while e.compare != NULL:
        block = e.compare
        e.compare = block.compare_next
        length = block.r.span_end - block.r.span_start
        legs = block.r.ok_legs & ~(<uint32_t> 1 << block.source)
        differs = False
        pthread_mutex_unlock(&e.mutex)
        for leg in range(legs_count):
            if legs & (<uint32_t> 1 << leg) and memcmp(block.data[block.source], block.data[leg], length) != 0:
                differs = True
        pthread_mutex_lock(&e.mutex)
        block.differs = differs
        block_compared(e, block)
        run(e)


cdef void block_compared(EngineState *e, SyncBlock *block) noexcept nogil:
    cdef Request *r = block.sync
    if r.action == SYNC_REWRITE:
        if not block.differs:
            e.legs[r.leg].corrected_reads += 1
        block_end(e, block, EIO if block.differs else 0)
        return
    r.copied += block.r.span_end - block.r.span_start
    if block.differs:
        mismatches_find(e, block)
    if r.action == SYNC_REPAIR and (block.differs or block.tried) and not r.error and not e.fenced:
        block.state = BLOCK_BITMAP
        block_bits(e, block)
    else:
        block_end(e, block, 0)


cdef void block_bits(EngineState *e, SyncBlock *block) noexcept nogil:
    """A repair is a write: its bits are durable before its data goes out."""
    cdef uint64_t first = block.r.span_start >> e.chunk_shift
    cdef uint64_t last = min((block.r.span_end - 1) >> e.chunk_shift, e.chunks - 1)
    cdef Page *page
    if e.resize != NULL:
        queue_push(&e.held, &block.r)
        return
    if not block.r.counted:
        if chunks_saturated(e, first, last):
            queue_push(&e.counter_queue, &block.r)
            return
        block.r.counted = True
        bitmap_startwrite(e, first, last)
    if block.r.error:                        # the last leg refused the page
        block_end(e, block, block.r.error)
        return
    page = page_not_durable(e, first, last)
    if page == NULL:
        block_write(e, block)
        return
    queue_push(&page.waiters, &block.r)
    if not page.writing:
        page_due(e, page)


# ---- what check and repair found ---------------------------------------------------------------------------------

cdef void mismatches_find(EngineState *e, SyncBlock *block) noexcept nogil:
    """Count the sectors of a block in which legs differ, and keep their ranges."""
    cdef uint64_t at = 0
    cdef uint64_t start = 0
    cdef uint64_t length = block.r.span_end - block.r.span_start
    cdef uint32_t leg
    cdef bint differs
    cdef bint open_range = False
    while at < length:
        differs = False
        for leg in range(e.legs_count):
            if block.r.ok_legs & (<uint32_t> 1 << leg) and leg != block.source and not differs:
                differs = memcmp(block.data[block.source] + at, block.data[leg] + at, 512) != 0
        if differs:
            e.mismatch_sectors += 1
            if not open_range:
                start = at
        elif open_range:
            mismatches_add(e, block.r.span_start + start, block.r.span_start + at)
        open_range = differs
        at += 512
    if open_range:
        mismatches_add(e, block.r.span_start + start, block.r.span_end)


cdef void mismatches_add(EngineState *e, uint64_t start, uint64_t end) noexcept nogil:
    """Keep a range, in order, one with those that it touches."""
    cdef uint32_t i = 0
    cdef uint32_t last
    while i < e.mismatch_count and e.mismatch[i].end < start:
        i += 1
    last = i
    while last < e.mismatch_count and e.mismatch[last].start <= end:
        last += 1
    if last == i:                            # it touches none
        if e.mismatch_count == MISMATCHES_MAX:
            e.mismatches_lost += 1
            return
        memmove(&e.mismatch[i + 1], &e.mismatch[i], (e.mismatch_count - i) * sizeof(Range))
        e.mismatch_count += 1
        e.mismatch[i].start = start
        e.mismatch[i].end = end
        return
    e.mismatch[i].start = min(e.mismatch[i].start, start)
    e.mismatch[i].end = max(e.mismatch[last - 1].end, end)
    memmove(&e.mismatch[i + 1], &e.mismatch[last], (e.mismatch_count - last) * sizeof(Range))
    e.mismatch_count -= last - i - 1
