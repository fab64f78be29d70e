# The C face of the engine: what a leg backend and a data plane need, without Python.
#
# A *plane* fills a Request and calls engine_submit; the reply comes through the Request's Port. A *backend* calls
# engine_take_op for the next leg operation, carries it out and calls engine_complete_op. All of these may be called
# from any thread, without the GIL; one short mutex per engine guards every transition. A thread that has several things
# to do takes the mutex itself, calls the *_locked functions, at last engine_run_locked, and leaves with engine_unlock.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_MUTEX_ADAPTIVE_NP
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_settype(pthread_mutexattr_t *attributes, int kind)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    LEGS_MAX = 16                # legs of one array, spares included; masks of legs are 32 bits
    PAGE_BYTES = 4096            # unit of bitmap writes, as in md
    HEADER_BYTES = 256           # the bitmap superblock, before the first bit
    REQUEST_BYTES_MAX = 1 << 20  # largest request; FUSE's largest too, and it keeps a request in two range buckets
    RANGE_BUCKETS = 1024         # hash of 1 MiB regions that have writes
    BUFFER_CLASSES = 10          # 4 KiB << class: up to 2 MiB, the largest bounce buffer
    BUFFERS_KEPT = 64            # free buffers kept per class
    MISMATCHES_MAX = 1024        # ranges kept of what check and repair found
    READ_ERRORS_MAX = 32         # failed reads kept per leg until control takes them
    SYNC_BLOCKS_MAX = 64         # blocks of all sync requests in flight

cdef enum:                       # Request.kind
    REQUEST_READ
    REQUEST_WRITE
    REQUEST_FLUSH                # data of all replied writes durable on all good legs
    REQUEST_DRAIN                # replied when no older started request overlaps [offset, offset + length)
    REQUEST_SWEEP                # one round of lazy bitmap clearing (md's daemon)
    REQUEST_LEG_READ             # control I/O on one leg, offset from the start of the image
    REQUEST_LEG_WRITE            # the same, durable when replied
    REQUEST_LEG_FLUSH
    REQUEST_RESIZE               # another size or chunk size: Request.data is a Resize
    REQUEST_SYNC                 # Request.action over [offset, offset + length), block by block
    REQUEST_BLOCK                # (engine) one such block, see SyncBlock

cdef enum:                       # Request.action of a sync
    SYNC_HEAL                    # copy the first leg where legs may differ, and what recovering legs lack
    SYNC_CHECK                   # compare all legs in sync
    SYNC_REPAIR                  # the same, and write the first leg's data where they differ
    SYNC_REWRITE                 # repair one leg's unreadable blocks from another leg

cdef enum:                       # Request.flags
    REQUEST_DURABLE = 1          # a write is durable when replied (O_DSYNC)
    REQUEST_PUNCH = 2            # a write of zeros without data, whole blocks; their space is given back
    REQUEST_ZERO = 4             # the same, keeping the space

cdef enum:                       # Request.stage: what it waits for
    STAGE_NEW
    STAGE_ORDER                  # an older write that overlaps
    STAGE_SUSPENDED              # the suspended range to move
    STAGE_BLOCKED                # a leg's failure to be recorded, before it starts
    STAGE_COUNTER                # a chunk with 16383 writes in flight
    STAGE_EDGES                  # the blocks that it covers only in part
    STAGE_BITMAP                 # its bits to be durable
    STAGE_LEGS                   # its leg operations
    STAGE_FAILURE                # a leg's failure to be recorded, before its reply
    STAGE_PAGES                  # (sweep, resize) its bitmap pages
    STAGE_RESIZE                 # a resize to be over
    STAGE_SYNC                   # (sync) its blocks
    STAGE_DONE
    STAGES

