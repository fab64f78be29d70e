"""The directory that is mounted on: checks before, the mount itself, and taking it away again.

Everything goes through ``fusermount3``, which works the same for root and for ordinary users.
"""

from __future__ import annotations

import array
import dataclasses
import errno
import os
import re
import socket
import stat
import subprocess

from raidfs import errors

FILESYSTEM_TYPE = "fuse.raidfs"

# fusermount3 does a handful of system calls. One that takes this long hangs, in a stat of another dead mount for
# example.
_FUSERMOUNT_TIMEOUT_S = 30.0

_FUSERMOUNT = "fusermount3"


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``: where, which type, and what it says it is made from.

    ``device`` is the number (``major:minor``) that no other file system has for as long as this one is mounted.
    """

    device: str
    path: str
    type: str
    source: str


def mounts(table: str) -> list[Mount]:
    """Return the mounts in the text of ``/proc/self/mountinfo`` (proc(5)), in the order they were made."""
    found = []
    for line in table.splitlines():
        before, _dash, after = line.partition(" - ")
        kind, source, _super_options = after.split(" ", 2)
        _id, _parent, device, _root, path, *_options = before.split(" ")
        found.append(Mount(device, _unescaped(path), kind, _unescaped(source)))
    return found


def _unescaped(text: str) -> str:
    # The kernel writes space, tab, newline, backslash and # as octal (fs/proc_namespace.c, show_mountinfo).
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), text)


def mount_at(path: str) -> Mount | None:
    """Return the topmost mount at ``path``, an absolute path without links, or None."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        found = [mount for mount in mounts(table.read()) if mount.path == path]
    return found[-1] if found else None


def check(path: str) -> None:
    """Raise the MountError that says why ``path``, absolute and without links, cannot be mounted on.

    The list of mounts is looked at first, since a look into a dead FUSE mount fails and into a stuck one waits.
    """
    mounted = mount_at(path)
    if mounted is not None:
        if is_dead(path):
            raise errors.MountpointDead(path=path)
        raise errors.MountpointTaken(path=path, source=mounted.source)
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise errors.MountpointNotDirectory(path=path)
        if os.listdir(path):
            raise errors.MountpointNotEmpty(path=path)
    except FileNotFoundError as error:
        raise errors.MountpointMissing(path=path) from error
    except NotADirectoryError as error:
        raise errors.MountpointNotDirectory(path=path) from error
    except OSError as error:
        raise errors.MountpointAccess(path=path, reason=error.strerror) from error


def is_dead(path: str) -> bool:
    """Tell whether ``path`` is a FUSE mount of ours whose daemon is gone."""
    mounted = mount_at(path)
    if mounted is None or mounted.type != FILESYSTEM_TYPE:
        return False
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def mount(path: str, *, source: str, read_only: bool = False) -> int:
    """Mount at ``path`` and return the descriptor of ``/dev/fuse``; the kernel's INIT waits there to be answered.

    ``fusermount3`` opens and mounts it and passes it back over the socket named in ``_FUSE_COMMFD``. Only the owner may
    enter (no ``allow_other``), and the kernel checks permissions. With ``read_only`` the kernel refuses all changes
    with EROFS.
    """
    options = f"{'ro' if read_only else 'rw'},fsname={_option(source)},subtype=raidfs,default_permissions,nosuid,nodev"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            said = _fusermount(["-o", options, "--", path], theirs)
        if said.returncode != 0:
            raise errors.MountRefused(path=path, reason=_reason(said))
        ours.settimeout(_FUSERMOUNT_TIMEOUT_S)
        return _received_descriptor(ours, path)


def _option(value: str) -> str:
    # A comma ends an option of fusermount3 unless a backslash stands before it.
    return re.sub(r"([\\,])", r"\\\1", value)


def _received_descriptor(channel: socket.socket, path: str) -> int:
    descriptors = array.array("i")
    _data, ancillary, _flags, _address = channel.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: descriptors.itemsize])
    if not descriptors:
        raise errors.MountRefused(path=path, reason=f"{_FUSERMOUNT} gave no descriptor back")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def unmount(path: str) -> None:
    """Take the mount at ``path`` away. Raises MountBusy when somebody uses it, UnmountFailed; nothing changed then."""
    said = _fusermount(["-u", "--", path])
    if said.returncode == 0:
        return
    reason = _reason(said)
    if os.strerror(errno.EBUSY) in reason:
        raise errors.MountBusy(path=path)
    raise errors.UnmountFailed(path=path, reason=reason)


def detach(path: str) -> None:
    """Take the mount at ``path`` out of the name space, used or not; whoever has files open there keeps them.

    Raises UnmountFailed.
    """
    said = _fusermount(["-u", "-z", "--", path])
    if said.returncode != 0:
        raise errors.UnmountFailed(path=path, reason=_reason(said))


def _fusermount(arguments: list[str], channel: socket.socket | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    descriptors: tuple[int, ...] = ()
    if channel is not None:
        descriptors = (channel.fileno(),)
        environment["_FUSE_COMMFD"] = str(channel.fileno())
    try:
        return subprocess.run(
            [_FUSERMOUNT, *arguments],
            env=environment,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise errors.FusermountMissing() from error
    except subprocess.TimeoutExpired as error:
        raise errors.MountRefused(path=arguments[-1], reason=f"{_FUSERMOUNT} hangs") from error


def _reason(said: subprocess.CompletedProcess[str]) -> str:
    lines = said.stderr.strip().splitlines()
    return lines[-1].removeprefix(f"{_FUSERMOUNT}: ") if lines else f"{_FUSERMOUNT} exited with {said.returncode}"
