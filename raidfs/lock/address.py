"""Where a lock server listens: the values of ``--lock`` and ``--listen``.

``unix:PATH`` is a socket in the file system; ``abstract:NAME`` one in Linux's abstract name space, which belongs
to the network name space, vanishes with its listener (never stale) and is the same for every user. ``auto``
is the abstract socket named by the array's UUID, with the server started when there is none.
"""

from __future__ import annotations

import dataclasses

from raidfs.errors import BadLockAddress, LockManagerUnavailable

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path has 108 bytes, one of them for the end or the leading NUL


@dataclasses.dataclass(frozen=True)
class LockAddress:
    """A socket address: ``path`` in the file system, or a name in the abstract name space."""

    path: str
    abstract: bool = False

    def __str__(self) -> str:
        return f"{'abstract' if self.abstract else 'unix'}:{self.path}"

    @property
    def sockaddr(self) -> str:
        """What bind and connect of the socket module want."""
        return "\0" + self.path if self.abstract else self.path


def parse_address(text: str) -> LockAddress:
    """Return the address that ``unix:PATH`` or ``abstract:NAME`` names.

    Raises BadLockAddress, or LockManagerUnavailable for a kind that this build does not have.
    """
    scheme, colon, rest = text.partition(":")
    if text == "dlm" or scheme == "tls":  # a lock server does not listen on the DLM
        raise LockManagerUnavailable(text=text)
    if not colon or scheme not in ("unix", "abstract"):
        raise BadLockAddress(text=text, reason="it names no kind of socket")
    if not rest or "\0" in rest:
        raise BadLockAddress(text=text, reason="the name is empty or has a NUL")
    if len(rest.encode()) > SOCKET_PATH_BYTES_MAX:
        raise BadLockAddress(text=text, reason=f"the name is longer than {SOCKET_PATH_BYTES_MAX} bytes")
    return LockAddress(rest, abstract=scheme == "abstract")


def auto_address(array_uuid: str) -> LockAddress:
    """Return where the lock server of an array listens with ``--lock auto``; the UUID in its 8-4-4-4-12 form."""
    return LockAddress(f"raidfs/{array_uuid}", abstract=True)
