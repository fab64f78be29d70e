"""libdlm.so.3 by ctypes: the calls that go into the kernel's DLM, and the results that come out of it.

libdlm makes lock spaces (and waits for their devices) and writes requests to them (but see `unlock`). What the kernel
answers is read here and not with ``dlm_dispatch`` or the thread of ``dlm_ls_pthread_init``: those drop the mode of a
blocking notice and write into memory of the caller at any time, and the thread is ended by pthread_cancel, which must
not hit a thread that may be in Python. A result is one read from the lock space's device (linux/dlm_device.h, version
6), which can be polled, so that the event loop reads it; it carries status, flags and value block by value.

Every call may hang in the kernel, uninterruptibly, while the lock space recovers, and for ever after it was
expelled; who calls has a thread for that (`raidfs.lock.dlm`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pathlib
import struct
from typing import NamedTuple

from raidfs.errors import LockProtocolError, MissingLibrary
from raidfs.lock.api import LVB_BYTES, Mode
from raidfs.lock.resource import NO_LVB

CONTROL_DEVICE = "dlm-control"  # as in /proc/misc
CREATE_MODE = 0o600
_SHARES = "/run/raidfs"

# Flags of a request (linux/dlmconstants.h).
NOQUEUE = 0x00000001
CANCEL = 0x00000002
CONVERT = 0x00000004
VALBLK = 0x00000008
IVVALBLK = 0x00000020
EXPEDITE = 0x00000400
FORCEUNLOCK = 0x00020000

NEWEXCL = 0x00000008  # of a new lock space: fail with EEXIST when it is there (DLM_LSFL_NEWEXCL)

# The status of a result, as the kernel writes it, beside errnos (linux/dlmconstants.h).
ECANCEL = 0x10001
EUNLOCK = 0x10002

_VALNOTVALID = 0x02  # of dlm_lksb.sb_flags

_RS_DONE_ALL = 0x80  # all members have recovered (fs/dlm/dlm_internal.h: DLM_RS_DONE_ALL)

# struct dlm_lock_result of a 64-bit machine: version, length, ast address and parameter, the user's lksb,
# lksb (status, lkid, flags, pointer), mode of a blocking notice, offset of the value block.
_RESULT = struct.Struct("=3II3QiIB7xQB3xI")
_VERSION = (6, 0, 0)

# struct dlm_write_request of a 64-bit machine: version, command, is64bit; mode, namelen, flags, lkid, parent, xid,
# timeout, completion parameter and address, blocking parameter and address, the user's lksb, value block.
_UNLOCK = struct.Struct(f"=3IBB2xBB2x3I2Q5Q{LVB_BYTES}s")
_USER_UNLOCK = 2
RESULT_BYTES_MAX = 4096

# The kernel keeps these for us and gives them back; nothing is ever called there.
_CAST = 1
_BAST = 2


class Lksb(ctypes.Structure):
    """``struct dlm_lksb``; libdlm writes into it when it sends, and only then."""

    _fields_ = (
        ("sb_status", ctypes.c_int),
        ("sb_lkid", ctypes.c_uint32),
        ("sb_flags", ctypes.c_char),
        ("sb_lvbptr", ctypes.c_void_p),
    )


class Result(NamedTuple):
    """What the kernel says of a lock: ``blocking`` is a mode for a blocking notice and None for a completion.

    ``status`` is 0 or a positive number: an errno, ECANCEL or EUNLOCK. ``lvb`` is None when none came along.
    """

    cookie: int
    lkid: int
    status: int
    lvb: bytes | None
    lvb_valid: bool
    blocking: Mode | None


def parse_result(data: bytes) -> Result:
    """Return what one read from the device of a lock space gave; raises LockProtocolError when it makes no sense."""
    if len(data) < _RESULT.size:
        raise LockProtocolError(reason=f"the DLM's device gave {len(data)} bytes in place of a result")
    fields = _RESULT.unpack_from(data)
    major, length, cookie, status, lkid, flags = fields[0], fields[3], fields[5], fields[7], fields[8], fields[9]
    bast_mode, lvb_offset = fields[11], fields[12]
    if major != _VERSION[0] or length != len(data):
        raise LockProtocolError(reason=f"a result of the DLM's device, version {major}, of {len(data)} bytes")
    lvb = data[lvb_offset : lvb_offset + LVB_BYTES] if lvb_offset else None
    blocking = Mode(bast_mode) if bast_mode else None
    return Result(cookie, lkid, -status, lvb, not flags & _VALNOTVALID, blocking)


def recovering(name: str) -> bool:
    """Tell whether the kernel holds the locks of a lock space still, because somebody has died, left or joined."""
    try:
        text = pathlib.Path("/sys/kernel/dlm", name, "recover_status").read_text()
        return not int(text, 16) & _RS_DONE_ALL
    except (OSError, ValueError):
        return False


class KernelLock:
    """The memory that libdlm wants for a lock: its status block and its value block."""

    def __init__(self) -> None:
        self.lksb = Lksb()
        self.lvb = ctypes.create_string_buffer(LVB_BYTES)
        self.lksb.sb_lvbptr = ctypes.addressof(self.lvb)


class Libdlm:
    """The library; every method raises OSError with the errno that libdlm left, and may hang."""

    def __init__(self, name: str = "libdlm.so.3") -> None:
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            raise MissingLibrary(library=name, package="libdlm3") from None
        c = ctypes
        self._new = library.dlm_new_lockspace
        self._new.argtypes = (c.c_char_p, c.c_uint, c.c_uint32)
        self._new.restype = c.c_void_p
        self._open = library.dlm_open_lockspace
        self._open.argtypes = (c.c_char_p,)
        self._open.restype = c.c_void_p
        self._close = library.dlm_close_lockspace
        self._close.argtypes = (c.c_void_p,)
        self._release = library.dlm_release_lockspace
        self._release.argtypes = (c.c_char_p, c.c_void_p, c.c_int)
        self._get_fd = library.dlm_ls_get_fd
        self._get_fd.argtypes = (c.c_void_p,)
        self._lock = library.dlm_ls_lock
        self._lock.argtypes = (
            *(c.c_void_p, c.c_uint32, c.POINTER(Lksb), c.c_uint32, c.c_char_p, c.c_uint, c.c_uint32),
            *(c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p),
        )

    def join(self, name: str) -> tuple[int, int]:
        """Return a handle of the lock space ``name``, and a descriptor for `leave`.

        The kernel counts who has made a lock space, and forgets nobody who dies. So it is made at most once on a
        machine, and who uses it here holds a lock on a file of its name.
        """
        text = name.encode()
        os.makedirs(_SHARES, mode=0o700, exist_ok=True)
        share = os.open(f"{_SHARES}/dlm-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(share, fcntl.LOCK_SH)  # who ends the lock space has it for that time
            handle = self._open(text)
            if not handle and ctypes.get_errno() in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                handle = self._new(text, CREATE_MODE, NEWEXCL)
                if not handle and ctypes.get_errno() == errno.EEXIST:  # another process was faster
                    handle = self._open(text)
            if not handle:
                raise _failure()
        except BaseException:
            os.close(share)
            raise
        return int(handle), share

    def leave(self, name: str, handle: int, share: int) -> None:
        """Close the handle, which frees its locks as a death would; the last one here ends the lock space.

        That is done with force: without, the kernel refuses as long as this machine keeps the books of others' locks.
        """
        try:
            fcntl.flock(share, fcntl.LOCK_UN)
            try:
                fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._close(handle)
                return
            if self._release(name.encode(), handle, 1) != 0:
                raise _failure()
        finally:
            os.close(share)

    def fd(self, handle: int) -> int:
        """Return the descriptor of the lock space's device; it is the library's to close."""
        return int(self._get_fd(handle))

    def lock(
        self, handle: int, lock: KernelLock, mode: Mode, flags: int, name: str, cookie: int, notices: bool
    ) -> None:
        """Ask for a new lock on ``name``, or with CONVERT for another mode; results carry the cookie."""
        text = name.encode()
        done = self._lock(
            handle, mode, lock.lksb, flags, text, len(text), 0, _CAST, cookie, _BAST if notices else None, None
        )
        if done != 0:
            raise _failure()

    def lkid(self, lock: KernelLock) -> int:
        """Return the kernel's name of a lock that was asked for."""
        return int(lock.lksb.sb_lkid)


def unlock(fd: int, lkid: int, flags: int, cookie: int, lvb: bytes = NO_LVB) -> None:
    """Release a lock, or with CANCEL take its request back; raises OSError and may hang.

    ``dlm_ls_unlock`` sends what happens to be on its stack as the value block, and the kernel writes that into the
    resource when the lock is held in PW or EX. So this is written to the device here.
    """
    request = _UNLOCK.pack(*_VERSION, _USER_UNLOCK, 1, 0, 0, flags, lkid, 0, 0, 0, cookie, 0, 0, 0, 0, lvb)
    os.write(fd, request)


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
