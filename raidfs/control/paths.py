"""Where the control sockets and logs of this machine's nodes live, and how their names are made.

The directory is ``$RAIDFS_RUNTIME_DIR`` if that is set (then no other is looked at), ``$XDG_RUNTIME_DIR/raidfs``, else
``/run/raidfs``; it belongs to its user and has mode 0700. Every
mount point has three files there, named alike: the control socket (``.sock``), the log (``.log``) and a file whose
``flock`` the daemon holds for as long as it lives (``.lock``), which tells a living daemon from a socket that
was left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Iterator

from raidfs.errors import RuntimeDirectoryUnusable

SYSTEM_DIRECTORY = "/run/raidfs"

# Names are for people who list the directory: the tail of the mount point, and a digest of all of it that keeps names
# apart.
_TAIL_CHARACTERS = 32
_DIGEST_CHARACTERS = 12

_LINKS_MAX = 40  # as the kernel (MAXSYMLINKS)


@dataclasses.dataclass(frozen=True)
class NodePaths:
    """The files of one node in the runtime directory."""

    socket: str
    lock: str
    log: str


def runtime_directory() -> str:
    """Return the path of this user's directory, whether it is there or not."""
    return search_directories()[0]


def search_directories() -> list[str]:
    """Return the directories in which this user's nodes may be found: a login shell has one, a cron job the other."""
    only = os.environ.get("RAIDFS_RUNTIME_DIR")
    if only:
        return [os.path.abspath(only)]
    session = os.environ.get("XDG_RUNTIME_DIR")
    return [os.path.join(session, "raidfs"), SYSTEM_DIRECTORY] if session else [SYSTEM_DIRECTORY]


def ensure_runtime_directory() -> str:
    """Make the directory if it is not there and return its path.

    Raises RuntimeDirectoryUnusable when it cannot be made, is not a directory (a link is none), belongs to somebody
    else or lets others in: what is written there is obeyed.
    """
    path = runtime_directory()
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise RuntimeDirectoryUnusable(path=path, reason=error.strerror) from error
    problem = _problem(path)
    if problem is not None:
        raise RuntimeDirectoryUnusable(path=path, reason=problem)
    return path


def is_trusted_directory(path: str) -> bool:
    """Tell whether ``path`` is a directory that only this user can use."""
    return _problem(path) is None


def _problem(path: str) -> str | None:
    try:
        found = os.lstat(path)
    except OSError as error:
        return error.strerror
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"others may use it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def node_paths(directory: str, mountpoint: str) -> NodePaths:
    """Return the files of the node at ``mountpoint``, an absolute path without links."""
    tail = re.sub(r"[^A-Za-z0-9._-]", "-", mountpoint.strip("/"))[-_TAIL_CHARACTERS:]
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:_DIGEST_CHARACTERS]
    stem = os.path.join(directory, f"{tail}.{digest}")
    return NodePaths(socket=f"{stem}.sock", lock=f"{stem}.lock", log=f"{stem}.log")


def paths_of_socket(socket_path: str) -> NodePaths:
    """Return the files that belong to a control socket found in a directory."""
    stem = socket_path.removesuffix(".sock")
    return NodePaths(socket=socket_path, lock=f"{stem}.lock", log=f"{stem}.log")


@contextlib.contextmanager
def socket_address(path: str) -> Iterator[str]:
    """Give a name for the socket ``path`` that ``bind`` and ``connect`` take however long the path is.

    An address holds 107 bytes (unix(7)); a name relative to an open directory needs fewer.
    """
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def canonical_mountpoint(path: str) -> str:
    """Return the absolute path of a mount point, links followed, without asking the file system that is mounted there.

    Its daemon may be dead or stopped, and a ``stat`` would fail or wait for it; ``readlink`` of a directory does
    neither.
    """
    for _ in range(_LINKS_MAX):
        above, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(above), name)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return path
