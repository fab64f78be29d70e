"""The states that storage may be in when a recording is cut: which they are, and what they must still hold.

Two models. *N*, all nodes die and storage lives: what has ended is there, of what is in flight anything. *S*, each leg
loses power by itself: of the writes since its last flush anything is there, and a durable write counts as flushed when
it has ended. What may be there or not are the *loose* writes of a cut.

Storage writes sectors of 512 bytes whole, so what may be there or not are the *pieces* of the loose writes: the sectors
of a user's data, and of the 4 KiB of a superblock or a bitmap page the first sector, where all that matters is, and
the rest. Of n pieces there are 2^n subsets. All of them are taken of up to `ALL_MAX` pieces. Of more, writes are whole
or not there at all, each leg keeps none, all, a beginning (in the order of submission), all but one, or one alone, and
every combination of the legs is taken; beside these each single piece is taken away from all, and put on nothing. What
goes wrong because one write needs another one, or because a reader of two finds one, shows with two or three of them,
and any two or three are told apart by these.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
from collections.abc import Iterator, Sequence

from raidfs.sim.crash.layout import LAYOUT, LEGS, SECTORS
from raidfs.sim.crash.recording import (
    EntryKind,
    LegOp,
    Recording,
    UserFlush,
    UserResize,
    UserWrite,
    piece_of,
    pieces_of,
)
from raidfs.sim.crash.scenario import Choice, Piece

ALL_MAX = 8
DIGEST_BYTES = 8


class Model(enum.Enum):
    """What crashes."""

    NODES = "N"
    STORAGE = "S"


Wanted = tuple[frozenset[int], ...]
"""For each sector the values that it may have; none for one that a smaller array need not have any more."""


def digest_of(*parts: bytes) -> bytes:
    """Return what stands for some bytes."""
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()


@dataclasses.dataclass(frozen=True)
class LegImage:
    """What is on one leg; ``digest`` of all of it, ``metadata`` of what lies before the users' data."""

    data: bytes
    digest: bytes
    metadata: bytes


class Pieces:
    """The ways in which the loose writes of a cut may be there, each leg by itself."""

    def __init__(self, cut: Cut, ops: Sequence[LegOp]) -> None:
        self._cut = cut
        self._ops = ops
        self._made: list[dict[Choice, LegImage]] = [{} for _ in cut.certain]

    def legs(self, choice: Choice) -> tuple[LegImage, ...]:
        """Return the legs with this of the loose writes on them."""
        ops = self._ops
        parts: list[list[Piece]] = [[] for _ in self._made]
        for piece in choice:
            parts[ops[piece[0]].leg].append(piece)
        return tuple(self._leg(number, tuple(part)) for number, part in enumerate(parts))

    def _leg(self, number: int, part: Choice) -> LegImage:
        made = self._made[number]
        leg = made.get(part)
        if leg is None:
            data = self._cut.images(part, self._ops)[number]
            leg = made[part] = LegImage(data, digest_of(data), digest_of(data[: LAYOUT.data_offset_bytes]))
        return leg


@dataclasses.dataclass(frozen=True)
class Cut:
    """A recording, cut behind its first ``at`` entries: what is on the legs for certain, what is loose, the demands."""

    at: int
    model: Model
    certain: tuple[bytes, ...]
    loose: tuple[tuple[int, ...], ...]
    wanted: Wanted

    def key(self, ops: Sequence[LegOp]) -> tuple[object, ...]:
        """Return what makes one cut the same as another one, whatever came before."""
        loose = tuple((op.leg, op.offset, op.data) for leg in self.loose for op in (ops[number] for number in leg))
        return self.certain, loose, self.wanted

    def choices(self, ops: Sequence[LegOp]) -> Iterator[Choice]:
        """Return what may be there."""
        writes = sorted(number for leg in self.loose for number in leg)
        pieces = [(number, piece) for number in writes for piece in range(pieces_of(ops[number]))]
        if len(pieces) <= ALL_MAX:
            for count in range(len(pieces) + 1):
                yield from itertools.combinations(pieces, count)
            return
        for parts in itertools.product(*map(_some_subsets, self.loose)):
            there = {number for part in parts for number in part}
            yield tuple(piece for piece in pieces if piece[0] in there)
        for n, piece in enumerate(pieces):
            yield (piece,)
            yield (*pieces[:n], *pieces[n + 1 :])

    def images(self, choice: Choice, ops: Sequence[LegOp]) -> tuple[bytes, ...]:
        """Return the legs with this of the loose writes on them."""
        legs: list[bytes | bytearray] = list(self.certain)
        for number, piece in choice:
            op = ops[number]
            leg = legs[op.leg]
            if not isinstance(leg, bytearray):
                legs[op.leg] = leg = bytearray(leg)
            start, data = piece_of(op, piece)
            leg[start : start + len(data)] = data
        return tuple(map(bytes, legs))


