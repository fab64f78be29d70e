# Order of overlapping writes inside this node.
#
# A write waits for every older write that shares a block with it, also for one that is itself waiting; when a write
# ends it releases the younger ones. Waits only ever point from younger to older, so they cannot form a ring, and
# overlapping writes reach the legs in the order in which they came. Writes are hashed by the 1 MiB regions that they
# touch, at most two; a pair that shares two regions is counted in the higher of their first regions only.

cdef inline bint ranges_overlap(Request *a, Request *b) noexcept nogil:
    return a.span_start < b.span_end and b.span_start < a.span_end


cdef inline uint64_t pair_region(Request *a, Request *b) noexcept nogil:
    return max(a.ranges[0].region, b.ranges[0].region)


cdef void ranges_insert(EngineState *e, Request *r) noexcept nogil:
    """Enter a write; r.waits_for becomes the number of older writes that overlap it."""
    cdef uint64_t first = r.span_start >> 20
    cdef uint64_t last = (r.span_end - 1) >> 20
    cdef RangeNode *node
    cdef RangeNode *other
    cdef int i
    ENSURE(last - first <= 1)
    r.waits_for = 0
    r.ranges[0].region = first
    r.ranges[1].request = NULL
    for i in range(2):
        if i == 1 and last == first:
            break
        node = &r.ranges[i]
        node.request = r
        node.region = first + <uint64_t> i
        other = e.buckets[node.region % RANGE_BUCKETS]
        node.next = other
        node.previous = NULL
        e.buckets[node.region % RANGE_BUCKETS] = node
        if other != NULL:
            other.previous = node
        while other != NULL:
            if other.region == node.region and other.request != r and ranges_overlap(other.request, r):
                if pair_region(other.request, r) == node.region:
                    r.waits_for += 1
            other = other.next


cdef void ranges_remove(EngineState *e, Request *r) noexcept nogil:
    """Take a write out and make those ready that waited for it alone."""
    cdef RangeNode *node
    cdef RangeNode *other
    cdef int i
    for i in range(2):
        node = &r.ranges[i]
        if node.request == NULL:
            break
        if node.previous == NULL:
            e.buckets[node.region % RANGE_BUCKETS] = node.next
        else:
            node.previous.next = node.next
        if node.next != NULL:
            node.next.previous = node.previous
        other = node.previous                # younger ones stand before older ones
        while other != NULL:
            if other.region == node.region and other.request != r and ranges_overlap(other.request, r):
                if pair_region(other.request, r) == node.region and other.request.serial > r.serial:
                    ENSURE(other.request.waits_for > 0)
                    other.request.waits_for -= 1
                    if other.request.waits_for == 0:
                        queue_push(&e.ready, other.request)
            other = other.previous
        node.request = NULL
