"""The real client against the real server, over a real socket."""

from __future__ import annotations

import errno
import functools
import json
import os
import pathlib
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from support.memory_node import UUID, sample_status

from raidfs import errors
from raidfs.control import client, ownership, paths, server
from raidfs.control.protocol import REQUEST_BYTES_MAX, Hello

MOUNTPOINT = "/mnt/x"
HELLO = Hello(mountpoint=MOUNTPOINT, name="md0", uuid=UUID, pid=4711, version="0.1.0")


async def _status(params: dict[str, Any]) -> Any:
    return sample_status().to_json()


async def _echo(params: dict[str, Any]) -> Any:
    return {**params, "number": server.integer(params, "number")}


async def _refuse(params: dict[str, Any]) -> Any:
    raise errors.MountBusy(path=MOUNTPOINT)


async def _break(params: dict[str, Any]) -> Any:
    raise OSError(errno.EIO, "Input/output error")


async def _wait(params: dict[str, Any]) -> Any:
    await trio.sleep_forever()


METHODS: dict[str, server.Method] = {
    "status": _status,
    "echo": _echo,
    "refuse": _refuse,
    "break": _break,
    "wait": _wait,
}


@pytest.fixture
def files(runtime_directory: pathlib.Path) -> paths.NodePaths:
    return paths.node_paths(str(runtime_directory), MOUNTPOINT)


@pytest.fixture
async def serving(files: paths.NodePaths) -> AsyncIterator[server.ControlServer]:
    owned = ownership.acquire(files)
    assert owned is not None
    async with trio.open_nursery() as nursery:
        control = server.ControlServer(server.listen(files.socket), HELLO, METHODS)
        nursery.start_soon(control.run)
        yield control
        nursery.cancel_scope.cancel()
    owned.close()


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def test_a_client_is_greeted_and_answered(serving: server.ControlServer) -> None:
    def talk() -> Any:
        with client.find(MOUNTPOINT) as node:
            return node.hello, node.status(), node.call("echo", number=1), node.call("echo", number=2)

    assert await _in_thread(talk) == (HELLO, sample_status(), {"number": 1}, {"number": 2})


async def test_an_error_of_the_node_is_raised_at_the_client(serving: server.ControlServer) -> None:
    with await _in_thread(lambda: client.find(MOUNTPOINT)) as node:
        with pytest.raises(errors.MountBusy, match="is in use and stays mounted"):
            await _in_thread(lambda: node.call("refuse"))
        with pytest.raises(errors.StorageFailed, match="break failed: Input/output error; the node goes on"):
            await _in_thread(lambda: node.call("break"))
        with pytest.raises(errors.UnknownMethod, match="'grow'"):
            await _in_thread(lambda: node.call("grow"))
        with pytest.raises(errors.BadDocument, match=r"params\.number is not an integer"):
            await _in_thread(lambda: node.call("echo", number="1"))
        assert await _in_thread(lambda: node.call("echo", number=3)) == {"number": 3}


async def test_one_client_that_waits_keeps_nobody_else_waiting(serving: server.ControlServer) -> None:
    waiting = await _in_thread(lambda: client.find(MOUNTPOINT))
    with waiting:
        with pytest.raises(errors.NodeSilent, match="no answer in time"):
            await _in_thread(lambda: waiting.call("wait", timeout_s=0.05))
        clients = [await _in_thread(lambda: client.find(MOUNTPOINT)) for _ in range(20)]
        for number, other in enumerate(clients):
            assert await _in_thread(functools.partial(other.call, "echo", number=number)) == {"number": number}
            other.close()


async def test_more_clients_than_allowed_wait_for_their_turn(serving: server.ControlServer) -> None:
    clients = [await _in_thread(lambda: client.find(MOUNTPOINT)) for _ in range(server.CLIENTS_MAX)]
    async with trio.open_nursery() as nursery:

        async def one_more() -> None:
            with await _in_thread(lambda: client.find(MOUNTPOINT)) as late:
                assert late.hello == HELLO

        nursery.start_soon(one_more)
        await trio.testing.wait_all_tasks_blocked(0.02)
        clients.pop().close()
    for one in clients:
        one.close()


