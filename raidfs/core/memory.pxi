# Buffers, aligned to a page so that O_DIRECT takes them, kept in power-of-two classes; and the panic.

cdef extern from *:
    """
    #include <stdio.h>
    #include <stdlib.h>
    /* Assertions stay on in production: a stopped node is better than a wrong one. */
    #define RAIDFS_ENSURE(condition)                                                        \\
        do {                                                                                \\
            if (!(condition)) {                                                             \\
                fprintf(stderr, "raidfs: %s:%d: broken invariant: %s\\n", __FILE__, __LINE__, #condition); \\
                abort();                                                                    \\
            }                                                                               \\
        } while (0)
    """
    void ENSURE "RAIDFS_ENSURE" (bint condition) noexcept nogil


cdef inline int buffer_class(uint64_t length) noexcept nogil:
    cdef int size_class = 0
    while (<uint64_t> PAGE_BYTES << size_class) < length:
        size_class += 1
    return size_class


cdef unsigned char *buffer_get(EngineState *e, uint64_t length) noexcept nogil:
    """Return a page-aligned buffer of at least `length` bytes, or NULL when there is no memory."""
    cdef int size_class = buffer_class(length)
    cdef void *buffer = NULL
    if size_class >= BUFFER_CLASSES:
        return NULL
    buffer = e.free_buffers[size_class]
    if buffer != NULL:
        e.free_buffers[size_class] = (<void **> buffer)[0]
        e.free_counts[size_class] -= 1
        return <unsigned char *> buffer
    if posix_memalign(&buffer, PAGE_BYTES, <size_t> PAGE_BYTES << size_class) != 0:
        return NULL
    return <unsigned char *> buffer


cdef void buffer_put(EngineState *e, unsigned char *buffer, uint64_t length) noexcept nogil:
    """Give back what `buffer_get` returned for the same `length`; NULL is allowed."""
    cdef int size_class
    if buffer == NULL:
        return
    size_class = buffer_class(length)
    if e.free_counts[size_class] >= BUFFERS_KEPT:
        free(buffer)
        return
    (<void **> buffer)[0] = e.free_buffers[size_class]
    e.free_buffers[size_class] = buffer
    e.free_counts[size_class] += 1


cdef void buffers_free(EngineState *e) noexcept nogil:
    cdef int size_class
    cdef void *buffer
    for size_class in range(BUFFER_CLASSES):
        while e.free_buffers[size_class] != NULL:
            buffer = e.free_buffers[size_class]
            e.free_buffers[size_class] = (<void **> buffer)[0]
            free(buffer)
