"""The engine: what happens to every read, write and flush of the mirrored block file.

It is an asynchronous state machine. In go requests, completions of leg operations and the state that control publishes
(legs and their roles, size, suspended range, loss of membership); out come leg operations, replies and events. It makes
no system call, reads no clock and knows no Python object while it works, so the same code serves users under a thread
pool, and is stepped through any order of completions and failures by tests and the simulator.

The story of a write is `write_advance` in core/requests.pxi; the promises that it keeps:

* overlapping writes of this node reach the legs in the order in which they came (core/ranges.pxi);
* the bits of a write are durable on all good legs before the first byte of its data goes out, and are cleared only
  when all legs agree, after a flush that follows the last data write (core/bitmap.pxi);
* a write is replied only when every leg that counts as good has it; a leg that fails is left out at once, and writes
  wait until control has recorded that (core/legs.pxi);
* what a pass over the array copies is ordered with those writes block by block, and is read from a leg in sync
  (core/sync.pxi);
* whatever is cut short while the bitmap gets another layout, its slot tells of every chunk that it told of before
  (core/resize.pxi).

This module is also the Python face of the engine, for control, for the portable data plane and for tests. Requests are
submitted with ``submit_*`` and come back from `Engine.replies`; leg operations are either carried out by a backend
that uses the C face (``_core.pxd``) or taken and completed one by one from Python (`Engine.take_ops`).
"""

import enum
import os

from libc.errno cimport EAGAIN, EBUSY, EINVAL, EIO, ENODATA, ENOMEM, ENOSPC, ENXIO, EROFS
from libc.stdint cimport UINT64_MAX, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from cpython.bytes cimport PyBytes_FromStringAndSize


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **pointer, size_t alignment, size_t size)

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from * nogil:
    int popcount "__builtin_popcount" (unsigned int value)
    int popcount64 "__builtin_popcountll" (unsigned long long value)

include "core/memory.pxi"
include "core/queues.pxi"
include "core/ranges.pxi"
include "core/bitmap.pxi"
include "core/legs.pxi"
include "core/requests.pxi"
include "core/resize.pxi"
include "core/sync.pxi"

BYTES_MAX = REQUEST_BYTES_MAX
LEGS_LIMIT = LEGS_MAX


class LegState(enum.IntEnum):
    """What control says of a leg."""

    MISSING = LEG_MISSING
    IN_SYNC = LEG_IN_SYNC
    RECOVERING = LEG_RECOVERING
    FAULTY = LEG_FAULTY


class OpKind(enum.IntEnum):
    """What a leg operation does."""

    READ = OP_READ
    WRITE = OP_WRITE
    WRITE_DURABLE = OP_WRITE_DURABLE
    FLUSH = OP_FLUSH


class EventKind(enum.IntEnum):
    """What the engine tells control."""

    LEG_FAILED = EVENT_LEG_FAILED
    LAST_LEG = EVENT_LAST_LEG
    READ_ERROR = EVENT_READ_ERROR


class SyncAction(enum.IntEnum):
    """What a sync request does; see core/sync.pxi."""

    HEAL = SYNC_HEAL
    CHECK = SYNC_CHECK
    REPAIR = SYNC_REPAIR
    REWRITE = SYNC_REWRITE


_STAGE_NAMES = (
    "new", "order", "suspended", "blocked", "counter", "edges", "bitmap", "legs", "failure", "pages", "resize",
    "sync", "done",
)


cdef void request_free(PyRequest *request) noexcept:
    cdef Resize *z
    if request.r.kind == REQUEST_RESIZE:
        z = resize_of(&request.r)
        free(z.counters)
        free(z.doubt)
        free(z.keep)
    free(request.buffer)
    free(request)


