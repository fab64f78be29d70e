from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import raidfs.lock.link
from raidfs import errors
from raidfs.errors import (
    LockClientRefused,
    LockClientTooSlow,
    LockProtocolError,
    LockServerFull,
    LockServerUnreachable,
    LockServerUntrusted,
    LockspaceLost,
    LockVersionMismatch,
)
from raidfs.lock import client, machine, server, wire
from raidfs.lock.address import LockAddress
from raidfs.lock.api import Mode
from raidfs.lock.client import connected
from raidfs.lock.link import Link
from raidfs.lock.listen import bound_listener
from raidfs.lock.member import MemberLockspace
from raidfs.lock.server import FIRST_CLIENT_S, HELLO_S, LockServer
from raidfs.runtime import TrioRuntime

NL, CR, CW, PR, PW, EX = Mode
NOBODY = 65534
_numbers = itertools.count()


@pytest.fixture
def address() -> LockAddress:
    return LockAddress(f"raidfs-test-server/{os.getpid()}/{next(_numbers)}", abstract=True)


@pytest.fixture
def listener(address: LockAddress) -> Iterator[socket.socket]:
    with bound_listener(address) as sock:
        yield sock


@pytest.fixture
async def lock_server(listener: socket.socket) -> AsyncIterator[LockServer]:
    async with trio.open_nursery() as nursery:
        running = LockServer()
        nursery.start_soon(running.serve, listener)
        yield running
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def raw(address: LockAddress, *, greet: bool = True) -> AsyncIterator[Link]:
    """A connection that says what the test wants."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address.sockaddr)
    link = Link(sock, wire.server_frames())
    try:
        if greet:
            link.send(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION))
            link.flush()
            (welcome,) = await link.receive()
            assert isinstance(welcome, wire.Welcome)
        yield link
    finally:
        leave(link)


def leave(link: Link) -> None:
    """End a raw connection as a client does that knows of its loss; its process, the test, goes on."""
    link._unsent.clear()
    link.send(wire.Bye())
    link.flush()
    link.close()


async def farewell(link: Link) -> errors.RaidfsError:
    with trio.fail_after(10):
        while frames := await link.receive():
            for frame in frames:
                if isinstance(frame, wire.Farewell):
                    return frame.error
    raise AssertionError("the server ended the connection without a word")


HOSTILE = {
    "a frame that is no JSON": b"\0\0\0\2{{",
    "a frame that is too long": b"\xff\xff\xff\xff",
    "a second greeting": wire.encode(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION)),
    "a query of a lock space that was not joined": wire.encode(machine.Query(9, 1)),
    "a member's number that would be another client's": wire.encode(machine.Query((1 << 16) + 1, 1)),
}


@pytest.mark.parametrize("hostility", HOSTILE)
async def test_a_client_that_breaks_the_protocol_is_ended_alone(
    lock_server: LockServer, address: LockAddress, hostility: str
) -> None:
    async with raw(address) as link, connected(address, runtime=TrioRuntime()) as manager:
        space = await manager.open_lockspace("space", cluster_name="c", client="good")
        lock = await space.lock("r")
        link.send(machine.Open(1, 1, "space", "c", "bad"))
        link.send(machine.Request(1, 2, 1, "r", NL, noqueue=False, expedite=True, blocking=False))
        link.send(machine.Convert(1, 3, 1, EX, False, None))
        link.flush()
        await link.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.convert, PR)
            await wait_all_tasks_blocked(0.01)
            assert lock.mode is NL
            link._sock.send(HOSTILE[hostility])
            assert isinstance(await farewell(link), LockProtocolError)
            await wait_all_tasks_blocked(0.01)
            assert lock.mode is NL, "what an evicted client held is not free before it knows"
            leave(link)
        assert lock.mode is PR
        assert not lock.lvb_valid
        assert lock_server.statistics().evicted_total == 1


async def test_what_came_before_the_bad_frame_in_one_packet_is_told_to_others(
    lock_server: LockServer, address: LockAddress
) -> None:
    async with connected(address, runtime=TrioRuntime()) as manager, raw(address) as link:
        space = await manager.open_lockspace("space", cluster_name="c", client="good")
        lock = await space.lock("r")
        link.send(machine.Open(1, 1, "space", "c", "bad"))
        link.send(machine.Request(1, 2, 1, "r", NL, noqueue=False, expedite=True, blocking=False))
        link.send(machine.Convert(1, 3, 1, EX, False, None))
        link.flush()
        await link.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.convert, PR)
            await wait_all_tasks_blocked(0.01)
            link._sock.send(wire.encode(machine.Convert(1, 4, 1, NL, False, bytes(32))) + b"\xff\xff\xff\xff")
            assert isinstance(await farewell(link), LockProtocolError)
        assert lock.lvb_valid


async def test_a_client_that_does_not_read_is_evicted_and_the_others_go_on(
    lock_server: LockServer, address: LockAddress
) -> None:
    async with connected(address, runtime=TrioRuntime()) as manager, raw(address) as link:
        space = await manager.open_lockspace("space", cluster_name="c", client="good")
        for number in range(300):
            await space.lock(f"resource {number}")
        held = await space.lock("held")
        link.send(machine.Open(1, 1, "space", "c", "slow"))
        link.send(machine.Request(1, 2, 1, "held", NL, noqueue=False, expedite=True, blocking=True))
        link.send(machine.Convert(1, 3, 1, CR, False, None))
        tag = 3
        with trio.fail_after(10):
            while not lock_server.statistics().evicted_total:
                tag += 1
                link.send(machine.Query(1, tag))
                link.flush()
                await wait_all_tasks_blocked(0.001)
        assert len(await space.query()) == 301
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.convert, EX)
            await wait_all_tasks_blocked(0.01)
            assert held.mode is NL
            with trio.fail_after(10):
                while await link.receive():
                    pass  # when it reads again it comes to the end of the stream
            leave(link)
        assert held.mode is EX


async def test_an_answer_that_the_socket_does_not_take_at_once_arrives_whole(
    lock_server: LockServer, address: LockAddress
) -> None:
    async with connected(address, runtime=TrioRuntime()) as manager:
        space = await manager.open_lockspace("space", cluster_name="c", client="x" * 500)
        lock = await space.lock("r")
        for _ in range(1000):
            await space.lock("r")
        with trio.fail_after(10):
            (resource,) = await space.query()
        assert len(resource.locks) == 1001
        await lock.convert(EX)


async def test_a_stopped_server_does_not_wait_for_clients_that_hang(
    listener: socket.socket, address: LockAddress
) -> None:
    running = LockServer()
    async with raw(address, greet=False) as link:
        link.send(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION))
        link.send(machine.Open(1, 1, "space", "c", "hangs"))
        link.flush()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.serve, listener)
                await wait_all_tasks_blocked(0.01)
                assert running.statistics().machine.members == 1
                running.stop("SIGTERM")


async def test_a_server_that_waits_for_the_end_of_a_process_can_be_stopped(
    listener: socket.socket, address: LockAddress
) -> None:
    running = LockServer()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.serve, listener)
            async with raw(address) as link:
                link.send(machine.Open(1, 1, "space", "c", "hangs up without a word, and its process lives"))
                link.flush()
                await link.receive()
                link.close()
            await wait_all_tasks_blocked(0.01)
            assert running.statistics().clients == 1
            assert running.statistics().machine.members == 1
            running.stop("SIGTERM")


async def test_what_a_stopped_client_holds_stays_held_until_its_process_has_ended(
    lock_server: LockServer, address: LockAddress
) -> None:
    """A client that is evicted while it is stopped would go on writing when it is continued."""
    program = Path(__file__).with_name("client_program.py")
    environment = {**os.environ, "PYTHONPATH": str(program.parents[2])}
    async with connected(address, runtime=TrioRuntime()) as manager:
        space = await manager.open_lockspace("space", cluster_name="c", client="good")
        lock = await space.lock("r")
        process = await trio.lowlevel.open_process(
            [sys.executable, program, str(address), "space", "c"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"convert r EX -\n")
        text = b""
        while b"EX" not in text:
            text += await process.stdout.receive_some()
        process.send_signal(signal.SIGSTOP)
        (stopped,) = [one for one in lock_server._clients.values() if one.pid == process.pid]
        lock_server._end(stopped, LockClientTooSlow(unread_bytes=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.convert, PR)
            await wait_all_tasks_blocked(0.05)
            assert lock.mode is NL
            process.kill()
        assert lock.mode is PR
        assert not lock.lvb_valid
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()


async def test_a_server_that_ends_grants_nothing_to_anybody(listener: socket.socket, address: LockAddress) -> None:
    running = LockServer()
    granted: list[int] = []

    async def hold(number: int, space: MemberLockspace) -> None:
        lock = await space.lock("r")
        with contextlib.suppress(LockspaceLost):
            await lock.convert(EX)
            granted.append(number)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        nursery.start_soon(running.serve, listener)
        spaces = []
        for number in range(5):
            manager = await stack.enter_async_context(connected(address, runtime=TrioRuntime()))
            spaces.append(await manager.open_lockspace("space", cluster_name="c", client=f"c{number}"))
            nursery.start_soon(hold, number, spaces[-1])
        await wait_all_tasks_blocked(0.01)
        running.stop("SIGTERM")
        for space in spaces:
            await space.wait_lost()
        assert granted == [0]
        nursery.cancel_scope.cancel()


async def test_a_client_of_another_version_is_told_both_versions(lock_server: LockServer, address: LockAddress) -> None:
    async with raw(address, greet=False) as link:
        link.send(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION + 1))
        link.flush()
        error = await farewell(link)
    assert isinstance(error, LockVersionMismatch)
    assert f"version {wire.PROTOCOL_VERSION}, " in str(error)
    assert f"speaks {wire.PROTOCOL_VERSION + 1};" in str(error)


OTHER_SERVERS: dict[str, tuple[wire.Frame, type[errors.RaidfsError], str]] = {
    "a newer one": (wire.Welcome(wire.PROTOCOL, 7, 1), LockVersionMismatch, "speaks protocol version 7"),
    "a newer one that refuses": (
        wire.Farewell(LockVersionMismatch(address="this socket", server_version=7, own_version=1)),
        LockVersionMismatch,
        "speaks protocol version 7",
    ),
    "one that is full": (wire.Farewell(LockServerFull(clients=9)), LockServerFull, "9 clients"),
    "something else": (machine.Done(1, 1), LockProtocolError, "Done in place of a greeting"),
}


@pytest.mark.parametrize("other", OTHER_SERVERS)
async def test_a_server_that_cannot_be_used_says_why(listener: socket.socket, address: LockAddress, other: str) -> None:
    frame, kind, words = OTHER_SERVERS[other]
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            accepted, _ = listener.accept()
            accepted.sendall(wire.encode(frame))
            accepted.close()

        nursery.start_soon(answer)
        with pytest.raises(kind, match=words) as caught:
            await client.greet(address)
        assert "this socket" not in str(caught.value)


async def test_a_client_that_says_something_else_first_is_ended(lock_server: LockServer, address: LockAddress) -> None:
    async with raw(address, greet=False) as link:
        link.send(machine.Query(1, 1))
        link.flush()
        assert isinstance(await farewell(link), LockProtocolError)


async def test_a_client_that_says_nothing_is_dropped(
    lock_server: LockServer, address: LockAddress, autojump_clock: MockClock
) -> None:
    async with raw(address, greet=False) as link:
        assert await link.receive() == []
    assert trio.current_time() == pytest.approx(HELLO_S)


async def test_one_client_too_many_is_told_the_limit(
    lock_server: LockServer, address: LockAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 1)
    async with connected(address, runtime=TrioRuntime()):
        with pytest.raises(LockServerFull):
            await client.greet(address)
    await wait_all_tasks_blocked(0.01)
    async with connected(address, runtime=TrioRuntime()):
        pass


async def test_a_client_that_cannot_be_watched_for_want_of_descriptors_is_not_let_in(
    lock_server: LockServer, address: LockAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(link: Link) -> int | None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Link, "peer_pidfd", exhausted)
        with pytest.raises(LockServerFull):
            await client.greet(address)
    async with connected(address, runtime=TrioRuntime()):
        pass


@pytest.mark.parametrize("number", [None, errno.EMFILE])
def test_without_the_newer_way_a_process_is_watched_by_its_number(
    monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(raidfs.lock.link, "_SO_PEERPIDFD", 9999)  # ENOPROTOOPT
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pidfd = Link(ours, wire.client_frames()).peer_pidfd()
        assert pidfd is not None
        os.close(pidfd)
        if number is not None:
            monkeypatch.setattr(os, "pidfd_open", lambda pid: _fail(number))
            with pytest.raises(OSError, match="Too many"):
                Link(ours, wire.client_frames()).peer_pidfd()
        else:
            monkeypatch.setattr(os, "pidfd_open", lambda pid: _fail(errno.ESRCH))
            assert Link(ours, wire.client_frames()).peer_pidfd() is None


def _fail(number: int) -> int:
    raise OSError(number, os.strerror(number))


async def test_a_stopped_server_tells_its_clients_why(listener: socket.socket, address: LockAddress) -> None:
    running = LockServer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.serve, listener)
        async with connected(address, runtime=TrioRuntime()) as manager:
            space = await manager.open_lockspace("space", cluster_name="c", client="x")
            running.stop("SIGTERM")
            assert "SIGTERM" in await space.wait_lost()
            with pytest.raises(LockspaceLost, match="SIGTERM"):
                await space.lock("r")


async def test_an_idle_server_ends_when_its_last_client_has_left(
    listener: socket.socket, address: LockAddress, nursery: trio.Nursery
) -> None:
    running = LockServer()
    with trio.fail_after(5):
        async with trio.open_nursery() as inner:
            inner.start_soon(lambda: running.serve(listener, exit_when_idle=True))
            async with connected(address, runtime=TrioRuntime()):
                async with connected(address, runtime=TrioRuntime()):
                    pass
                await wait_all_tasks_blocked(0.01)
                assert running.statistics().clients == 1
    with pytest.raises(LockServerUnreachable):
        await client.greet(address)


async def test_a_stray_connection_does_not_end_a_server_that_waits_for_its_first_client(
    listener: socket.socket, address: LockAddress
) -> None:
    running = LockServer()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: running.serve(listener, exit_when_idle=True))
            async with raw(address, greet=False):
                await wait_all_tasks_blocked(0.01)
            await wait_all_tasks_blocked(0.01)
            async with connected(address, runtime=TrioRuntime()):
                pass
    assert running.statistics().clients_total == 2


async def test_a_server_that_nobody_comes_to_ends_after_a_while(
    listener: socket.socket, autojump_clock: MockClock
) -> None:
    await LockServer().serve(listener, exit_when_idle=True)
    assert trio.current_time() == pytest.approx(FIRST_CLIENT_S)


async def test_a_connection_in_the_backlog_keeps_an_idle_server(
    listener: socket.socket, address: LockAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client connects in the very moment in which the server finds itself without one."""
    running = LockServer()
    right = LockServer._bury
    late = Link(socket.socket(socket.AF_UNIX), wire.server_frames())

    def bury(self: LockServer, gone: server._Client) -> None:
        right(self, gone)
        monkeypatch.undo()
        late._sock.connect(address.sockaddr)

    monkeypatch.setattr(LockServer, "_bury", bury)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: running.serve(listener, exit_when_idle=True))
            (await client.greet(address)).close()
            await wait_all_tasks_blocked(0.01)
            late.send(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION))
            late.flush()
            (welcome,) = await late.receive()
            assert isinstance(welcome, wire.Welcome)
            late.close()


