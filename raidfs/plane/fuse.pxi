# The FUSE messages that the plane reads and writes itself; everything is from include/uapi/linux/fuse.h.
#
# A request is received into two pieces: 80 bytes, which hold the header and the body of READ and WRITE exactly, and a
# page-aligned buffer, into which the data of a WRITE so arrive ready for O_DIRECT.

cdef enum:                           # enum fuse_opcode
    FUSE_FORGET = 2
    FUSE_OPEN = 14
    FUSE_READ = 15
    FUSE_WRITE = 16
    FUSE_FSYNC = 20
    FUSE_FLUSH = 25
    FUSE_INIT = 26
    FUSE_INTERRUPT = 36
    FUSE_IOCTL = 39
    FUSE_BATCH_FORGET = 42
    FUSE_FALLOCATE = 43
    FUSE_LSEEK = 46

cdef enum:
    HEAD_BYTES = 80                  # fuse_in_header and fuse_read_in or fuse_write_in, 40 bytes each
    IN_HEADER_BYTES = 40
    PAYLOAD_BYTES = REQUEST_BYTES_MAX
    SPLICE_FLAGS = 0x380             # FUSE_SPLICE_READ, _MOVE, _WRITE: libfuse has a socket, which it must read

cdef struct InHeader:                # struct fuse_in_header
    uint32_t len
    uint32_t opcode
    uint64_t unique
    uint64_t nodeid
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint16_t total_extlen
    uint16_t padding

cdef struct IoBody:                  # struct fuse_read_in, struct fuse_write_in
    uint64_t fh
    uint64_t offset
    uint32_t size
    uint32_t io_flags
    uint64_t lock_owner
    uint32_t flags                   # of the open file; O_DSYNC is added for pwritev2(RWF_DSYNC)
    uint32_t padding

cdef struct InitBody:                # struct fuse_init_in, its beginning
    uint32_t major
    uint32_t minor
    uint32_t max_readahead
    uint32_t flags

cdef struct InterruptBody:           # struct fuse_interrupt_in
    uint64_t unique

cdef struct OutHeader:               # struct fuse_out_header
    uint32_t len
    int32_t error
    uint64_t unique

cdef struct WriteAnswer:             # struct fuse_write_out
    uint32_t size
    uint32_t padding

cdef struct FallocateBody:           # struct fuse_fallocate_in
    uint64_t fh
    uint64_t offset
    uint64_t length
    uint32_t mode
    uint32_t padding

cdef struct LseekBody:               # struct fuse_lseek_in
    uint64_t fh
    uint64_t offset
    uint32_t whence
    uint32_t padding

cdef struct IoctlBody:               # struct fuse_ioctl_in
    uint64_t fh
    uint32_t flags
    uint32_t cmd
    uint64_t arg
    uint32_t in_size
    uint32_t out_size

cdef struct LseekAnswer:             # struct fuse_lseek_out
    uint64_t offset

cdef struct SizeAnswer:              # struct fuse_ioctl_out and what BLKGETSIZE64 gives
    int32_t result
    uint32_t flags
    uint32_t in_iovs
    uint32_t out_iovs
    uint64_t size

cdef union Body:
    IoBody io
    FallocateBody fallocate
    LseekBody lseek
    IoctlBody ioctl
    InitBody init
    InterruptBody interrupt

cdef struct Head:
    InHeader header
    Body body
