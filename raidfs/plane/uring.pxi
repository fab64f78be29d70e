# FUSE over io_uring (Linux 6.14): requests come as completions of a ring, and one submission both answers a request
# and waits for the next one in its place. Facts: include/uapi/linux/fuse.h (struct fuse_uring_req_header,
# fuse_uring_cmd_req), fs/fuse/dev_uring.c.
#
# The kernel has a queue for each processor; a caller's request goes to the queue of the processor that it runs on. An
# *entry* is a place for one request of one queue: its header, and a buffer of its own for data, which is a slot's. It
# belongs to the ring that registered it, and only that ring's thread may answer through it: other threads put their
# answers into the worker's outbox and wake it. INTERRUPT and FORGET still come through /dev/fuse.
#
# Nothing binds a queue to one ring, so every worker has entries of every queue: one busy caller keeps all of them busy.
# The kernel takes the entry that was offered last. So each worker offers many first, which only parked requests need
# (a queue without a free entry stands still), and then, taking turns with the others, the few that are always in use.

cdef enum:
    COMMAND_REGISTER = 1             # enum fuse_uring_cmd
    COMMAND_COMMIT_AND_FETCH = 2
    ENTRY_PART_BYTES = 128
    ENTRIES_STEP = 2                 # of each worker and queue in each turn: few requests already are shared by workers
    STEPS_BUSY = 8                   # such turns: on two workers there is one for each of 32 requests in flight
    ENTRIES_PARKED = 4096            # of all workers and queues together
    ENTRIES_PARKED_MIN = 64          # of each queue, on a machine with many processors

cdef struct EntryInOut:              # struct fuse_uring_ent_in_out
    uint64_t flags
    uint64_t commit_id
    uint32_t payload_bytes
    uint32_t padding
    uint64_t reserved

cdef struct EntryHeader:             # struct fuse_uring_req_header
    unsigned char in_out[ENTRY_PART_BYTES]       # fuse_in_header, or fuse_out_header of the answer
    unsigned char op_in[ENTRY_PART_BYTES]        # the operation's first argument
    EntryInOut entry

cdef struct EntryCommand:            # struct fuse_uring_cmd_req
    uint64_t flags
    uint64_t commit_id
    uint16_t queue
    unsigned char padding[6]

cdef struct Entry:
    Slot *slot
    Worker *home
    Entry *next                      # in the outbox
    uint16_t queue
    EntryHeader header
    iovec pieces[2]

cdef struct EntryBlock:              # entries of one worker and one queue, and their buffers
    EntryBlock *next
    Entry *entries
    Slot *slots                      # apart: most of them are never used, and have no memory before
    void *buffers
    size_t buffers_bytes