cdef enum:                       # LegOp.kind
    OP_READ
    OP_WRITE
    OP_WRITE_DURABLE             # data on stable storage when completed (RWF_DSYNC)
    OP_FLUSH                     # everything completed before is on stable storage when completed (fdatasync)
    OP_PUNCH                     # zeros instead of the bytes in the range, which is then a hole if it can be one
    OP_ZERO                      # zeros instead of the bytes in the range

cdef enum:                       # LegOp.owner_kind
    OWNER_REQUEST
    OWNER_PAGE
    OWNER_FLUSH

cdef enum:                       # Leg.state, as control published it
    LEG_MISSING
    LEG_IN_SYNC
    LEG_RECOVERING
    LEG_FAULTY

cdef enum:                       # Event.kind
    EVENT_LEG_FAILED             # a leg failed a write or a flush: writes wait until control calls leg_failure
    EVENT_LAST_LEG               # the last in-sync leg failed one; it stays, the request gets the error
    EVENT_READ_ERROR             # a leg failed a read; another one was tried
    EVENTS

ctypedef void (*notify_fn)(void *context) noexcept nogil
ctypedef void (*ops_notify_fn)(void *context, uint32_t fresh) noexcept nogil

cdef struct LegOp:
    int kind
    uint32_t leg
    uint64_t offset              # bytes from the start of the image
    uint64_t length              # bytes
    unsigned char *data
    uint32_t tried               # legs that failed this read already
    bint pending                 # queued or taken, not completed
    int owner_kind
    void *owner
    LegOp *next

cdef struct Port:                # where replies of one submitter go
    Request *head
    Request *tail
    notify_fn notify             # called under the mutex when the port was empty; may be NULL
    void *context

cdef struct RangeNode:
    Request *request
    uint64_t region              # 1 MiB region that this node is hashed under
    RangeNode *next
    RangeNode *previous

cdef struct Request:
    # filled by the submitter
    int kind
    uint32_t flags
    uint32_t leg                 # LEG_ kinds and SYNC_REWRITE only
    int action                   # SYNC only
    uint64_t offset              # bytes
    uint64_t length              # bytes
    unsigned char *data
    uint64_t tag
    Port *port
    # the reply: bytes done, or -errno
    int64_t result
    # the engine's
    int stage
    Request *next                # in the one queue that it is in
    Request *active_next         # started or waiting requests, oldest first
    Request *active_previous
    uint64_t serial
    uint64_t span_start          # whole blocks that it touches
    uint64_t span_end
    unsigned char *bounce        # those blocks, when the caller's buffer cannot be used as it is
    uint64_t started             # serial at its start, 0 before: a younger drain waits for it
    bint counted                 # its chunks count it as in flight
    bint edges_done
    bint submitted               # its data has gone out
    uint32_t waits_for           # overlapping older writes, pages of a sweep, requests of a drain, blocks of a sync
    uint32_t ops_left
    uint32_t sent_legs           # mask of legs that counted when its data went out, less those that came anew since
    uint32_t ok_legs             # mask
    uint64_t cursor              # (sync) where its next block starts
    uint64_t copied              # (sync) bytes that its blocks have read, each counted once
    int error                    # errno of the last failed operation
    RangeNode ranges[2]
    LegOp ops[LEGS_MAX]

cdef struct RequestQueue:
    Request *head
    Request *tail
    uint32_t count

cdef struct Resize:              # what a resize request wants, and what it may have to go back to
    uint64_t size                # bytes
    uint32_t chunk_shift
    uint64_t needed_from         # bytes; chunks from there on become NEEDED, UINT64_MAX: none
    unsigned char header[HEADER_BYTES]
    int phase
    uint64_t old_size
    uint32_t old_chunk_shift
    unsigned char old_header[HEADER_BYTES]
    uint16_t *counters           # of the layout that is not in force, as `doubt`
    unsigned char *doubt
    unsigned char *keep          # a slot: the bits as they were, on disk until the new header is

