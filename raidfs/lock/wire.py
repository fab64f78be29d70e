"""The lock protocol on a stream: frames, their limits, and the greeting.

A frame is a length (4 bytes, big-endian) and that many bytes of JSON: ``[kind, field, ...]`` with the fields of
the event or action of `raidfs.lock.machine` in their order, modes as the DLM's numbers and value blocks in
hexadecimal. The first frame of each side is a greeting with the protocol's version; the server ends a
connection with ``Farewell`` and a reason.

Decoding trusts nothing: kind, number of fields, type and range of each are checked, and whatever does not fit is a
LockProtocolError.
"""

from __future__ import annotations

import json
import struct
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raidfs import errors
from raidfs.errors import LockProtocolError, RaidfsError, RemoteError
from raidfs.lock import machine
from raidfs.lock.api import LVB_BYTES, LockView, Mode, ResourceView

PROTOCOL_VERSION = 1

# The longest frame of a client is an Open with three texts of TEXT_CHARACTERS_MAX six-byte escapes each.
CLIENT_FRAME_BYTES_MAX = 16 * 1024
# The longest frame of a server is the answer to a query: some 100 bytes for each lock of a lock space.
SERVER_FRAME_BYTES_MAX = 16 * 1024 * 1024

TEXT_CHARACTERS_MAX = 512  # of any text but an answer's; names have the lock machine's own, smaller limit

_LENGTH = struct.Struct(">I")


class Hello(NamedTuple):
    """A client's greeting."""

    protocol: str
    version: int


class Welcome(NamedTuple):
    """The server's greeting; whoever has it is a client and will not be dropped by an idle server."""

    protocol: str
    version: int
    pid: int


class Bye(NamedTuple):
    """The client's last word: it knows that it holds nothing any more, and its locks may be given to others."""


class Farewell(NamedTuple):
    """The server ends this connection, and says why."""

    error: RaidfsError


PROTOCOL = "raidfs-lock"

Frame = Hello | Bye | Welcome | Farewell | machine.Event | machine.Action

_CLIENT_KINDS: tuple[type, ...] = (
    Hello,
    Bye,
    machine.Open,
    machine.Request,
    machine.Convert,
    machine.Cancel,
    machine.Release,
    machine.Query,
    machine.Close,
)
_SERVER_KINDS: tuple[type, ...] = (
    Welcome,
    Farewell,
    machine.Done,
    machine.Failed,
    machine.Granted,
    machine.Refused,
    machine.Deadlocked,
    machine.Cancelled,
    machine.Blocking,
    machine.Answer,
)


def encode(frame: Frame) -> bytes:
    """Return the bytes of one frame, its length included."""
    body = json.dumps([type(frame).__name__, *map(_plain, frame)], separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts a stream into frames of one side; what comes after a frame that cannot be read is never looked at."""

    def __init__(self, kinds: Mapping[str, _Kind], frame_bytes_max: int) -> None:
        self._kinds = kinds
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._error: LockProtocolError | None = None

    def check(self) -> None:
        """Raise LockProtocolError when the frame after those that `feed` returned last cannot be read."""
        if self._error is not None:
            raise self._error

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete with ``data``; see `check` for what follows them."""
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > self._frame_bytes_max:
                    raise LockProtocolError(reason=f"a frame of {length} bytes; {self._frame_bytes_max} are allowed")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                frames.append(_decode(bytes(self._buffer[start + _LENGTH.size : end]), self._kinds))
                start = end
        except LockProtocolError as error:
            self._error = error
        del self._buffer[:start]
        return frames


def client_frames() -> Decoder:
    """Return a decoder of what clients send."""
    return Decoder(_CLIENT_TABLE, CLIENT_FRAME_BYTES_MAX)


def server_frames() -> Decoder:
    """Return a decoder of what servers send."""
    return Decoder(_SERVER_TABLE, SERVER_FRAME_BYTES_MAX)


class _Kind(NamedTuple):
    make: Callable[..., Frame]
    fields: tuple[Callable[[Any], object], ...]


def _decode(body: bytes, kinds: Mapping[str, _Kind]) -> Frame:
    try:
        document = json.loads(body)
        name, *values = document
        kind = kinds[name]
        if len(values) != len(kind.fields):
            raise ValueError(f"{name} has {len(kind.fields)} fields, not {len(values)}")
        return kind.make(*(read(value) for read, value in zip(kind.fields, values, strict=True)))
    # What a hostile or broken peer can make these four lines raise; RecursionError is deeply nested JSON.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LockProtocolError(reason=f"a frame that cannot be read ({type(error).__name__}: {error})"[:200]) from None


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, RaidfsError):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain_resource(view) for view in value]
    return value


def _plain_resource(view: ResourceView) -> list[object]:
    locks = [[lock.client, lock.granted, lock.requested, lock.waiting_s] for lock in view.locks]
    return [view.name, locks, view.lvb.hex(), view.lvb_valid]


def _read_int(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("not a number of 63 bits")
    return value


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("neither true nor false")
    return value


def _read_text(value: Any) -> str:
    if type(value) is not str or len(value) > TEXT_CHARACTERS_MAX:
        raise ValueError("not a short text")
    value.encode()  # a lone surrogate is no text
    return value


def _read_mode(value: Any) -> Mode:
    if type(value) is not int:
        raise ValueError("not a mode")
    return Mode(value)


def _read_lvb(value: Any) -> bytes:
    if type(value) is not str or len(value) != 2 * LVB_BYTES:
        raise ValueError(f"a value block is not {LVB_BYTES} bytes")
    return bytes.fromhex(value)


# An error whose class has other facts in this version keeps at least its words.
def _read_error(value: Any) -> RaidfsError:
    error = errors.from_json(value)
    try:
        str(error)
    except (LookupError, ValueError, TypeError, AttributeError):
        return RemoteError(message=_read_text(value["message"]))
    return error


def _read_resources(value: Any) -> tuple[ResourceView, ...]:
    return tuple(
        ResourceView(_read_text(name), tuple(map(_read_lock, locks)), _read_lvb(lvb), _read_bool(valid))
        for name, locks, lvb, valid in value
    )


def _read_lock(value: Any) -> LockView:
    client, granted, requested, waiting_s = value
    return LockView(
        _read_text(client),
        _read_mode(granted),
        None if requested is None else _read_mode(requested),
        float(waiting_s),
    )


_READERS: dict[object, Callable[[Any], object]] = {
    int: _read_int,
    bool: _read_bool,
    str: _read_text,
    Mode: _read_mode,
    bytes: _read_lvb,
    RaidfsError: _read_error,
    tuple[ResourceView, ...]: _read_resources,
}


def _or_none(read: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda value: None if value is None else read(value)


# How each kind of frame is read follows from the annotations of its class.
def _table(kinds: tuple[type, ...]) -> dict[str, _Kind]:
    table = {}
    for kind in kinds:
        fields = []
        for hint in typing.get_type_hints(kind).values():
            optional = isinstance(hint, types.UnionType)
            reader = _READERS[typing.get_args(hint)[0] if optional else hint]
            fields.append(_or_none(reader) if optional else reader)
        table[kind.__name__] = _Kind(kind, tuple(fields))
    return table


_CLIENT_TABLE = _table(_CLIENT_KINDS)
_SERVER_TABLE = _table(_SERVER_KINDS)
