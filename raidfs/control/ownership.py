"""Who lives: the lock by which one daemon, and no second, serves a mount point.

The kernel drops a ``flock`` when its holder dies, however it dies. A socket whose lock can be had is stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from raidfs.control.paths import NodePaths


class Ownership:
    """The held lock of one mount point; ``close`` removes the files and then gives the lock up."""

    def __init__(self, paths: NodePaths, lock_fd: int) -> None:
        self._paths = paths
        self._lock_fd: int | None = lock_fd

    def close(self) -> None:
        """Remove socket and lock file and give up the lock; a second call does nothing."""
        if self._lock_fd is None:
            return
        # The lock file goes while its lock is held; who waits for the old one sees below that it is no longer the file
        # of that name.
        for path in (self._paths.socket, self._paths.lock):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.close(self._lock_fd)
        self._lock_fd = None


def acquire(paths: NodePaths) -> Ownership | None:
    """Take the lock of a mount point; None when a living daemon has it."""
    while True:
        fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _is_file_of_that_name(fd, paths.lock):
            return Ownership(paths, fd)
        os.close(fd)


def remove_if_stale(paths: NodePaths) -> bool:
    """Remove what a dead daemon left; return whether it was dead."""
    owned = acquire(paths)
    if owned is None:
        return False
    owned.close()
    return True


def _is_file_of_that_name(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
