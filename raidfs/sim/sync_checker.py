"""Who syncs, where, and beside whom: one-syncer, sync-in-window, window-quiet.

Seen from the lock manager (who holds ``resync``, what RESYNCING says, when all have acknowledged it) and from the disks
(who writes what), so that what nodes believe of themselves counts for nothing.

A write is a *copy* when another disk holds just that already: users' writes are all different.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from raidfs._core import OpKind
from raidfs.cluster.messages import Message, MessageType
from raidfs.lock.api import Mode
from raidfs.sim.checkers import LockChecker, Report
from raidfs.sim.disk_view import DiskView
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimHost
from raidfs.units import SECTOR_BYTES


@dataclasses.dataclass
class _Window:
    """What a node has announced, in bytes of the array: the range that stands for all, and the one that shall."""

    start: int = 0
    end: int = 0
    next: tuple[int, int] | None = None


class SyncChecker:
    """Follows the windows of syncs; ``copied(name, bytes)`` hears of each copy."""

    def __init__(
        self,
        view: DiskView,
        disks: tuple[SimDisk, ...],
        locks: LockChecker,
        report: Report,
        copied: Callable[[str, int], None],
    ) -> None:
        self._view = view
        self._disks = disks
        self._locks = locks
        self._report = report
        self._copied = copied
        self._windows: dict[str, _Window] = {}
        locks.on_granted = self._granted

    def syncs(self, name: str) -> bool:
        """Tell whether a node may be syncing: it holds ``resync``."""
        return self._locks.holds(name, "resync", Mode.EX)

    def left(self, name: str) -> None:
        """A node is dead or has left: what it announced is for others to handle."""
        self._windows.pop(name, None)

    def published(self, name: str, message: Message) -> None:
        """A message is in ``message``: receivers may act on it from now on, until all have acknowledged it."""
        if message.type != MessageType.RESYNCING:
            if name in self._windows:
                self._windows[name].next = None  # given up before anybody was made to acknowledge it
            return
        start, end = message.low * SECTOR_BYTES, message.high * SECTOR_BYTES
        self._shrink(name, start, end).next = (start, end)

    def valued(self, name: str, low: int, high: int) -> None:
        """A node has put a window into the value of its slot: who joins from now on knows of that one only."""
        self._shrink(name, low * SECTOR_BYTES, high * SECTOR_BYTES)

    def _shrink(self, name: str, start: int, end: int) -> _Window:
        window = self._windows.setdefault(name, _Window())
        window.start, window.end = max(window.start, start), min(window.end, end)
        return window

    def is_copy(self, disk: SimDisk, offset: int, data: bytes) -> bool:
        """Tell whether a write brings what another disk has."""
        end = offset + len(data)
        return any(other is not disk and other.content[offset:end] == data for other in self._disks)

    def on_op(self, host: SimHost, disk: SimDisk, kind: OpKind, offset: int, data: bytes | None) -> None:
        """See `raidfs.sim.host.OpWatcher`."""
        data_offset = self._view.layout.data_offset_bytes
        if data is None or offset < data_offset:
            return
        start = offset - data_offset
        end = start + len(data)
        if self.is_copy(disk, offset, data):
            self._copied(host.name, len(data))
            if not self.syncs(host.name):
                self._report("one-syncer", f"{host.name} copies bytes {start}-{end} and does not hold resync")
            window = self._windows.get(host.name, _Window())
            if not window.start <= start < end <= window.end:
                self._report(
                    "sync-in-window",
                    f"{host.name} copies bytes {start}-{end}; all have acknowledged {window.start}-{window.end}",
                )
            return
        for other, window in self._windows.items():
            if other != host.name and start < window.end and end > window.start:
                self._report("window-quiet", f"{host.name} writes bytes {start}-{end} in the window of {other}")

    def _granted(self, client: str, resource: str, mode: Mode) -> None:
        window = self._windows.get(client)
        if window is None or window.next is None or resource != "ack" or mode is not Mode.EX:
            return
        (window.start, window.end), window.next = window.next, None
        data_offset = self._view.layout.data_offset_bytes
        for disk in self._disks:
            for op in disk.in_flight:
                start = op.offset - data_offset
                is_inside = start < window.end and start + op.length > window.start
                if op.data is not None and op.offset >= data_offset and is_inside and op.owner.name != client:
                    self._report(
                        "window-quiet",
                        f"{client} has {window.start}-{window.end} acknowledged; {op.owner.name} still writes "
                        f"{start}-{start + op.length} of {disk.name}",
                    )
