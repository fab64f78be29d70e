"""Nodes that are mounted for real, whatever is behind them.

`Memory` serves a bytearray by the production daemon; `Array` goes the user's way: ``raidfs create``, ``raidfs mount``.
Tests that run over both say what the FUSE side promises whoever implements the volume.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raidfs.control import client
from raidfs.control.schema import NodeStatus
from raidfs.mount import mountpoint

SIZE_BYTES = 64 << 20

_TESTS = pathlib.Path(__file__).parent.parent
_DEADLINE_S = 30.0


def raidfs(*words: str | pathlib.Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does and return what it said."""
    return subprocess.run(
        [sys.executable, "-m", "raidfs", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=_TESTS.parent,
        env={**os.environ, **(env or {})},
    )


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of ``condition``, looked at until a deadline: for what another process does."""
    deadline = time.monotonic() + _DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return value


def is_mounted(path: pathlib.Path) -> bool:
    return mountpoint.mount_at(str(path)) is not None


@dataclasses.dataclass(frozen=True)
class Node:
    """A mounted node: its directory, its block file and the process that serves it."""

    directory: pathlib.Path
    file: pathlib.Path
    pid: int

    def status(self) -> NodeStatus:
        with client.find(str(self.directory)) as node:
            return node.status()

    def suspend(self, lo_bytes: int, hi_bytes: int) -> None:
        with client.find(str(self.directory)) as node:
            node.call("suspend", lo_bytes=lo_bytes, hi_bytes=hi_bytes)

    def is_alive(self) -> bool:
        try:
            state = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_gone(self) -> None:
        eventually(lambda: not self.is_alive(), f"process {self.pid} ends")


class Backend(Protocol):
    """A way to get nodes; each call of ``mount`` is one more node of the same thing."""

    def mount(self, directory: pathlib.Path, *options: str) -> Node: ...

    def close(self) -> None: ...


class Memory:
    """Nodes over bytearrays, one each."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []

    def mount(self, directory: pathlib.Path, *options: str) -> Node:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.memory_node", str(directory), "--size", str(SIZE_BYTES), *options],
            stdout=subprocess.PIPE,
            cwd=_TESTS,
            env={**os.environ, "PYTHONPATH": str(_TESTS.parent)},
            text=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return Node(directory, directory / "md0", process.pid)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            try:
                process.wait(_DEADLINE_S)
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


class Array:
    """Nodes of one array over two images, equal from the start; ``options`` are for each mount."""

    def __init__(self, directory: pathlib.Path, *options: str, create: Sequence[str] = ()) -> None:
        self.images = [directory / "a.img", directory / "b.img"]
        self._options = options
        self._nodes: list[Node] = []
        made = raidfs("create", "--size", str(SIZE_BYTES), "--assume-clean", *create, *self.images)
        assert made.returncode == 0, made.stderr

    def mount(self, directory: pathlib.Path, *options: str) -> Node:
        said = self._started("mount", *self._options, *options, *self.images, directory)
        assert said.returncode == 0, said.stderr
        with client.find(str(directory)) as found:
            node = Node(directory, directory / "md0", found.hello.pid)
        self._nodes.append(node)
        return node

    def _started(self, *words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
        return raidfs(*words)

    def close(self) -> None:
        for node in self._nodes:
            if node.is_alive():
                node.signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait_gone()
            finally:
                if node.is_alive():
                    node.signal(signal.SIGKILL)
