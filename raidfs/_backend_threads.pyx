"""Carries leg operations out with a pool of threads and positioned system calls; and the wake-ups towards trio.

Each worker takes an operation from the engine, does it (pread, pwrite, fdatasync) and completes it, without the GIL.
A transfer that ends early is continued until an error or the end of the file; what the engine hears is the sum. A
durable write uses RWF_DSYNC, or fdatasync behind it where the file system does not know that flag.
"""

import threading

from libc.errno cimport EINTR, EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, intptr_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.stat cimport S_ISREG, fstat, struct_stat

from raidfs._core cimport (
    LEGS_MAX, OP_FLUSH, OP_PUNCH, OP_READ, OP_WRITE_DURABLE, OP_ZERO, Engine, EngineState, LegOp,
    engine_complete_op, engine_take_op_locked, notify_fn, ops_notify_fn,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

cdef extern from "<pthread.h>" nogil:
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev2(int fd, const iovec *vectors, int count, int64_t offset, int flags)
    int RWF_DSYNC

cdef extern from "<sys/vfs.h>" nogil:
    ctypedef struct statfs_t "struct statfs":
        long f_type
    int fstatfs(int fd, statfs_t *found)

cdef extern from "<linux/magic.h>" nogil:
    long TMPFS_MAGIC
    long RAMFS_MAGIC

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t length)
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE

cdef extern from *:
    """
    static char raidfs_zeros[1 << 16] __attribute__((aligned(4096)));    /* never written */
    #define RAIDFS_HINT_ADD(place, value) ((void) __atomic_add_fetch(place, (unsigned) (value), __ATOMIC_RELAXED))
    #define RAIDFS_HINT_READ(place) __atomic_load_n(place, __ATOMIC_RELAXED)
    """
    void hint_add "RAIDFS_HINT_ADD" (uint32_t *place, int value) nogil
    uint32_t hint_read "RAIDFS_HINT_READ" (uint32_t *place) nogil
    const void *ZEROS "raidfs_zeros"
    uint64_t ZEROS_BYTES "sizeof(raidfs_zeros)"

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)
    ssize_t pread(int fd, void *data, size_t length, int64_t offset)
    ssize_t pwrite(int fd, const void *data, size_t length, int64_t offset)
    ssize_t write(int fd, const void *data, size_t length)


cdef int64_t transfer(int fd, LegOp *op) noexcept nogil:
    """Do a read or write to its end; return the bytes done, or -errno."""
    cdef uint64_t done = 0
    cdef iovec vector
    cdef ssize_t n
    cdef int flags = RWF_DSYNC if op.kind == OP_WRITE_DURABLE else 0
    while done < op.length:
        if op.kind == OP_READ:
            n = pread(fd, op.data + done, op.length - done, <int64_t> (op.offset + done))
        elif not flags:
            n = pwrite(fd, op.data + done, op.length - done, <int64_t> (op.offset + done))
        else:
            vector.iov_base = op.data + done
            vector.iov_len = op.length - done
            n = pwritev2(fd, &vector, 1, <int64_t> (op.offset + done), flags)
        if n > 0:
            done += <uint64_t> n
        elif n == 0:
            break
        elif errno == EINTR:
            continue
        elif errno == EOPNOTSUPP and flags:
            flags = 0
        elif done and op.kind == OP_READ and errno == EINVAL:
            break                            # O_DIRECT behind a last, odd block of the file
        else:
            return -errno
    if op.kind == OP_WRITE_DURABLE and not flags and fdatasync(fd) != 0:
        return -errno
    return <int64_t> done


cdef int64_t carry_out(int fd, LegOp *op) noexcept nogil:
    if fd < 0:
        return -ENODEV
    if op.kind == OP_FLUSH:
        return -errno if fdatasync(fd) != 0 else 0
    if op.kind == OP_PUNCH or op.kind == OP_ZERO:
        return write_zeros(fd, op)
    return transfer(fd, op)


cdef int64_t write_zeros(int fd, LegOp *op) noexcept nogil:
    """Make a range read as zeros: in the way that was asked for, in the other one, or by writing them."""
    cdef int modes[2]
    cdef int i
    cdef uint64_t done = 0
    cdef ssize_t n
    modes[0] = FALLOC_FL_PUNCH_HOLE if op.kind == OP_PUNCH else FALLOC_FL_ZERO_RANGE
    modes[1] = FALLOC_FL_ZERO_RANGE if op.kind == OP_PUNCH else FALLOC_FL_PUNCH_HOLE
    for i in range(2):
        while True:
            if fallocate(fd, modes[i] | FALLOC_FL_KEEP_SIZE, <int64_t> op.offset, <int64_t> op.length) == 0:
                return <int64_t> op.length
            if errno != EINTR:
                break
        if errno != EOPNOTSUPP and errno != ENOSYS:
            return -errno
    while done < op.length:
        n = pwrite(fd, ZEROS, min(op.length - done, ZEROS_BYTES), <int64_t> (op.offset + done))
        if n > 0:
            done += <uint64_t> n
        elif n == 0:
            break
        elif errno != EINTR:
            return -errno
    return <int64_t> done


cdef bint is_in_memory(int fd) noexcept nogil:
    """Tell whether reads and writes of this file are copies in memory, which never wait for a device.

    The name of a block device is in memory, too: /dev is a tmpfs for fstatfs.
    """
    cdef struct_stat what
    cdef statfs_t found
    return (fd >= 0 and fstat(fd, &what) == 0 and S_ISREG(what.st_mode) and fstatfs(fd, &found) == 0
            and (found.f_type == TMPFS_MAGIC or found.f_type == RAMFS_MAGIC))


