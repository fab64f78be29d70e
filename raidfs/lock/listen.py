"""Binding the socket of a lock server: the moment that decides who is the server of an address.

An abstract name can be bound by one process at a time, and is free again when that process ends: the kernel holds the
election. A path in the file system outlives its listener; there the election is an flock on ``PATH.lock``, and
whoever holds it may remove a socket that nobody answers at.

This module imports nothing heavy, so that the losers of an election are gone before they have cost anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator

from raidfs.errors import LockAddressInUse, LockAddressNotUsable
from raidfs.lock.address import LockAddress

BACKLOG = 1024  # connections that wait for an accept; more starters than this would try again by themselves


@contextlib.contextmanager
def bound_listener(address: LockAddress, *, everybody: bool = False) -> Iterator[socket.socket]:
    """Listen at ``address`` inside the block.

    ``everybody`` lets other users connect to a path (they are judged by their credentials afterwards); otherwise the
    socket is for its owner. Raises LockAddressInUse when somebody listens there, LockAddressNotUsable
    for anything else that stands against it; what is not a socket is never removed.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        try:
            if not address.abstract:
                stack.enter_context(_elected(address))
            sock.bind(address.sockaddr)
            if not address.abstract:
                stack.callback(_unlink, address.path)
                os.chmod(address.path, 0o666 if everybody else 0o600)
            sock.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LockAddressInUse(address=address) from None
            raise LockAddressNotUsable(address=address, reason=error.strerror) from None
        yield sock


# Holds the flock of a path, with a stale socket out of the way.
@contextlib.contextmanager
def _elected(address: LockAddress) -> Iterator[None]:
    lock_fd = os.open(address.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockAddressInUse(address=address) from None
        _remove_stale(address)
        yield
    finally:
        os.close(lock_fd)


def _remove_stale(address: LockAddress) -> None:
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LockAddressNotUsable(address=address, reason="a file that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(address.sockaddr)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
    raise LockAddressInUse(address=address)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
