"""Faults to order: what ``raidfs mount --fault`` and tests do to the I/O of a leg.

A *fault* is a kind and conditions: ``error,leg=b.img,on=write,nth=5``. `parse_fault` reads one. `LegFaults` keeps the
counts of one leg and decides, for each of its I/Os, what shall happen to it; whoever carries I/O out does that: the
threads of `raidfs.faulty_legs`, or the simulator. All I/O of a node that has opened its legs passes here, superblocks
and bitmaps included; what a node reads to find out which array it has in front of it does not.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import os
from collections.abc import Sequence

from raidfs.errors import BadFault, RaidfsError
from raidfs.units import SECTOR_BYTES, parse_size


class FaultKind(enum.Enum):
    """What goes wrong. The values are what users write."""

    ERROR = "error"
    DELAY = "delay"
    TORN = "torn"
    SHORT = "short"
    LOST_FLUSH = "lost-flush"
    MISDIRECT = "misdirect"
    GONE = "gone"


class IoKind(enum.Enum):
    """What a leg is asked; a durable write is a write that is also its own flush."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"


_ALL = frozenset(IoKind)
_HITS = {
    FaultKind.ERROR: _ALL,
    FaultKind.DELAY: _ALL,
    FaultKind.TORN: frozenset({IoKind.WRITE}),
    FaultKind.SHORT: frozenset({IoKind.READ, IoKind.WRITE}),
    FaultKind.LOST_FLUSH: frozenset({IoKind.WRITE, IoKind.FLUSH}),
    FaultKind.MISDIRECT: frozenset({IoKind.WRITE}),
    FaultKind.GONE: _ALL,
}
_OWN_KEYS = {
    FaultKind.ERROR: {"errno"},
    FaultKind.DELAY: {"seconds"},
    FaultKind.TORN: {"errno", "keep"},
    FaultKind.SHORT: {"keep"},
    FaultKind.LOST_FLUSH: set[str](),
    FaultKind.MISDIRECT: {"by"},
    FaultKind.GONE: {"errno"},
}
_CONDITIONS = {"leg", "on", "at", "nth", "count"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault. ``text`` is how it was written.

    ``leg`` is the name of an image, its last component, or a position as a number; None is every leg, each with counts
    of its own. ``on`` are the kinds of I/O that match, ``start`` and ``end`` the bytes of the image that they must
    touch (a flush touches none). The fault strikes from the ``nth`` match on (the first is 1), ``count`` times
    (None: always). ``errno`` 0 is success, ``keep_bytes`` how much of a torn or short transfer takes place,
    ``shift_bytes`` how far beside its place a misdirected write goes.
    """

    text: str
    kind: FaultKind
    leg: str | None = None
    on: frozenset[IoKind] = _ALL
    start: int = 0
    end: int | None = None
    nth: int = 1
    count: int | None = None
    errno: int = errno.EIO
    delay_s: float = 1.0
    keep_bytes: int = SECTOR_BYTES
    shift_bytes: int = 4096

    def is_for(self, leg: int, path: str) -> bool:
        """Tell whether the fault is for the leg at this position, with this image."""
        return self.leg is None or self.leg in (str(leg), path, os.path.basename(path))


@dataclasses.dataclass(frozen=True)
class Strike:
    """What shall happen to one I/O.

    It waits ``delay_s``; then its first ``keep_bytes`` (None: all) are carried out, ``shift_bytes`` beside their place,
    without its flush if ``is_flushed`` is false; then it ends with ``errno``, or well: having done what it did, or as
    if it had done all if ``is_silent``. ``texts`` are the faults, as they were written.
    """

    delay_s: float = 0.0
    keep_bytes: int | None = None
    shift_bytes: int = 0
    is_flushed: bool = True
    is_silent: bool = False
    errno: int = 0
    texts: tuple[str, ...] = ()

    def done_bytes(self, length: int) -> int:
        """Return how much of ``length`` bytes is carried out."""
        return length if self.keep_bytes is None else min(self.keep_bytes, length)

    def result(self, length: int) -> int:
        """Return how the I/O ends when what is carried out went well: bytes done, or -errno."""
        if self.errno:
            return -self.errno
        return length if self.is_silent else self.done_bytes(length)

    def place(self, offset: int, length: int, size_bytes: int) -> int:
        """Return where the I/O goes in an image of ``size_bytes``; it stays inside."""
        if offset + self.shift_bytes + length <= size_bytes:
            return offset + self.shift_bytes
        return max(0, offset - self.shift_bytes)


class LegFaults:
    """The faults of one leg, with their counts. Not for several threads at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.struck = 0
        self._faults = tuple(faults)
        self._matches = [0] * len(self._faults)
        self._gone: Fault | None = None

    def decide(self, kind: IoKind, offset: int, length: int) -> Strike | None:
        """Count an I/O (bytes of the image) and return what shall happen to it; None is nothing."""
        if not self._faults:
            return None
        delay_s = 0.0
        texts = []
        strike = None
        for number, fault in enumerate(self._faults):
            if fault is not self._gone and not self._strikes(number, fault, kind, offset, length):
                continue
            texts.append(fault.text)
            if fault.kind is FaultKind.DELAY:
                delay_s += fault.delay_s
            elif strike is None:
                strike = _strike(fault, kind)
        if not texts:
            return None
        self.struck += 1
        return dataclasses.replace(strike or Strike(), delay_s=delay_s, texts=tuple(texts))

    def _strikes(self, number: int, fault: Fault, kind: IoKind, offset: int, length: int) -> bool:
        if kind not in fault.on:
            return False
        if fault.start or fault.end is not None:
            end = fault.end if fault.end is not None else offset + length
            if kind is IoKind.FLUSH or offset >= end or offset + length <= fault.start:
                return False
        self._matches[number] += 1
        past = self._matches[number] - fault.nth
        strikes = past >= 0 and (fault.count is None or past < fault.count)
        if strikes and fault.kind is FaultKind.GONE:
            self._gone = fault
        return strikes


def faults_of_leg(faults: Sequence[Fault], leg: int, path: str) -> LegFaults:
    """Return the faults that are for the leg at this position, with this image."""
    return LegFaults([fault for fault in faults if fault.is_for(leg, path)])


def _strike(fault: Fault, kind: IoKind) -> Strike:
    match fault.kind:
        case FaultKind.TORN:
            return Strike(keep_bytes=fault.keep_bytes, errno=fault.errno, is_silent=not fault.errno)
        case FaultKind.SHORT:
            return Strike(keep_bytes=fault.keep_bytes)
        case FaultKind.LOST_FLUSH:
            return Strike(is_flushed=False, is_silent=True)
        case FaultKind.MISDIRECT:
            return Strike(shift_bytes=fault.shift_bytes)
        case _:
            return Strike(keep_bytes=0, errno=fault.errno)


# ---- reading what users write --------------------------------------------------------------------------------------


def parse_fault(text: str) -> Fault:
    """Return the fault that ``KIND[,KEY=VALUE]...`` names; raises BadFault, which names the word."""
    kind_word, *words = text.split(",")
    kinds = {kind.value: kind for kind in FaultKind}
    if kind_word not in kinds:
        raise BadFault(text=text, problem=f"{kind_word!r} is no kind of fault ({', '.join(kinds)})")
    kind = kinds[kind_word]
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        known = sorted(_CONDITIONS | _OWN_KEYS[kind])
        if not equals or key not in known:
            raise BadFault(text=text, problem=f"{word!r} is no condition of {kind.value} ({', '.join(known)})")
        if key in values:
            raise BadFault(text=text, problem=f"{key} is given twice")
        values[key] = value
    try:
        return _fault(text, kind, values)
    except (RaidfsError, ValueError) as e:
        raise BadFault(text=text, problem=str(e)) from None


def _fault(text: str, kind: FaultKind, values: dict[str, str]) -> Fault:
    default_errno = errno.ENODEV if kind is FaultKind.GONE else errno.EIO
    start, end = _range(values["at"]) if "at" in values else (0, None)
    nth = _positive("nth", values.get("nth", "1"))
    count = _count(values.get("count", "1" if "nth" in values else "all"))
    return Fault(
        text=text,
        kind=kind,
        leg=values.get("leg"),
        on=_io_kinds(kind, values["on"]) if "on" in values else _HITS[kind],
        start=start,
        end=end,
        nth=nth,
        count=count,
        errno=_errno(kind, values["errno"]) if "errno" in values else default_errno,
        delay_s=_seconds(values.get("seconds", "1")),
        keep_bytes=_positive("keep", values.get("keep", "1"), least=0) * SECTOR_BYTES,
        shift_bytes=_shift(values.get("by", "4K")),
    )


def _io_kinds(kind: FaultKind, value: str) -> frozenset[IoKind]:
    possible = {io.value: io for io in IoKind if io in _HITS[kind]}
    for word in value.split("+"):
        if word not in possible:
            raise ValueError(f"on={value}: {kind.value} strikes {' and '.join(possible)}")
    return frozenset(possible[word] for word in value.split("+"))


def _range(value: str) -> tuple[int, int | None]:
    first, dash, last = value.partition("-")
    start = parse_size(first)
    if not dash:
        return start, start + 1
    end = parse_size(last) if last else None
    if end is not None and end <= start:
        raise ValueError(f"at={value}: the range is empty")
    return start, end


def _positive(key: str, value: str, *, least: int = 1) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"{key}={value}: a whole number from {least} on is wanted")
    return int(value)


def _count(value: str) -> int | None:
    return None if value == "all" else _positive("count", value)


def _errno(kind: FaultKind, value: str) -> int:
    if value == "none" and kind is FaultKind.TORN:
        return 0
    number = getattr(errno, value, None) if value.startswith("E") else None
    if number is None:
        raise ValueError(f"errno={value}: a name such as EIO or ENOSPC is wanted")
    return int(number)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"seconds={value}: a number of seconds is wanted")
    return seconds


def _shift(value: str) -> int:
    shift = parse_size(value)
    if shift == 0 or shift % SECTOR_BYTES:
        raise ValueError(f"by={value}: a multiple of {SECTOR_BYTES} is wanted")
    return shift
