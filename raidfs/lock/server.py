"""The embedded lock server: one lock machine behind a listening unix socket, on trio.

One connection is one client, which may join several lock spaces. There is one machine and one thread, so every event is
carried out whole, and the answers of a batch of events leave in one write for each client.

When is a client dead? When it said so (`wire.Bye`), or when its connection has ended *and* its process too. A
client that was evicted, or that hung up without a word, may be stopped, and would write to the images as soon as it is
continued; so its locks stay as they are until its process has ended (pidfd_open(2)). For a process that was killed
that takes no time worth speaking of. Then its locks are purged, and what they stood in the way of is granted.

A server that ends grants nothing any more: its clients learn of the loss one after the other, and none of them may
get what another still believes to hold.

When an idle server ends (``exit_when_idle``) it stops listening first. A connection that came too late is
reset before it got a `wire.Welcome`; whoever has a Welcome is a client, and a server with clients is not idle.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Collection, Iterable

import trio

from raidfs.errors import (
    LockClientRefused,
    LockClientTooSlow,
    LockProtocolError,
    LockServerFull,
    LockServerStopped,
    LockVersionMismatch,
    RaidfsError,
)
from raidfs.lock import machine, wire
from raidfs.lock.link import Link

log = logging.getLogger(__name__)

# Each takes two descriptors, and 1024 is what a process has where nobody raised it. An array has 255 slots at most.
CLIENTS_MAX = 400

# Members of one client: a node joins one lock space.
MEMBERS_PER_CLIENT_MAX = 1 << 16

# A client that says nothing: it was accepted by the kernel when we were busy, or it is not one of ours.
HELLO_S = 10.0

# Without a file descriptor for another client there is nothing to do but to look again later.
ACCEPT_AGAIN_S = 0.1

# An idle server waits so long for its first client, which may still be starting up on a loaded host.
FIRST_CLIENT_S = 10.0


@dataclasses.dataclass(frozen=True)
class ServerStatistics:
    """What the server has seen and keeps: clients now and ever, events ever, evicted clients, the machine's figures."""

    clients: int
    clients_total: int
    events_total: int
    evicted_total: int
    machine: machine.MachineStatistics


