# One message of the kernel: received, taken apart, passed on to pyfuse3 or answered.

cdef enum:                           # what `receive` found
    GOT_REQUEST
    GOT_NOTHING                      # try again, or wait
    GOT_THE_END                      # the mount is gone


cdef int receive(int fd, Slot *slot) noexcept nogil:
    cdef iovec pieces[2]
    cdef ssize_t n
    pieces[0].iov_base = &slot.head
    pieces[0].iov_len = HEAD_BYTES
    pieces[1].iov_base = slot.payload
    pieces[1].iov_len = PAYLOAD_BYTES
    n = readv(fd, pieces, 2)
    if n >= IN_HEADER_BYTES:
        if n - HEAD_BYTES > <ssize_t> slot.touched:
            slot.touched = <uint64_t> (n - HEAD_BYTES)
        slot.fd = fd
        return GOT_REQUEST
    if n < 0 and errno != ENODEV and errno != ECONNABORTED:
        return GOT_NOTHING           # EAGAIN; EINTR; ENOENT: the request was withdrawn while it was handed over
    return GOT_THE_END


cdef bint parse(PlaneState *plane, Slot *slot) noexcept nogil:
    """Make a request for the engine of a message; return False when it is none, and has been dealt with."""
    cdef Request *r = &slot.r
    cdef IoBody *io = &slot.head.body.io
    cdef uint32_t opcode = slot.head.header.opcode
    r.flags = 0
    r.length = 0
    r.offset = 0
    r.data = slot.payload
    r.tag = slot.head.header.unique
    r.port = &plane.port
    if opcode == FUSE_READ or opcode == FUSE_WRITE:
        if io.size > REQUEST_BYTES_MAX:
            answer(slot, -EINVAL)
            return False
        r.kind = REQUEST_READ if opcode == FUSE_READ else REQUEST_WRITE
        r.offset = io.offset
        r.length = io.size
        if opcode == FUSE_WRITE:
            if io.flags & O_DSYNC:   # O_SYNC has the bit of O_DSYNC in it
                r.flags = REQUEST_DURABLE
        elif io.size > slot.touched:
            slot.touched = io.size
    elif opcode == FUSE_FSYNC:
        r.kind = REQUEST_FLUSH
    elif opcode == FUSE_FALLOCATE:
        return fallocate_first(plane, slot)
    elif opcode == FUSE_LSEEK:
        lseek_answer(plane, slot)
        return False
    elif opcode == FUSE_IOCTL and slot.head.body.ioctl.cmd == BLKGETSIZE64:
        size_answer(plane, slot)
        return False
    elif opcode == FUSE_FLUSH:       # close(2) promises nothing about stable storage, fsync(2) does
        answer(slot, 0)
        return False
    else:
        pass_on(plane, slot)
        return False
    return True


cdef void answer(Slot *slot, int64_t result) noexcept nogil:
    """Answer a data request: bytes done or -errno. A caller that is gone is nothing to us.

    /dev/fuse takes a whole answer at once and never makes the writer wait. ENOENT: the caller was killed and the kernel
    forgot the request; ENODEV: the mount is gone, and with it whoever waited.
    """
    cdef WriteAnswer out
    if result < 0:
        answer_with(slot, <int32_t> result, NULL, 0)
    elif slot.head.header.opcode == FUSE_READ:
        answer_with(slot, 0, slot.payload, <size_t> result)
    elif slot.head.header.opcode == FUSE_WRITE:
        out.size = <uint32_t> result
        out.padding = 0
        answer_with(slot, 0, &out, sizeof(out))
    else:
        answer_with(slot, 0, NULL, 0)


cdef void answer_with(Slot *slot, int32_t error, const void *body, size_t length) noexcept nogil:
    cdef OutHeader header
    cdef iovec pieces[2]
    header.unique = slot.head.header.unique
    header.error = error
    header.len = <uint32_t> (sizeof(header) + length)
    if slot.entry != NULL:
        uring_answer(slot, &header, body, length)
        return
    pieces[0].iov_base = &header
    pieces[0].iov_len = sizeof(header)
    pieces[1].iov_base = <void *> body
    pieces[1].iov_len = length
    while writev(slot.fd, pieces, 2) < 0 and errno == EINTR:
        pass


# ---- requests that pyfuse3 answers -------------------------------------------------------------------------------

cdef enum:
    PASS_ON_MS = 100                 # how long a full socket is waited for before looking whether all is over

cdef struct Passed:                  # a request that pyfuse3 has not answered yet
    uint64_t unique
    uint32_t opcode
    int fd
    Slot *slot                       # of an entry of io_uring, or NULL
    Passed *next


cdef Passed **passed_find(PlaneState *plane, uint64_t unique) noexcept nogil:
    cdef Passed **place = &plane.passed
    while place[0] != NULL and place[0].unique != unique:
        place = &place[0].next
    return place


cdef void pass_on(PlaneState *plane, Slot *slot) noexcept nogil:
    """Give a message to pyfuse3, and remember where its answer must go.

    An interrupt goes there only when pyfuse3 still has the request that it means: a data request is never given up, its
    caller waits as it would for a disk, and libfuse would keep the interrupt of a request that it does not know.
    """
    cdef Head *head = &slot.head
    cdef Passed *passed
    cdef iovec pieces[3]
    cdef pollfd writable
    cdef uint32_t opcode = head.header.opcode
    cdef bint known = True
    if opcode == FUSE_INIT:
        head.body.init.flags &= ~<uint32_t> SPLICE_FLAGS
    if opcode == FUSE_INTERRUPT:
        pthread_mutex_lock(&plane.mutex)
        known = passed_find(plane, head.body.interrupt.unique)[0] != NULL
        pthread_mutex_unlock(&plane.mutex)
    elif opcode != FUSE_FORGET and opcode != FUSE_BATCH_FORGET:
        passed = <Passed *> malloc(sizeof(Passed))
        if passed == NULL:
            answer(slot, -ENOMEM)
            return
        passed.unique = head.header.unique
        passed.opcode = opcode
        passed.fd = slot.fd
        passed.slot = slot if slot.entry != NULL else NULL
        pthread_mutex_lock(&plane.mutex)
        passed.next = plane.passed
        plane.passed = passed
        pthread_mutex_unlock(&plane.mutex)
    if not known:
        return
    if slot.entry != NULL:
        uring_pass_on(plane, slot, pieces)
    else:
        pieces[0].iov_base = head
        pieces[0].iov_len = min(head.header.len, <uint32_t> HEAD_BYTES)
        pieces[1].iov_base = slot.payload
        pieces[1].iov_len = head.header.len - <uint32_t> pieces[0].iov_len
        pieces[2].iov_len = 0
    writable.fd = plane.pyfuse3_fd
    writable.events = POLLOUT
    while writev(plane.pyfuse3_fd, pieces, 3) < 0:
        if errno == EAGAIN and not is_stopping(plane):
            poll(&writable, 1, PASS_ON_MS)
        elif errno != EINTR:
            return                   # pyfuse3 has ended, and the mount ends with it