def _some_subsets(loose: tuple[int, ...]) -> list[tuple[int, ...]]:
    found: dict[tuple[int, ...], None] = {}
    for n in range(len(loose) + 1):
        found[loose[:n]] = None
    for n in range(len(loose)):
        found[loose[:n] + loose[n + 1 :]] = None
        found[(loose[n],)] = None
    return list(found)


class Cutter:
    """Walks through a recording; `cuts` yields each place where another state may come to be."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._content = [bytearray(image) for image in recording.initial]
        self._durable = [bytearray(image) for image in recording.initial]
        self._in_flight: list[dict[int, None]] = [{} for _ in range(LEGS)]
        self._unflushed: list[dict[int, None]] = [{} for _ in range(LEGS)]
        self._covers: dict[int, tuple[int, ...]] = {}  # by flush of a leg: what it will make durable
        self._history: list[list[tuple[int, int]]] = [[] for _ in range(SECTORS)]  # (request, value) by sector
        self._acknowledged: set[int] = set()
        self._promised: set[int] = set()  # writes that survive a power loss
        self._size = SECTORS  # the smallest that was asked for
        self._flushes: dict[int, set[int]] = {}  # by request: the writes that it promises

    def cuts(self, *, start: int = 0, only: int | None = None) -> Iterator[Cut]:
        """Yield the cuts from entry ``start`` on, in both models, or just those at one place.

        Between two entries that end something only more may be there, so the last place before each is enough.
        """
        entries = self._recording.entries
        ends = {EntryKind.DONE, EntryKind.FAILED, EntryKind.ACKNOWLEDGED}
        for at in range(len(entries) + 1):
            wanted = at == only if only is not None else at >= start
            if wanted and (only is not None or at == len(entries) or entries[at][0] in ends):
                yield self._cut(at, Model.NODES)
                yield self._cut(at, Model.STORAGE)
            if at < len(entries):
                self._take(*entries[at])

    def wanted(self, places: Sequence[int]) -> Iterator[Wanted]:
        """Yield what nodes that live may read behind so many entries each, in order, when no request is under way."""
        entries = self._recording.entries
        done = 0
        for at in places:
            for entry in entries[done:at]:
                self._take(*entry)
            done = at
            yield self._wanted(self._acknowledged)

    def _cut(self, at: int, model: Model) -> Cut:
        ops = self._recording.ops
        in_flight = [[number for number in leg if ops[number].data is not None] for leg in self._in_flight]
        if model is Model.NODES:
            certain, loose, promised = self._content, in_flight, self._acknowledged
        else:
            certain, promised = self._durable, self._promised
            loose = [sorted((*flying, *leg)) for flying, leg in zip(in_flight, self._unflushed, strict=True)]
        return Cut(at, model, tuple(map(bytes, certain)), tuple(map(tuple, loose)), self._wanted(promised))

    def _wanted(self, promised: set[int]) -> Wanted:
        wanted = []
        for history in self._history[: self._size]:
            values = {0}
            for request, value in history:
                if request in promised:
                    values = set()
                values.add(value)
            wanted.append(frozenset(values))
        return (*wanted, *[frozenset()] * (SECTORS - self._size))

    def _take(self, kind: EntryKind, number: int) -> None:
        if kind is EntryKind.BEGUN:
            self._begun(number)
        elif kind is EntryKind.ACKNOWLEDGED:
            self._was_acknowledged(number)
        elif kind is EntryKind.SUBMITTED:
            op = self._recording.ops[number]
            self._in_flight[op.leg][number] = None
            if op.data is None:
                self._covers[number] = tuple(self._unflushed[op.leg])
        else:
            op = self._recording.ops[number]
            del self._in_flight[op.leg][number]
            if kind is EntryKind.DONE:
                self._done(number, op)

    def _done(self, number: int, op: LegOp) -> None:
        durable, unflushed = self._durable[op.leg], self._unflushed[op.leg]
        if op.data is None:
            for covered in self._covers.pop(number):
                if covered in unflushed:
                    del unflushed[covered]
                    _apply(durable, self._recording.ops[covered])
            return
        _apply(self._content[op.leg], op)
        if op.durable:
            _apply(durable, op)
        else:
            unflushed[number] = None

    def _begun(self, number: int) -> None:
        request = self._recording.requests[number]
        if isinstance(request, UserFlush):
            self._flushes[number] = {
                write for write in self._acknowledged if self._machine_of(write) == request.machine
            }
            return
        if isinstance(request, UserResize):
            self._size = min(self._size, request.sectors)
            return
        for sector in range(request.sector, request.sector + request.sectors):
            self._history[sector].append((number, request.value))

    def _machine_of(self, number: int) -> int:
        return self._recording.requests[number].machine

    def _was_acknowledged(self, number: int) -> None:
        request = self._recording.requests[number]
        if isinstance(request, UserWrite):
            self._acknowledged.add(number)
            if request.durable:
                self._promised.add(number)
        elif isinstance(request, UserFlush):
            self._promised |= self._flushes[number]


def _apply(image: bytearray, op: LegOp) -> None:
    assert op.data is not None
    image[op.offset : op.offset + len(op.data)] = op.data
