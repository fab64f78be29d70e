"""What goes into the lock machine and what comes out: the words of the lock protocol.

An event is what one member does, an action what one member is told. Members, locks and tags are numbers: whoever
carries events numbers the members, and each member numbers its own locks and its own requests (tags). On the wire these
are the frames (`raidfs.lock.wire`), in the order of their fields.
"""

from __future__ import annotations

from typing import NamedTuple

from raidfs.errors import RaidfsError
from raidfs.lock.api import Mode, ResourceView


class Open(NamedTuple):
    """A new member joins the lock space ``name``. Answer: `Done` or `Failed`."""

    member: int
    tag: int
    name: str
    cluster_name: str
    client: str


class Request(NamedTuple):
    """A new lock, numbered by the member; ``blocking`` says whether it wants `Blocking`. Answer: `Granted` ..."""

    member: int
    tag: int
    lock: int
    resource: str
    mode: Mode
    noqueue: bool
    expedite: bool
    blocking: bool


class Convert(NamedTuple):
    """Another mode for a lock; ``lvb`` where the change writes the value block. Answer: `Granted`, `Refused` ..."""

    member: int
    tag: int
    lock: int
    mode: Mode
    noqueue: bool
    lvb: bytes | None


class Cancel(NamedTuple):
    """Take back the request ``request`` of a lock, if it still waits. Answer: `Done`."""

    member: int
    tag: int
    lock: int
    request: int


class Release(NamedTuple):
    """Remove a lock whatever it holds or waits for. Answer: `Done`, after `Cancelled` of what it waited for."""

    member: int
    tag: int
    lock: int


class Query(NamedTuple):
    """Ask who holds and who waits in the lock space. Answer: `Answer`."""

    member: int
    tag: int


class Close(NamedTuple):
    """Leave in good order: all locks released, value blocks stay valid. Answer: `Done`, also when it has left."""

    member: int
    tag: int


class Died(NamedTuple):
    """The member is gone without a word; never sent by a member itself, and not answered."""

    member: int


Event = Open | Request | Convert | Cancel | Release | Query | Close | Died


class Done(NamedTuple):
    """The event ``tag`` was carried out."""

    member: int
    tag: int


class Failed(NamedTuple):
    """The event ``tag`` could not be carried out at all."""

    member: int
    tag: int
    error: RaidfsError


class Granted(NamedTuple):
    """The request is granted; ``lvb`` is the value read, or None if this change of mode reads none."""

    member: int
    tag: int
    lock: int
    mode: Mode
    lvb: bytes | None
    lvb_valid: bool


class Refused(NamedTuple):
    """A NOQUEUE request was not to be had at once."""

    member: int
    tag: int
    lock: int


class Deadlocked(NamedTuple):
    """A conversion would have closed a circle."""

    member: int
    tag: int
    lock: int


class Cancelled(NamedTuple):
    """The waiting request was taken back."""

    member: int
    tag: int
    lock: int


class Blocking(NamedTuple):
    """A lock stands in the way of somebody's request for ``mode``."""

    member: int
    lock: int
    mode: Mode


class Answer(NamedTuple):
    """What `Query` asked for, sorted by name."""

    member: int
    tag: int
    resources: tuple[ResourceView, ...]


Action = Done | Failed | Granted | Refused | Deadlocked | Cancelled | Blocking | Answer
