"""What a lock manager is: the semantics of Linux's DLM, as the rest of raidfs sees them.

A *lock space* is a name space of *resources*; a client creates a *lock* on a resource once, in mode NL, and then
only *converts* it. Six modes (NL CR CW PR PW EX) with VMS compatibility. A conversion that fits what all others
*hold* is granted at once, past those that wait (so a conversion down always is); otherwise it queues, first come, first
served and before new requests. Each resource carries a lock value block (LVB) of 32 bytes, which a conversion reads or
writes according to the modes it goes between (a table in `raidfs.lock.modes`; the rules of the queues are told in
`raidfs.lock.resource`). A client that dies loses all of its locks; if one of them could have been changing an LVB (PW
or EX) the value is marked not valid until somebody writes it again.

Everything above this package sees only these classes; the embedded server, the Linux DLM and the
simulator implement them and pass one contract suite (``tests/lock/test_contract.py``).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Protocol

LVB_BYTES = 32  # of every lock space made through libdlm (DLM_USER_LVB_LEN, linux/dlm_device.h)
NAME_BYTES_MAX = 64  # of a lock space's and of a resource's name (DLM_LOCKSPACE_LEN, DLM_RESNAME_MAXLEN)


class Mode(enum.IntEnum):
    """The six lock modes, weakest first; the numbers are the DLM's."""

    NL = 0
    CR = 1
    CW = 2
    PR = 3
    PW = 4
    EX = 5


@dataclasses.dataclass(frozen=True)
class LockView:
    """One lock in an answer of `Lockspace.query`.

    ``client`` names its owner as given to `LockManager.open_lockspace`; ``granted`` is the mode it has,
    ``requested`` the mode it waits for or None; ``waiting_s`` how long it has waited, in seconds.
    """

    client: str
    granted: Mode
    requested: Mode | None
    waiting_s: float


@dataclasses.dataclass(frozen=True)
class ResourceView:
    """One resource in an answer of `Lockspace.query`: its locks, granted ones first, then waiters in queue order."""

    name: str
    locks: tuple[LockView, ...]
    lvb: bytes
    lvb_valid: bool


class Lock(Protocol):
    """This client's lock on one resource.

    ``lvb`` is the client's own buffer of 32 bytes: a conversion that reads fills it, one that writes takes it (so
    set it *after* the grant that allows writing and before the conversion that publishes). ``lvb_valid`` is False
    after a grant that told VALNOTVALID.
    """

    resource: str
    mode: Mode
    lvb: bytes
    lvb_valid: bool

    async def convert(self, mode: Mode, *, noqueue: bool = False) -> None:
        """Convert to ``mode`` and return when it is granted.

        One conversion at a time on each lock; a second one raises LockBusy. With ``noqueue`` raises LockRefused
        instead of waiting. Raises LockDeadlock, at once, when the mode that this lock holds stands in the way of a
        conversion that waits already and this one would have to wait too: give way to NL first. Raises LockCancelled
        when `cancel` or `release` ended the wait, LockspaceLost when the lock space is lost. When the waiting task
        is cancelled the request is cancelled too, and drained: on the way out the lock is either converted or as it
        was before, and ``mode`` tells which; no late answer can reach a later request.
        """

    async def cancel(self) -> bool:
        """Cancel a waiting conversion; return whether there was one to cancel (it may be granted just before)."""

    async def release(self) -> None:
        """Give the lock up altogether, whatever it holds or waits for (FORCEUNLOCK); a second call does nothing.

        The LVB is not written by it. It does not fail when the lock space is lost: then there is nothing to release.
        """


class Lockspace(Protocol):
    """A lock space that this client has joined."""

    name: str

    async def lock(self, resource: str, *, on_blocking: Callable[[Mode], None] | None = None) -> Lock:
        """Create this client's lock on ``resource``, granted in NL at once.

        ``on_blocking(mode)`` is called on the runtime's thread when the lock, as it is held now, stands in the way of
        somebody's request for ``mode``; it must not wait. A lock in NL stands in nobody's way, and a lock that waits
        for a conversion is told afterwards. It is told once for each situation: again when a stronger mode is asked
        for, and after every grant of this lock, also of the mode that it has (which re-arms it on purpose). It may
        be called before the `Lock.convert` that brought the mode has returned.

        The Linux DLM does not tell again of a request that was cancelled and made anew; the embedded manager does. Do
        not rely on it: a holder that did not give way re-arms itself.
        """

    async def query(self) -> list[ResourceView]:
        """Return who holds and who waits, for all resources of the lock space, sorted by name."""

    async def wait_lost(self) -> str:
        """Return the reason as soon as the lock space is lost; wait for ever while it is not."""

    @property
    def lost(self) -> str | None:
        """The reason why the lock space is lost, or None; a lock space that was closed is not lost."""

    @property
    def stalled(self) -> bool:
        """Whether the manager grants nothing at the moment and will go on later: it recovers from a death.

        With fencing that takes as long as fencing does. Who counts the time that others take does not count this.
        """

    @property
    def lifelines(self) -> tuple[int, ...]:
        """Descriptors whose end is what tells the manager that this process is dead.

        Whatever may still reach the images after the end of the process has to keep a reference on them: nobody takes
        over a slot before its owner's last write has ended (P6).
        """

    def leave_soon(self) -> None:
        """Say that this member is about to leave: a manager that is stalled does not hold it up for long.

        It is lost then, as it is by any other answer that does not come.
        """

    async def close(self) -> None:
        """Leave: release all locks and end the membership; a second call does nothing, nor one after a loss."""


class LockManager(Protocol):
    """A way to reach a lock manager."""

    async def open_lockspace(self, name: str, *, cluster_name: str, client: str) -> Lockspace:
        """Join the lock space ``name``, creating it when it is not there.

        ``client`` names this member in queries. Raises WrongClusterName when the manager serves another cluster.
        """

    async def close(self) -> None:
        """Close the way; lock spaces that were not closed count as left by a dead client."""
