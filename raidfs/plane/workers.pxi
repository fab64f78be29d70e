# Workers: threads that read /dev/fuse, hand requests to the engine, carry out leg operations, and write answers.
#
# A turn is one visit to the engine: tell it what has ended, hand in what has come, take the leg operations and the
# replies. Operations on files in memory are done at once, others go to the worker's ring and are told of in a later
# turn. Without a ring they stay in the engine's queue for the pool of threads. Which worker takes what does not matter:
# an operation of one's request may be carried out, and its reply written, by the other.

cdef enum:
    ENDED_MAX = 1024                 # leg operations that end between two turns; a ring has at most as many in flight
    TAKEN_MAX = 256                  # leg operations that are taken in one turn
    RING_ENTRIES = 256
    RING_OPS_MAX = 512               # leg operations in flight in one ring: above it others have to take them
    BATCH_BYTES = 64 * 1024          # the same of io_uring, a page counted for each request: 8 small ones, 1 large one
    GATHER_REQUESTS = 16             # requests that are read before a bitmap page is written
    BATCH_REQUESTS = 4               # requests that are read between two turns: more would leave less to the others

cdef enum:                           # names of completions that are no leg operation's; those are addresses
    NAME_REQUEST = 1
    NAME_STOP = 2
    NAME_WAKE = 3
    NAME_ENTRY = 1                   # this bit, in the address of an entry of FUSE over io_uring

cdef struct EntryBlock

cdef struct Ended:
    LegOp *op
    int64_t result

cdef enum:                           # Worker.life, guarded by the plane's mutex
    NOT_STARTED
    RUNS
    ENDED

cdef struct Worker:
    PlaneState *plane
    int number
    int life
    pthread_t thread
    int fd
    int gather_fd                    # another one that does not block, or the same; -1: there is none
    int idle_fd                      # with a ring: one that blocks, for a worker that has nothing to do; -1: none
    int stop_fd
    bint over                        # no more requests will come
    bint backwards                   # last leg first: two workers do not wait for one another's write to a file
    SlotList slots
    Slot *batch                      # read, and not handed in yet; oldest first
    Slot *batch_tail
    uint64_t batch_bytes
    uint32_t ended_count
    Ended ended[ENDED_MAX]
    Ring ring
    bint has_ring                    # for leg operations
    bint wants_ring                  # for these, or for requests
    bint is_wide
    bint polls_request
    bint polls_stop
    uint32_t in_ring
    bint device_ready                # something may be had from /dev/fuse
    int registered                   # steps of uring_register that are done
    EntryBlock *blocks
    int wake_fd                      # eventfd; told when the outbox has something
    uint64_t wakes                   # what is read from it
    bint polls_wake
    int64_t woken                    # answers put into the outbox since it was last emptied
    pthread_mutex_t outbox_mutex
    Entry *outbox

cdef struct PlaneState:
    EngineState *e
    Pool *pool                       # the legs' descriptors; NULL when operations are left to another backend
    Port port
    int pyfuse3_fd
    int done_fd                      # eventfd: everything has been answered and no worker runs
    int64_t stopping
    int64_t in_flight                # requests that are in the engine or on their way to it
    int64_t delivering               # foreign threads that write answers
    int64_t running                  # workers
    int64_t abandoned                # nobody is there for answers any more
    int64_t lone_reads               # 1: a worker waits for a leg's read in a system call
    uint32_t count                   # of workers
    Worker *workers
    uint32_t queues                  # of FUSE over io_uring: as many as the machine can have processors
    int64_t offered                  # workers that have offered their first entries
    int64_t uring                    # whether the kernel has agreed to it
    unsigned char *null_legs         # see null.pxi
    uint64_t null_bytes
    uint32_t null_count
    pthread_mutex_t mutex            # of what follows; never held together with the engine's
    Passed *passed
    SlotList spare                   # slots that foreign threads have answered


# ---- replies -----------------------------------------------------------------------------------------------------

