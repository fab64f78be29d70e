"""Leg operations through io_uring: many in flight for one thread, and one place to wait for them and for requests.

A ring belongs to the thread that opened it; nobody else touches it. The system calls are made directly and the kernel
is asked at run time, so neither a library nor a new kernel is needed to build or to start: where io_uring is not to be
had (old kernels, most containers, ``kernel.io_uring_disabled``), `why_not` says why and the pool of threads serves.
"""

import os

from libc.errno cimport EBUSY, EINTR, EINVAL, ENOSYS, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from raidfs._core cimport OP_FLUSH, OP_PUNCH, OP_READ, OP_WRITE_DURABLE, OP_ZERO, LegOp

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/io_uring.h>
    #include <sys/epoll.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #ifndef IORING_SETUP_CQSIZE              /* Linux 5.5 */
    #define IORING_SETUP_CQSIZE (1U << 3)
    #endif
    #ifndef IORING_SETUP_SQE128              /* Linux 5.19 */
    #define IORING_SETUP_SQE128 (1U << 10)
    #endif
    #ifndef IORING_SETUP_SINGLE_ISSUER       /* Linux 6.0 */
    #define IORING_SETUP_SINGLE_ISSUER (1U << 12)
    #endif
    #ifndef IORING_SETUP_DEFER_TASKRUN       /* Linux 6.1 */
    #define IORING_SETUP_DEFER_TASKRUN (1U << 13)
    #endif
    """
    struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t array
    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t cqes
    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    struct io_uring_sqe:
        uint8_t opcode
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint32_t fsync_flags
        uint32_t poll32_events
        uint64_t user_data
    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    uint8_t IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_POLL_ADD
    uint32_t FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    uint32_t IORING_SETUP_CQSIZE, IORING_SETUP_SQE128, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN
    uint32_t IORING_FEAT_SINGLE_MMAP, IORING_FEAT_NODROP
    uint32_t IORING_FSYNC_DATASYNC, IORING_ENTER_GETEVENTS, RWF_DSYNC, EPOLLIN, EPOLLEXCLUSIVE
    uint64_t IORING_OFF_SQ_RING, IORING_OFF_SQES
    long SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register
    int IORING_REGISTER_FILES, IORING_UNREGISTER_FILES
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
    long syscall(long number, ...) nogil
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset) nogil
    int munmap(void *address, size_t length) nogil
    int close(int fd) nogil
    int __ATOMIC_ACQUIRE, __ATOMIC_RELEASE
    uint32_t load "__atomic_load_n" (uint32_t *place, int order) nogil
    void store "__atomic_store_n" (uint32_t *place, uint32_t value, int order) nogil


cdef enum:
    WIDE_COMPLETIONS = 4096          # commands may all end at once
    OP_URING_CMD = 46                # IORING_OP_URING_CMD, Linux 5.19
    SQE_CMD_OP = 8                   # where an entry has the command's number, and what belongs to the command
    SQE_CMD = 48


cdef int ring_open(Ring *ring, uint32_t entries, bint wide) noexcept nogil:
    """Make a ring with room for `entries` submissions; return 0 or -errno. Commands of files need a `wide` one."""
    cdef io_uring_params params
    cdef uint32_t *array
    cdef uint32_t i
    memset(ring, 0, sizeof(Ring))
    memset(&params, 0, sizeof(params))
    # Completions are worked off when this thread asks for them, and not by interrupting it.
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
    if wide:
        params.flags |= IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE
        params.cq_entries = WIDE_COMPLETIONS
    ring.fd = <int> syscall(SYS_io_uring_setup, entries, &params)
    if ring.fd < 0 and errno == EINVAL and not wide:
        memset(&params, 0, sizeof(params))
        ring.fd = <int> syscall(SYS_io_uring_setup, entries, &params)
    if ring.fd < 0:
        return -errno
    if not params.features & IORING_FEAT_SINGLE_MMAP or not params.features & IORING_FEAT_NODROP:
        close(ring.fd)
        ring.fd = -1
        return -ENOSYS
    ring.rings_bytes = max(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                           params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe))
    ring.sqe_bytes = 2 * sizeof(io_uring_sqe) if wide else sizeof(io_uring_sqe)
    ring.sqes_bytes = params.sq_entries * ring.sqe_bytes
    ring.rings = map_ring(ring.fd, ring.rings_bytes, IORING_OFF_SQ_RING)
    ring.sqes = map_ring(ring.fd, ring.sqes_bytes, IORING_OFF_SQES)
    if ring.rings == NULL or ring.sqes == NULL:
        ring_close(ring)
        return -errno
    ring.entries = params.sq_entries
    ring.sq_head = <uint32_t *> (<char *> ring.rings + params.sq_off.head)
    ring.sq_tail = <uint32_t *> (<char *> ring.rings + params.sq_off.tail)
    ring.sq_mask = (<uint32_t *> (<char *> ring.rings + params.sq_off.ring_mask))[0]
    ring.cq_head = <uint32_t *> (<char *> ring.rings + params.cq_off.head)
    ring.cq_tail = <uint32_t *> (<char *> ring.rings + params.cq_off.tail)
    ring.cq_mask = (<uint32_t *> (<char *> ring.rings + params.cq_off.ring_mask))[0]
    ring.cqes = <char *> ring.rings + params.cq_off.cqes
    array = <uint32_t *> (<char *> ring.rings + params.sq_off.array)
    for i in range(params.sq_entries):
        array[i] = i
    return 0


cdef void *map_ring(int fd, uint64_t length, uint64_t what) noexcept nogil:
    cdef void *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, <long> what)
    return NULL if place == MAP_FAILED else place


cdef int ring_keep(Ring *ring, int *fds, uint32_t count) noexcept nogil:
    """Have files stay open as long as an operation of this ring is in flight; return 0 or -errno. Once only.

    The end of a process does not wait for what its rings have in flight, and closes its descriptors meanwhile; the
    kernel lets go of files that are registered with a ring only when the last operation has ended.
    """
    if syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, fds, count) < 0:
        return -errno
    ring.keeps = True
    return 0


cdef void ring_close(Ring *ring) noexcept nogil:
    """Close a ring that has nothing in flight; one that was never opened is left alone."""
    if ring.keeps:                   # now, and not when the kernel comes to it
        syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_FILES, NULL, 0)
    if ring.rings != NULL:
        munmap(ring.rings, ring.rings_bytes)
    if ring.sqes != NULL:
        munmap(ring.sqes, ring.sqes_bytes)
    if ring.fd >= 0:
        close(ring.fd)
    memset(ring, 0, sizeof(Ring))
    ring.fd = -1


cdef io_uring_sqe *ring_entry(Ring *ring) noexcept nogil:
    cdef uint32_t tail = ring.sq_tail[0]     # only this thread writes it
    cdef io_uring_sqe *entry
    if tail - load(ring.sq_head, __ATOMIC_ACQUIRE) >= ring.entries:
        if ring_enter(ring, 0) < 0 or tail - load(ring.sq_head, __ATOMIC_ACQUIRE) >= ring.entries:
            return NULL
    entry = <io_uring_sqe *> (<char *> ring.sqes + (tail & ring.sq_mask) * ring.sqe_bytes)
    memset(entry, 0, ring.sqe_bytes)
    return entry


cdef inline void ring_queued(Ring *ring) noexcept nogil:
    store(ring.sq_tail, ring.sq_tail[0] + 1, __ATOMIC_RELEASE)
    ring.queued += 1


cdef int ring_push_op(Ring *ring, int fd, LegOp *op) noexcept nogil:
    """Queue a leg operation; its address names its completion. Return 0, or -EBUSY when the ring is full."""
    cdef io_uring_sqe *entry = ring_entry(ring)
    if entry == NULL:
        return -EBUSY
    entry.fd = fd
    entry.user_data = <uint64_t> <size_t> op
    if op.kind == OP_FLUSH:
        entry.opcode = IORING_OP_FSYNC
        entry.fsync_flags = IORING_FSYNC_DATASYNC
    elif op.kind == OP_PUNCH or op.kind == OP_ZERO:
        entry.opcode = IORING_OP_FALLOCATE
        entry.off = op.offset
        entry.addr = op.length
        entry.len = FALLOC_FL_KEEP_SIZE | (FALLOC_FL_PUNCH_HOLE if op.kind == OP_PUNCH else FALLOC_FL_ZERO_RANGE)
    else:
        entry.opcode = IORING_OP_READ if op.kind == OP_READ else IORING_OP_WRITE
        entry.off = op.offset
        entry.addr = <uint64_t> <size_t> op.data
        entry.len = <uint32_t> op.length
        if op.kind == OP_WRITE_DURABLE:
            entry.rw_flags = RWF_DSYNC
    ring_queued(ring)
    return 0


cdef int ring_push_poll(Ring *ring, int fd, bint exclusive, uint64_t name) noexcept nogil:
    """Queue one wake-up for when `fd` can be read; with `exclusive` one of all that wait so is woken."""
    cdef io_uring_sqe *entry = ring_entry(ring)
    if entry == NULL:
        return -EBUSY
    entry.opcode = IORING_OP_POLL_ADD
    entry.fd = fd
    entry.poll32_events = EPOLLIN | EPOLLEXCLUSIVE if exclusive else EPOLLIN
    entry.user_data = name
    ring_queued(ring)
    return 0


cdef int ring_push_read(Ring *ring, int fd, void *data, uint32_t length, uint64_t name) noexcept nogil:
    """Queue a read of what comes next in `fd`, an eventfd."""
    cdef io_uring_sqe *entry = ring_entry(ring)
    if entry == NULL:
        return -EBUSY
    entry.opcode = IORING_OP_READ
    entry.fd = fd
    entry.addr = <uint64_t> <size_t> data
    entry.len = length
    entry.user_data = name
    ring_queued(ring)
    return 0


cdef int ring_push_command(Ring *ring, int fd, uint32_t command, const void *data, uint32_t length, iovec *pieces,
                           uint32_t count, uint64_t name) noexcept nogil:
    """Queue a command of a file with up to 80 bytes of its own; the ring must be a wide one."""
    cdef io_uring_sqe *entry = ring_entry(ring)
    if entry == NULL:
        return -EBUSY
    entry.opcode = OP_URING_CMD
    entry.fd = fd
    (<uint32_t *> (<char *> entry + SQE_CMD_OP))[0] = command
    entry.addr = <uint64_t> <size_t> pieces
    entry.len = count
    entry.user_data = name
    memcpy(<char *> entry + SQE_CMD, data, length)
    ring_queued(ring)
    return 0


cdef int ring_enter(Ring *ring, uint32_t wait) noexcept nogil:
    """Give what is queued to the kernel and wait for that many completions; return 0 or -errno."""
    cdef long done = syscall(SYS_io_uring_enter, ring.fd, ring.queued, wait, IORING_ENTER_GETEVENTS, NULL, 0)
    if done < 0:
        return 0 if errno == EINTR else -errno
    ring.queued -= <uint32_t> done
    return 0


cdef bint ring_take(Ring *ring, uint64_t *name, int32_t *result) noexcept nogil:
    """Take the oldest completion; return whether there was one."""
    cdef uint32_t head = ring.cq_head[0]     # only this thread writes it
    cdef io_uring_cqe *found
    if head == load(ring.cq_tail, __ATOMIC_ACQUIRE):
        return False
    found = &(<io_uring_cqe *> ring.cqes)[head & ring.cq_mask]
    name[0] = found.user_data
    result[0] = found.res
    store(ring.cq_head, head + 1, __ATOMIC_RELEASE)
    return True


def why_not(*, bint wide=False):
    """Say why io_uring cannot be used here, or return None when it can."""
    cdef Ring ring
    cdef int result = ring_open(&ring, 8, wide)
    if result < 0:
        return os.strerror(-result)
    ring_close(&ring)
    return None
