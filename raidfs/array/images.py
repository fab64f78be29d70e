"""Backing images: opening files and block devices, and reading and writing them past the page cache.

Several hosts share an image, so nothing of it may stay in one host's page cache: images are opened with O_DIRECT
wherever the storage takes it, and `OpenImage.direct` tells when it does not. This module is for the few reads and
writes of creating, examining and assembling; the data path has its own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from raidfs.errors import ImageAccess, ImageClosed, ImageInUse, ImageNotFound, ImageNotUsable, ImageShort
from raidfs.units import MIB, PAGE_BYTES, SECTOR_BYTES, round_down, round_up

IO_BYTES_MAX = MIB  # of one system call: as much as most devices take at once

_BLKSSZGET = 0x1268  # linux/fs.h
_BLKGETSIZE64 = 0x80081272

_STATX_DIOALIGN = 0x2000  # linux/stat.h, Linux 6.1
_STATX_BYTES = 256
_STATX_DIO_OFFSET_ALIGN = 156
_AT_EMPTY_PATH = 0x1000

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class OpenImage:
    """An open backing image.

    ``size_bytes`` is its length when it was opened or at the last `refresh_size`, ``logical_block_bytes`` the unit in
    which it can be read and written directly (for a device its logical block size), ``direct`` whether the page cache
    is passed by, ``identity`` is equal for two names of one file or device. A context manager; closing twice is
    harmless.
    """

    def __init__(self, path: str, fd: int, *, writable: bool, direct: bool) -> None:
        self.path = path
        self.writable = writable
        self.direct = direct
        self._fd = fd
        status = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self.identity = _identity(status)
        self.size_bytes = _device_size_bytes(fd) if self.is_block_device else status.st_size
        self.logical_block_bytes = _device_block_bytes(fd) if self.is_block_device else _file_block_bytes(fd)

    @property
    def fd(self) -> int:
        """The file descriptor; ImageClosed after `close`."""
        if self._fd < 0:
            raise ImageClosed(path=self.path)
        return self._fd

    @property
    def size_sectors(self) -> int:
        """The length in whole sectors."""
        return self.size_bytes // SECTOR_BYTES

    def refresh_size(self) -> int:
        """Look how long the image is now (fstat, BLKGETSIZE64), and return it; raises ImageAccess."""
        with self._doing("look at"):
            self.size_bytes = _device_size_bytes(self.fd) if self.is_block_device else os.fstat(self.fd).st_size
        return self.size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return exactly these bytes, at any alignment. Raises ImageShort where the image ends before."""
        wanted_end = offset_bytes + length_bytes
        if wanted_end > self.size_bytes:
            raise self._short(offset_bytes, length_bytes)
        start = round_down(offset_bytes, PAGE_BYTES)
        end = round_up(wanted_end, PAGE_BYTES)
        pieces = []
        buffer = _aligned_buffer(min(IO_BYTES_MAX, max(PAGE_BYTES, end - start)))
        at = start
        while at < wanted_end:
            with self._doing("read"):
                count = os.preadv(self.fd, [buffer[: min(len(buffer), end - at)]], at)
            if count == 0:
                raise self._short(offset_bytes, length_bytes)
            pieces.append(bytes(buffer[:count]))
            at += count
        return b"".join(pieces)[offset_bytes - start : wanted_end - start]

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Write ``data``; offset and length must be multiples of 4096. Durable only after `sync`."""
        assert offset_bytes % PAGE_BYTES == 0, offset_bytes
        assert len(data) % PAGE_BYTES == 0, len(data)
        buffer = _aligned_buffer(IO_BYTES_MAX)
        done = 0
        while done < len(data):
            piece = data[done : done + IO_BYTES_MAX]
            buffer[: len(piece)] = piece
            with self._doing("write"):
                done += os.pwritev(self.fd, [buffer[: len(piece)]], offset_bytes + done)

    def sync(self) -> None:
        """Return when all that was written is on stable storage."""
        with self._doing("flush"):
            os.fsync(self.fd)

    def lock(self, *, exclusive: bool) -> None:
        """Take flock(2) on the image until it is closed; raises ImageInUse at once when another one is in the way.

        Nodes share it, whoever rewrites an image takes it exclusively.
        """
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageInUse(path=self.path) from None
        except OSError as e:
            raise ImageAccess(path=self.path, doing="lock it", reason=_reason(e)) from None

    def close(self) -> None:
        """Close the image and drop its lock; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> OpenImage:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _short(self, offset_bytes: int, length_bytes: int) -> ImageShort:
        return ImageShort(
            path=self.path, size_bytes=self.size_bytes, offset_bytes=offset_bytes, wanted_bytes=length_bytes
        )

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise ImageAccess(path=self.path, doing=f"{what} it", reason=_reason(e)) from None


