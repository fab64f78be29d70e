"""Starting a node as a process of its own: what ``raidfs mount`` does without ``--foreground``.

A new interpreter is started, never a fork of a process that has threads or an event loop. One pipe leads back: the
node writes one line when it is usable or has failed, and the kernel closes the pipe if it dies before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, BinaryIO

import raidfs
from raidfs import errors
from raidfs.control import paths
from raidfs.mount.options import MountOptions


def launch(options: MountOptions) -> None:
    """Start the node and return when its block file is usable.

    Raises the node's own error when it failed, DaemonDied when it ended without one. An interrupt stops the node that
    is starting, waits for its end and goes on as KeyboardInterrupt.
    """
    log_path = paths.node_paths(paths.ensure_runtime_directory(), options.mountpoint).log
    reading, writing = os.pipe()
    with open(reading, "rb") as status:
        try:
            process = _start(options, log_path, writing)
        finally:
            os.close(writing)
        try:
            document = _read(status)
            if document is None:
                raise errors.DaemonDied(how=_how(process.wait()), log=log_path)
            if "failure" in document:
                process.wait()
                raise errors.from_json(document["failure"])
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    process.returncode = 0  # it lives on and is not ours to wait for


def _start(options: MountOptions, log_path: str, status_fd: int) -> subprocess.Popen[bytes]:
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(raidfs.__file__)))
    search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-m", "raidfs", "mount", "--foreground", "--status-fd", str(status_fd)]
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(log_fd, "ab") as log:
        return subprocess.Popen(
            [*command, *options.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[status_fd],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        )


def _read(status: BinaryIO) -> dict[str, Any] | None:
    line = status.readline()
    if not line.endswith(b"\n"):
        return None
    document = json.loads(line)
    return document if isinstance(document, dict) else None


def _how(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


class StatusPipe:
    """The node's end of the pipe; each node says one thing, `ready` or `failed`, and closes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_inheritable(fd, False)  # a lock server that this node starts must not keep the pipe open

    def ready(self) -> None:
        """Say that the block file can be used."""
        self._say({"ready": True})

    def failed(self, error: errors.RaidfsError) -> bool:
        """Say why there will be no block file; return False, and do nothing, when that is no longer waited for."""
        return self._say({"failure": error.to_json()})

    def _say(self, document: dict[str, Any]) -> bool:
        if self._fd < 0:
            return False
        fd, self._fd = self._fd, -1
        try:
            with open(fd, "wb") as pipe:
                pipe.write(json.dumps(document).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True
