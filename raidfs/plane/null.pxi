# A server that does nothing but copy: the limit of FUSE itself on this machine, for scripts/bench.

cdef void turn_null(Worker *worker) noexcept nogil:
    """Serve from memory: a write is copied once for each leg, a read once."""
    cdef PlaneState *plane = worker.plane
    cdef Slot *slot
    cdef uint32_t i
    while worker.batch != NULL:
        slot = worker.batch
        worker.batch = slot.next
        if slot.r.kind == REQUEST_READ:
            memcpy(slot.payload, plane.null_legs + slot.r.offset, slot.r.length)
        elif slot.r.kind == REQUEST_WRITE:
            for i in range(plane.null_count):
                memcpy(plane.null_legs + i * plane.null_bytes + slot.r.offset, slot.payload, slot.r.length)
        answer(slot, <int64_t> slot.r.length)
        atomic_add(&plane.in_flight, -1)
        slots_put(&worker.slots, slot)


cdef class NullPlane(Plane):
    """A `Plane` over memory of its own instead of an engine; see ``_plane.pyi``."""

    def __cinit__(self, Engine engine not None, ThreadBackend legs, int fuse_fd, int pyfuse3_fd, int done_fd, *,
                  int workers, bint ring, bint uring=False, uint64_t size_bytes=0, uint32_t legs_count=1):
        cdef void *place = mmap(NULL, size_bytes * legs_count, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if place == MAP_FAILED:
            raise MemoryError
        self.state.null_legs = <unsigned char *> place
        self.state.null_bytes = size_bytes
        self.state.null_count = legs_count

    def __dealloc__(self):
        if self.state.null_legs != NULL:
            munmap(self.state.null_legs, self.state.null_bytes * self.state.null_count)
