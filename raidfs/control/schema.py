"""The documents that a node shows: frozen values and their JSON form.

``status --json``, the text of ``status`` and metrics are all made from these values. The JSON may only grow:
readers ignore keys they do not know and writers never drop or redefine one, so a command line and a daemon of
neighbouring versions understand each other. A field that came later has a default, which stands for it in a document
of before. `SCHEMA_VERSION` rises only if that promise has to be broken.

Units end the names; a field without one counts or names something. Times are seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, TypeVar

from raidfs.errors import BadDocument

SCHEMA_VERSION = 1

T = TypeVar("T")

LegState = Literal["in_sync", "recovering", "spare", "faulty", "missing"]
SyncState = Literal["idle", "pending", "running", "remote", "delayed", "frozen", "failed"]
SyncAction = Literal["idle", "resync", "recover", "check", "repair"]


@dataclasses.dataclass(frozen=True)
class ArrayStatus:
    """The array as its superblock and the engine have it.

    ``state`` is md's word: ``clean`` when no write may be under way, else ``active``. ``sync`` is the state of
    `SyncStatus`, which tells more. ``nodes`` is the number of slots.
    """

    name: str
    uuid: str
    cluster_name: str
    size_bytes: int
    block_size_bytes: int
    raid_disks: int
    nodes: int
    events: int
    state: Literal["clean", "active"]
    sync: SyncState
    created_s: int
    updated_s: int


@dataclasses.dataclass(frozen=True)
class LegStatus:
    """One leg: ``number`` is its descriptor number, ``role`` its position or None (spare, faulty).

    A position that nobody fills is a leg with state ``missing``, number None and an empty path. ``direct`` tells
    whether it is open with O_DIRECT. ``corrected_reads``: blocks that this node has written anew from another leg.
    """

    path: str
    number: int | None
    role: int | None
    state: LegState
    direct: bool
    read_errors: int
    write_errors: int
    corrected_reads: int = 0


@dataclasses.dataclass(frozen=True)
class PlaceStatus:
    """This node: its slot and the daemon that runs it.

    ``lost`` is the reason why it lost its membership and answers every request with EIO, or None.
    """

    slot: int
    mountpoint: str
    pid: int
    host: str
    since_s: float
    read_only: bool
    plane: str
    lost: str | None


@dataclasses.dataclass(frozen=True)
class MemberStatus:
    """A slot that is alive, and the name its node gave itself."""

    slot: int
    client: str


@dataclasses.dataclass(frozen=True)
class BitmapStatus:
    """This node's write-intent bitmap: ``dirty`` and ``needed`` count bits, ``pages`` those of counters in memory."""

    chunk_bytes: int
    bits: int
    dirty: int
    needed: int
    pages: int
    pages_allocated: int


@dataclasses.dataclass(frozen=True)
class LockStatus:
    """The lock manager in use and where it is reached."""

    manager: str
    address: str


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """Counters of the engine since the node joined; ``in_flight`` and ``parked`` are of this moment."""

    in_flight: int
    parked: int
    reads: int
    writes: int
    flushes: int
    read_bytes: int
    written_bytes: int
    suspend_lo_bytes: int
    suspend_hi_bytes: int


@dataclasses.dataclass(frozen=True)
class MismatchRange:
    """Bytes of the array in which a check found the legs to differ."""

    start_bytes: int
    length_bytes: int


@dataclasses.dataclass(frozen=True)
class SyncStatus:
    """A pass over the array: the one that goes on, wherever it does, or else the one that is due.

    ``action`` is what is done, in md's words of ``sync_action``. ``state``: ``idle``; ``pending`` (due, and nobody has
    begun); ``running`` on this node; ``remote`` on the node ``slot`` that calls itself ``client``; ``frozen`` (stopped
    by the user; ``action`` tells what is due); ``failed`` (tried in vain, and not again before something changes).
    ``failure`` is why the last try of what is due came to nothing. ``done_bytes`` of ``total_bytes`` are behind it; the
    speed is of the last seconds, and ``finish_s`` the seconds still to come, None when that cannot be told. The
    mismatches are those that the last check or repair of this node found: 512-byte sectors, and the ranges in which
    they lie.
    ``last_action`` is what this node did last (md: last_sync_action), ``last_interrupted`` that it did not come to its
    end.
    """

    action: SyncAction = "idle"
    state: SyncState = "idle"
    done_bytes: int = 0
    total_bytes: int = 0
    speed_bytes_s: int = 0
    finish_s: float | None = None
    slot: int | None = None
    client: str | None = None
    mismatch_sectors: int = 0
    mismatch_ranges: tuple[MismatchRange, ...] = ()
    last_action: SyncAction = "idle"
    last_interrupted: bool = False
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class WaitStatus:
    """One wait that is going on: which task, what for in words, and for how long."""

    task: str
    what: str
    waited_s: float


@dataclasses.dataclass(frozen=True)
class NodeStatus:
    """Everything that a node tells about itself and its array."""

    array: ArrayStatus
    legs: tuple[LegStatus, ...]
    node: PlaceStatus
    members: tuple[MemberStatus, ...]
    bitmap: BitmapStatus
    lock: LockStatus
    engine: EngineStatus
    waits: tuple[WaitStatus, ...]
    sync: SyncStatus = SyncStatus()

    def in_sync_count(self) -> int:
        """Return how many positions hold a leg that is in sync (the m of md's ``[n/m]``)."""
        return sum(leg.state == "in_sync" for leg in self.legs)

    def to_json(self) -> dict[str, Any]:
        """Return the document; the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> NodeStatus:
        """Return the value of a document; unknown keys are ignored. Raises BadDocument naming what does not fit."""
        status = typing.cast(NodeStatus, _value(cls, document, "status"))
        if "sync" not in document and status.array.sync != "idle":
            return dataclasses.replace(status, sync=SyncStatus(action="resync", state=status.array.sync))
        return status


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _required(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING)


def _value(kind: Any, document: Any, where: str) -> Any:
    # Builds a value of the declared type out of parsed JSON; ``where`` is the path told in an error.
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(document, dict):
            raise BadDocument(where=where, wanted="an object")
        missing = sorted(_required(typing.cast(type, kind)) - set(document))
        if missing:
            raise BadDocument(where=f"{where}.{missing[0]}", wanted="a value")
        values = {
            key: _value(sub, document[key], f"{where}.{key}")
            for key, sub in _fields(typing.cast(type, kind)).items()
            if key in document
        }
        return typing.cast(Any, kind)(**values)
    if origin is tuple:
        if not isinstance(document, list | tuple):
            raise BadDocument(where=where, wanted="a list")
        item = typing.get_args(kind)[0]
        return tuple(_value(item, one, f"{where}[{index}]") for index, one in enumerate(document))
    if origin is Literal:
        kind = str  # a newer node may have words that this version does not know; they are shown as they are
    if origin is types.UnionType:
        if document is None:
            return None
        return _value(typing.get_args(kind)[0], document, where)
    if kind is float and isinstance(document, int) and not isinstance(document, bool):
        return float(document)
    if type(document) is not kind:
        raise BadDocument(where=where, wanted=_WORDS[kind])
    return document