cdef void pool_notify(void *context, uint32_t fresh) noexcept nogil:
    """Called by the engine, without its mutex, when there are `fresh` new leg operations.

    `idle` is a hint here: a worker that goes idle now looks at the queue under the mutex first, and sees them.
    """
    cdef Pool *pool = <Pool *> context
    cdef uint32_t wanted = min(fresh, hint_read(&pool.idle))
    while wanted:
        pthread_cond_signal(&pool.work)
        wanted -= 1


cdef void pool_work(Pool *pool) noexcept nogil:
    cdef LegOp *op
    cdef int fd
    while True:
        pthread_mutex_lock(&pool.e.mutex)
        op = engine_take_op_locked(pool.e)
        while op == NULL and not pool.stopping:
            hint_add(&pool.idle, 1)
            pthread_cond_wait(&pool.work, &pool.e.mutex)
            hint_add(&pool.idle, -1)
            op = engine_take_op_locked(pool.e)
        fd = pool.fds[op.leg] if op != NULL else -1
        pthread_mutex_unlock(&pool.e.mutex)
        if op == NULL:
            return
        engine_complete_op(pool.e, op, carry_out(fd, op))


cdef class ThreadBackend:
    """A pool of worker threads for one engine; see ``_backend_threads.pyi``."""

    def __cinit__(self, Engine engine not None):
        cdef int i
        self.engine = engine
        self.threads = []
        self.pool = <Pool *> calloc(1, sizeof(Pool))
        if self.pool == NULL:
            raise MemoryError
        self.pool.e = engine.e
        pthread_cond_init(&self.pool.work, NULL)
        for i in range(LEGS_MAX):
            self.pool.fds[i] = -1

    def __dealloc__(self):
        if self.pool != NULL:
            pthread_cond_destroy(&self.pool.work)
            free(self.pool)

    def attach(self, uint32_t leg, int fd):
        """Use `fd` for `leg` from now on; -1 takes the leg away (ENODEV). The caller keeps owning the descriptor."""
        cdef bint in_memory
        if leg >= LEGS_MAX:
            raise ValueError(f"there is no leg {leg}")
        with nogil:
            in_memory = is_in_memory(fd)
            pthread_mutex_lock(&self.pool.e.mutex)
            self.pool.fds[leg] = fd
            self.pool.memory &= ~(<uint32_t> 1 << leg)
            if in_memory:
                self.pool.memory |= <uint32_t> 1 << leg
            pthread_mutex_unlock(&self.pool.e.mutex)

    def in_memory(self):
        """Tell whether every leg that is attached is a file in memory."""
        cdef int i
        cdef bint found = True
        with nogil:
            pthread_mutex_lock(&self.pool.e.mutex)
            for i in range(<int> LEGS_MAX):
                if self.pool.fds[i] >= 0 and not self.pool.memory & (<uint32_t> 1 << i):
                    found = False
            pthread_mutex_unlock(&self.pool.e.mutex)
        return found

    def start(self, int workers):
        """Start worker threads, so many more than there are."""
        with nogil:
            pthread_mutex_lock(&self.pool.e.mutex)
            self.pool.e.ops_context = self.pool
            self.pool.e.ops_notify = pool_notify
            pthread_mutex_unlock(&self.pool.e.mutex)
        for number in range(len(self.threads), len(self.threads) + workers):
            thread = threading.Thread(target=self._work, name=f"leg-io-{number}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def close(self):
        """Finish what is queued, stop and join the workers; a second call does nothing."""
        with nogil:
            pthread_mutex_lock(&self.pool.e.mutex)
            self.pool.stopping = True
            self.pool.e.ops_notify = NULL
            pthread_cond_broadcast(&self.pool.work)
            pthread_mutex_unlock(&self.pool.e.mutex)
        for thread in self.threads:
            thread.join()
        self.threads = []

    def _work(self):
        with nogil:
            pool_work(self.pool)


cdef void eventfd_notify(void *context) noexcept nogil:
    """Called by the engine, under its mutex; adding to an eventfd does not block before 2^64 - 2 wake-ups."""
    cdef uint64_t one = 1
    write(<int> <intptr_t> context, &one, sizeof(one))


def notify_eventfd(Engine engine not None, int fd):
    """Let the engine add 1 to eventfd `fd` when replies or events come to an empty queue; -1 ends that."""
    cdef EngineState *e = engine.e
    cdef notify_fn notify = NULL
    if fd >= 0:
        notify = eventfd_notify
    with nogil:
        pthread_mutex_lock(&e.mutex)
        engine.port.context = <void *> <intptr_t> fd
        engine.port.notify = notify
        e.event_context = <void *> <intptr_t> fd
        e.event_notify = notify
        pthread_mutex_unlock(&e.mutex)


cdef void ops_eventfd_notify(void *context, uint32_t fresh) noexcept nogil:
    """Called by the engine, without its mutex, when there are new leg operations."""
    eventfd_notify(context)


def notify_ops_eventfd(Engine engine not None, int fd):
    """Let the engine add 1 to eventfd `fd` when there are new leg operations, for a backend in Python; -1 ends that."""
    cdef EngineState *e = engine.e
    cdef ops_notify_fn notify = NULL
    if fd >= 0:
        notify = ops_eventfd_notify
    with nogil:
        pthread_mutex_lock(&e.mutex)
        e.ops_context = <void *> <intptr_t> fd
        e.ops_notify = notify
        pthread_mutex_unlock(&e.mutex)