async def _said_to(socket_path: str, sent: bytes) -> list[Any]:
    # Everything that the server says until it closes, the greeting left out.
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        await raw.connect(socket_path)
        stream = trio.SocketStream(raw)
        await stream.send_all(sent)
        said = b""
        async for received in stream:
            said += received
    return [json.loads(line) for line in said.splitlines()[1:]]


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"hello\n", "JSON"),
        (b"\xff\xfe\n", "JSON"),
        (b"[" * 3000 + b"\n", "JSON"),
        (b"[]\n", "an object"),
        (b'{"id":"1","method":"status"}\n', "an integer"),
        (b'{"id":true,"method":"status"}\n', "an integer"),
        (b'{"id":1}\n', "a text"),
        (b'{"id":1,"method":"status","params":[]}\n', "an object"),
        (b"x" * (REQUEST_BYTES_MAX + 1), f"at most {REQUEST_BYTES_MAX} bytes long"),
    ],
)
async def test_nonsense_is_answered_and_ends_its_own_conversation_only(
    serving: server.ControlServer, files: paths.NodePaths, sent: bytes, wanted: str
) -> None:
    with paths.socket_address(files.socket) as address:
        (answer,) = await _said_to(address, sent)
    assert answer["id"] is None
    assert answer["failure"]["facts"]["wanted"] == wanted
    with await _in_thread(lambda: client.find(MOUNTPOINT)) as node:
        assert await _in_thread(lambda: node.call("echo", number=1)) == {"number": 1}


async def test_requests_sent_at_once_are_answered_in_order(
    serving: server.ControlServer, files: paths.NodePaths
) -> None:
    lines = b"".join(b'{"id":%d,"method":"echo","params":{"number":%d}}\n' % (n, n) for n in range(50))
    with paths.socket_address(files.socket) as address:
        said = await _said_to(address, lines + b"end\n")
    assert [answer["id"] for answer in said] == [*range(50), None]


async def test_a_client_that_hangs_up_harms_nobody(serving: server.ControlServer, files: paths.NodePaths) -> None:
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as raw, paths.socket_address(files.socket) as address:
            raw.connect(address)
            raw.send(b'{"id":1,"method":"status"}\n')
    with await _in_thread(lambda: client.find(MOUNTPOINT)) as node:
        assert await _in_thread(lambda: node.call("echo", number=1)) == {"number": 1}


async def test_only_the_owner_can_open_the_socket(serving: server.ControlServer, files: paths.NodePaths) -> None:
    assert os.stat(files.socket).st_mode & 0o777 == 0o600


@pytest.mark.root
@pytest.mark.slow
async def test_another_users_process_is_turned_away_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory(prefix="raidfs-") as directory:
        path = f"{directory}/socket"
        listener = server.listen(path)
        os.chmod(directory, 0o711)  # as if the modes had not kept them out
        os.chmod(path, 0o666)
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); print(s.recv(1))"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.ControlServer(listener, HELLO, METHODS).run)
            said = await trio.run_process(command, capture_stdout=True)
            nursery.cancel_scope.cancel()
    assert said.stdout == b"b''\n"
    assert "a process of another user was turned away" in caplog.text


async def test_the_server_is_idle_when_every_request_has_its_answer(serving: server.ControlServer) -> None:
    await serving.wait_idle()
    node = await _in_thread(lambda: client.find(MOUNTPOINT))
    with node, pytest.raises(errors.NodeSilent):
        await _in_thread(lambda: node.call("wait", timeout_s=0.05))
    with trio.move_on_after(0.02) as scope:
        await serving.wait_idle()
    assert scope.cancelled_caught


