"""The few messages of the FUSE protocol that raidfs reads itself: bytes in, frozen values out, and back.

Everything is from ``include/uapi/linux/fuse.h`` (protocol 7.x, little or big endian as the machine). A message from the
kernel is a header of 40 bytes and a body; an answer is a header of 16 bytes and a body.
"""

from __future__ import annotations

import dataclasses
import struct

from raidfs.units import MIB, PAGE_BYTES

OPEN = 14
READ = 15
WRITE = 16
FSYNC = 20
INIT = 26
INTERRUPT = 36

NOTIFY_INVAL_INODE = 2  # FUSE_NOTIFY_INVAL_INODE

IN_HEADER_BYTES = 40
OUT_HEADER_BYTES = 16

# The largest read or write: FUSE_MAX_MAX_PAGES (256) pages of 4 KiB, which libfuse 3.14 asks for by itself.
REQUEST_BYTES_MAX = 1 * MIB
# A write of that size with its header and fuse_write_in; the kernel refuses to deliver into less.
MESSAGE_BYTES_MAX = REQUEST_BYTES_MAX + PAGE_BYTES

# enum of INIT flags (FUSE_*), those that we add or take away
ATOMIC_O_TRUNC = 1 << 3
SPLICE_WRITE = 1 << 7
SPLICE_MOVE = 1 << 8
SPLICE_READ = 1 << 9
ASYNC_DIO = 1 << 15
INIT_EXT = 1 << 30
# in the second word of flags
OVER_IO_URING = 1 << (41 - 32)

# open flags in the answer to OPEN (FOPEN_*)
FOPEN_DIRECT_IO = 1 << 0
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

# The most that the 16 bits of fuse_init_out hold. The kernel lowers it to its max_user_bgreq for a daemon without
# CAP_SYS_ADMIN (fs/fuse/inode.c, process_init_limits).
MAX_BACKGROUND = 0xFFFF

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
_OUT_HEADER = struct.Struct("=IiQ")  # len error unique
_READ_IN = struct.Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
_WRITE_IN = struct.Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
_WRITE_OUT = struct.Struct("=II")  # size padding
_INTERRUPT_IN = struct.Struct("=Q")  # unique
_INVAL_INODE_OUT = struct.Struct("=Qqq")  # ino off len
_OPEN_OUT = struct.Struct("=QII")  # fh open_flags padding
_INIT_IN = struct.Struct("=IIII")  # major minor max_readahead flags
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages
_INIT_OUT = struct.Struct("=IIIIHHIIH")

# behind them: map_alignment and flags2
_INIT_OUT_FLAGS_2 = _INIT_OUT.size + 2
_FLAGS_2 = struct.Struct("=I")

WRITE_DATA_OFFSET = IN_HEADER_BYTES + _WRITE_IN.size


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What every request starts with; ``unique`` names it in the answer."""

    opcode: int
    unique: int


@dataclasses.dataclass(frozen=True, slots=True)
class ReadRequest:
    """READ: ``offset_bytes`` and ``size_bytes`` as the caller gave them, never more than 1 MiB."""

    offset_bytes: int
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class WriteRequest:
    """WRITE without its data, which follow at `WRITE_DATA_OFFSET`.

    ``open_flags`` are the flags of the open file, with O_DSYNC or O_SYNC added by the kernel for a single
    ``pwritev2(RWF_DSYNC)`` (fs/fuse/file.c, fuse_write_flags).
    """

    offset_bytes: int
    size_bytes: int
    open_flags: int


def decode_header(message: memoryview | bytes) -> Header:
    """Return the header of a request."""
    _length, opcode, unique, *_rest = _IN_HEADER.unpack_from(message)
    return Header(opcode, unique)


def decode_read(message: memoryview | bytes) -> ReadRequest:
    """Return the body of READ."""
    _fh, offset, size, *_rest = _READ_IN.unpack_from(message, IN_HEADER_BYTES)
    return ReadRequest(offset, size)


def decode_write(message: memoryview | bytes) -> WriteRequest:
    """Return the body of WRITE."""
    _fh, offset, size, _write_flags, _lock_owner, flags, _padding = _WRITE_IN.unpack_from(message, IN_HEADER_BYTES)
    return WriteRequest(offset, size, flags)


def decode_interrupt(message: memoryview | bytes) -> int:
    """Return which request's caller got a signal."""
    (unique,) = _INTERRUPT_IN.unpack_from(message, IN_HEADER_BYTES)
    return int(unique)