cdef void deliver_chain(PlaneState *plane, Request *r, SlotList *slots) noexcept nogil:
    """Write the answers to replied requests, and keep their slots."""
    cdef Slot *slot
    while r != NULL:
        slot = <Slot *> r
        r = r.next
        if slot.head.header.opcode == FUSE_FALLOCATE and slot.r.result >= 0 and not atomic_load(&plane.abandoned):
            if fallocate_next(plane, slot):
                engine_submit(plane.e, &slot.r)
                continue
            slot.r.result = 0
        if not atomic_load(&plane.abandoned):
            answer(slot, slot.r.result)
        slots_put(slots, slot)
        if atomic_add(&plane.in_flight, -1) == 0 and atomic_load(&plane.running) == 0:
            signal_done(plane)


cdef void plane_deliver(void *context) noexcept nogil:
    """Called by any thread that has left the engine while replies of ours waited; see engine_unlock."""
    cdef PlaneState *plane = <PlaneState *> context
    cdef SlotList freed
    cdef Slot *slot
    cdef Request *r
    memset(&freed, 0, sizeof(freed))
    pthread_mutex_lock(&plane.e.mutex)
    r = engine_take_replies_locked(&plane.port)
    atomic_add(&plane.delivering, 1)
    pthread_mutex_unlock(&plane.e.mutex)
    deliver_chain(plane, r, &freed)
    atomic_add(&plane.delivering, -1)
    if freed.head != NULL or freed.huge != NULL:
        pthread_mutex_lock(&plane.mutex)
        slot = slots_take(&freed)
        while slot != NULL:
            slots_put(&plane.spare, slot)
            slot = slots_take(&freed)
        pthread_mutex_unlock(&plane.mutex)


cdef void signal_done(PlaneState *plane) noexcept nogil:
    cdef uint64_t one = 1
    write(plane.done_fd, &one, sizeof(one))


# ---- turns -------------------------------------------------------------------------------------------------------

cdef void turn(Worker *worker) noexcept nogil:
    """Visit the engine until there is nothing left that can be done without waiting."""
    cdef PlaneState *plane = worker.plane
    cdef EngineState *e = plane.e
    cdef LegOp *ops[TAKEN_MAX]
    cdef int fds[TAKEN_MAX]
    cdef uint32_t memory
    cdef uint32_t taken
    cdef uint32_t i
    cdef uint32_t n
    cdef Slot *slot
    cdef Request *replies
    cdef bint gathers = True
    cdef bint pages_wait = False
    if plane.null_bytes:
        turn_null(worker)
    while worker.batch != NULL or worker.ended_count or pages_wait:
        taken = 0
        pthread_mutex_lock(&e.mutex)
        for i in range(worker.ended_count):
            engine_complete_op_locked(e, worker.ended[i].op, worker.ended[i].result)
        worker.ended_count = 0
        while worker.batch != NULL:
            slot = worker.batch
            worker.batch = slot.next
            engine_submit_locked(e, &slot.r)
        pages_wait = engine_run_locked(e, gathers)
        memory = plane.pool.memory if plane.pool != NULL else 0
        while taken < TAKEN_MAX and may_take(worker, e.ops_head, memory, taken):
            ops[taken] = engine_take_op_locked(e)
            fds[taken] = plane.pool.fds[ops[taken].leg]
            taken += 1
        e.ops_fresh = <uint32_t> min(e.ops_fresh, e.ops_queued)
        replies = engine_take_replies_locked(&plane.port)
        engine_unlock(e)
        deliver_chain(plane, replies, &worker.slots)
        for n in range(taken):
            i = taken - 1 - n if worker.backwards else n
            if memory & (<uint32_t> 1 << ops[i].leg) or fds[i] < 0:
                ended(worker, ops[i], carry_out(fds[i], ops[i]))
            elif taken == 1 and is_lone_read(worker, ops[i]):
                ended(worker, ops[i], carry_out(fds[i], ops[i]))
                atomic_store(&plane.lone_reads, 0)
            elif ring_push_op(&worker.ring, fds[i], ops[i]) != 0:
                ended(worker, ops[i], carry_out(fds[i], ops[i]))
            else:
                worker.in_ring += 1
        if pages_wait:
            gathers = False
            gather(worker)


cdef void gather(Worker *worker) noexcept nogil:
    """Bitmap pages have to be written: take more requests before, their bits may go out with the same write."""
    cdef int i
    if worker.registered:
        ring_enter(&worker.ring, 0)
        reap(worker)
    elif worker.gather_fd >= 0 and not (worker.over or is_stopping(worker.plane)):
        for i in range(GATHER_REQUESTS):
            if not take_request(worker, worker.gather_fd):
                return


