# What a data plane shares with the pool of threads: the legs' descriptors, and how one leg operation is carried out.

from libc.stdint cimport int64_t, uint32_t

from raidfs._core cimport LEGS_MAX, Engine, EngineState, LegOp, pthread_mutex_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass

cdef struct Pool:                    # what the workers share; guarded by the engine's mutex
    EngineState *e
    pthread_cond_t work
    uint32_t idle
    bint stopping
    int fds[LEGS_MAX]
    uint32_t memory                  # legs that never make the caller wait: files in memory, as a mask

cdef int64_t carry_out(int fd, LegOp *op) noexcept nogil

cdef class ThreadBackend:
    cdef Engine engine
    cdef Pool *pool
    cdef list threads
