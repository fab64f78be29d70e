"""The native data plane: data requests go from ``/dev/fuse`` to the legs and back without touching Python.

A few worker threads read ``/dev/fuse``, each on a descriptor of its own (FUSE_DEV_IOC_CLONE). READ, WRITE, FSYNC,
FLUSH, FALLOCATE and LSEEK are served here, through the engine; everything else goes as it is to unmodified pyfuse3
through a socket pair, whose answers `Plane.answer` takes back to the descriptor that the request came from. The text
is in plane/:

* fuse.pxi: the messages; slots.pxi: a request and its buffer; messages.pxi: receiving, passing on, answering;
* extents.pxi: holes, zeros and the size;
* workers.pxi: who waits for what, and who carries leg operations out; null.pxi: a server to compare with;
* uring.pxi: requests that come through io_uring instead of ``/dev/fuse``.
"""

import os

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EINVAL, ENODEV, ENOMEM, ENOSPC, ENXIO, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from raidfs._backend_threads cimport Pool, ThreadBackend, carry_out
from raidfs._backend_uring cimport (
    Ring, iovec, ring_close, ring_enter, ring_keep, ring_open, ring_push_command, ring_push_op, ring_push_poll,
    ring_push_read, ring_take,
)
from raidfs._core cimport (
    OP_FLUSH, OP_PUNCH, OP_READ, OP_ZERO, PAGE_BYTES, REQUEST_BYTES_MAX, REQUEST_DURABLE, REQUEST_FLUSH, REQUEST_PUNCH,
    REQUEST_READ, REQUEST_WRITE, REQUEST_ZERO, Engine, EngineState, LegOp, Port, Request, engine_complete_op_locked,
    engine_run_locked, engine_submit, engine_submit_locked, engine_take_op_locked, engine_take_replies_locked,
    engine_unlock, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

cdef extern from *:
    """
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #include <linux/falloc.h>
    #include <linux/fs.h>
    #include <linux/fuse.h>
    #include <sys/prctl.h>
    #ifndef MADV_DONTNEED_LOCKED             /* Linux 5.18 */
    #define MADV_DONTNEED_LOCKED 24
    #endif
    #ifndef PR_SET_IO_FLUSHER                /* Linux 5.6 */
    #define PR_SET_IO_FLUSHER 57
    #endif
    #ifndef MCL_ONFAULT                      /* Linux 4.4 */
    #define MCL_ONFAULT 4
    #endif
    #define RAIDFS_ATOMIC_ADD(place, value) __atomic_add_fetch(place, value, __ATOMIC_SEQ_CST)
    #define RAIDFS_ATOMIC_STORE(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
    #define RAIDFS_ATOMIC_EXCHANGE(place, value) __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST)
    #define RAIDFS_ATOMIC_LOAD(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)

    /* Ends a worker's wait in read(2): any signal with a handler does, when it does not restart the call. */
    static void raidfs_wake(int number) { (void) number; }
    static int raidfs_wake_signal(void)
    {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        action.sa_handler = raidfs_wake;
        return sigaction(SIGURG, &action, NULL);
    }

    static __thread void *raidfs_worker;             /* of a thread that is one and has a ring */
    static void *raidfs_this_worker(void) { return raidfs_worker; }
    static void raidfs_set_worker(void *worker) { raidfs_worker = worker; }
    """
    int64_t atomic_add "RAIDFS_ATOMIC_ADD" (int64_t *place, int64_t value) nogil
    int64_t atomic_exchange "RAIDFS_ATOMIC_EXCHANGE" (int64_t *place, int64_t value) nogil
    int64_t atomic_load "RAIDFS_ATOMIC_LOAD" (int64_t *place) nogil
    void atomic_store "RAIDFS_ATOMIC_STORE" (int64_t *place, int64_t value) nogil
    void *raidfs_this_worker() nogil
    void raidfs_set_worker(void *worker) nogil
    int raidfs_wake_signal()
    int SIGURG
    ctypedef struct pthread_t:
        pass
    pthread_t pthread_self() nogil
    int pthread_kill(pthread_t thread, int number) nogil
    int O_DSYNC, O_RDWR, O_CLOEXEC, F_SETFL
    int fcntl(int fd, int command, ...) nogil
    struct pollfd:
        int fd
        short events
    short POLLOUT
    int poll(pollfd *waited, unsigned long count, int timeout_ms) nogil
    unsigned long FUSE_DEV_IOC_CLONE
    uint32_t BLKGETSIZE64, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    int SEEK_DATA, SEEK_HOLE
    int64_t lseek(int fd, int64_t offset, int whence) nogil
    int ioctl(int fd, unsigned long request, ...) nogil
    ssize_t readv(int fd, const iovec *vectors, int count) nogil
    ssize_t writev(int fd, const iovec *vectors, int count) nogil
    ssize_t write(int fd, const void *data, size_t length) nogil
    int usleep(unsigned int microseconds) nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_HUGEPAGE
    int MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, PR_SET_IO_FLUSHER
    int mlockall(int flags) nogil
    int prctl(int what, ...) nogil
    int posix_memalign(void **pointer, size_t alignment, size_t size) nogil
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset) nogil
    int munmap(void *address, size_t length) nogil
    int madvise(void *address, size_t length, int advice) nogil