class _Client:
    def __init__(self, number: int, link: Link) -> None:
        self.number = number
        self.link = link
        self.scope = trio.CancelScope()
        self.members: list[int] = []  # those that have joined and not left, as the machine knows them
        self.evicted: RaidfsError | None = None
        self.said_bye = False
        self.pid = link.peer_pid
        self._pidfd = link.peer_pidfd()

    # The kernel makes the descriptor readable when the process with all its threads has ended.
    async def process_ended(self) -> None:
        if self._pidfd is not None:
            await trio.lowlevel.wait_readable(self._pidfd)

    def close(self) -> None:
        self.link.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class LockServer:
    """A lock server; `serve` runs it on a socket that listens already.

    ``cluster_name`` fixes the cluster of all lock spaces, None leaves it to the first member of each. Root, the
    server's own user and ``allow_uids`` may connect.
    """

    def __init__(self, *, cluster_name: str | None = None, allow_uids: Collection[int] = ()) -> None:
        self._machine = machine.LockMachine(cluster_name)
        self._uids = frozenset({0, os.geteuid(), *allow_uids})
        self._clients: dict[int, _Client] = {}
        self._clients_total = 0
        self._events_total = 0
        self._evicted_total = 0
        self._served = False  # whether any client was ever welcomed
        self._accepting = trio.CancelScope()
        self._stopped: RaidfsError | None = None

    def statistics(self) -> ServerStatistics:
        """Return what the server has seen and keeps."""
        return ServerStatistics(
            clients=len(self._clients),
            clients_total=self._clients_total,
            events_total=self._events_total,
            evicted_total=self._evicted_total,
            machine=self._machine.statistics(),
        )

    async def serve(
        self, listener: socket.socket, *, exit_when_idle: bool = False, first_client_s: float = FIRST_CLIENT_S
    ) -> None:
        """Serve until `stop`, or until the last client has left when ``exit_when_idle``; closes ``listener``."""
        listener.setblocking(False)
        first_client_by = trio.current_time() + first_client_s
        try:
            async with trio.open_nursery() as nursery:
                while self._stopped is None:
                    patient = self._clients or not exit_when_idle
                    self._accepting = trio.CancelScope(deadline=float("inf") if patient else first_client_by)
                    with self._accepting:
                        await trio.lowlevel.wait_readable(listener)
                    # Also when cancelled: the kernel may hold connections that came meanwhile, and they are clients.
                    if not self._accept_all(listener, nursery):
                        await trio.sleep(ACCEPT_AGAIN_S)
                    served_or_late = self._served or trio.current_time() >= first_client_by
                    if exit_when_idle and not self._clients and served_or_late:
                        break
                listener.close()
                for client in list(self._clients.values()):
                    self._end(client, self._stopped)
        finally:
            listener.close()

    def stop(self, signal: str) -> None:
        """End: every client is told that ``signal`` stopped the server."""
        self._stopped = LockServerStopped(signal=signal)
        self._accepting.cancel()

    # Returns whether all connections that wait were accepted.
    def _accept_all(self, listener: socket.socket, nursery: trio.Nursery) -> bool:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:  # the peer has gone already, or there is no file descriptor to be had
                log.warning("a connection could not be accepted: %s", error.strerror)
                return False
            link = Link(sock, wire.client_frames())
            try:
                client = _Client(self._clients_total + 1, link)
            except OSError as error:  # one that could not be watched to its end is not let in
                log.warning("a connection was refused: %s", error.strerror)
                _say_farewell(link, LockServerFull(clients=len(self._clients)))
                link.close()
                return False
            self._clients_total += 1
            refusal = self._refusal(client)
            if refusal is not None:
                log.warning("a connection was refused: %s", refusal)
                _say_farewell(client.link, refusal)
                client.close()
                continue
            self._clients[client.number] = client
            nursery.start_soon(self._serve_client, client)

    def _refusal(self, client: _Client) -> RaidfsError | None:
        uid = client.link.peer_uid
        if uid not in self._uids:
            return LockClientRefused(uid=uid)
        if len(self._clients) >= CLIENTS_MAX:
            return LockServerFull(clients=CLIENTS_MAX)
        return None

    async def _serve_client(self, client: _Client) -> None:
        try:
            with client.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.link.write_later)
                    await self._receive(client)
                    nursery.cancel_scope.cancel()
            if client.evicted is not None:
                _say_farewell(client.link, client.evicted)
            # A new scope, for the wait may be long, and a server that is stopped in it must not end it by a burial.
            client.scope = trio.CancelScope()
            if self._stopped is None:
                with client.scope:
                    await self._until_dead(client)
                    self._bury(client)
        finally:
            client.close()
            del self._clients[client.number]
            if not self._clients:
                self._accepting.cancel()

    async def _until_dead(self, client: _Client) -> None:
        if client.evicted is not None and client.members:
            client.link.finish()
            client.said_bye = await client.link.last_word()
        client.link.close()
        if client.members and not client.said_bye:
            log.warning("client %d is gone; waiting for the end of process %d", client.number, client.pid)
            await client.process_ended()

    async def _receive(self, client: _Client) -> None:
        try:
            with trio.move_on_after(HELLO_S) as waiting_for_hello:
                frames = await client.link.receive()
            if waiting_for_hello.cancelled_caught or not frames:
                return
            self._greet(client, frames[0])
            frames = frames[1:]
            while True:
                self._carry_out_all(client, frames)
                if client.said_bye:
                    return
                frames = await client.link.receive()
                if not frames:
                    return
        except (LockProtocolError, LockVersionMismatch) as error:
            self._end(client, error)

    def _greet(self, client: _Client, frame: wire.Frame) -> None:
        if not isinstance(frame, wire.Hello) or frame.protocol != wire.PROTOCOL:
            raise LockProtocolError(reason="the first frame is no greeting")
        if frame.version != wire.PROTOCOL_VERSION:
            raise LockVersionMismatch(
                address="this socket", server_version=wire.PROTOCOL_VERSION, own_version=frame.version
            )
        self._served = True
        client.link.send(wire.Welcome(wire.PROTOCOL, wire.PROTOCOL_VERSION, os.getpid()))

    # Answers are written once for the whole batch, also those before a frame that ends this client.
    def _carry_out_all(self, client: _Client, frames: Iterable[wire.Frame]) -> None:
        touched = {client.number: client}
        try:
            for frame in frames:
                if isinstance(frame, wire.Bye):
                    client.said_bye = True
                    return
                self._carry_out(self._event(client, frame), touched)
        finally:
            _flush(touched.values())

    # The machine's event for a frame, the member numbered as the machine knows it.
    def _event(self, client: _Client, frame: wire.Frame) -> machine.Event:
        if not isinstance(frame, machine.Event) or isinstance(frame, machine.Died):
            raise LockProtocolError(reason=f"{type(frame).__name__} in place of a request")
        if frame.member >= MEMBERS_PER_CLIENT_MAX:
            raise LockProtocolError(reason=f"a member numbered {frame.member}")
        number = client.number * MEMBERS_PER_CLIENT_MAX + frame.member
        if isinstance(frame, machine.Open):
            client.members.append(number)
        elif isinstance(frame, machine.Close) and number in client.members:
            client.members.remove(number)
        return frame._replace(member=number)

    def _carry_out(self, event: machine.Event, touched: dict[int, _Client]) -> None:
        self._events_total += 1
        for action in self._machine.step(event, trio.current_time()):
            number, member = divmod(action.member, MEMBERS_PER_CLIENT_MAX)
            client = self._clients.get(number)
            if client is None or client.evicted is not None:
                continue
            touched[number] = client
            if not client.link.send(action._replace(member=member)):
                self._end(client, LockClientTooSlow(unread_bytes=client.link.unread_bytes))

    # Ends one client, now or as soon as its task runs.
    def _end(self, client: _Client, error: RaidfsError | None) -> None:
        if client.evicted is None and error is not None:
            self._evicted_total += 1
            log.warning("client %d is ended: %s", client.number, error)
            client.evicted = error
        client.scope.cancel()

    def _bury(self, client: _Client) -> None:
        touched: dict[int, _Client] = {}
        for member in client.members:
            self._carry_out(machine.Died(member), touched)
        _flush(touched.values())


def _say_farewell(link: Link, error: RaidfsError) -> None:
    link.send(wire.Farewell(error))
    link.flush()


def _flush(clients: Iterable[_Client]) -> None:
    for client in clients:
        client.link.flush()