cdef struct SyncBlock:           # a part of a sync request; it has its range like a write
    Request r                    # first, so that a pointer to it is a pointer to the block
    Request *sync
    int state
    uint32_t source              # leg that was read
    uint32_t tried               # mask of legs that could not be read
    bint differs                 # legs do not hold the same
    unsigned char *data[LEGS_MAX]
    SyncBlock *older             # list of all blocks
    SyncBlock *younger
    SyncBlock *compare_next      # blocks to be compared, without the mutex

cdef struct Range:               # bytes of the array, half-open
    uint64_t start
    uint64_t end

cdef struct Page:                # one 4 KiB page of the own bitmap slot
    bint due                     # has bits that a write waits for: write as soon as possible
    bint queued                  # in the engine's list of due pages
    bint needs_write             # write in the next sweep
    bint pending                 # has cleared bits; the sweep after this one may write it
    bint scan                    # may have chunks to age
    bint writing
    bint sweep_wanted            # the sweep waits for a write that has not started
    bint sweep_writing           # the sweep waits for the write in flight
    uint32_t ops_left
    uint32_t sent_legs           # as in Request
    uint32_t ok_legs
    uint32_t index
    Page *next_due
    unsigned char *snapshot      # what is being written
    RequestQueue waiters
    LegOp ops[LEGS_MAX]

cdef struct Leg:
    bint used                    # False between remove_leg and add_leg
    int state
    bint blocked                 # failed, and the failure is not recorded yet
    bint flush_lost              # the last leg failed a flush: nothing is promised durable any more
    uint64_t data_offset         # bytes
    uint64_t recovery_offset     # bytes; of a recovering leg: what is above has to be copied
    uint32_t position            # the lowest one in sync is the first leg
    uint64_t next_read           # where a sequential reader goes on
    uint32_t reads_in_flight
    uint32_t ops_in_flight       # queued or taken
    uint64_t reads
    uint64_t writes
    uint64_t flushes
    uint64_t read_errors
    uint64_t write_errors
    uint64_t corrected_reads     # blocks rewritten from another leg and read back

cdef struct Event:
    bint raised                  # not yet taken by control
    int error
    uint64_t offset
    uint64_t length

cdef struct ReadErrors:          # of one leg, distinct, oldest first, until control takes them
    uint32_t count
    Event events[READ_ERRORS_MAX]

cdef struct FlushGroup:          # flush requests that share one fdatasync of each leg
    RequestQueue requests
    uint32_t ops_left
    uint32_t sent_legs           # as in Request
    uint32_t ok_legs
    LegOp ops[LEGS_MAX]