class TestDiscovery:
    def _all(self) -> tuple[list[str], list[errors.RaidfsError]]:
        failures: list[errors.RaidfsError] = []
        return [node.hello.mountpoint for node in client.find_all(failures.append)], failures

    async def test_a_living_node_is_found(self, serving: server.ControlServer) -> None:
        assert await _in_thread(self._all) == ([MOUNTPOINT], [])

    def test_where_no_node_is_none_is_found(self, runtime_directory: pathlib.Path) -> None:
        assert self._all() == ([], [])
        with pytest.raises(errors.NoNode, match="/mnt/x: no node of yours is mounted there"):
            client.find(MOUNTPOINT)

    def test_without_the_directory_too(self, runtime_directory: pathlib.Path) -> None:
        runtime_directory.rmdir()
        assert self._all() == ([], [])

    def test_the_socket_of_a_dead_node_is_removed(
        self, files: paths.NodePaths, runtime_directory: pathlib.Path
    ) -> None:
        server.listen(files.socket).close()
        assert self._all() == ([], [])
        assert os.listdir(runtime_directory) == []

    def test_the_socket_of_a_node_that_is_starting_stays(self, files: paths.NodePaths) -> None:
        owned = ownership.acquire(files)
        assert owned is not None
        server.listen(files.socket).close()
        assert self._all() == ([], [])
        assert os.path.exists(files.socket)
        owned.close()

    def test_a_directory_that_others_may_write_is_not_believed(
        self, files: paths.NodePaths, runtime_directory: pathlib.Path
    ) -> None:
        with server.listen(files.socket):
            runtime_directory.chmod(0o777)
            assert self._all() == ([], [])
            with pytest.raises(errors.NoNode):
                client.find(MOUNTPOINT)


class TestStrangeNodes:
    """What a client does with a peer that is not the node it expects."""

    @pytest.fixture
    def speak(self, files: paths.NodePaths) -> Iterator[Callable[[bytes], None]]:
        threads: list[threading.Thread] = []

        def speak_(said: bytes) -> None:
            listener = server.listen(files.socket)

            def run() -> None:
                with listener:
                    peer, _ = listener.accept()
                    with peer:
                        peer.sendall(said)

            threads.append(threading.Thread(target=run))
            threads[-1].start()

        yield speak_
        for thread in threads:
            thread.join()

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            (b"SSH-2.0\n", "the line is not JSON"),
            (b"{}\n", "hello is not an object"),
            (b'{"hello":{"mountpoint":"/"}}\n', r"hello\.name is not a value"),
            (
                b'{"hello":{"mountpoint":"/","name":"a","uuid":"u","pid":1,"version":"9","schema":2}}\n',
                r"hello\.schema is not 1",
            ),
        ],
    )
    def test_a_greeting_that_is_none(self, speak: Callable[[bytes], None], said: bytes, problem: str) -> None:
        speak(said)
        with pytest.raises(errors.BadDocument, match=problem):
            client.find(MOUNTPOINT)

    def test_an_answer_to_somebody_elses_question(self, speak: Callable[[bytes], None]) -> None:
        greeting = b'{"hello":{"mountpoint":"/","name":"a","uuid":"u","pid":1,"version":"9","schema":1,"new":0}}\n'
        speak(greeting + b'{"id":9,"result":null}\n')
        with client.find(MOUNTPOINT) as node, pytest.raises(errors.RaidfsError):
            node.call("status")

    def test_one_that_says_nothing_is_told_as_such_and_the_others_are_shown(
        self, files: paths.NodePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client.Client.__init__, "__kwdefaults__", {"timeout_s": 0.05})
        failures: list[errors.RaidfsError] = []
        with server.listen(files.socket):
            assert list(client.find_all(failures.append)) == []
        (failure,) = failures
        assert isinstance(failure, errors.NodeSilent)
        assert failure.log == files.log
