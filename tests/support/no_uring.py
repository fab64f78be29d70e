"""Runs a program that is not allowed to use io_uring, as in most containers::

python -m support.no_uring PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_FIRST, _LAST = 425, 427  # io_uring_setup, _enter, _register; the same numbers on every architecture
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_LOAD, _JUMP_IF_GREATER_OR_EQUAL, _JUMP_IF_GREATER, _RETURN = 0x20, 0x35, 0x25, 0x06


def forbid() -> None:
    """Answer the calls of io_uring with EPERM in this process and in all that it starts."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 0),  # the number of the system call
            (_JUMP_IF_GREATER_OR_EQUAL, 0, 2, _FIRST),
            (_JUMP_IF_GREATER, 1, 0, _LAST),
            (_RETURN, 0, 0, _EPERM),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header):
        raise OSError(ctypes.get_errno(), "no filter for system calls")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
