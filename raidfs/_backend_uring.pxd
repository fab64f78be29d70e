# One io_uring, owned by the thread that opened it: leg operations in flight, and descriptors to be woken by.

from libc.stdint cimport int32_t, uint32_t, uint64_t

from raidfs._core cimport LegOp

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef struct Ring:
    int fd                           # -1 when there is none
    bint keeps                       # files, see ring_keep
    uint32_t entries
    uint32_t queued                  # entries filled and not given to the kernel yet
    uint32_t sq_mask
    uint32_t cq_mask
    uint32_t *sq_head
    uint32_t *sq_tail
    uint32_t *cq_head
    uint32_t *cq_tail
    void *sqes
    void *cqes
    void *rings                      # the mappings, for the end
    uint64_t rings_bytes
    uint64_t sqes_bytes
    uint32_t sqe_bytes

cdef int ring_open(Ring *ring, uint32_t entries, bint wide) noexcept nogil
cdef int ring_keep(Ring *ring, int *fds, uint32_t count) noexcept nogil
cdef void ring_close(Ring *ring) noexcept nogil
cdef int ring_push_op(Ring *ring, int fd, LegOp *op) noexcept nogil
cdef int ring_push_poll(Ring *ring, int fd, bint exclusive, uint64_t name) noexcept nogil
cdef int ring_push_read(Ring *ring, int fd, void *data, uint32_t length, uint64_t name) noexcept nogil
cdef int ring_push_command(Ring *ring, int fd, uint32_t command, const void *data, uint32_t length, iovec *pieces,
                           uint32_t count, uint64_t name) noexcept nogil
cdef int ring_enter(Ring *ring, uint32_t wait) noexcept nogil
cdef bint ring_take(Ring *ring, uint64_t *name, int32_t *result) noexcept nogil
