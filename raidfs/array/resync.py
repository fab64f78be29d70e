"""How a sync moves over the array: which chunks a series of windows has finished, how large windows are, how fast.

Pure arithmetic without I/O and without a clock; the tasks that use it are `raidfs.sync_thread` (the node that syncs)
and `raidfs.remote_resync` (all others). docs/resync.md tells the story.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque

from raidfs.units import KIB, MIB, round_down, round_up

WINDOW_BYTES_MIN = MIB
WINDOW_BYTES_MAX = 64 * MIB
BLOCK_BYTES_MAX = MIB  # of one read or write of a leg; larger ones gain nothing (docs/performance.md)
BLOCKS_IN_FLIGHT = 8
BLOCKS_BESIDE_USERS = 2  # while users of this node are served and the sync has its minimum speed

AIM = 0.8  # of what is allowed: measured times vary
GROW, SHRINK = 1.5, 0.5  # from one piece to the next at most
HELD_TOLD = 4  # announcements that a piece may be held for: at least three are made from its own to its release
TOLD_WEIGHT = 1 / 8  # of the last announcement in the mean

CHECKPOINTS = 16  # of one recovery: at least so many (md_do_sync)
CHECKPOINT_S = 60.0  # and at least so often


class SyncAction(enum.IntEnum):
    """What a sync does; the numbers travel in RESYNCING messages (``raid_slot``), the names are md's."""

    RESYNC = 0
    RECOVER = 1
    CHECK = 2
    REPAIR = 3

    @property
    def word(self) -> str:
        """The name for users."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Span:
    """A range of bytes of the array, [start, end)."""

    start: int
    end: int


class Coverage:
    """Which chunks contiguous windows have covered from one end to the other (md: cond_end_sync, sync_with_cluster).

    A chunk counts only when nothing could differ in it that came after its first byte was done: whoever learns of new
    bits says `restart` at the place where the window then begins, below which writes went on.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._start: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is covered."""
        return self._start is None

    def restart(self, start: int) -> None:
        """From now on only what is done at and above ``start`` counts."""
        self._start = start

    def forget(self) -> None:
        """Nothing counts."""
        self._start = None

    def reach(self, done: int, size_bytes: int) -> Span | None:
        """Everything below ``done`` is finished; return the whole chunks that this completes, each once.

        The last chunk of the array may be a part only: ``size_bytes`` ends it.
        """
        if self._start is None or done <= self._start:
            return None
        first = round_up(self._start, self._chunk_bytes)
        last = done if done >= size_bytes else round_down(done, self._chunk_bytes)
        if last <= first:
            return None
        self._start = last
        return Span(first, last)


class WindowPolicy:
    """How many bytes are announced at a time, so that nobody waits longer than half of the stall target.

    A write on another node into a piece that was just announced waits until the piece is copied and the next but one is
    announced. That time is measured for each piece, and the next ones are made larger or smaller to meet what is
    wanted. Two pieces are announced at a time at most, so a piece is half of a window.

    Three announcements are part of that time. Where they are slow, many nodes or a busy machine, smaller pieces would
    not shorten it: the legs would be idle while messages are on their way, and writes would wait all the same. So a
    piece is not made smaller than what is copied while one announcement is made.
    """

    def __init__(
        self,
        stall_ms: int,
        *,
        window_bytes_min: int = WINDOW_BYTES_MIN,
        window_bytes_max: int = WINDOW_BYTES_MAX,
        granule_bytes: int = 4 * KIB,
    ) -> None:
        self._wanted_s = stall_ms / 1000 / 2
        self._told_s = 0.0
        self._granule_bytes = granule_bytes
        self._piece_bytes_min = max(granule_bytes, window_bytes_min // 2)
        self._piece_bytes_max = max(self._piece_bytes_min, window_bytes_max // 2)
        self._piece_bytes = float(self._piece_bytes_min)

    @property
    def piece_bytes(self) -> int:
        """The size of the next piece."""
        return round_down(int(self._piece_bytes), self._granule_bytes)

    @property
    def block_bytes(self) -> int:
        """The size of one copy inside a piece, a power of two: some of them, so that the legs are never idle."""
        wanted = min(BLOCK_BYTES_MAX, max(self._granule_bytes, self.piece_bytes // 4))
        return int(1 << wanted.bit_length() - 1)

    def told(self, seconds: float) -> None:
        """An announcement took so long, until all nodes had acknowledged it."""
        self._told_s += (seconds - self._told_s) * TOLD_WEIGHT

    def stalled(self, seconds: float) -> None:
        """A piece was held for so long, from its announcement on."""
        wanted_s = AIM * max(self._wanted_s, HELD_TOLD * self._told_s)
        factor = min(max(wanted_s / seconds, SHRINK), GROW) if seconds > 0 else GROW
        self._piece_bytes = min(max(self._piece_bytes * factor, self._piece_bytes_min), self._piece_bytes_max)


class Pace:
    """How long to rest before the next piece, and how hard to push: minimum and maximum speed in bytes/s (0: none)."""

    def __init__(self, min_bytes_s: int, max_bytes_s: int, now: float) -> None:
        self._min_bytes_s = min_bytes_s
        self._max_bytes_s = max_bytes_s
        self._free_at = now

    def rest_s(self, now: float) -> float:
        """How long the maximum speed demands to wait now."""
        return max(0.0, self._free_at - now)

    def took(self, piece_bytes: int, now: float) -> None:
        """A piece begins to be copied; time that was not used is not saved up."""
        if self._max_bytes_s:
            self._free_at = max(self._free_at, now) + piece_bytes / self._max_bytes_s

    def blocks_in_flight(self, speed_bytes_s: float, *, users_active: bool) -> int:
        """How many blocks to have in flight: fewer beside users, unless the sync is slower than its minimum."""
        if users_active and speed_bytes_s > self._min_bytes_s:
            return BLOCKS_BESIDE_USERS
        return BLOCKS_IN_FLIGHT


class Progress:
    """Where a sync is and how fast it goes, on the node that does it and on those that hear of it."""

    MARKS = 16  # md: SYNC_MARKS
    MARK_S = 0.5

    def __init__(self, total_bytes: int, now: float) -> None:
        self.total_bytes = total_bytes
        self.position_bytes = 0
        self._done_bytes = 0
        self._marks: deque[tuple[float, int]] = deque([(now, 0)], maxlen=self.MARKS)

    def moved(self, position_bytes: int, done_bytes: int, now: float) -> None:
        """``done_bytes`` more were done, and the sync stands at a position."""
        self.position_bytes = position_bytes
        self._done_bytes += done_bytes
        if now - self._marks[-1][0] >= self.MARK_S:
            self._marks.append((now, self._done_bytes))

    def speed_bytes_s(self, now: float) -> float:
        """Bytes per second over the last marks."""
        since, done = self._marks[0]
        return (self._done_bytes - done) / (now - since) if now > since else 0.0

    def finish_s(self, now: float) -> float | None:
        """Seconds until the end at this speed; None while it stands still."""
        speed = self.speed_bytes_s(now)
        return (self.total_bytes - self.position_bytes) / speed if speed > 0 else None
