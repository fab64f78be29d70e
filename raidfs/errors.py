"""Every error that raidfs tells its users, in one tree.

A class holds the text (with the next step a user can take), the exit code of the command line and the errno
that a system call would give; an instance holds the facts as attributes::

    raise NotAnArray(path="/srv/a.img")

The text is never put together where the error is raised. An error crosses a pipe or socket as
``to_json`` and comes back as ``from_json``.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2


class RaidfsError(Exception):
    """The base of all errors of raidfs; ``template`` is formatted with the facts given to it."""

    template: ClassVar[str] = "{text}"
    exit_code: ClassVar[int] = EXIT_FAILED
    errno: ClassVar[int] = _errno.EIO

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no fact {name!r}")

    def __str__(self) -> str:
        return self.template.format(**self.facts)

    def to_json(self) -> dict[str, Any]:
        """Return a document that ``from_json`` turns into the same error in another process."""
        return {"error": type(self).__name__, "message": str(self), "facts": {k: str(v) for k, v in self.facts.items()}}


class RemoteError(RaidfsError):
    """An error that another process reported and this version does not know by name."""

    template = "{message}"


def from_json(document: dict[str, Any]) -> RaidfsError:
    """Return the error that ``to_json`` wrote; an unknown name gives a RemoteError with the same text."""
    known = {cls.__name__: cls for cls in _subclasses(RaidfsError)}
    cls = known.get(document["error"])
    if cls is None:
        return RemoteError(message=document["message"])
    return cls(**document["facts"])


def _subclasses(cls: type[RaidfsError]) -> list[type[RaidfsError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found += _subclasses(sub)
    return found


# ---- usage -------------------------------------------------------------------------------------------------


class UsageError(RaidfsError):
    """The command line asks for something that has no meaning."""

    exit_code = EXIT_USAGE
    errno = _errno.EINVAL


class BadSize(UsageError):
    """A size that cannot be read."""

    template = "{text!r} is not a size; write bytes or a number with K, M, G or T, for example 64M"


# ---- images and their format -------------------------------------------------------------------------------


class ImageError(RaidfsError):
    """Something is wrong with a backing image; nothing was written to it."""


# ---- lock managers -----------------------------------------------------------------------------------------


class LockError(RaidfsError):
    """A lock manager refused or failed."""


class LockRefused(LockError):
    """A NOQUEUE request was incompatible with what others hold or wait for (EAGAIN in the DLM)."""

    template = "lock {resource}: {mode} is not to be had at once"
    errno = _errno.EAGAIN


class LockCancelled(LockError):
    """A waiting request was cancelled; the lock has the mode that it had before (ECANCEL in the DLM)."""

    template = "lock {resource}: the request for {mode} was cancelled"
    errno = _errno.ECANCELED


class LockspaceLost(LockError):
    """The lock manager is gone or has evicted this node: none of its locks protect anything any more."""

    template = "lock space {name} is lost: {reason}; unmount and mount again to rejoin"
    errno = _errno.EIO


# ---- joining and running an array --------------------------------------------------------------------------


class NodeError(RaidfsError):
    """A node cannot join, or cannot do what it was asked."""