def open_image(path: str, *, writable: bool = False, direct: bool = True, exclusive: bool = False) -> OpenImage:
    """Open an existing image.

    With ``direct`` the page cache is passed by if the storage allows it. ``exclusive`` refuses a block device that
    the system uses (a mounted file system, another md array; O_EXCL without O_CREAT); it has no meaning for a file,
    see `OpenImage.lock`. Raises ImageNotFound, ImageNotUsable, ImageInUse, ImageAccess.
    """
    mode = image_status(path).st_mode
    flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
    if exclusive and stat.S_ISBLK(mode):
        flags |= os.O_EXCL
    if direct:
        image = _open(path, flags | os.O_DIRECT, writable=writable, direct=True)
        if image is not None:
            return image
    image = _open(path, flags, writable=writable, direct=False)
    assert image is not None
    return image


def image_status(path: str) -> os.stat_result:
    """Return stat(2) of an image; raises ImageNotFound, ImageAccess, or ImageNotUsable for what cannot be one."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ImageNotFound(path=path) from None
    except (OSError, ValueError) as e:
        raise ImageAccess(path=path, doing="look at it", reason=_reason(e)) from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        kind = next((text for is_kind, text in _KINDS if is_kind(status.st_mode)), "something else")
        raise ImageNotUsable(path=path, kind=kind)
    return status


def image_identity(path: str) -> tuple[str, int, int]:
    """Return what is equal for two names of one file or device; raises what `image_status` raises."""
    return _identity(image_status(path))


def _open(path: str, flags: int, *, writable: bool, direct: bool) -> OpenImage | None:
    """Open and look at the image; None when the storage does not take O_DIRECT."""
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise ImageNotFound(path=path) from None
    except OSError as e:
        if direct and e.errno == errno.EINVAL:
            return None
        if e.errno == errno.EBUSY:
            raise ImageInUse(path=path) from None
        raise ImageAccess(path=path, doing="open it", reason=_reason(e)) from None
    try:
        if direct and not _reads_directly(fd):
            os.close(fd)
            return None
        return OpenImage(path, fd, writable=writable, direct=direct)
    except OSError as e:
        os.close(fd)
        raise ImageAccess(path=path, doing="look at it", reason=_reason(e)) from None


def _reads_directly(fd: int) -> bool:
    # Some file systems accept O_DIRECT at open and refuse each read with EINVAL; other errors are for the real read.
    try:
        os.preadv(fd, [_aligned_buffer(PAGE_BYTES)], 0)
    except OSError as e:
        return e.errno != errno.EINVAL
    return True


def _identity(status: os.stat_result) -> tuple[str, int, int]:
    if stat.S_ISBLK(status.st_mode):
        return ("device", status.st_rdev, 0)
    return ("file", status.st_dev, status.st_ino)


def _device_size_bytes(fd: int) -> int:
    (size_bytes,) = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size_bytes)


def _device_block_bytes(fd: int) -> int:
    (block_bytes,) = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(block_bytes)


def _file_block_bytes(fd: int) -> int:
    """Return the alignment of direct I/O that the file system tells, or else the smallest that a read proves."""
    told = _statx_offset_align_bytes(fd)
    if told:
        return told
    buffer = _aligned_buffer(PAGE_BYTES)
    for block_bytes in (SECTOR_BYTES, 1024, 2048):
        try:
            os.preadv(fd, [buffer[:block_bytes]], 0)
        except OSError as e:
            if e.errno == errno.EINVAL:
                continue
        return block_bytes
    return PAGE_BYTES


def _statx_offset_align_bytes(fd: int) -> int:
    """Return statx(2)'s stx_dio_offset_align, or 0 where kernel, C library or file system do not tell it."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None:
        return 0
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return 0
    (mask,) = struct.unpack_from("=I", answer)
    (align_bytes,) = struct.unpack_from("=I", answer, _STATX_DIO_OFFSET_ALIGN)
    return int(align_bytes) if mask & _STATX_DIOALIGN else 0


def _aligned_buffer(length_bytes: int) -> memoryview:
    """Return memory that begins on a page, as O_DIRECT wants it; it is unmapped when nothing refers to it any more."""
    return memoryview(mmap.mmap(-1, length_bytes))


def _reason(e: OSError | ValueError) -> str:
    return os.strerror(e.errno) if isinstance(e, OSError) and e.errno is not None else str(e)