cdef inline bint is_lone_read(Worker *worker, LegOp *op) noexcept nogil:
    """Tell whether to wait for a read in a system call, the fastest way for one; only one worker does so at a time."""
    return (op.kind == OP_READ and op.length <= LARGE_BYTES and has_nothing(worker)
            and atomic_exchange(&worker.plane.lone_reads, 1) == 0)


cdef inline bint may_take(Worker *worker, LegOp *op, uint32_t memory, uint32_t taken) noexcept nogil:
    if op == NULL:
        return False
    return memory & (<uint32_t> 1 << op.leg) or (worker.has_ring and worker.in_ring + taken < RING_OPS_MAX)


cdef inline void ended(Worker *worker, LegOp *op, int64_t result) noexcept nogil:
    worker.ended[worker.ended_count].op = op
    worker.ended[worker.ended_count].result = result
    worker.ended_count += 1


cdef bint take_request(Worker *worker, int fd) noexcept nogil:
    """Read one message and put it into the batch if it is a data request; return whether one more may be there."""
    cdef PlaneState *plane = worker.plane
    cdef Slot *slot = slots_take(&worker.slots)
    cdef int found
    if slot == NULL:
        pthread_mutex_lock(&plane.mutex)
        slot = slots_take(&plane.spare)
        pthread_mutex_unlock(&plane.mutex)
    if slot == NULL:
        slot = slot_new()
    if slot == NULL:                 # no memory: requests stay in the kernel until some of ours have ended
        usleep(1000)
        return False
    found = receive(fd, slot)
    if found == GOT_REQUEST and parse(plane, slot):
        batch_add(worker, slot)
    else:
        slots_put(&worker.slots, slot)
    if found == GOT_THE_END:
        worker.over = True
    return found == GOT_REQUEST


cdef inline void batch_add(Worker *worker, Slot *slot) noexcept nogil:
    atomic_add(&worker.plane.in_flight, 1)
    slot.next = NULL
    if worker.batch == NULL:
        worker.batch = slot
    else:
        worker.batch_tail.next = slot
    worker.batch_tail = slot
    worker.batch_bytes += slot.r.length + PAGE_BYTES


# ---- the two ways to wait ------------------------------------------------------------------------------------------

cdef void work_blocking(Worker *worker) noexcept nogil:
    """Wait in the read of /dev/fuse, which wakes one worker for one request; legs in memory, or a pool has them."""
    while not (worker.over or is_stopping(worker.plane)):
        take_request(worker, worker.fd)
        turn(worker)


cdef void work_ring(Worker *worker) noexcept nogil:
    """Wait in the ring, for leg operations and for requests; /dev/fuse does not block.

    A worker that has nothing under way waits in a read of /dev/fuse instead, which costs less than to be told by the
    ring and to read then. It is woken like the others that wait so (`worker_wake`).
    """
    cdef bint more
    cdef int i
    while True:
        more = False
        if has_nothing(worker) and not is_stopping(worker.plane):
            worker.device_ready = take_request(worker, worker.idle_fd)
        if worker.device_ready and not (worker.over or is_stopping(worker.plane)):
            for i in range(BATCH_REQUESTS):
                more = take_request(worker, worker.fd)
                if not more:
                    break
        worker.device_ready = more or not worker.registered
        turn(worker)
        if worker.over or is_stopping(worker.plane):
            if not worker.in_ring:
                return
        elif not more and has_nothing(worker):
            continue
        elif not more and not worker.polls_request:
            worker.polls_request = ring_push_poll(&worker.ring, worker.fd, True, NAME_REQUEST) == 0
        if not worker.polls_stop:
            worker.polls_stop = ring_push_poll(&worker.ring, worker.stop_fd, False, NAME_STOP) == 0
        if not worker.polls_wake and worker.wake_fd >= 0:
            worker.polls_wake = ring_push_read(&worker.ring, worker.wake_fd, &worker.wakes, sizeof(worker.wakes),
                                               NAME_WAKE) == 0
        ring_enter(&worker.ring, 0 if more else 1)
        reap(worker)