include "plane/fuse.pxi"
include "plane/slots.pxi"
include "plane/messages.pxi"
include "plane/extents.pxi"
include "plane/workers.pxi"
include "plane/uring.pxi"


cdef enum:
    LIFELINES_MAX = 8


cdef class Plane:
    """The workers of one mount; see ``_plane.pyi``."""

    cdef Engine engine
    cdef ThreadBackend legs
    cdef PlaneState *state
    cdef Worker *workers
    cdef list fds
    cdef int count
    cdef int stop_fd
    cdef int lifelines[LIFELINES_MAX]
    cdef int lifelines_count
    cdef bint closed

    def __cinit__(self, Engine engine not None, ThreadBackend legs, int fuse_fd, int pyfuse3_fd, int done_fd, *,
                  int workers, bint ring, bint uring=False, lifelines=(), **others):
        cdef int i
        self.engine = engine
        self.legs = legs
        self.fds = []
        self.stop_fd = -1
        self.state = <PlaneState *> calloc(1, sizeof(PlaneState))
        self.workers = <Worker *> calloc(workers, sizeof(Worker))
        if self.state == NULL or self.workers == NULL:
            raise MemoryError
        self.state.e = engine.e
        self.state.pool = legs.pool if legs is not None else NULL
        self.lifelines_count = len(lifelines)
        if self.lifelines_count > LIFELINES_MAX:
            raise ValueError("too many lifelines")
        for i in range(self.lifelines_count):
            self.lifelines[i] = lifelines[i]
        self.state.pyfuse3_fd = pyfuse3_fd
        self.state.done_fd = done_fd
        pthread_mutex_init(&self.state.mutex, NULL)
        self.count = workers
        self.state.count = workers
        self.state.queues = os.sysconf("SC_NPROCESSORS_CONF")
        self.state.workers = self.workers
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for i in range(workers):
            self.fds.append(fuse_fd if i == 0 else _cloned(fuse_fd))
            os.set_blocking(self.fds[i], not (ring or uring))
            self.workers[i].gather_fd = self.fds[i] if ring or uring else _cloned(fuse_fd)
            if self.workers[i].gather_fd == fuse_fd and not (ring or uring):
                self.workers[i].gather_fd = -1
            elif not (ring or uring):
                os.set_blocking(self.workers[i].gather_fd, False)
            self.workers[i].idle_fd = _cloned(fuse_fd) if ring and not uring and workers > 1 else -1
            if self.workers[i].idle_fd == fuse_fd:
                self.workers[i].idle_fd = -1
            self.workers[i].plane = self.state
            self.workers[i].fd = self.fds[i]
            self.workers[i].stop_fd = self.stop_fd
            self.workers[i].ring.fd = -1
            self.workers[i].number = i
            self.workers[i].has_ring = ring and legs is not None
            self.workers[i].wants_ring = ring or uring
            self.workers[i].is_wide = uring
            self.workers[i].wake_fd = os.eventfd(0, os.EFD_CLOEXEC) if uring else -1
            pthread_mutex_init(&self.workers[i].outbox_mutex, NULL)
            self.workers[i].backwards = i % 2 != 0
        self.state.running = workers
        raidfs_wake_signal()
        engine.plane = self      # whoever leaves the engine may call us as long as it is there
        with nogil:
            pthread_mutex_lock(&self.state.e.mutex)
            self.state.e.plane_context = self.state
            self.state.e.plane_deliver = plane_deliver
            self.state.e.plane_port = &self.state.port
            pthread_mutex_unlock(&self.state.e.mutex)

    def __dealloc__(self):
        cdef int i
        cdef Passed *passed
        if self.workers != NULL:
            for i in range(self.count):
                slots_free(&self.workers[i].slots)
                uring_free(&self.workers[i])
        if self.state != NULL:
            slots_free(&self.state.spare)
            while self.state.passed != NULL:
                passed = self.state.passed
                self.state.passed = passed.next
                free(passed)
        free(self.workers)
        free(self.state)

    def prepare(self, int number):
        """Get ready to be worker `number`, in its thread; return whether it has the ring that it was to have."""
        cdef Worker *worker = &self.workers[number]
        if worker.wants_ring and not self.open_ring(worker):
            worker.has_ring = False
            worker.wants_ring = False
            return False
        return True

    cdef bint open_ring(self, Worker *worker) noexcept:
        if ring_open(&worker.ring, RING_ENTRIES, worker.is_wide) < 0:
            return False
        if self.lifelines_count and ring_keep(&worker.ring, self.lifelines, <uint32_t> self.lifelines_count) < 0:
            ring_close(&worker.ring)
            return False
        return True

    def begin_uring(self):
        """Take requests through io_uring from now on: the kernel has got the answer to INIT that allows it."""
        cdef int i
        atomic_store(&self.state.uring, 1)
        for i in range(self.count):
            uring_wake(&self.workers[i])

    def work(self, int number):
        """Be worker `number`, until the mount is gone or `stop`; its requests may still wait for something then."""
        with nogil:
            worker_run(&self.workers[number])

    def stop(self):
        """Make the workers end, whatever they wait for; call it again until they have."""
        cdef int i
        atomic_add(&self.state.stopping, 1)
        for i in range(self.count):
            worker_wake(&self.workers[i])

    def close(self):
        """Give up: answers that come later are dropped. The workers must have ended; a second call does nothing."""
        cdef int i
        if self.closed:
            return
        self.closed = True
        with nogil:
            pthread_mutex_lock(&self.state.e.mutex)
            atomic_add(&self.state.abandoned, 1)
            pthread_mutex_unlock(&self.state.e.mutex)
            while atomic_load(&self.state.delivering):
                usleep(100)
        for fd in self.fds[1:]:
            if fd != self.fds[0]:
                os.close(fd)
        for i in range(self.count):
            if self.workers[i].wake_fd >= 0:
                os.close(self.workers[i].wake_fd)
            if self.workers[i].gather_fd >= 0 and self.workers[i].gather_fd != self.fds[i]:
                os.close(self.workers[i].gather_fd)
            if self.workers[i].idle_fd >= 0:
                os.close(self.workers[i].idle_fd)
        os.close(self.stop_fd)

    def waiting_for(self, uint64_t unique):
        """Return the opcode of a request that was passed on and not answered yet, or 0."""
        cdef Passed *passed
        pthread_mutex_lock(&self.state.mutex)
        passed = passed_find(self.state, unique)[0]
        opcode = passed.opcode if passed != NULL else 0
        pthread_mutex_unlock(&self.state.mutex)
        return opcode

    def answer(self, const unsigned char[::1] message):
        """Take an answer of pyfuse3's to where its request came from; one to nobody (a notification) goes anywhere."""
        cdef iovec piece
        cdef Passed **place
        cdef Passed *passed
        cdef int fd = self.fds[0]
        cdef Slot *slot = NULL
        cdef OutHeader *header = <OutHeader *> &message[0]
        cdef ssize_t n
        pthread_mutex_lock(&self.state.mutex)
        place = passed_find(self.state, header.unique)
        passed = place[0]
        if passed != NULL:
            fd = passed.fd
            slot = passed.slot
            place[0] = passed.next
            free(passed)
        pthread_mutex_unlock(&self.state.mutex)
        if slot != NULL:
            uring_answer(slot, header, <void *> (header + 1), <size_t> message.shape[0] - sizeof(OutHeader))
            return 0
        piece.iov_base = <void *> &message[0]
        piece.iov_len = <size_t> message.shape[0]
        with nogil:
            n = writev(fd, &piece, 1)
        return 0 if n >= 0 else errno

    @property
    def in_flight(self):
        """How many data requests have no answer yet."""
        return atomic_load(&self.state.in_flight)


def lock_memory():
    """Keep what memory this process has and gets from now on; return 0 or the errno of the refusal."""
    return 0 if mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0 else errno


def _cloned(int fuse_fd):
    """Return another descriptor of the same mount, with a queue of answers of its own."""
    cdef uint32_t original = <uint32_t> fuse_fd
    try:
        fd = os.open("/dev/fuse", O_RDWR | O_CLOEXEC)
    except OSError:
        return fuse_fd
    if ioctl(fd, FUSE_DEV_IOC_CLONE, &original) < 0:
        os.close(fd)
        return fuse_fd
    return fd


include "plane/null.pxi"
