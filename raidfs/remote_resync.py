"""A sync that another node does, as this one takes part in it: the receiver's side of RESYNCING.

The node that syncs announces the range [low, high) in which it copies next; before we acknowledge, writes of ours are
kept out of it and those under way have ended. It then copies there, and moves on: what is below ``low`` is done. So
our own bits end with it (md: sync_with_cluster), and two nodes with the same dirty chunks do not resync them twice
(B14). That holds for chunks that its windows have covered wholly, one window touching the other; and only if it copies
to every leg that is written, which it says (`WHOLE`). A window that does not touch the last one begins anew, the last
one being finished. (0, 0) ends the sync: what was not finished is NEEDED again.

Exactly one node syncs at a time, the holder of ``resync`` EX, so one suspended range is enough (W9). If somebody else
begins while a range is suspended, its owner has died and we have not noticed yet: `on_orphan` is told.
"""

from __future__ import annotations

from collections.abc import Callable

from raidfs.array.array import Array
from raidfs.array.resync import Coverage, Progress, Span, SyncAction
from raidfs.units import SECTOR_BYTES

WHOLE = 0x100  # in ``raid_slot`` of RESYNCING: the range is copied to all legs that are written
ACTION_MASK = 0xFF


def resyncing_code(action: SyncAction, *, whole: bool) -> int:
    """Return the ``raid_slot`` of a RESYNCING message."""
    return action | (WHOLE if whole else 0)


class RemoteResync:
    """The sync of another node; ``slot`` is None while there is none."""

    def __init__(self, array: Array, now: Callable[[], float]) -> None:
        self.slot: int | None = None
        self.window = Span(0, 0)
        self.action = SyncAction.RESYNC
        self.progress = Progress(array.size_bytes, now())
        self.on_orphan: Callable[[int], None] = lambda slot: None
        self.on_end: Callable[[], None] = lambda: None
        self._array = array
        self._now = now
        self._coverage = Coverage(array.layout.chunk_bytes)

    def found(self, slot: int, low_sectors: int, high_sectors: int) -> None:
        """A node that was there before us is at this range; its next message tells more."""
        self._begin(slot)
        self._suspend(Span(low_sectors * SECTOR_BYTES, high_sectors * SECTOR_BYTES))

    def started(self, slot: int) -> None:
        """Another node begins a sync (RESYNCING_START)."""
        if self.slot is not None:
            self.on_orphan(self.slot)
            self._abandon()
        self._begin(slot)

    async def moved(self, slot: int, low_sectors: int, high_sectors: int, code: int) -> None:
        """The range has moved (RESYNCING); returns when nothing of ours is in flight in it."""
        if high_sectors == 0:
            self.end()
            return
        if self.slot != slot:
            self.started(slot)
        window = Span(low_sectors * SECTOR_BYTES, high_sectors * SECTOR_BYTES)
        self.action = SyncAction(code & ACTION_MASK)
        if self.action in (SyncAction.RESYNC, SyncAction.RECOVER):
            self._cover(window, whole=bool(code & WHOLE))
        else:
            self._coverage.forget()  # it may have come from a heal to rewrite what could not be read
        self.progress.moved(window.start, max(0, window.end - max(window.start, self.window.end)), self._now())
        self._suspend(window)
        if window.end > window.start:
            await self._array.port.drain(window.start, window.end)

    def bits_found(self) -> None:
        """Bits were found in the slot of a dead node: its writes went on below the window until it died."""
        if not self._coverage.is_empty:
            self._coverage.restart(self.window.start)

    def gone(self, slot: int) -> None:
        """A node has gone, its bits are known; if the sync was its own, it ends unfinished."""
        if self.slot == slot:
            self.end()

    def end(self) -> None:
        """The sync is over, or given up."""
        self._abandon()
        self.slot = None
        self._suspend(Span(0, 0))
        self.on_end()

    def _begin(self, slot: int) -> None:
        self.slot = slot
        self.action = SyncAction.RESYNC
        self.progress = Progress(self._array.size_bytes, self._now())
        self._coverage = Coverage(self._array.layout.chunk_bytes)

    def _suspend(self, window: Span) -> None:
        self.window = window
        self._array.port.engine.suspend(window.start, window.end)

    def _abandon(self) -> None:
        self._coverage.forget()
        self._array.port.engine.sync_end(0, self._array.size_bytes, aborted=True)

    # ---- bits ------------------------------------------------------------------------------------------------------

    def _cover(self, window: Span, *, whole: bool) -> None:
        last = self.window
        touches = not self._coverage.is_empty and last.start <= window.start <= last.end
        self._reach(window.start if touches else last.end)
        if not whole:
            self._coverage.forget()
            return
        if not touches:
            self._coverage.restart(window.start)
        new = max(last.end, window.start) if touches else window.start
        if window.end > new:
            self._array.port.engine.sync_start(new, window.end)

    def _reach(self, done: int) -> None:
        finished = self._coverage.reach(done, self._array.size_bytes)
        if finished is not None:
            self._array.port.engine.sync_end(finished.start, finished.end, aborted=False)
            self._array.doubts.trust(finished)
