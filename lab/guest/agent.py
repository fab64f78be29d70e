"""Runs commands in a machine of a lab for the host (`lab.agent` is the other side).

One TCP connection is one command. The agent greets with ``RAIDFSLAB1\\n``; the host sends one line of JSON with argv,
env, cwd and detach; from then on both send frames of a type byte, a length in 4 bytes (big-endian) and the payload.
To the command: 0 standard input, empty at its end. From it: 1 standard output, 2 standard error, 3 the exit status,
which is the last. When the host goes away the command's process group is killed, unless it was asked for with
``detach``, which is answered with its process number at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from typing import IO, Any

PORT = 7070
GREETING = b"RAIDFSLAB1\n"
GRACE_S = 1.0  # for a grandchild that holds the command's output
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "USER": "root",
    "LOGNAME": "root",
}


class Conversation:
    """One command and its connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb")
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Read the request, run it, send what it says."""
        self._sock.sendall(GREETING)
        line = self._stream.readline()
        if not line:
            return
        request = json.loads(line)
        environment = {**ENVIRONMENT, **(request.get("env") or {})}
        start: dict[str, Any] = {"env": environment, "cwd": request.get("cwd") or "/root", "start_new_session": True}
        words = request["argv"]
        try:
            if request.get("detach"):
                with open(request["detach"], "ab") as log:
                    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **start)
                self._send(1, b"%d\n" % child.pid)
                self._send(3, struct.pack(">i", 0))
                threading.Thread(target=child.wait, daemon=True).start()
                return
            pipe = subprocess.PIPE
            child = subprocess.Popen(words, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, **start)
        except OSError as error:
            self._send(2, f"{words[0]}: {error.strerror}\n".encode())
            self._send(3, struct.pack(">i", 127))
            return
        self._accompany(child)

    def _accompany(self, child: subprocess.Popen[bytes]) -> None:
        threading.Thread(target=self._hear, args=(child,), daemon=True).start()
        assert child.stdout is not None
        assert child.stderr is not None
        pumps = [
            threading.Thread(target=self._pump, args=(pipe, kind), daemon=True)
            for kind, pipe in ((1, child.stdout), (2, child.stderr))
        ]
        for pump in pumps:
            pump.start()
        status = child.wait()
        for pump in pumps:
            pump.join(GRACE_S)
        self._send(3, struct.pack(">i", status if status >= 0 else 128 - status))

    def _hear(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        try:
            while True:
                _, size = struct.unpack(">BI", self._exactly(5))
                if size == 0:
                    child.stdin.close()
                    continue
                data = self._exactly(size)
                with contextlib.suppress(OSError, ValueError):
                    child.stdin.write(data)
        except (OSError, EOFError):
            if child.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _pump(self, pipe: IO[bytes], kind: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(pipe.fileno(), 65536):
                self._send(kind, data)

    def _send(self, kind: int, data: bytes) -> None:
        with self._lock:
            self._sock.sendall(struct.pack(">BI", kind, len(data)) + data)


def serve(sock: socket.socket) -> None:
    """Hold one conversation; whatever goes wrong in it ends it."""
    with contextlib.closing(sock), contextlib.suppress(OSError, ValueError):
        Conversation(sock).hold()
        sock.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve for ever."""
    server = socket.create_server(("0.0.0.0", PORT), backlog=64)
    while True:
        sock, _ = server.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
