"""The client of the embedded lock server, on trio: `connected` gives a `LockManager` over a unix socket.

The server is judged before anything is asked of it: it must run as root, as this user, or as a user that the
caller trusts (the owners of the images). A socket tells who began to listen on it, so a foreigner who was faster in
taking a name is found out and refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Collection

import trio

from raidfs.errors import (
    LockProtocolError,
    LockServerUnreachable,
    LockServerUntrusted,
    LockVersionMismatch,
    RaidfsError,
)
from raidfs.lock import machine, wire
from raidfs.lock.address import LockAddress
from raidfs.lock.link import Link
from raidfs.lock.member import MemberHub
from raidfs.runtime import Runtime

# A server that was just started accepts connections before it can answer them: on a loaded host seconds before.
GREETING_S = 20.0

# A full backlog refuses a connection on a unix socket at once (EAGAIN, connect(2)); wait and see.
CONNECT_AGAIN_S = 0.01

_GONE = "the lock server has ended the connection"


@contextlib.asynccontextmanager
async def connected(
    address: LockAddress, *, runtime: Runtime, trusted_uids: Collection[int] = ()
) -> AsyncIterator[MemberHub]:
    """Connect to the lock server at ``address`` for the length of the block.

    Lock spaces that were not closed when the block ends count as left by a dead client. Raises LockServerUnreachable,
    LockServerUntrusted, LockVersionMismatch, or what the server refuses us with.
    """
    link = await greet(address, trusted_uids=trusted_uids)
    async with carried(link, runtime=runtime) as hub:
        yield hub


async def greet(address: LockAddress, *, trusted_uids: Collection[int] = ()) -> Link:
    """Connect to ``address`` and exchange greetings; see `connected`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link = Link(sock, wire.server_frames())
    try:
        with trio.move_on_after(GREETING_S):
            await _connect(sock, address)
            if link.peer_uid not in {0, os.geteuid(), *trusted_uids}:
                raise LockServerUntrusted(address=address, uid=link.peer_uid)
            link.send(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION))
            link.flush()
            frames = await link.receive()
            if not frames:
                raise LockServerUnreachable(address=address, reason="it ended the connection before its greeting")
            _check_greeting(address, frames[0])
            return link
        raise LockServerUnreachable(address=address, reason=f"no greeting within {GREETING_S:.0f} s")
    except BaseException:
        link.close()
        raise


@contextlib.asynccontextmanager
async def carried(link: Link, *, runtime: Runtime) -> AsyncIterator[MemberHub]:
    """Run a connection that has been greeted for the length of the block."""
    carrier = _SocketCarrier(link)
    hub = carrier.hub = MemberHub(runtime, carrier)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write_later)
        nursery.start_soon(_receive, hub, link)
        try:
            yield hub
        finally:
            await hub.close()
            nursery.cancel_scope.cancel()


class _SocketCarrier:
    hub: MemberHub

    def __init__(self, link: Link) -> None:
        self._link = link

    def send(self, event: machine.Event) -> None:
        if self._link.send(event):
            self._link.flush()
        else:
            self.hub.lose(f"the lock server left {self._link.unread_bytes} bytes unread")

    # Whoever calls this has told the members that they hold nothing any more.
    def close(self) -> None:
        self._link.send(wire.Bye())
        self._link.flush()
        self._link.close()

    def lifelines(self) -> tuple[int, ...]:
        return (self._link.fileno(),)

    def stalled(self) -> bool:
        return False


async def _connect(sock: socket.socket, address: LockAddress) -> None:
    while True:
        try:
            sock.connect(address.sockaddr)
            return
        except BlockingIOError:
            await trio.sleep(CONNECT_AGAIN_S)
        except OSError as error:
            raise LockServerUnreachable(address=address, reason=error.strerror) from None


def _check_greeting(address: LockAddress, frame: wire.Frame) -> None:
    match frame:
        case wire.Welcome(protocol=wire.PROTOCOL, version=wire.PROTOCOL_VERSION):
            return
        case wire.Welcome(version=version):
            raise LockVersionMismatch(address=address, server_version=version, own_version=wire.PROTOCOL_VERSION)
        case wire.Farewell(error=LockVersionMismatch() as error):
            raise LockVersionMismatch(
                address=address, server_version=error.server_version, own_version=wire.PROTOCOL_VERSION
            )
        case wire.Farewell(error=error):
            raise error
        case _:
            raise LockProtocolError(reason=f"{type(frame).__name__} in place of a greeting")


async def _receive(hub: MemberHub, link: Link) -> None:
    try:
        while frames := await link.receive():
            for frame in frames:
                if isinstance(frame, wire.Farewell):
                    hub.lose(str(frame.error))
                    return
                assert isinstance(frame, machine.Action)
                hub.deliver(frame)
        hub.lose(_GONE)
    except RaidfsError as error:
        hub.lose(str(error))
