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

from raidfs.control.protocol import REQUEST_BYTES_MAX, Hello, Request, decode_request, encode
from raidfs.errors import BadDocument, RaidfsError, UnknownMethod

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
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(CLIENTS_MAX)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(listener: socket.socket, hello: Hello, methods: Mapping[str, Method]) -> None:
    """Answer clients until cancelled; closes the listener. Every request is answered in the order it came."""
    greeting = encode({"hello": dataclasses.asdict(hello)})
    limiter = trio.Semaphore(CLIENTS_MAX)
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    async def serve_one(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                if not _is_owner(stream.socket):
                    log.warning("a process of another user was turned away")
                    return
                await stream.send_all(greeting)
                await _converse(stream, methods)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a client went away in the middle of a conversation")
        finally:
            limiter.release()

    async with accepting, trio.open_nursery() as nursery:
        while True:
            await limiter.acquire()
            nursery.start_soon(serve_one, await accepting.accept())


def _is_owner(peer: trio.socket.SocketType) -> bool:
    _pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (os.geteuid(), 0)


async def _converse(stream: trio.SocketStream, methods: Mapping[str, Method]) -> None:
    buffered = b""
    while True:
        line, newline, rest = buffered.partition(b"\n")
        if newline:
            buffered = rest
            answer, understood = await _answer(line, methods)
            await stream.send_all(encode(answer))
            if not understood:
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


async def _answer(line: bytes, methods: Mapping[str, Method]) -> tuple[dict[str, Any], bool]:
    # The answer's document, and whether the line was understood as a request at all.
    try:
        request = decode_request(line)
    except BadDocument as error:
        return {"id": None, "failure": error.to_json()}, False
    try:
        return {"id": request.id, "result": await _call(request, methods)}, True
    except RaidfsError as error:
        return {"id": request.id, "failure": error.to_json()}, True


async def _call(request: Request, methods: Mapping[str, Method]) -> Any:
    method = methods.get(request.method)
    if method is None:
        raise UnknownMethod(method=request.method)
    return await method(request.params)


def integer(params: dict[str, Any], name: str) -> int:
    """Return the integer parameter ``name``. Raises BadDocument."""
    value = params.get(name)
    if type(value) is not int:
        raise BadDocument(where=f"params.{name}", wanted="an integer")
    return value
