"""A process that cleans the mount point up when the daemon dies, however it dies.

``fusermount3 -o auto_unmount`` is meant for this and does it for root only: its helper opens the mount point as root
to see whether it is dead, which FUSE refuses for another user's mount (libfuse 3.14: EACCES, and the mount stays). So a
shell of a megabyte waits at the end of a pipe; the kernel closes the other end with the daemon, and the mount is
detached. Told "clean" it just ends.
"""

from __future__ import annotations

import os
import subprocess

_CLEAN = b"clean\n"

# The shell has its own session, and ignores what is sent to a terminal's or a service's processes: it has to outlive
# the daemon.
_SCRIPT = """
trap '' HUP INT TERM QUIT
read -r word
test "$word" = clean || exec fusermount3 -u -z -- "$1"
"""

_END_TIMEOUT_S = 10.0


class Watcher:
    """The process that watches over one mount point, from before it is mounted until `dismiss`."""

    def __init__(self, mountpoint: str) -> None:
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "raidfs-watcher", mountpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )

    @property
    def pid(self) -> int | None:
        """The process, or None after `dismiss`."""
        return None if self._process is None else self._process.pid

    def dismiss(self) -> None:
        """End the process, which then touches nothing; a second call does nothing."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            process.communicate(_CLEAN, timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