cdef class Engine:
    """The engine of one array on one node; see the module's docstring and ``_core.pyi``."""

    def __cinit__(self, uint32_t legs):
        cdef pthread_mutexattr_t attributes
        if not 1 <= legs <= LEGS_MAX:
            raise ValueError(f"an array has 1 to {LEGS_MAX} legs")
        self.e = <EngineState *> calloc(1, sizeof(EngineState))
        if self.e == NULL:
            raise MemoryError
        pthread_mutexattr_init(&attributes)
        # Held for less than a microsecond: whoever finds it taken spins a little before it sleeps.
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP)
        pthread_mutex_init(&self.e.mutex, &attributes)
        pthread_mutexattr_destroy(&attributes)
        self.e.legs_count = legs
        for leg in range(legs):
            self.e.legs[leg].used = True
            self.e.legs[leg].position = leg
        self.e.block_bytes = REQUEST_BYTES_MAX
        self.e.blocks_max = 8
        self.next_tag = 1
        self._taken = {}
        self._requests = {}

    def __dealloc__(self):
        cdef PyRequest *request
        cdef SyncBlock *block
        cdef uint32_t leg
        if self.e == NULL:
            return
        while self.e.oldest_block != NULL:
            block = self.e.oldest_block
            self.e.oldest_block = block.younger
            for leg in range(<uint32_t> LEGS_MAX):
                free(block.data[leg])
            free(block)
        for tag in self._requests or ():
            request = <PyRequest *> <uintptr_t> self._requests[tag]
            buffer_put(self.e, request.r.bounce, request.r.span_end - request.r.span_start)
            request_free(request)
        self._free_bitmap()
        buffers_free(self.e)
        pthread_mutex_destroy(&self.e.mutex)
        free(self.e)

    cdef void _free_bitmap(self) noexcept:
        cdef uint32_t i
        if self.e.pages != NULL:
            for i in range(self.e.pages_count):
                free(self.e.pages[i].snapshot)
        free(self.e.pages)
        free(self.e.image)
        free(self.e.durable)
        free(self.e.counters)
        free(self.e.doubt)

    # ---- what control publishes ----------------------------------------------------------------------------------

    def configure(self, *, block_bytes, size_bytes, data_offsets, raid_disks, slot_offset, chunk_bytes, bitmap,
                  events, events_cleared, capacity_bytes=None, in_sync_below=0, read_only=False):
        """Publish the array's geometry and load the own slot's bitmap; legs follow with `publish_legs`."""
        cdef EngineState *e = self.e
        cdef uint64_t chunk
        cdef uint32_t i
        cdef const unsigned char *bits = bitmap
        cdef uint64_t bitmap_bytes = len(bitmap)
        cdef uint64_t clean_below = in_sync_below
        if e.configured:
            raise ValueError("the engine is configured already")
        if block_bytes & (block_bytes - 1) or not 512 <= block_bytes <= PAGE_BYTES:
            raise ValueError(f"block size {block_bytes} is not a power of two from 512 to {PAGE_BYTES}")
        if chunk_bytes & (chunk_bytes - 1) or chunk_bytes < block_bytes:
            raise ValueError(f"chunk size {chunk_bytes} is not a power of two of at least one block")
        if len(data_offsets) != e.legs_count:
            raise ValueError("one data offset per leg is needed")
        chunks = -(-size_bytes // chunk_bytes)
        if bitmap_bytes % PAGE_BYTES or bitmap_bytes < BITS_START + (chunks + 7) // 8:
            raise ValueError("the bitmap slot is not whole pages, or too small for the array")
        if size_bytes <= 0:
            raise ValueError("an array has at least one sector")
        if capacity_bytes is not None and not 0 <= capacity_bytes <= size_bytes:
            raise ValueError(f"a capacity of {capacity_bytes} bytes is not within the array's {size_bytes}")
        if e.block_bytes % block_bytes:
            raise ValueError(f"sync blocks of {e.block_bytes} bytes are not whole blocks of {block_bytes}")
        e.block = block_bytes
        e.size = size_bytes
        e.capacity = size_bytes if capacity_bytes is None else capacity_bytes
        e.raid_disks = raid_disks
        e.slot_offset = slot_offset
        e.chunk_shift = <uint32_t> (chunk_bytes.bit_length() - 1)
        e.chunks = chunks
        e.events = events
        e.events_cleared = events_cleared
        e.read_only = read_only
        for i in range(e.legs_count):
            e.legs[i].data_offset = data_offsets[i]
        self._load_bitmap(bits, bitmap_bytes)
        with nogil:
            for chunk in range(e.chunks):
                if bit_test(e.image, chunk):
                    bitmap_set_memory_bits(e, chunk, (chunk + 1) << e.chunk_shift > clean_below)
        e.configured = True

    cdef _load_bitmap(self, const unsigned char *bits, uint64_t bitmap_bytes):
        cdef EngineState *e = self.e
        cdef uint32_t i
        e.pages_count = <uint32_t> (bitmap_bytes // PAGE_BYTES)
        e.pages = <Page *> calloc(e.pages_count, sizeof(Page))
        e.counters = <uint16_t *> calloc((bitmap_bytes - BITS_START) * 8, sizeof(uint16_t))
        e.doubt = <unsigned char *> calloc(1, bitmap_bytes)
        if e.pages == NULL or e.counters == NULL or e.doubt == NULL:
            raise MemoryError
        if posix_memalign(<void **> &e.image, PAGE_BYTES, bitmap_bytes):
            raise MemoryError
        if posix_memalign(<void **> &e.durable, PAGE_BYTES, bitmap_bytes):
            raise MemoryError
        for i in range(e.pages_count):
            e.pages[i].index = i
            if posix_memalign(<void **> &e.pages[i].snapshot, PAGE_BYTES, PAGE_BYTES):
                raise MemoryError
        memcpy(e.image, bits, bitmap_bytes)
        memcpy(e.durable, bits, bitmap_bytes)

    def add_leg(self, uint64_t data_offset):
        """Add a leg, MISSING until control publishes it; return its index."""
        cdef EngineState *e = self.e
        cdef uint32_t leg
        pthread_mutex_lock(&e.mutex)
        for leg in range(<uint32_t> LEGS_MAX):
            if not e.legs[leg].used:
                memset(&e.legs[leg], 0, sizeof(Leg))
                memset(&e.raised[leg], 0, sizeof(e.raised[leg]))
                e.read_errors[leg].count = 0
                e.legs[leg].used = True
                e.legs[leg].data_offset = data_offset
                e.legs[leg].position = leg
                e.legs_count = max(e.legs_count, leg + 1)
                legs_derive(e)
                pthread_mutex_unlock(&e.mutex)
                return leg
        pthread_mutex_unlock(&e.mutex)
        raise ValueError(f"an array has 1 to {LEGS_MAX} legs")

    def remove_leg(self, uint32_t leg):
        """Free the index of a leg that does not count; raises OSError EBUSY while operations are in flight on it."""
        cdef EngineState *e = self.e
        cdef bint busy
        if leg >= e.legs_count or not e.legs[leg].used:
            raise ValueError(f"there is no leg {leg}")
        pthread_mutex_lock(&e.mutex)
        counts = e.legs[leg].blocked or (e.writable >> leg) & 1
        busy = e.legs[leg].ops_in_flight != 0
        if not counts and not busy:
            e.legs[leg].used = False
            e.legs[leg].state = LEG_MISSING
            legs_derive(e)
        pthread_mutex_unlock(&e.mutex)
        if counts:
            raise ValueError(f"leg {leg} counts: it is in sync, recovering, or its failure is not recorded")
        if busy:
            raise OSError(EBUSY, os.strerror(EBUSY))

    def publish_legs(self, states, *, positions=None, recovery_offsets=None, raid_disks=None):
        """Publish the state of every leg; at least one must be in sync. See ``_core.pyi``."""
        cdef EngineState *e = self.e
        cdef uint32_t count = len(states)
        cdef uint32_t disks = e.raid_disks if raid_disks is None else raid_disks
        cdef uint32_t i
        cdef uint32_t before
        cdef bint was_degraded
        cdef int values[LEGS_MAX]
        cdef uint32_t places[LEGS_MAX]
        cdef uint64_t offsets[LEGS_MAX]
        for name, values_ in (("state", states), ("position", positions), ("recovery offset", recovery_offsets)):
            if values_ is not None and (len(values_) != count or len(values_) > e.legs_count):
                raise ValueError(f"one {name} per leg is needed")
        if LegState.IN_SYNC not in states:
            raise ValueError("at least one leg must be in sync")
        for i in range(e.legs_count):
            values[i] = states[i] if i < count else LEG_MISSING
            if not e.legs[i].used and values[i] != LEG_MISSING:
                raise ValueError(f"there is no leg {i}")
            places[i] = i if positions is None or i >= count else positions[i]
            offsets[i] = 0
            if recovery_offsets is not None and i < count:
                offsets[i] = recovery_offsets[i]
            elif recovery_offsets is None and e.legs[i].state == LEG_RECOVERING:
                offsets[i] = e.legs[i].recovery_offset
        with nogil:
            pthread_mutex_lock(&e.mutex)
            before = e.writable | e.blocked
            was_degraded = degraded(e)
            for i in range(e.legs_count):
                if values[i] != LEG_IN_SYNC and values[i] != LEG_RECOVERING:
                    e.legs[i].blocked = False
                e.legs[i].state = values[i]
                e.legs[i].position = places[i]
                e.legs[i].recovery_offset = offsets[i]
            e.raid_disks = disks
            legs_derive(e)
            if was_degraded and e.configured and not degraded(e):
                bitmap_whole_again(e)
            if before and e.writable & ~before:
                legs_joined(e, e.writable & ~before)
            elif e.writable != e.in_sync and not before and not e.read_only:
                for i in range(e.pages_count):   # the next sweep writes the own slot to a leg that was away
                    e.pages[i].needs_write = True
            legs_unblocked(e)
            run(e)
            engine_unlock(e)

    def block_leg(self, uint32_t leg):
        """Leave a leg out from now on, as if it had failed a write; answer with `leg_failure`."""
        cdef EngineState *e = self.e
        if leg >= e.legs_count:
            raise ValueError(f"there is no leg {leg}")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.legs[leg].blocked = True
            legs_derive(e)
            pthread_mutex_unlock(&e.mutex)

    def leg_failure(self, uint32_t leg, *, bint recorded):
        """Answer LEG_FAILED: `recorded` drops the leg for good, else it counts again and its writes fail."""
        cdef EngineState *e = self.e
        if leg >= e.legs_count:
            raise ValueError(f"there is no leg {leg}")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.legs[leg].blocked = False
            if recorded:
                e.legs[leg].state = LEG_FAULTY
            else:
                bitmap_distrust(e)
            legs_derive(e)
            legs_unblocked(e)
            run(e)
            engine_unlock(e)

    def suspend(self, uint64_t start, uint64_t end):
        """Publish the suspended range [start, end) in bytes; equal values lift it."""
        cdef EngineState *e = self.e
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.suspend_start = start
            e.suspend_end = end
            wake_all(e, &e.suspended)
            run(e)
            engine_unlock(e)

    def fence(self, int errno):
        """Membership is lost: from now on every request fails with `errno` and nothing more goes to a leg."""
        cdef EngineState *e = self.e
        cdef uint32_t i
        if errno <= 0:
            raise ValueError("an errno is positive")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.fenced = errno
            wake_all(e, &e.suspended)
            wake_all(e, &e.blocked_queue)
            wake_all(e, &e.counter_queue)
            wake_all(e, &e.failure_queue)
            wake_all(e, &e.held)
            for i in range(e.pages_count):
                wake_all(e, &e.pages[i].waiters)
            sweep_advance(e)
            fence_ops(e)
            run(e)
            engine_unlock(e)

    def set_events(self, uint64_t events):
        """Publish the array's event count; the bitmap superblock follows with the next sweep."""
        cdef EngineState *e = self.e
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.events = events
            if e.configured:
                put_u64(e.image + SB_EVENTS, events)
                e.pages[0].needs_write = True
            pthread_mutex_unlock(&e.mutex)

    def import_bits(self, bitmap, *, in_sync_below=0):
        """Add the bits of another slot to the own one; a sweep makes them durable. Returns how many were set there."""
        cdef EngineState *e = self.e
        cdef const unsigned char *bits = bitmap
        cdef uint64_t clean_below = in_sync_below
        cdef uint64_t chunk
        cdef uint64_t found = 0
        if <uint64_t> len(bitmap) < BITS_START + (e.chunks + 7) // 8:
            raise ValueError("the other slot is too small for the array")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            for chunk in range(e.chunks):
                if not bit_test(bits, chunk):
                    continue
                found += 1
                if not bit_test(e.image, chunk):
                    bit_set(e.image, chunk)
                    page_of(e, chunk).needs_write = True
                bitmap_set_memory_bits(e, chunk, (chunk + 1) << e.chunk_shift > clean_below)
            pthread_mutex_unlock(&e.mutex)
        return found

    def read_first_where(self, bitmap):
        """Read the chunks whose bits are set in `bitmap` from the first leg only; replaces what was said before."""
        cdef EngineState *e = self.e
        cdef const unsigned char *bits = bitmap
        cdef uint64_t chunk
        if <uint64_t> len(bitmap) < BITS_START + (e.chunks + 7) // 8:
            raise ValueError("the other slot is too small for the array")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.doubtful = False
            for chunk in range(e.chunks):
                if bit_test(bits, chunk):
                    bit_set(e.doubt, chunk)
                    e.doubtful = True
                else:
                    bit_clear(e.doubt, chunk)
            pthread_mutex_unlock(&e.mutex)

    def read_first(self, bint on):
        """Read everything from the first leg while `on` (md: SUSPEND_READ_BALANCING)."""
        pthread_mutex_lock(&self.e.mutex)
        self.e.read_first = on
        pthread_mutex_unlock(&self.e.mutex)

    def set_capacity(self, uint64_t capacity_bytes):
        """Publish how much of the array requests may address, from now on."""
        cdef EngineState *e = self.e
        cdef uint64_t limit
        with nogil:
            pthread_mutex_lock(&e.mutex)
            limit = capacity_limit(e)
            if capacity_bytes <= limit:
                capacity_put(e, capacity_bytes)
                run(e)
            engine_unlock(e)
        if capacity_bytes > limit:
            raise ValueError(f"a capacity of {capacity_bytes} bytes is not within the {limit} that the bitmap covers")

    # ---- sync ----------------------------------------------------------------------------------------------------

    def need_dirty(self):
        """Make every chunk whose bit is set NEEDED; returns how many there are."""
        cdef EngineState *e = self.e
        cdef uint64_t chunk
        cdef uint64_t found = 0
        with nogil:
            pthread_mutex_lock(&e.mutex)
            for chunk in range(e.chunks):
                if e.counters[chunk]:            # its bit is set, or will be when a resize is over
                    bitmap_set_memory_bits(e, chunk, True)
                    found += 1
            pthread_mutex_unlock(&e.mutex)
        return found

    def next_to_sync(self, uint64_t offset):
        """Return the first range of bytes at or after `offset` that a healing pass has to touch, or None."""
        cdef EngineState *e = self.e
        cdef uint64_t start
        cdef uint64_t end
        cdef uint64_t chunk
        with nogil:
            pthread_mutex_lock(&e.mutex)
            start = offset
            end = offset
            while end < e.capacity:
                chunk = end >> e.chunk_shift
                if e.counters[chunk] & (NEEDED | RESYNC) or end >= e.recovery_from:
                    end = (chunk + 1) << e.chunk_shift
                elif start < end:
                    break
                else:
                    end = min((chunk + 1) << e.chunk_shift, e.recovery_from)
                    start = end
            if start < e.recovery_from and end >= e.recovery_from:
                end = e.capacity
            end = min(end, e.capacity)
            pthread_mutex_unlock(&e.mutex)
        return (start, end) if start < end else None

    def sync_start(self, uint64_t start, uint64_t end):
        """NEEDED becomes RESYNC in every chunk that [start, end) touches (md: start_sync)."""
        with nogil:
            pthread_mutex_lock(&self.e.mutex)
            if start < end:
                bitmap_start_sync(self.e, start, end)
            pthread_mutex_unlock(&self.e.mutex)

    def sync_end(self, uint64_t start, uint64_t end, *, bint aborted):
        """RESYNC ends in the chunks wholly in the range; `aborted`: in all it touches, which are NEEDED again."""
        with nogil:
            pthread_mutex_lock(&self.e.mutex)
            if start < end:
                bitmap_end_sync(self.e, start, end, aborted)
            pthread_mutex_unlock(&self.e.mutex)

    def set_sync_limits(self, uint64_t block_bytes, uint32_t blocks_in_flight):
        """Bound what sync requests have in flight, from their next block on."""
        cdef EngineState *e = self.e
        cdef uint64_t least = max(e.block, <uint64_t> 512)
        if block_bytes & (block_bytes - 1) or not least <= block_bytes <= <uint64_t> REQUEST_BYTES_MAX:
            raise ValueError(f"sync blocks of {block_bytes} bytes are not a power of two of at least one block")
        if not 1 <= blocks_in_flight <= SYNC_BLOCKS_MAX:
            raise ValueError(f"1 to {SYNC_BLOCKS_MAX} sync blocks may be in flight")
        with nogil:
            pthread_mutex_lock(&e.mutex)
            e.block_bytes = block_bytes
            e.blocks_max = blocks_in_flight
            run(e)
            engine_unlock(e)

    def submit_sync(self, int action, uint64_t start, uint64_t end, *, uint32_t leg=0):
        """Heal, check, repair or rewrite [start, end) of the array, block by block; see core/sync.pxi."""
        if end < start:
            raise ValueError("a range ends at or after its start")
        SyncAction(action)
        return self._submit(REQUEST_SYNC, start, end - start, NULL, 0, leg, action)

    def abort_sync(self):
        """Start no more blocks of the sync requests that wait now; they end with ECANCELED."""
        cdef EngineState *e = self.e
        with nogil:
            pthread_mutex_lock(&e.mutex)
            sync_stop(e, ECANCELED)
            run(e)
            engine_unlock(e)

    def mismatches(self):
        """Return what check and repair found: sectors, ranges (start, bytes) in order, ranges that did not fit."""
        cdef EngineState *e = self.e
        cdef uint32_t i
        pthread_mutex_lock(&e.mutex)
        ranges = [(e.mismatch[i].start, e.mismatch[i].end - e.mismatch[i].start) for i in range(e.mismatch_count)]
        found = (e.mismatch_sectors, ranges, e.mismatches_lost)
        pthread_mutex_unlock(&e.mutex)
        return found

    def reset_mismatches(self):
        """Forget what check and repair found."""
        pthread_mutex_lock(&self.e.mutex)
        self.e.mismatch_sectors = 0
        self.e.mismatches_lost = 0
        self.e.mismatch_count = 0
        pthread_mutex_unlock(&self.e.mutex)

    # ---- requests ------------------------------------------------------------------------------------------------

    cdef uint64_t _submit(self, int kind, uint64_t offset, uint64_t length, const unsigned char *data,
                          uint32_t flags, uint32_t leg, int action=0) except 0:
        cdef PyRequest *request
        request = <PyRequest *> calloc(1, sizeof(PyRequest))
        if request == NULL:
            raise MemoryError
        if length and (kind == REQUEST_READ or kind == REQUEST_WRITE or kind == REQUEST_LEG_READ
                       or kind == REQUEST_LEG_WRITE):
            if posix_memalign(<void **> &request.buffer, PAGE_BYTES, length):
                free(request)
                raise MemoryError
            request.buffer_bytes = length
            if data != NULL:
                memcpy(request.buffer, data, length)
            request.r.data = request.buffer
        request.r.kind = kind
        request.r.offset = offset
        request.r.length = length
        request.r.flags = flags
        request.r.leg = leg
        request.r.action = action
        return self._send(request)

    cdef uint64_t _send(self, PyRequest *request) except 0:
        cdef uint64_t tag = self.next_tag
        request.r.tag = tag
        request.r.port = &self.port
        self.next_tag += 1
        self._requests[tag] = <uintptr_t> request
        with nogil:
            engine_submit(self.e, &request.r)
        return tag

    def submit_read(self, uint64_t offset, uint64_t length):
        """Read [offset, offset + length) of the array; the reply's data is short at the end of the array."""
        if length > REQUEST_BYTES_MAX:
            raise ValueError(f"a request has at most {REQUEST_BYTES_MAX} bytes")
        return self._submit(REQUEST_READ, offset, length, NULL, 0, 0)

    def submit_write(self, uint64_t offset, const unsigned char[::1] data, *, bint durable=False):
        """Write `data` at `offset` of the array; durable when replied if asked for (O_DSYNC)."""
        if data.shape[0] > REQUEST_BYTES_MAX:
            raise ValueError(f"a request has at most {REQUEST_BYTES_MAX} bytes")
        return self._submit(REQUEST_WRITE, offset, <uint64_t> data.shape[0], &data[0] if data.shape[0] else NULL,
                            REQUEST_DURABLE if durable else 0, 0)

    def submit_zero(self, uint64_t offset, uint64_t length, *, bint punch=False):
        """Write zeros to whole blocks without handing them in; with `punch` their space is given back."""
        if length > REQUEST_BYTES_MAX:
            raise ValueError(f"a request has at most {REQUEST_BYTES_MAX} bytes")
        return self._submit(REQUEST_WRITE, offset, length, NULL, REQUEST_PUNCH if punch else REQUEST_ZERO, 0)

    def submit_flush(self):
        """Make every write replied so far durable on all good legs."""
        return self._submit(REQUEST_FLUSH, 0, 0, NULL, 0, 0)

    def submit_drain(self, uint64_t start, uint64_t end):
        """Be replied when no request that has started by now overlaps [start, end)."""
        if end < start:
            raise ValueError("a range ends at or after its start")
        return self._submit(REQUEST_DRAIN, start, end - start, NULL, 0, 0)

    def submit_sweep(self):
        """One round of the lazy clearing of bits; also writes every bitmap page that is due."""
        return self._submit(REQUEST_SWEEP, 0, 0, NULL, 0, 0)

    def submit_resize(self, uint64_t size_bytes, uint64_t chunk_bytes, const unsigned char[::1] header, *,
                      needed_from=None):
        """Have the bitmap cover another size, or have chunks of another size; see core/resize.pxi."""
        cdef EngineState *e = self.e
        cdef uint64_t slot_bytes = <uint64_t> e.pages_count * PAGE_BYTES
        cdef Resize *z
        cdef PyRequest *request
        if not e.configured:
            raise ValueError("the engine is not configured")
        if size_bytes == 0:
            raise ValueError("an array has at least one sector")
        if chunk_bytes & (chunk_bytes - 1) or chunk_bytes < e.block:
            raise ValueError(f"chunk size {chunk_bytes} is not a power of two of at least one block")
        if (size_bytes - 1) // chunk_bytes >= (slot_bytes - BITS_START) * 8:
            raise ValueError(f"the bits of {size_bytes} bytes do not fit into the slot's {slot_bytes}")
        if header.shape[0] != HEADER_BYTES:
            raise ValueError(f"a bitmap superblock has {HEADER_BYTES} bytes")
        if e.capacity > size_bytes:
            raise ValueError(f"the capacity of {e.capacity} bytes is more than a size of {size_bytes}")
        request = <PyRequest *> calloc(1, sizeof(PyRequest))
        if request == NULL:
            raise MemoryError
        z = <Resize *> calloc(1, sizeof(Resize))
        request.r.kind = REQUEST_RESIZE
        request.buffer = <unsigned char *> z
        request.r.data = request.buffer
        if z == NULL:
            free(request)
            raise MemoryError
        z.counters = <uint16_t *> calloc((slot_bytes - BITS_START) * 8, sizeof(uint16_t))
        z.doubt = <unsigned char *> calloc(1, slot_bytes)
        z.keep = <unsigned char *> calloc(1, slot_bytes)
        if z.counters == NULL or z.doubt == NULL or z.keep == NULL:
            request_free(request)
            raise MemoryError
        z.size = size_bytes
        z.chunk_shift = <uint32_t> popcount64(chunk_bytes - 1)
        z.needed_from = UINT64_MAX if needed_from is None else needed_from
        memcpy(z.header, &header[0], HEADER_BYTES)
        return self._send(request)

    def submit_leg_read(self, uint32_t leg, uint64_t offset, uint64_t length):
        """Read [offset, offset + length) of one leg's image; multiples of the leg's block size."""
        return self._submit(REQUEST_LEG_READ, offset, length, NULL, 0, leg)

    def submit_leg_write(self, uint32_t leg, uint64_t offset, const unsigned char[::1] data):
        """Write to one leg's image, durable when replied; multiples of the leg's block size."""
        if data.shape[0] == 0:
            raise ValueError("there is nothing to write")
        return self._submit(REQUEST_LEG_WRITE, offset, <uint64_t> data.shape[0], &data[0], 0, leg)

    def submit_leg_flush(self, uint32_t leg):
        """Make everything written to one leg so far durable."""
        return self._submit(REQUEST_LEG_FLUSH, 0, 0, NULL, 0, leg)

    def replies(self):
        """Return the replies that have come, oldest first: (tag, bytes done or -errno, data read or None)."""
        cdef Request *r
        cdef PyRequest *request
        cdef list found = []
        cdef object data
        while True:
            r = engine_take_reply(self.e, &self.port)
            if r == NULL:
                return found
            request = <PyRequest *> r
            data = None
            if r.result >= 0 and (r.kind == REQUEST_READ or r.kind == REQUEST_LEG_READ):
                data = PyBytes_FromStringAndSize(<char *> request.buffer, <Py_ssize_t> r.result)
            found.append((r.tag, r.result, data))
            del self._requests[r.tag]
            request_free(request)

    def events(self):
        """Return and forget the events raised so far: (kind, leg, errno, offset in the image, length)."""
        cdef EngineState *e = self.e
        cdef list found = []
        cdef Event *event
        cdef uint32_t leg
        cdef uint32_t i
        pthread_mutex_lock(&e.mutex)
        for leg in range(e.legs_count):
            for i in range(<uint32_t> EVENT_READ_ERROR):
                event = &e.raised[leg][i]
                if event.raised:
                    event.raised = False
                    found.append((i, leg, event.error, event.offset, event.length))
            for i in range(e.read_errors[leg].count):
                event = &e.read_errors[leg].events[i]
                found.append((EVENT_READ_ERROR, leg, event.error, event.offset, event.length))
            e.read_errors[leg].count = 0
        pthread_mutex_unlock(&e.mutex)
        return [(EventKind(kind), leg_, error, offset, length) for kind, leg_, error, offset, length in found]

    # ---- leg operations, one by one, for tests and the simulator ---------------------------------------------------

    def take_ops(self):
        """Take all leg operations that wait: (id, kind, leg, offset, length, data to write or None)."""
        cdef LegOp *op
        cdef list found = []
        cdef object data
        while True:
            op = engine_take_op(self.e)
            if op == NULL:
                return found
            data = None
            kind = op.kind
            if kind == OP_PUNCH or kind == OP_ZERO:
                kind, data = OP_WRITE, bytes(op.length)
            elif kind == OP_WRITE or kind == OP_WRITE_DURABLE:
                data = PyBytes_FromStringAndSize(<char *> op.data, <Py_ssize_t> op.length)
            self._taken[<uintptr_t> op] = op.length if op.kind == OP_READ else 0
            found.append((<uintptr_t> op, OpKind(kind), op.leg, op.offset, op.length, data))

    def complete_op(self, op_id, int64_t result, data=None):
        """End a taken operation with `result` bytes or -errno; a read that succeeds gives its data."""
        cdef LegOp *op
        cdef const unsigned char *source
        room = self._taken.pop(op_id)
        op = <LegOp *> <uintptr_t> op_id
        if data is not None:
            if len(data) > room:
                raise ValueError("more data than the operation has room for")
            source = data
            memcpy(op.data, source, len(data))
        with nogil:
            engine_complete_op(self.e, op, result)

    # ---- looking in ------------------------------------------------------------------------------------------------

    def bitmap_image(self):
        """Return the own slot as it shall be."""
        return PyBytes_FromStringAndSize(<char *> self.e.image, <Py_ssize_t> self.e.pages_count * PAGE_BYTES)

    def bitmap_durable(self):
        """Return the own slot with the bits that are on every good leg for certain."""
        return PyBytes_FromStringAndSize(<char *> self.e.durable, <Py_ssize_t> self.e.pages_count * PAGE_BYTES)

    def counters(self):
        """Return the counters of all chunks."""
        return [self.e.counters[chunk] for chunk in range(self.e.chunks)]

    def statistics(self):
        """Return counts as a dictionary; see ``_core.pyi`` for the keys."""
        cdef EngineState *e = self.e
        cdef uint64_t dirty = 0
        cdef uint64_t i
        pthread_mutex_lock(&e.mutex)
        if e.configured:
            dirty = dirty_count(e)
        found = {
            "reads": e.reads,
            "writes": e.writes,
            "flushes": e.flushes,
            "bytes_read": e.bytes_read,
            "bytes_written": e.bytes_written,
            "page_writes": e.page_writes,
            "chunks_dirty": dirty,
            "chunks_needed": e.needed,
            "chunks_resyncing": e.resyncing,
            "ops_queued": e.ops_queued,
            "ops_in_flight": e.ops_taken,
            "waiting": {_STAGE_NAMES[i]: e.stages[i] for i in range(<uint64_t> STAGE_SYNC) if e.stages[i]},
            "sync": {
                "requests": e.syncs.count,
                "blocks_in_flight": e.blocks_in_flight,
                "bytes_read": e.sync_read,
                "bytes_written": e.sync_written,
                "bytes_skipped": e.sync_skipped,
            },
            "legs": [
                {
                    "state": e.legs[i].state,
                    "blocked": bool(e.legs[i].blocked),
                    "reads": e.legs[i].reads,
                    "writes": e.legs[i].writes,
                    "flushes": e.legs[i].flushes,
                    "read_errors": e.legs[i].read_errors,
                    "write_errors": e.legs[i].write_errors,
                    "corrected_reads": e.legs[i].corrected_reads,
                    "ops_in_flight": e.legs[i].ops_in_flight,
                }
                for i in range(e.legs_count)
            ],
        }
        pthread_mutex_unlock(&e.mutex)
        return found


cdef uint64_t dirty_count(EngineState *e) noexcept nogil:
    cdef uint64_t count = 0
    cdef uint64_t chunk
    for chunk in range(e.chunks):
        count += e.counters[chunk] != 0
    return count


cdef void fence_ops(EngineState *e) noexcept nogil:
    """End the leg writes that no backend has taken yet: a node that is out must not write."""
    cdef LegOp *op = e.ops_head
    cdef LegOp *following
    e.ops_head = NULL
    e.ops_tail = NULL
    e.ops_queued = 0
    while op != NULL:
        following = op.next
        op.next = NULL
        op_ended(e, op, -e.fenced)
        if op.owner_kind == OWNER_PAGE:
            page_op_done(e, <Page *> op.owner, op, e.fenced)
        elif op.owner_kind == OWNER_FLUSH:
            flush_op_done(e, op, e.fenced)
        else:
            request_op_done(e, <Request *> op.owner, op, e.fenced)
        op = following
