# Slots: one request of the kernel each, with a buffer for the largest. A slot belongs to whoever serves its request.
#
# A buffer is 1 MiB of addresses; memory is only behind what was used. So a parked 4 KiB write costs a page, and the
# number of requests in flight needs no limit of its own below the kernel's. What large requests have touched is given
# back when more than a few such slots are idle.

cdef enum:
    SLOTS_KEPT = 256                 # idle slots that a worker keeps
    LARGE_BYTES = 64 * 1024          # a buffer that was used to more than this is a large one
    LARGE_KEPT = 4                   # idle slots with large buffers that a worker keeps as they are
    HUGE_SLOTS = 8                   # slots of each worker whose buffers are huge pages; they are used first
    HUGE_BYTES = 2 * 1024 * 1024

cdef struct Entry

cdef struct Slot:
    Request r                        # the engine's, first: its address is the slot's
    Slot *next
    int fd                           # the request came from here, and its answer must go there
    uint64_t next_offset             # FALLOCATE: what is left to do, see extents.pxi
    uint64_t end_offset
    bint is_huge                     # one of those, which stay as long as the worker
    Entry *entry                     # that it is the slot of, see uring.pxi; NULL: it came through /dev/fuse
    uint64_t touched                 # bytes of the buffer that have memory behind them, at most
    Head head
    unsigned char *payload

cdef struct SlotList:
    Slot *huge                       # these are taken first
    Slot *head
    uint32_t count
    uint32_t large


cdef Slot *slot_new() noexcept nogil:
    cdef Slot *slot = <Slot *> calloc(1, sizeof(Slot))
    cdef void *payload
    if slot == NULL:
        return NULL
    payload = mmap(NULL, PAYLOAD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if payload == MAP_FAILED:
        free(slot)
        return NULL
    slot.payload = <unsigned char *> payload
    return slot


cdef void slot_free(Slot *slot) noexcept nogil:
    munmap(slot.payload, PAYLOAD_BYTES)
    free(slot)


cdef void slots_add_huge(SlotList *slots) noexcept nogil:
    """Add the slots with huge pages, if there is memory for them; they are never given back."""
    cdef Slot *several = <Slot *> calloc(HUGE_SLOTS, sizeof(Slot))
    cdef void *payload = NULL
    cdef int i
    if several == NULL or posix_memalign(&payload, HUGE_BYTES, HUGE_SLOTS * PAYLOAD_BYTES):
        free(several)
        return
    madvise(payload, HUGE_SLOTS * PAYLOAD_BYTES, MADV_HUGEPAGE)
    for i in range(HUGE_SLOTS):
        several[i].payload = <unsigned char *> payload + i * PAYLOAD_BYTES
        several[i].is_huge = True
        several[i].next = slots.huge
        slots.huge = &several[i]


cdef void slots_put(SlotList *slots, Slot *slot) noexcept nogil:
    """Keep a slot for later, or give it back to the system."""
    if slot.entry != NULL:           # the kernel has it
        return
    if slot.is_huge:
        slot.next = slots.huge
        slots.huge = slot
        return
    if slots.count >= SLOTS_KEPT:
        slot_free(slot)
        return
    if slot.touched > LARGE_BYTES:
        if slots.large >= LARGE_KEPT:
            if madvise(slot.payload, PAYLOAD_BYTES, MADV_DONTNEED_LOCKED) != 0:      # Linux 5.18
                madvise(slot.payload, PAYLOAD_BYTES, MADV_DONTNEED)
            slot.touched = 0
        else:
            slots.large += 1
    slot.next = slots.head
    slots.head = slot
    slots.count += 1


cdef Slot *slots_take(SlotList *slots) noexcept nogil:
    cdef Slot *slot = slots.huge
    if slot != NULL:
        slots.huge = slot.next
        return slot
    slot = slots.head
    if slot != NULL:
        slots.head = slot.next
        slots.count -= 1
        if slot.touched > LARGE_BYTES:
            slots.large -= 1
    return slot


cdef void slots_free(SlotList *slots) noexcept nogil:
    cdef Slot *slot
    slots.huge = NULL                # two workers may have mixed them, and they end with the process anyway
    slot = slots_take(slots)
    while slot != NULL:
        slot_free(slot)
        slot = slots_take(slots)
