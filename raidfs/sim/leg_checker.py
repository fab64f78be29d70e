"""Do legs hold what superblocks and bitmaps say? in-sync-copied, recovery-offset, slots-on-leg, cleared-when-equal.

The checker sees every write as it takes place, and compares what is on the disks at that moment.
"""

from __future__ import annotations

from collections.abc import Callable

from raidfs.errors import RaidfsError
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES
from raidfs.sim.checkers import Report
from raidfs.sim.disk_view import DiskView
from raidfs.sim.disks import SimDisk
from raidfs.sim.stepper import Group


class LegChecker:
    """Watches disks through a view; ``in_sync`` are the legs in sync, by position.

    ``syncs(name)`` tells whether a machine may be syncing.
    """

    def __init__(
        self,
        view: DiskView,
        disks: tuple[SimDisk, ...],
        syncs: Callable[[str], bool],
        report: Report,
    ) -> None:
        self._view = view
        self._disks = disks
        self._syncs = syncs
        self._report = report
        self.in_sync = view.in_sync()
        self._chunks = view.layout.bits
        self._bits = {disk: self._read_bits(disk) for disk in disks}

    def landed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        """See `raidfs.sim.disks.Watcher`; comes after the one that keeps the view's superblocks."""
        layout = self._view.layout
        end = offset + length
        if offset < SUPER_OFFSET_BYTES + SUPER_BYTES and end > SUPER_OFFSET_BYTES:
            self._superblock(disk, owner)
        if offset < layout.data_offset_bytes and end > layout.slot_offset_bytes(0):
            self._bitmap(disk, owner)

    # ---- superblocks -----------------------------------------------------------------------------------------------

    def _superblock(self, disk: SimDisk, owner: Group | None) -> None:
        view = self._view
        before, self.in_sync = self.in_sync, view.in_sync()
        if view.layout.bits != self._chunks:
            self._chunks = view.layout.bits
            self._bits = {disk: self._read_bits(disk) for disk in self._disks}
        if owner is None:
            return  # the power has gone: what is left was judged when it was written
        for new in self.in_sync:
            if new not in before:
                self._has_become_in_sync(new, before, owner)
        if disk in view.recovering() and self.in_sync:
            end = view.recovered_bytes(disk)
            chunks = end // view.layout.chunk_bytes if end < view.layout.size_bytes else view.layout.bits
            first = self.in_sync[0]
            self._compare("recovery-offset", disk, first, view.dirty(first), chunks, owner)

    def _has_become_in_sync(self, disk: SimDisk, before: list[SimDisk], owner: Group) -> None:
        view = self._view
        if not self._syncs(owner.name):
            self._report("one-syncer", f"{owner.name} calls {disk.name} in sync and does not hold resync")
        first = next((other for other in self.in_sync if other in before), None)
        if first is None:
            self._report("in-sync-copied", f"{disk.name} is in sync, and no leg that was so before is left")
            return
        self._compare("in-sync-copied", disk, first, view.dirty(disk), view.layout.bits, owner)
        for slot in range(view.layout.nodes):
            start = view.layout.slot_offset_bytes(slot)
            try:
                BitmapSuperblock.decode(bytes(disk.content[start : start + BITMAP_SUPER_BYTES]))
            except RaidfsError as e:
                self._report("slots-on-leg", f"{disk.name} is in sync and has no slot {slot}: {e}")
                continue
            lacking = view.bits(first, slot) & ~view.bits(disk, slot)
            if lacking and not self._is_written(first, slot) and not self._is_written(disk, slot):
                self._report(
                    "slots-on-leg", f"{disk.name} is in sync and lacks bits {_numbers(lacking)} of slot {slot}"
                )

    def _compare(self, rule: str, disk: SimDisk, first: SimDisk, dirty: int, chunks: int, owner: Group) -> None:
        for chunk in range(chunks):
            where = self._view.chunk(chunk)
            if dirty >> chunk & 1:
                continue
            for what, mine, other in (("", disk.content, first.content), (" durably", disk.durable, first.durable)):
                if mine[where] != other[where]:
                    said = "in sync" if rule == "in-sync-copied" else "copied so far"
                    self._report(
                        rule, f"{owner.name} calls {disk.name} {said}: chunk {chunk} is not{what} that of {first.name}"
                    )
                    return

    def _is_written(self, disk: SimDisk, slot: int) -> bool:
        layout = self._view.layout
        start = layout.slot_offset_bytes(slot)
        end = start + layout.slot_bytes
        return any(op.data is not None and op.offset < end and op.offset + op.length > start for op in disk.in_flight)

    # ---- bitmaps ---------------------------------------------------------------------------------------------------

    def _bitmap(self, disk: SimDisk, owner: Group | None) -> None:
        before, now = self._bits[disk], self._read_bits(disk)
        self._bits[disk] = now
        if owner is None or disk not in self.in_sync:
            return
        still = 0
        for bits in now:
            still |= bits
        for slot, (old, new) in enumerate(zip(before, now, strict=True)):
            cleared = old & ~new & ~still
            if cleared:
                self._cleared(disk, slot, cleared, owner)

    def _cleared(self, disk: SimDisk, slot: int, cleared: int, owner: Group) -> None:
        words = f"{owner.name} clears chunk %d of slot {slot} on {disk.name}, "
        for chunk in _numbers(cleared):
            where = self._view.chunk(chunk)
            first = self.in_sync[0]
            for other in self.in_sync:
                if other.content[where] != first.content[where]:
                    self._report("cleared-when-equal", words % chunk + f"where {other.name} is not {first.name}")
                if other.durable[where] != other.content[where]:
                    self._report("cleared-when-equal", words % chunk + f"which is not durable on {other.name}")
                for op in other.in_flight:
                    if op.data is not None and op.offset < where.stop and op.offset + op.length > where.start:
                        self._report("cleared-when-equal", words % chunk + f"which {op.owner.name} is writing")

    def _read_bits(self, disk: SimDisk) -> list[int]:
        return [self._view.bits(disk, slot) for slot in range(self._view.layout.nodes)]


def _numbers(bits: int) -> list[int]:
    return [number for number in range(bits.bit_length()) if bits >> number & 1]
