"""Running commands in a machine: the host's side of ``guest/agent.py``, which tells the protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from lab.machine import Machine
from lab.shape import LabError

GREETING = b"RAIDFSLAB1\n"
STDIN, STDOUT, STDERR, STATUS = range(4)

TIMED_OUT = 124  # exit status, as that of timeout(1)

_READ_BYTES = 65536
_RECEIVE_BYTES = 262144
_CONNECT_S = 20.0
_PATIENCE_S = 0.5
_PATIENCE_MAX_S = 10.0
_AGAIN_S = 0.1

Sink = Callable[[bytes], object]


class WentAway(LabError):
    """The machine was switched off, or is stuck, while a command ran in it."""


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command left: its exit status (`TIMED_OUT` at the limit of time) and what it printed."""

    status: int
    out: str
    err: str


def connect(machine: Machine, port: int, timeout_s: float) -> socket.socket:
    """Return a connection to the machine's agent; LabError when the machine is off or does not answer in time."""
    end = time.monotonic() + timeout_s
    patience_s = _PATIENCE_S
    while True:
        if machine.pid is None:
            raise LabError(f"{machine} is off (see {machine.home}/qemu.log)")
        sock = socket.socket()
        # QEMU accepts even before the guest listens. So the greeting is waited for, and after a while asked for anew:
        # what was sent to a guest in the middle of its boot is not sent again soon.
        with contextlib.suppress(OSError):
            sock.settimeout(min(patience_s, max(_AGAIN_S, end - time.monotonic())))
            sock.connect(("127.0.0.1", port))
            if sock.recv(len(GREETING), socket.MSG_WAITALL) == GREETING:
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        sock.close()
        if time.monotonic() >= end:
            raise LabError(f"{machine} does not answer; its console is {machine.home}/console.log")
        patience_s = min(patience_s * 1.3, _PATIENCE_MAX_S)
        time.sleep(_AGAIN_S)


def execute(
    machine: Machine,
    port: int,
    words: Sequence[str],
    *,
    stdin: BinaryIO | None = None,
    stdout: Sink | None = None,
    stderr: Sink | None = None,
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
    detached_log: str | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run a command in the machine and return its exit status, `TIMED_OUT` when ``timeout_s`` are over.

    A command that is given up, by a timeout or since this process ends, is killed; with ``detached_log`` it goes on in
    any case, its output goes to that file of the machine, and its process number is its standard output here. Raises
    WentAway when the machine does, LabError when it does not answer at all.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with contextlib.closing(connect(machine, port, min(_CONNECT_S, timeout_s or _CONNECT_S))) as sock:
        request = {"argv": list(words), "env": environment, "cwd": directory, "detach": detached_log}
        sock.sendall(json.dumps(request, default=dict).encode() + b"\n")
        threading.Thread(target=_feed, args=(sock, stdin), daemon=True).start()
        try:
            return _listen(machine, sock, {STDOUT: stdout, STDERR: stderr}, end)
        except TimeoutError:
            return TIMED_OUT


def run(
    machine: Machine,
    port: int,
    words: Sequence[str],
    *,
    stdin: BinaryIO | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Said:
    """Run a command as `execute` and return all that it said."""
    out, err = bytearray(), bytearray()
    status = execute(
        machine,
        port,
        words,
        stdin=stdin,
        stdout=out.extend,
        stderr=err.extend,
        environment=environment,
        timeout_s=timeout_s,
    )
    return Said(status, out.decode(errors="replace"), err.decode(errors="replace"))


def _feed(sock: socket.socket, stdin: BinaryIO | None) -> None:
    with contextlib.suppress(OSError):
        while stdin is not None and (data := os.read(stdin.fileno(), _READ_BYTES)):
            sock.sendall(struct.pack(">BI", STDIN, len(data)) + data)
        sock.sendall(struct.pack(">BI", STDIN, 0))


def _listen(machine: Machine, sock: socket.socket, sinks: Mapping[int, Sink | None], end: float | None) -> int:
    data = b""
    while True:
        while len(data) < 5 or len(data) < 5 + struct.unpack(">I", data[1:5])[0]:
            if end is not None:
                sock.settimeout(max(0.01, end - time.monotonic()))
            more = b""
            with contextlib.suppress(ConnectionError):
                more = sock.recv(_RECEIVE_BYTES)
            if not more:
                raise WentAway(f"{machine} went away")
            data += more
        kind, length = struct.unpack(">BI", data[:5])
        payload, data = data[5 : 5 + length], data[5 + length :]
        if kind == STATUS:
            return int(struct.unpack(">i", payload)[0])
        sink = sinks.get(kind)
        if sink is not None:
            sink(payload)
