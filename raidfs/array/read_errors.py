"""What legs could not read: ranges to be written anew from another leg, how often legs fail, blocks that are lost.

Pure bookkeeping without I/O and without a clock. `raidfs.sync_pass` repairs and heals, `raidfs.sync_thread` asks what
is due; docs/resync.md tells the story.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from raidfs.array.resync import Span

RANGES_MAX = 64  # of one leg that wait to be written anew; later ones are found by later reads
READ_ERRORS_MAX = 20  # md: max_read_errors
HALVED_S = 3600.0  # how long without an error halves the count (md: check_decay_read_errors)
LOST_TRY_AGAIN_S = 600.0  # after that a block that no leg could read is tried again


class ReadErrors:
    """The ranges that wait, oldest first, and how often each leg has failed a read; legs are indexes of the engine."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Span]] = []
        self._counts: dict[int, tuple[int, float]] = {}  # errors and when the last one was
        self._lost: list[tuple[Span, float]] = []  # no leg could read it: since when
        self.corrected: dict[int, int] = {}  # sectors written anew that no superblock tells of yet

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def first(self) -> tuple[int, Span]:
        """The leg and the range that have waited longest."""
        return self._waiting[0]

    def add(self, leg: int, span: Span, now: float) -> None:
        """A leg could not read a range: it waits, unless it does already, or nobody can read some of it."""
        self._lost = [(lost, since) for lost, since in self._lost if now - since < LOST_TRY_AGAIN_S]
        if any(lost.start < span.end and span.start < lost.end for lost, _ in self._lost):
            return
        if (leg, span) not in self._waiting and sum(one == leg for one, _ in self._waiting) < RANGES_MAX:
            self._waiting.append((leg, span))

    def done(self, leg: int, span: Span) -> None:
        """A range need not wait any more."""
        self._waiting = [one for one in self._waiting if one != (leg, span)]

    def was_corrected(self, leg: int, sectors: int) -> None:
        """So many sectors of a leg were written anew and read back (md: corrected_errors)."""
        self.corrected[leg] = self.corrected.get(leg, 0) + sectors

    def lost(self, span: Span, now: float) -> None:
        """No leg can read a range: failed reads of it mean nothing for a while."""
        self._lost = [*self._lost[1 - RANGES_MAX :], (span, now)]
        self._waiting = [
            (leg, one) for leg, one in self._waiting if not (span.start < one.end and one.start < span.end)
        ]

    def count(self, leg: int, now: float) -> int:
        """Count one more error of a leg; returns how many it has, old ones counting less."""
        errors, last = self._counts.get(leg, (0, now))
        errors = (errors >> min(63, int((now - last) / HALVED_S))) + 1
        self._counts[leg] = (errors, now)
        return errors

    def forget(self, leg: int) -> None:
        """The leg is not read any more."""
        self._waiting = [one for one in self._waiting if one[0] != leg]
        self._counts.pop(leg, None)
        self.corrected.pop(leg, None)


class SetAside:
    """Chunks that a heal could not finish because no leg in sync can read a block of them.

    They stay NEEDED, and are not due until the legs change or some time has passed.
    """

    def __init__(self) -> None:
        self._chunks: Container[int] = ()
        self._legs: object = None
        self._until = 0.0
        self._told: set[Span] = set()

    def put(self, chunks: Container[int], legs: object, now: float) -> None:
        """A heal of these legs has left these chunks, and no others."""
        self._chunks, self._legs, self._until = chunks, legs, now + LOST_TRY_AGAIN_S

    def clear(self) -> None:
        """Everything is due again."""
        self._legs = None

    def counts(self, legs: object, now: float) -> bool:
        """Whether anything is set aside for these legs."""
        return self._legs is not None and self._legs == legs and now < self._until

    def has(self, chunks: Iterable[int]) -> bool:
        """Whether all these chunks are set aside."""
        return all(chunk in self._chunks for chunk in chunks)

    def tell(self, span: Span) -> bool:
        """Whether it is the first time that this block cannot be read."""
        if span in self._told:
            return False
        self._told.add(span)
        return True
