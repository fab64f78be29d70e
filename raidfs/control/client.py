"""The command line's end of the control socket: plain blocking sockets, so that a command starts fast."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from raidfs import errors
from raidfs.control import ownership, paths
from raidfs.control.protocol import ANSWER_BYTES_MAX, Hello, decode, decode_hello, encode
from raidfs.control.schema import NodeStatus

# A living daemon greets and answers at once: its loop does nothing that blocks. Requests that wait for I/O give their
# own time.
ANSWER_TIMEOUT_S = 10.0


class Client:
    """A conversation with one node. ``hello`` is its greeting; ``log`` names its log file for error messages.

    Raises FileNotFoundError or ConnectionRefusedError when nobody listens, NodeSilent when somebody does and says
    nothing, BadDocument when it is not a node of ours.
    """

    def __init__(self, socket_path: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.log = paths.paths_of_socket(socket_path).log
        self._where = socket_path
        self._last_id = 0
        self._buffered = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            with paths.socket_address(socket_path) as address:
                self._socket.connect(address)
            self.hello: Hello = decode_hello(self._line())
        except BaseException:
            self._socket.close()
            raise
        self._where = self.hello.mountpoint

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; a second call does nothing."""
        self._socket.close()

    def call(self, method: str, *, timeout_s: float | None = ANSWER_TIMEOUT_S, **params: Any) -> Any:
        """Ask and return the result. Raises the error that the node reports, or NodeSilent.

        ``timeout_s`` None waits for as long as it takes.
        """
        self._last_id += 1
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(encode({"id": self._last_id, "method": method, "params": params}))
        except OSError as error:
            raise errors.NodeSilent(path=self._where, reason=error.strerror, log=self.log) from error
        answer = decode(self._line())
        if "failure" in answer:
            raise errors.from_json(answer["failure"])
        if answer.get("id") != self._last_id or "result" not in answer:
            raise errors.BadDocument(where="the answer", wanted=f"that of request {self._last_id}")
        return answer["result"]

    def status(self) -> NodeStatus:
        """Return the node's status."""
        return NodeStatus.from_json(self.call("status"))

    def wait_closed(self, timeout_s: float | None) -> bool:
        """Return True once the node has closed the conversation, its very last act; False if not in time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True

    def _line(self) -> bytes:
        # One line from the node, without its newline.
        while b"\n" not in self._buffered:
            try:
                received = self._socket.recv(65536)
            except OSError as error:
                reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror
                raise errors.NodeSilent(path=self._where, reason=reason, log=self.log) from error
            if not received:
                raise errors.NodeSilent(path=self._where, reason="it closed the connection", log=self.log)
            self._buffered += received
            if len(self._buffered) > ANSWER_BYTES_MAX:
                raise errors.BadDocument(where="the answer", wanted=f"at most {ANSWER_BYTES_MAX} bytes long")
        line, _newline, self._buffered = self._buffered.partition(b"\n")
        return line


def find(mountpoint: str) -> Client:
    """Return a conversation with the node at ``mountpoint``. Raises NoNode when there is none of this user's."""
    canonical = paths.canonical_mountpoint(mountpoint)
    for directory in paths.search_directories():
        client = _connect(paths.node_paths(directory, canonical).socket)
        if client is not None:
            return client
    raise errors.NoNode(path=mountpoint)


def find_all(on_failure: Callable[[errors.RaidfsError], None]) -> Iterator[Client]:
    """Yield a conversation with each of this user's nodes on this machine, in the order of their sockets' names.

    Sockets of dead daemons are removed on the way; ``on_failure`` gets the error of a node that lives and cannot be
    talked to. The conversation is closed when the next one is asked for.
    """
    for directory in paths.search_directories():
        if not paths.is_trusted_directory(directory):
            continue
        for name in sorted(os.listdir(directory)):
            if not name.endswith(".sock"):
                continue
            try:
                client = _connect(os.path.join(directory, name))
            except errors.RaidfsError as error:
                on_failure(error)
                continue
            if client is not None:
                with client:
                    yield client


def _connect(socket_path: str) -> Client | None:
    # None when no living daemon has the socket. Root finds sockets of root only, as any user finds only their own.
    if not paths.is_trusted_directory(os.path.dirname(socket_path)):
        return None
    try:
        return Client(socket_path)
    except FileNotFoundError:
        return None
    except ConnectionRefusedError:
        ownership.remove_if_stale(paths.paths_of_socket(socket_path))
        return None