def answer_header(unique: int, body_bytes: int, *, error: int = 0) -> bytes:
    """Return the header of an answer; ``error`` is a positive errno, and an answer with one has no body."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + body_bytes, -error, unique)


def write_answer(unique: int, size_bytes: int) -> bytes:
    """Return the answer to WRITE that took ``size_bytes``."""
    return answer_header(unique, _WRITE_OUT.size) + _WRITE_OUT.pack(size_bytes, 0)


def invalidation(inode: int) -> bytes:
    """Return the notification that the attributes of an inode, the size among them, have to be asked for anew."""
    body = _INVAL_INODE_OUT.pack(inode, -1, 0)  # an offset below 0: nothing but the attributes
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), NOTIFY_INVAL_INODE, 0) + body


def decode_answer(message: bytes) -> tuple[int, int]:
    """Return the positive errno and the unique of an answer."""
    _length, error, unique = _OUT_HEADER.unpack_from(message)
    return -error, unique


def without_splice(init_request: bytes) -> bytes:
    """Return INIT as a kernel without splice would send it, so that libfuse reads and writes plain messages."""
    return _with_init_flags(init_request, _INIT_IN, IN_HEADER_BYTES, cleared=SPLICE_READ | SPLICE_WRITE | SPLICE_MOVE)


def with_our_limits(init_answer: bytes) -> bytes:
    """Return the answer to INIT with what pyfuse3 does not let us choose.

    ATOMIC_O_TRUNC goes (libfuse sets it by default): the kernel then truncates through SETATTR, which is refused, and
    has no reason of its own to think of the file as empty. ASYNC_DIO stays on, or one job has one request in flight.
    ``max_background`` is as large as can be: a write that is parked in a suspended range counts against it, and the
    kernel's default of 12 parked writes would stop everybody. A libfuse that offers larger requests than we have room
    for is held to `REQUEST_BYTES_MAX`.
    """
    answer = bytearray(
        _with_init_flags(init_answer, _INIT_OUT, OUT_HEADER_BYTES, cleared=ATOMIC_O_TRUNC, set_=ASYNC_DIO)
    )
    fields = list(_INIT_OUT.unpack_from(answer, OUT_HEADER_BYTES))
    fields[4] = fields[5] = MAX_BACKGROUND
    fields[6] = min(fields[6], REQUEST_BYTES_MAX)
    fields[8] = min(fields[8], REQUEST_BYTES_MAX // PAGE_BYTES)
    _INIT_OUT.pack_into(answer, OUT_HEADER_BYTES, *fields)
    return bytes(answer)


def with_io_uring(init_answer: bytes) -> bytes:
    """Return the answer to INIT that asks for requests through io_uring."""
    answer = bytearray(_with_init_flags(init_answer, _INIT_OUT, OUT_HEADER_BYTES, cleared=0, set_=INIT_EXT))
    place = OUT_HEADER_BYTES + _INIT_OUT_FLAGS_2
    (more,) = _FLAGS_2.unpack_from(answer, place)
    _FLAGS_2.pack_into(answer, place, more | OVER_IO_URING)
    return bytes(answer)


def _with_init_flags(message: bytes, layout: struct.Struct, start: int, *, cleared: int, set_: int = 0) -> bytes:
    fields = list(layout.unpack_from(message, start))
    fields[3] = fields[3] & ~cleared | set_
    changed = bytearray(message)
    layout.pack_into(changed, start, *fields)
    return bytes(changed)


def with_parallel_writes(open_answer: bytes) -> bytes:
    """Return the answer to OPEN with FOPEN_PARALLEL_DIRECT_WRITES, which libfuse 3.14 does not know.

    Without it the kernel holds the inode's lock during a write (fs/fuse/file.c, fuse_dio_lock): one parked write would
    stop every other writer. The answer to OPENDIR must not be given here.
    """
    fh, flags, padding = _OPEN_OUT.unpack_from(open_answer, OUT_HEADER_BYTES)
    if not flags & FOPEN_DIRECT_IO:
        return open_answer
    changed = bytearray(open_answer)
    _OPEN_OUT.pack_into(changed, OUT_HEADER_BYTES, fh, flags | FOPEN_PARALLEL_DIRECT_WRITES, padding)
    return bytes(changed)