cdef void uring_register(Worker *worker) noexcept nogil:
    """Do the next step of offering entries to the kernel, which begins to use them when every queue has one."""
    cdef PlaneState *plane = worker.plane
    cdef uint32_t parked = max(<uint32_t> ENTRIES_PARKED // plane.queues, <uint32_t> ENTRIES_PARKED_MIN) // plane.count
    cdef uint32_t queue
    cdef uint32_t i
    if worker.registered > STEPS_BUSY or atomic_load(&plane.offered) < <int64_t> worker.registered * plane.count:
        return
    for queue in range(plane.queues):
        uring_offer(worker, <uint16_t> queue, parked if worker.registered == 0 else ENTRIES_STEP)
    ring_enter(&worker.ring, 0)
    worker.registered += 1
    if atomic_add(&plane.offered, 1) == <int64_t> worker.registered * plane.count:
        for i in range(plane.count):
            uring_wake(&plane.workers[i])


cdef void uring_offer(Worker *worker, uint16_t queue, uint32_t count) noexcept nogil:
    cdef EntryBlock *block = <EntryBlock *> calloc(1, sizeof(EntryBlock))
    cdef Entry *entry
    cdef EntryCommand command
    cdef unsigned char *first
    cdef uint32_t i
    if block == NULL:
        return
    block.next = worker.blocks
    worker.blocks = block
    block.entries = <Entry *> calloc(count, sizeof(Entry))
    block.slots = <Slot *> calloc(count, sizeof(Slot))
    block.buffers_bytes = <size_t> count * PAYLOAD_BYTES + HUGE_BYTES
    block.buffers = mmap(NULL, block.buffers_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0)
    if block.entries == NULL or block.slots == NULL or block.buffers == MAP_FAILED:
        return                       # without this queue's entries the kernel stays with /dev/fuse, or has a few less
    first = <unsigned char *> ((<size_t> block.buffers + HUGE_BYTES - 1) & ~<size_t> (HUGE_BYTES - 1))
    memset(&command, 0, sizeof(command))
    command.queue = queue
    for i in range(count):
        entry = &block.entries[i]
        entry.home = worker
        entry.queue = queue
        entry.slot = &block.slots[i]
        entry.pieces[0].iov_base = &entry.header
        entry.pieces[0].iov_len = sizeof(EntryHeader)
        # Those that are offered last are used first; they shall be next to each other, in huge pages.
        entry.pieces[1].iov_base = first + <size_t> (count - 1 - i) * PAYLOAD_BYTES
        entry.pieces[1].iov_len = PAYLOAD_BYTES
        ring_push_command(&worker.ring, worker.fd, COMMAND_REGISTER, &command, sizeof(command), entry.pieces, 2,
                          <uint64_t> <size_t> entry | NAME_ENTRY)
    if worker.registered > STEPS_BUSY - HUGE_SLOTS // worker.plane.queues:
        madvise(first, HUGE_BYTES, MADV_HUGEPAGE)


cdef void uring_free(Worker *worker) noexcept nogil:
    cdef EntryBlock *block = worker.blocks
    while block != NULL:
        worker.blocks = block.next
        if block.buffers != NULL and block.buffers != MAP_FAILED:
            munmap(block.buffers, block.buffers_bytes)
        free(block.slots)
        free(block.entries)
        free(block)
        block = worker.blocks


cdef void uring_receive(Worker *worker, Entry *entry) noexcept nogil:
    """Take the request that an entry has got, as `receive` takes one of /dev/fuse."""
    cdef Slot *slot = entry.slot
    slot.entry = entry
    slot.payload = <unsigned char *> entry.pieces[1].iov_base
    memcpy(&slot.head.header, entry.header.in_out, sizeof(InHeader))
    memcpy(&slot.head.body, entry.header.op_in, sizeof(Body))
    if parse(worker.plane, slot):
        batch_add(worker, slot)


cdef void uring_pass_on(PlaneState *plane, Slot *slot, iovec *pieces) noexcept nogil:
    """Fill the three pieces of the message as /dev/fuse would have given it."""
    cdef Entry *entry = slot.entry
    pieces[2].iov_base = slot.payload
    pieces[2].iov_len = entry.header.entry.payload_bytes
    pieces[1].iov_base = entry.header.op_in
    pieces[1].iov_len = slot.head.header.len - IN_HEADER_BYTES - <uint32_t> pieces[2].iov_len
    pieces[0].iov_base = entry.header.in_out
    pieces[0].iov_len = IN_HEADER_BYTES


cdef void uring_answer(Slot *slot, OutHeader *header, const void *body, size_t length) noexcept nogil:
    """Answer through the slot's entry, which the kernel has from then on; any thread may."""
    cdef Entry *entry = slot.entry
    cdef Worker *home = entry.home
    memcpy(entry.header.in_out, header, sizeof(OutHeader))
    entry.header.entry.payload_bytes = <uint32_t> length
    if length and body != slot.payload:
        memcpy(slot.payload, body, length)
    if raidfs_this_worker() == home:
        uring_commit(home, entry)
        return
    pthread_mutex_lock(&home.outbox_mutex)
    entry.next = home.outbox
    home.outbox = entry
    pthread_mutex_unlock(&home.outbox_mutex)
    if atomic_add(&home.woken, 1) == 1:
        uring_wake(home)


cdef void uring_wake(Worker *worker) noexcept nogil:
    cdef uint64_t one = 1
    write(worker.wake_fd, &one, sizeof(one))


cdef void uring_commit(Worker *worker, Entry *entry) noexcept nogil:
    cdef EntryCommand command
    memset(&command, 0, sizeof(command))
    command.commit_id = entry.header.entry.commit_id
    command.queue = entry.queue
    if ring_push_command(&worker.ring, worker.fd, COMMAND_COMMIT_AND_FETCH, &command, sizeof(command), NULL, 0,
                         <uint64_t> <size_t> entry | NAME_ENTRY) != 0:
        pthread_mutex_lock(&worker.outbox_mutex)     # the ring is full: again when completions have been taken
        entry.next = worker.outbox
        worker.outbox = entry
        pthread_mutex_unlock(&worker.outbox_mutex)
        uring_wake(worker)


cdef void uring_empty_outbox(Worker *worker) noexcept nogil:
    """Send the answers that other threads have left; called after a wake-up."""
    cdef Entry *entry
    cdef Entry *following
    pthread_mutex_lock(&worker.outbox_mutex)
    entry = worker.outbox
    worker.outbox = NULL
    pthread_mutex_unlock(&worker.outbox_mutex)
    while entry != NULL:
        following = entry.next
        uring_commit(worker, entry)
        entry = following
