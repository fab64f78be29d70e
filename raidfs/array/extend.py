"""Making a backing image longer, so that its array can grow: regular files only, and all or nothing.

What is added is reserved (fallocate), so that a write into the new space cannot find the file system full, or left a
hole when the user asks for that. The new length is durable when `extend` returns, before any metadata speaks of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from raidfs.array.images import OpenImage
from raidfs.errors import DeviceNotExtendable, ImageNotExtended


def extend(image: OpenImage, size_bytes: int, *, sparse: bool = False) -> None:
    """Make an image at least ``size_bytes`` long; one that is long enough stays as it is.

    Raises DeviceNotExtendable for a block device, and ImageNotExtended when the file system refuses (no space left,
    a limit, no fallocate): then the file has its old length again. Only one node at a time may do this.
    """
    old_bytes = image.refresh_size()
    if size_bytes <= old_bytes:
        return
    if image.is_block_device:
        raise DeviceNotExtendable(path=image.path, have_bytes=old_bytes, need_bytes=size_bytes)
    try:
        with _refusing(image, old_bytes, size_bytes):
            if sparse:
                os.ftruncate(image.fd, size_bytes)
            else:
                _fallocate(image.fd, old_bytes, size_bytes - old_bytes)
            os.fsync(image.fd)
    finally:
        image.refresh_size()


@contextlib.contextmanager
def _refusing(image: OpenImage, old_bytes: int, size_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        # Some file systems keep the part that they could reserve, and the length that goes with it.
        with contextlib.suppress(OSError):
            os.ftruncate(image.fd, old_bytes)
        reason = os.strerror(e.errno or 0)
        if e.errno == errno.EOPNOTSUPP:
            reason = "its file system cannot reserve space (--sparse does without)"
        raise ImageNotExtended(path=image.path, have_bytes=old_bytes, need_bytes=size_bytes, reason=reason) from None


# Not os.posix_fallocate: where the file system cannot do it the C library writes a byte into each block instead, one at
# a time, which takes for ever, and fails with O_DIRECT.
def _fallocate(fd: int, offset_bytes: int, length_bytes: int) -> None:
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(fd, 0, offset_bytes, length_bytes):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
