"""Mistakes on purpose: built with the core, by its directives and options, and only in the debug build.

What stops these stops the same mistakes in the core.
"""

from libc.stdlib cimport free, malloc


def behind_the_view(const unsigned char[::1] data):
    """Read one element behind the end of a memoryview."""
    cdef Py_ssize_t behind = data.shape[0]
    return data[behind]


def behind_the_heap(size_t size):
    """Write one byte behind the end of an allocation."""
    cdef volatile unsigned char *data = <volatile unsigned char *> malloc(size)
    if data == NULL:
        raise MemoryError
    data[size] = 1
    free(<void *> data)


def shift_too_far(int bits):
    """Shift by more bits than there are."""
    cdef volatile int result = 1
    result = result << bits
    return result
