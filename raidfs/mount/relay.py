"""Between ``/dev/fuse`` and pyfuse3: data requests are served here, everything else is passed on.

pyfuse3 is given one end of a socket pair in place of ``/dev/fuse`` (libfuse takes an open descriptor as
``/dev/fd/N`` and does nothing but read whole requests from it and write whole answers). Why not pyfuse3's own loop:

* it does not tell a handler whether a WRITE came from ``pwritev2(RWF_DSYNC)``, and the kernel sends no FSYNC
  after a direct write: such a write would return before it is durable;
* libfuse 3.14 cannot give FOPEN_PARALLEL_DIRECT_WRITES or change INIT's answer, so one parked write would stop every
  other writer of the file, and twelve every other asynchronous request;
* it reads ``/dev/fuse`` blocking after a poll; when the request is gone by then (its caller was killed), the whole
  daemon would stand still until the next request.

One task per data request: as many are in flight as there are, a parked one holds nothing but its own data.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator

import trio

from raidfs.mount import wire
from raidfs.mount.volume import BlockVolume

log = logging.getLogger(__name__)

# How many requests are taken between two looks at the poll: enough to save system calls, few enough that timers and
# answers have their turn within a millisecond or two.
_BURST_REQUESTS = 32


class Relay:
    """Serves one mount until it is gone.

    ``fuse_fd`` is the mounted ``/dev/fuse``; the relay owns it from now on and makes it non-blocking. `hand_over` gives
    pyfuse3 its descriptor, `run` does the work, `close` is for the end.
    """

    name = "pyfuse3"

    def __init__(self, fuse_fd: int, volume: BlockVolume) -> None:
        self._fuse_fd = fuse_fd
        self._volume = volume
        os.set_blocking(fuse_fd, False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = trio.socket.from_stdlib_socket(ours)
        self._pyfuse3_fd = theirs.detach()
        self._buffer = bytearray(wire.MESSAGE_BYTES_MAX)
        # Requests whose answer is changed on its way back, by the kernel's unique number; at most as many as are open
        # with pyfuse3, which it answers without waiting for anything.
        self._changes: dict[int, Callable[[bytes], bytes]] = {}
        self._serving: set[int] = set()

    def hand_over(self) -> int:
        """Return the descriptor that pyfuse3 uses in place of ``/dev/fuse`` and will close with its session."""
        fd, self._pyfuse3_fd = self._pyfuse3_fd, -1
        return fd

    @property
    def in_flight(self) -> int:
        """How many data requests have no answer yet."""
        return len(self._serving)

    async def run(self, initialised: trio.Event) -> None:
        """Serve until the file system is unmounted and every data request has its answer.

        Sets ``initialised`` when the kernel has got the answer to INIT and the mount can be used.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_answers, initialised)
            async with trio.open_nursery() as requests:
                await self._take_requests(requests)
            nursery.cancel_scope.cancel()

    def notify(self, message: bytes) -> None:
        """Send the kernel a message that it has not asked for."""
        self._send([message])

    def close(self) -> None:
        """Close the mount's descriptor and the socket pair; a second call does nothing.

        If the mount is still there, whoever uses it gets ENOTCONN from then on.
        """
        self._ours.close()
        for fd in (self._fuse_fd, self._pyfuse3_fd):
            if fd >= 0:
                os.close(fd)
        self._fuse_fd = self._pyfuse3_fd = -1

    async def _take_requests(self, requests: trio.Nursery) -> None:
        view = memoryview(self._buffer)
        while True:
            await trio.lowlevel.wait_readable(self._fuse_fd)
            # A burst is taken without going through the poll each time; trio gets its turn in `wait_readable`.
            for _ in range(_BURST_REQUESTS):
                try:
                    length = os.readv(self._fuse_fd, [self._buffer])
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                        return  # unmounted, or aborted by umount -f
                    if error.errno in (errno.EINTR, errno.ENOENT):
                        continue  # the request was withdrawn while it was handed over
                    raise
                await self._dispatch(view[:length], requests)

    async def _dispatch(self, message: memoryview, requests: trio.Nursery) -> None:
        header = wire.decode_header(message)
        unique = header.unique
        if header.opcode == wire.READ:
            self._serving.add(unique)
            requests.start_soon(self._read, unique, wire.decode_read(message))
        elif header.opcode == wire.WRITE:
            write = wire.decode_write(message)
            data = bytes(message[wire.WRITE_DATA_OFFSET : wire.WRITE_DATA_OFFSET + write.size_bytes])
            self._serving.add(unique)
            requests.start_soon(self._write, unique, write, data)
        elif header.opcode == wire.FSYNC:
            self._serving.add(unique)
            requests.start_soon(self._fsync, unique)
        elif header.opcode == wire.INTERRUPT and wire.decode_interrupt(message) in self._serving:
            # A data request is never given up: the caller waits as it would for a disk. libfuse would keep the
            # interrupt of a request that it does not know, and answer "again" with each other request.
            pass
        else:
            await self._pass_on(header, bytes(message))

    async def _read(self, unique: int, request: wire.ReadRequest) -> None:
        with self._answering(unique) as answer:
            data = await self._volume.read(request.offset_bytes, request.size_bytes)
            answer[:] = [wire.answer_header(unique, len(data)), data]

    async def _write(self, unique: int, request: wire.WriteRequest, data: bytes) -> None:
        with self._answering(unique) as answer:
            durable = bool(request.open_flags & os.O_DSYNC)  # O_SYNC has the bit of O_DSYNC in it
            taken = await self._volume.write(request.offset_bytes, data, durable=durable)
            answer[:] = [wire.write_answer(unique, taken)]

    async def _fsync(self, unique: int) -> None:
        with self._answering(unique) as answer:
            await self._volume.flush()
            answer[:] = [wire.answer_header(unique, 0)]

    @contextlib.contextmanager
    def _answering(self, unique: int) -> Iterator[list[bytes]]:
        # Sends what the block put into the list, or the errno of the OSError that ended it. A cancelled request gets no
        # answer: the mount is being given up, and the kernel answers for a closed /dev/fuse itself.
        answer: list[bytes] = []
        try:
            yield answer
        except OSError as error:
            answer[:] = [wire.answer_header(unique, 0, error=error.errno or errno.EIO)]
        except Exception:
            log.exception("a data request failed for a reason that is a fault of this program")
            answer[:] = [wire.answer_header(unique, 0, error=errno.EIO)]
        finally:
            self._serving.discard(unique)
        self._send(answer)

    async def _pass_on(self, header: wire.Header, message: bytes) -> None:
        if header.opcode == wire.INIT:
            message = wire.without_splice(message)
            self._changes[header.unique] = wire.with_our_limits
        elif header.opcode == wire.OPEN:
            self._changes[header.unique] = wire.with_parallel_writes
        await self._ours.send(message)

    async def _pass_answers(self, initialised: trio.Event) -> None:
        while True:
            message = await self._ours.recv(wire.MESSAGE_BYTES_MAX)
            if not message:
                return
            error, unique = wire.decode_answer(message)
            change = self._changes.pop(unique, None)
            if change is not None and not error:
                message = change(message)
            self._send([message])
            if change is wire.with_our_limits:
                if error:
                    raise OSError(error, "pyfuse3 refused the kernel's INIT")
                initialised.set()

    def _send(self, answer: list[bytes]) -> None:
        # /dev/fuse takes a whole answer at once and never makes the writer wait.
        try:
            os.writev(self._fuse_fd, answer)
        except OSError as error:
            # ENOENT: the caller was killed and the kernel forgot the request; ENODEV: the mount is gone, and with it
            # whoever waited.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
