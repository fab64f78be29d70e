# Requests about ranges of the file and about its size: FALLOCATE, LSEEK and the one block ioctl that makes sense here.
#
# FALLOCATE is carried out piece by piece, one after the other: whole blocks as writes of zeros that need no data, at
# most 1 MiB each, and what covers a block only in part as an ordinary write. Each piece obeys all that a write obeys.

cdef bint fallocate_first(PlaneState *plane, Slot *slot) noexcept nogil:
    """Begin to punch or zero a range; return False when there is nothing to do and the answer is written."""
    cdef FallocateBody *body = &slot.head.body.fallocate
    cdef uint32_t what = body.mode & ~<uint32_t> FALLOC_FL_KEEP_SIZE
    cdef uint64_t size = array_size(plane)
    if what != FALLOC_FL_PUNCH_HOLE and what != FALLOC_FL_ZERO_RANGE:
        answer(slot, -EOPNOTSUPP)    # the file has all of its space already, and no other size
        return False
    if not body.mode & FALLOC_FL_KEEP_SIZE and body.offset + body.length > size:
        answer(slot, -ENOSPC)
        return False
    slot.next_offset = body.offset
    slot.end_offset = min(body.offset + body.length, size)
    if not fallocate_next(plane, slot):
        answer(slot, 0)
        return False
    return True


cdef bint fallocate_next(PlaneState *plane, Slot *slot) noexcept nogil:
    """Make the next piece the slot's request; return False when none is left."""
    cdef Request *r = &slot.r
    cdef uint64_t block = plane.e.block
    cdef uint64_t start = slot.next_offset
    cdef uint64_t end = min(slot.end_offset, (start + REQUEST_BYTES_MAX) & ~<uint64_t> (REQUEST_BYTES_MAX - 1))
    if start >= slot.end_offset:
        return False
    r.kind = REQUEST_WRITE
    r.offset = start
    if start & (block - 1) or end - start < block:
        end = min(end, (start + block) & ~(block - 1))
        r.flags = 0
        r.data = slot.payload
        memset(slot.payload, 0, end - start)
    else:
        end &= ~(block - 1)
        r.flags = REQUEST_PUNCH if slot.head.body.fallocate.mode & FALLOC_FL_PUNCH_HOLE else REQUEST_ZERO
        r.data = NULL
    r.length = end - start
    slot.next_offset = end
    return True


cdef uint64_t array_size(PlaneState *plane) noexcept nogil:
    """Return how many bytes of the array may be addressed now."""
    cdef uint64_t size
    pthread_mutex_lock(&plane.e.mutex)
    size = plane.e.capacity
    pthread_mutex_unlock(&plane.e.mutex)
    return size


cdef void lseek_answer(PlaneState *plane, Slot *slot) noexcept nogil:
    """SEEK_DATA and SEEK_HOLE as the first leg in sync has it; where that cannot tell, all is data."""
    cdef LseekBody *body = &slot.head.body.lseek
    cdef EngineState *e = plane.e
    cdef LseekAnswer out
    cdef uint64_t base = 0
    cdef uint64_t size
    cdef int64_t found = -1
    cdef uint32_t leg
    cdef int fd = -1
    pthread_mutex_lock(&e.mutex)
    size = e.capacity
    for leg in range(e.legs_count):
        if fd < 0 and plane.pool != NULL and e.in_sync & (<uint32_t> 1 << leg):
            fd = plane.pool.fds[leg]
            base = e.legs[leg].data_offset
    pthread_mutex_unlock(&e.mutex)
    if (body.whence != <uint32_t> SEEK_DATA and body.whence != <uint32_t> SEEK_HOLE) or body.offset >= size:
        answer(slot, -ENXIO if body.offset >= size else -EINVAL)
        return
    if fd >= 0:
        found = lseek(fd, <int64_t> (base + body.offset), <int> body.whence)
    if found < 0 and (fd < 0 or errno != ENXIO):
        found = <int64_t> (base + (body.offset if body.whence == <uint32_t> SEEK_DATA else size))
    if body.whence == <uint32_t> SEEK_DATA and (found < 0 or <uint64_t> found >= base + size):
        answer(slot, -ENXIO)
        return
    out.offset = min(<uint64_t> found - base, size) if found >= 0 else size
    answer_with(slot, 0, &out, sizeof(out))


cdef void size_answer(PlaneState *plane, Slot *slot) noexcept nogil:
    """BLKGETSIZE64: the array's capacity in bytes, for programs that ask a file as they would a device."""
    cdef SizeAnswer out
    memset(&out, 0, sizeof(out))
    out.size = array_size(plane)
    answer_with(slot, 0, &out, sizeof(out))
