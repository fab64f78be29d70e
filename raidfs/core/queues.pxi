# Queues of requests, the leg operations that go out, replies and events. A request is in at most one queue.

cdef inline void queue_push(RequestQueue *queue, Request *r) noexcept nogil:
    r.next = NULL
    if queue.tail == NULL:
        queue.head = r
    else:
        queue.tail.next = r
    queue.tail = r
    queue.count += 1


cdef inline Request *queue_pop(RequestQueue *queue) noexcept nogil:
    cdef Request *r = queue.head
    if r != NULL:
        queue.head = r.next
        if queue.head == NULL:
            queue.tail = NULL
        r.next = NULL
        queue.count -= 1
    return r


cdef inline void set_stage(EngineState *e, Request *r, int stage) noexcept nogil:
    e.stages[r.stage] -= 1
    r.stage = stage
    e.stages[stage] += 1


cdef inline void park(EngineState *e, Request *r, RequestQueue *queue, int stage) noexcept nogil:
    set_stage(e, r, stage)
    queue_push(queue, r)


cdef void wake_all(EngineState *e, RequestQueue *queue) noexcept nogil:
    """Move every request of `queue` to the ready queue, in order; each looks at its situation again."""
    cdef Request *r = queue_pop(queue)
    while r != NULL:
        queue_push(&e.ready, r)
        r = queue_pop(queue)


cdef void op_submit(EngineState *e, LegOp *op, int kind, uint32_t leg, uint64_t offset, uint64_t length,
                    unsigned char *data, int owner_kind, void *owner) noexcept nogil:
    ENSURE(not op.pending)
    op.kind = kind
    op.leg = leg
    op.offset = offset
    op.length = length
    op.data = data
    op.owner_kind = owner_kind
    op.owner = owner
    op.pending = True
    op.next = NULL
    e.legs[leg].ops_in_flight += 1
    if kind == OP_READ:
        e.legs[leg].reads_in_flight += 1
        e.legs[leg].reads += 1
    elif kind == OP_FLUSH:
        e.legs[leg].flushes += 1
    else:
        e.legs[leg].writes += 1
    if e.ops_tail == NULL:
        e.ops_head = op
    else:
        e.ops_tail.next = op
    e.ops_tail = op
    e.ops_queued += 1
    e.ops_fresh += 1


cdef inline int op_ended(EngineState *e, LegOp *op, int64_t result) noexcept nogil:
    """Count an operation as ended and return its errno, or 0; a short transfer is an error."""
    op.pending = False
    e.legs[op.leg].ops_in_flight -= 1
    if op.kind == OP_READ:
        e.legs[op.leg].reads_in_flight -= 1
    if result < 0:
        return <int> -result
    return EIO if op.kind != OP_FLUSH and <uint64_t> result != op.length else 0


cdef void engine_unlock(EngineState *e) noexcept nogil:
    """Unlock, and only then wake the backend: whom it wakes would else wait for the mutex at once.

    Replies of the data plane are delivered here as well, by this thread: nobody has to be woken for them. Blocks of a
    check are compared first: that takes long, and the mutex is given up meanwhile.
    """
    cdef uint32_t fresh
    cdef ops_notify_fn notify = e.ops_notify
    cdef void *context = e.ops_context
    cdef notify_fn deliver = NULL
    cdef void *plane = e.plane_context
    if e.compare != NULL:
        blocks_compare(e)
    fresh = e.ops_fresh
    if e.plane_port != NULL and e.plane_port.head != NULL:
        deliver = e.plane_deliver
    e.ops_fresh = 0
    pthread_mutex_unlock(&e.mutex)
    if fresh and notify != NULL:
        notify(context, fresh)
    if deliver != NULL:
        deliver(plane)


cdef LegOp *engine_take_op_locked(EngineState *e) noexcept nogil:
    """Return the next leg operation or NULL; the caller holds the mutex."""
    cdef LegOp *op = e.ops_head
    if op != NULL:
        e.ops_head = op.next
        if e.ops_head == NULL:
            e.ops_tail = NULL
        op.next = NULL
        e.ops_queued -= 1
        e.ops_taken += 1
    return op


cdef LegOp *engine_take_op(EngineState *e) noexcept nogil:
    """Return the next leg operation or NULL."""
    cdef LegOp *op
    pthread_mutex_lock(&e.mutex)
    op = engine_take_op_locked(e)
    pthread_mutex_unlock(&e.mutex)
    return op


cdef void reply(EngineState *e, Request *r, int64_t result) noexcept nogil:
    """Hand the request back to its submitter; the engine does not touch it again."""
    cdef Port *port = r.port
    r.result = result
    set_stage(e, r, STAGE_DONE)
    e.stages[STAGE_DONE] -= 1
    r.next = NULL
    if port.tail == NULL:
        port.head = r
        port.tail = r
        if port.notify != NULL:
            port.notify(port.context)
    else:
        port.tail.next = r
        port.tail = r


cdef Request *engine_take_reply(EngineState *e, Port *port) noexcept nogil:
    """Return the oldest replied request of `port` or NULL."""
    cdef Request *r
    pthread_mutex_lock(&e.mutex)
    r = port.head
    if r != NULL:
        port.head = r.next
        if port.head == NULL:
            port.tail = NULL
        r.next = NULL
    pthread_mutex_unlock(&e.mutex)
    return r


cdef Request *engine_take_replies_locked(Port *port) noexcept nogil:
    """Return all replied requests of `port`, oldest first and linked by `next`; the caller holds the mutex."""
    cdef Request *r = port.head
    port.head = NULL
    port.tail = NULL
    return r


cdef void raise_event(EngineState *e, int kind, uint32_t leg, int error, uint64_t offset) noexcept nogil:
    """Tell control; an event of the same kind and leg that it has not taken yet stands for both."""
    cdef Event *event = &e.raised[leg][kind]
    if event.raised:
        return
    event.raised = True
    event.error = error
    event.offset = offset
    event.length = 0
    if e.event_notify != NULL:
        e.event_notify(e.event_context)


cdef void raise_read_error(EngineState *e, uint32_t leg, int error, uint64_t offset, uint64_t length) noexcept nogil:
    """Tell control of a failed read; distinct ones are kept, up to a limit: later ones are found by later reads."""
    cdef ReadErrors *errors = &e.read_errors[leg]
    cdef uint32_t i
    for i in range(errors.count):
        if errors.events[i].offset == offset and errors.events[i].length == length:
            return
    if errors.count == READ_ERRORS_MAX:
        return
    errors.events[errors.count].error = error
    errors.events[errors.count].offset = offset
    errors.events[errors.count].length = length
    errors.count += 1
    if e.event_notify != NULL:
        e.event_notify(e.event_context)