cdef inline bint has_nothing(Worker *worker) noexcept nogil:
    """Tell whether the worker may wait outside its ring: nothing is under way in it, nothing is left to be told."""
    return (worker.idle_fd >= 0 and worker.batch == NULL
            and not (worker.in_ring or worker.ended_count or worker.polls_request or worker.over))


cdef void reap(Worker *worker) noexcept nogil:
    cdef uint64_t name
    cdef int32_t result
    worker.batch_bytes = 0
    while (worker.ended_count < ENDED_MAX - TAKEN_MAX and worker.batch_bytes < BATCH_BYTES
           and ring_take(&worker.ring, &name, &result)):
        if name == NAME_REQUEST:
            worker.polls_request = False
            worker.device_ready = True
        elif name == NAME_STOP:
            continue
        elif name == NAME_WAKE:
            worker.polls_wake = False
            woken(worker)
        elif name & NAME_ENTRY:
            if result == 0:          # else the connection has ended, or the kernel has refused the entry
                uring_receive(worker, <Entry *> <size_t> (name & ~<uint64_t> NAME_ENTRY))
        else:
            reap_op(worker, <LegOp *> <size_t> name, result)


cdef void reap_op(Worker *worker, LegOp *op, int32_t result) noexcept nogil:
    worker.in_ring -= 1
    if result == 0 and (op.kind == OP_PUNCH or op.kind == OP_ZERO):
        ended(worker, op, <int64_t> op.length)
    elif op.kind != OP_FLUSH and result != <int64_t> op.length and is_unfinished(result):
        ended(worker, op, carry_out(leg_fd(worker.plane, op.leg), op))
    else:
        ended(worker, op, result)


cdef void woken(Worker *worker) noexcept nogil:
    """Do what another thread has left: answers, and the news that FUSE over io_uring can be used."""
    atomic_store(&worker.woken, 0)
    if atomic_load(&worker.plane.uring):
        uring_register(worker)
    uring_empty_outbox(worker)


cdef int leg_fd(PlaneState *plane, uint32_t leg) noexcept nogil:
    cdef int fd
    pthread_mutex_lock(&plane.e.mutex)
    fd = plane.pool.fds[leg]
    pthread_mutex_unlock(&plane.e.mutex)
    return fd


cdef inline bint is_stopping(PlaneState *plane) noexcept nogil:
    return atomic_load(&plane.stopping) != 0


cdef inline bint is_unfinished(int32_t result) noexcept nogil:
    """Tell whether the operation has to be done again, in the long way: not whole, or not as this file system can."""
    return result >= 0 or result == -EAGAIN or result == -EINTR or result == -EOPNOTSUPP


# ---- life ----------------------------------------------------------------------------------------------------------

cdef void worker_run(Worker *worker) noexcept nogil:
    cdef PlaneState *plane = worker.plane
    pthread_mutex_lock(&plane.mutex)
    worker.thread = pthread_self()
    worker.life = RUNS
    pthread_mutex_unlock(&plane.mutex)
    slots_add_huge(&worker.slots)
    # Memory that we need while we write must not be got by writing something else: a loop device over the block file
    # would have to wait for us. Refused without CAP_SYS_RESOURCE.
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    if worker.ring.fd >= 0:
        raidfs_set_worker(worker)
        worker.device_ready = True
        work_ring(worker)
        raidfs_set_worker(NULL)
        ring_close(&worker.ring)
    else:
        fcntl(worker.fd, F_SETFL, O_RDWR)
        work_blocking(worker)
    pthread_mutex_lock(&plane.mutex)
    worker.life = ENDED
    pthread_mutex_unlock(&plane.mutex)
    if atomic_add(&plane.running, -1) == 0 and atomic_load(&plane.in_flight) == 0:
        signal_done(plane)


cdef void worker_wake(Worker *worker) noexcept nogil:
    """End a worker's wait for a request; it may begin the next one before it has seen why."""
    cdef uint64_t one = 1
    write(worker.stop_fd, &one, sizeof(one))
    pthread_mutex_lock(&worker.plane.mutex)
    if worker.life == RUNS:
        pthread_kill(worker.thread, SIGURG)
    pthread_mutex_unlock(&worker.plane.mutex)