cdef struct EngineState:
    pthread_mutex_t mutex
    # published by control
    bint configured
    bint read_only
    int fenced                   # errno once membership is lost, else 0
    uint32_t legs_count          # high-water mark; indexes below it may be free
    uint32_t raid_disks
    bint read_first              # every read uses the first leg
    uint64_t size                # bytes that the bitmap covers
    uint64_t capacity            # bytes that requests may address, at most `size`
    uint64_t block               # bytes
    uint64_t suspend_start       # bytes, half-open; equal when nothing is suspended
    uint64_t suspend_end
    uint64_t events
    Leg legs[LEGS_MAX]
    uint32_t writable            # masks of legs, derived from state and blocked
    uint32_t in_sync
    uint32_t blocked
    uint32_t order[LEGS_MAX]     # legs by position
    uint64_t recovery_from       # lowest recovery_offset of a recovering leg; UINT64_MAX without one
    # requests
    uint64_t serial
    RequestQueue ready
    RequestQueue suspended
    RequestQueue blocked_queue
    RequestQueue counter_queue
    RequestQueue failure_queue
    RequestQueue drains
    RequestQueue sweeps
    RequestQueue resizes         # behind the one under way
    RequestQueue held            # until the resize under way is over
    Request *sweep
    Request *resize
    Request *active_head
    Request *active_tail
    RangeNode *buckets[RANGE_BUCKETS]
    FlushGroup flushing
    RequestQueue flush_queue
    uint64_t stages[STAGES]      # requests waiting in each stage
    uint32_t read_turn
    # bitmap of the own slot
    uint64_t slot_offset         # bytes from the start of every image
    uint32_t chunk_shift
    uint64_t chunks
    uint64_t needed              # chunks with NEEDED
    uint64_t resyncing           # chunks with RESYNC
    uint64_t ones                # chunks with value 1
    uint64_t events_cleared
    bint need_sync
    bint header_lost             # no leg can be relied on to have the own slot's header
    uint32_t pages_count
    Page *pages
    Page *pages_due
    unsigned char *image         # as it shall be
    unsigned char *durable       # as it is on all good legs, whatever happens
    uint16_t *counters
    unsigned char *doubt         # chunks in which other nodes' bits say that legs may differ
    bint doubtful                # whether there is one
    # leg operations that nobody has taken yet
    LegOp *ops_head
    LegOp *ops_tail
    uint64_t ops_queued
    uint64_t ops_taken
    uint32_t ops_fresh           # of these, those that the backend has not been told of
    ops_notify_fn ops_notify     # called without the mutex when there are new operations; may be NULL
    void *ops_context
    # the data plane: its replies are delivered by whichever thread leaves the engine while some wait
    Port *plane_port
    notify_fn plane_deliver      # called without the mutex
    void *plane_context
    # events for control
    Event raised[LEGS_MAX][2]
    ReadErrors read_errors[LEGS_MAX]
    notify_fn event_notify
    void *event_context
    # sync
    RequestQueue syncs           # those that are not replied, oldest first
    SyncBlock *oldest_block
    SyncBlock *youngest_block
    SyncBlock *compare
    uint32_t blocks_in_flight
    uint32_t blocks_max
    uint64_t block_bytes
    uint64_t sync_read           # bytes
    uint64_t sync_written
    uint64_t sync_skipped
    uint64_t mismatch_sectors
    uint64_t mismatches_lost     # ranges that did not fit
    uint32_t mismatch_count
    Range mismatch[MISMATCHES_MAX]
    # statistics
    uint64_t reads
    uint64_t writes
    uint64_t flushes
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t page_writes
    # free buffers
    void *free_buffers[BUFFER_CLASSES]
    uint32_t free_counts[BUFFER_CLASSES]

cdef void engine_submit(EngineState *e, Request *r) noexcept nogil
cdef void engine_submit_locked(EngineState *e, Request *r) noexcept nogil
cdef Request *engine_take_reply(EngineState *e, Port *port) noexcept nogil
cdef Request *engine_take_replies_locked(Port *port) noexcept nogil
cdef LegOp *engine_take_op(EngineState *e) noexcept nogil
cdef LegOp *engine_take_op_locked(EngineState *e) noexcept nogil
cdef void engine_complete_op(EngineState *e, LegOp *op, int64_t result) noexcept nogil
cdef void engine_complete_op_locked(EngineState *e, LegOp *op, int64_t result) noexcept nogil
cdef bint engine_run_locked(EngineState *e, bint pages_later) noexcept nogil
cdef void engine_unlock(EngineState *e) noexcept nogil

cdef struct PyRequest:           # a request of Python's, with a buffer of its own
    Request r
    unsigned char *buffer
    uint64_t buffer_bytes

cdef class Engine:
    cdef EngineState *e
    cdef Port port
    cdef uint64_t next_tag
    cdef dict _taken
    cdef dict _requests
    cdef object plane                # kept until the engine ends: any thread that leaves it may still call the plane
    cdef object __weakref__
    cdef void _free_bitmap(self) noexcept
    cdef _load_bitmap(self, const unsigned char *bits, uint64_t bitmap_bytes)
    cdef uint64_t _submit(self, int kind, uint64_t offset, uint64_t length, const unsigned char *data,
                          uint32_t flags, uint32_t leg, int action=*) except 0
    cdef uint64_t _send(self, PyRequest *request) except 0
