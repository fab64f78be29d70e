"""The daemon's end of the control socket, on trio.

Only the owner of the daemon (and root) is served: the directory has mode 0700, the socket 0600, and the kernel's word
about the peer (SO_PEERCRED) is checked as well. A line that is too long or cannot be understood ends its own
connection and nothing else.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from raidfs.control.paths import socket_address
from raidfs.control.protocol import REQUEST_BYTES_MAX, Hello, Request, decode_request, encode
from raidfs.errors import BadDocument, RaidfsError, StorageFailed, UnknownMethod

log = logging.getLogger(__name__)

CLIENTS_MAX = 64  # each costs a file descriptor and a task; more than that is a client that forgets to close

Method = Callable[[dict[str, Any]], Awaitable[Any]]

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


def listen(path: str) -> socket.socket:
    """Return a listening socket at ``path`` that only the owner can reach; the file must not be there.

    Nobody else can come in between bind and chmod, since the directory lets only the owner in.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(path) as address:
            listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(CLIENTS_MAX)
    except OSError:
        listener.close()
        raise
    return listener


class ControlServer:
    """Answers clients on ``listener``, which it closes in the end, by ``methods``.

    The requests of one client are answered in the order they came, those of several side by side.
    """

    def __init__(self, listener: socket.socket, hello: Hello, methods: Mapping[str, Method]) -> None:
        self._listener = listener
        self._greeting = encode({"hello": dataclasses.asdict(hello)})
        self._methods = methods
        self._answering = 0
        self._idle = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Serve until cancelled."""
        clients = trio.Semaphore(CLIENTS_MAX)

        async def serve_one(stream: trio.SocketStream) -> None:
            try:
                await self._serve(stream)
            finally:
                clients.release()

        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        async with accepting, trio.open_nursery() as nursery:
            while True:
                await clients.acquire()
                nursery.start_soon(serve_one, await accepting.accept())

    async def wait_idle(self) -> None:
        """Return when no request is without its answer."""
        while self._answering:
            await self._idle.park()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if not _is_owner(stream.socket):
                log.warning("a process of another user was turned away")
                return
            try:
                await stream.send_all(self._greeting)
                await self._converse(stream)
            except trio.BrokenResourceError:
                log.debug("a client went away in the middle of a conversation")

    async def _converse(self, stream: trio.SocketStream) -> None:
        buffered = b""
        while True:
            line, newline, rest = buffered.partition(b"\n")
            if newline:
                buffered = rest
                if not await self._answer(stream, line):
                    return
                continue
            if len(buffered) > REQUEST_BYTES_MAX:
                failure = BadDocument(where="the line", wanted=f"at most {REQUEST_BYTES_MAX} bytes long")
                await stream.send_all(encode({"id": None, "failure": failure.to_json()}))
                return
            received = await stream.receive_some(REQUEST_BYTES_MAX)
            if not received:
                return
            buffered += received

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> bool:
        # Answers one line; False when it was not a request at all, which ends the conversation.
        self._answering += 1
        try:
            try:
                request = decode_request(line)
            except BadDocument as error:
                await stream.send_all(encode({"id": None, "failure": error.to_json()}))
                return False
            await stream.send_all(encode(await self._result(request)))
            return True
        finally:
            self._answering -= 1
            self._idle.unpark_all()

    async def _result(self, request: Request) -> dict[str, Any]:
        method = self._methods.get(request.method)
        try:
            if method is None:
                raise UnknownMethod(method=request.method)
            return {"id": request.id, "result": await method(request.params)}
        except RaidfsError as error:
            return {"id": request.id, "failure": error.to_json()}
        except OSError as error:
            log.exception("%s", request.method)
            failure = StorageFailed(method=request.method, reason=error.strerror or str(error))
            return {"id": request.id, "failure": failure.to_json()}


def _is_owner(peer: trio.socket.SocketType) -> bool:
    _pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (os.geteuid(), 0)


def text(params: dict[str, Any], name: str) -> str:
    """Return the text parameter ``name``. Raises BadDocument."""
    value = params.get(name)
    if not isinstance(value, str):
        raise BadDocument(where=f"params.{name}", wanted="a text")
    return value


def integer(params: dict[str, Any], name: str) -> int:
    """Return the integer parameter ``name``. Raises BadDocument."""
    value = params.get(name)
    if type(value) is not int:
        raise BadDocument(where=f"params.{name}", wanted="an integer")
    return value


def boolean(params: dict[str, Any], name: str) -> bool:
    """Return the parameter ``name``, which is true or false. Raises BadDocument."""
    value = params.get(name)
    if not isinstance(value, bool):
        raise BadDocument(where=f"params.{name}", wanted="true or false")
    return value