async def test_nobody_at_the_address_is_told_with_the_way_to_start_a_server(address: LockAddress) -> None:
    with pytest.raises(LockServerUnreachable, match="raidfs lockd --listen abstract:") as caught:
        await client.greet(address)
    assert "Connection refused" in str(caught.value)


async def test_a_server_that_hangs_up_or_hangs_before_its_greeting_is_unreachable(
    listener: socket.socket, address: LockAddress, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:

        async def hang_up() -> None:
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            listener.accept()[0].close()

        nursery.start_soon(hang_up)
        with pytest.raises(LockServerUnreachable, match="before its greeting"):
            await client.greet(address)
    with pytest.raises(LockServerUnreachable, match="no greeting within"):
        await client.greet(address)


# ---- other users ---------------------------------------------------------------------------------------------

_GREETER = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect("\\0" + sys.argv[1])
try: s.sendall(bytes.fromhex(sys.argv[2]))
except BrokenPipeError: pass  # refused already; the reason is there to be read
sys.stdout.write(s.recv(4096)[4:].decode())
"""

_IMPOSTOR = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind("\\0" + sys.argv[1]); s.listen(); print("ready", flush=True)
c, _ = s.accept(); c.recv(4096); c.sendall(bytes.fromhex(sys.argv[2])); c.recv(4096)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("allowed", [False, True])
async def test_another_user_is_served_only_when_allowed(
    listener: socket.socket, address: LockAddress, allowed: bool
) -> None:
    hello = wire.encode(wire.Hello(wire.PROTOCOL, wire.PROTOCOL_VERSION)).hex()
    async with trio.open_nursery() as nursery:
        running = LockServer(allow_uids=[NOBODY] if allowed else [])
        nursery.start_soon(running.serve, listener)
        done = await trio.run_process(
            [SYSTEM_PYTHON, "-c", _GREETER, address.path, hello], user=NOBODY, capture_stdout=True
        )
        nursery.cancel_scope.cancel()
    if allowed:
        assert b"Welcome" in done.stdout
    else:
        assert b"LockClientRefused" in done.stdout
        assert f"--allow-uid {NOBODY}".encode() in done.stdout


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("trusted", [False, True])
async def test_a_server_of_another_user_is_used_only_when_trusted(address: LockAddress, trusted: bool) -> None:
    welcome = wire.encode(wire.Welcome(wire.PROTOCOL, wire.PROTOCOL_VERSION, 1)).hex()
    command = [SYSTEM_PYTHON, "-c", _IMPOSTOR, address.path, welcome]
    impostor = await trio.lowlevel.open_process(command, user=NOBODY, stdout=subprocess.PIPE)
    assert impostor.stdout is not None
    try:
        assert (await impostor.stdout.receive_some()).startswith(b"ready")
        if trusted:
            (await client.greet(address, trusted_uids=[NOBODY])).close()
        else:
            with pytest.raises(LockServerUntrusted, match=str(NOBODY)):
                await client.greet(address)
    finally:
        impostor.kill()
        with trio.CancelScope(shield=True):
            await impostor.wait()
            await impostor.stdout.aclose()


def test_the_reasons_for_an_end_say_what_to_do() -> None:
    assert "unread" in str(LockClientTooSlow(unread_bytes=1))
    assert "--allow-uid 7" in str(LockClientRefused(uid=7))
