"""One end of a lock protocol connection: frames over a non-blocking unix socket, on trio.

Frames are collected by `Link.send` and written by one `Link.flush` for all that came of a batch; what the
socket does not take at once is written by `Link.write_later`, which needs a task. So an answer costs one system call
and no task switch as long as the peer reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import NamedTuple

import trio

from raidfs.lock import wire

RECEIVE_BYTES = 64 * 1024

# What a peer may leave unread before it counts as stuck: some 10,000 answers and notices. One frame more is
# always taken, so the answer to a query may be larger.
UNREAD_BYTES_MAX = 1024 * 1024

_UCRED = struct.Struct("3i")
_SO_PEERPIDFD = 77  # linux/asm-generic/socket.h; not named by Python 3.11
_BYE = wire.encode(wire.Bye())


class Link:
    """One connection; the caller owns the tasks that receive and that `write_later`."""

    def __init__(self, sock: socket.socket, decoder: wire.Decoder) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = decoder
        self._unsent = bytearray()
        self._stalled = trio.Event()
        self._closed = False

    @property
    def unread_bytes(self) -> int:
        """How much the peer has left unread, beyond what the socket itself holds."""
        return len(self._unsent)

    def fileno(self) -> int:
        """Return the descriptor of the socket; it stays the link's to close."""
        return self._sock.fileno()

    @property
    def peer_uid(self) -> int:
        """The user that the peer ran as when it connected or, for a server, when it began to listen."""
        return peer_credentials(self._sock).uid

    @property
    def peer_pid(self) -> int:
        """The process that connected; 0 when it is of a process name space that we cannot see into."""
        return peer_credentials(self._sock).pid

    def peer_pidfd(self) -> int | None:
        """Return a descriptor that becomes readable when the peer's process has ended, for the caller to close.

        None when there is nothing to wait for: the process has ended, or is of a name space that we cannot see into.
        Raises OSError when there is no descriptor to be had.
        """
        try:
            return self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
        try:  # before Linux 6.5
            return os.pidfd_open(self.peer_pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None

    async def receive(self) -> list[wire.Frame]:
        """Return the next frames, at least one, or none at the end of the stream.

        Raises LockProtocolError for what cannot be read. A connection that is closed or reset by either side has ended.
        """
        while not self._closed:
            self._decoder.check()
            try:
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except (OSError, trio.ClosedResourceError):
                return []
            if not data:
                return []
            frames = self._decoder.feed(data)
            if frames:
                return frames
        return []

    async def last_word(self) -> bool:
        """Wait for the end of the stream and return whether the very last that came was a `wire.Bye`."""
        tail = b""
        while not self._closed:
            try:
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except (OSError, trio.ClosedResourceError):
                break
            if not data:
                break
            tail = (tail + data)[-len(_BYE) :]
        return tail == _BYE

    def send(self, frame: wire.Frame) -> bool:
        """Add a frame to what is to be written; return False when the peer has left too much unread."""
        if self._closed:
            return True
        if len(self._unsent) > UNREAD_BYTES_MAX:
            return False
        self._unsent += wire.encode(frame)
        return True

    def flush(self) -> None:
        """Write as much as the socket takes; a broken connection shows in `receive`."""
        if self._closed:
            return
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            self._stalled.set()
        except OSError:
            self._unsent.clear()

    def finish(self) -> None:
        """Let the peer find the end of the stream after what it has not read; it may still speak."""
        if not self._closed:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    async def write_later(self) -> None:
        """Write what `flush` could not, for ever; to be run as a task."""
        while True:
            await self._stalled.wait()
            self._stalled = trio.Event()
            if self._closed:
                return
            try:
                await trio.lowlevel.wait_writable(self._sock)
            except (OSError, trio.ClosedResourceError):
                return
            self.flush()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._stalled.set()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()


class Credentials(NamedTuple):
    """Who is at the other end of a unix socket."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return what SO_PEERCRED tells of the other end of a unix socket (unix(7))."""
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
