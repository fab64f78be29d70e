"""Is nobody served what not all have agreed on? served-beyond, one-size (P4).

Seen from the disks: what superblocks and slots say of their size; and from the nodes: what each of them serves.
"""

from __future__ import annotations

from collections.abc import Callable

from raidfs.node import Node
from raidfs.sim.checkers import Report
from raidfs.sim.disk_view import DiskView
from raidfs.units import SECTOR_BYTES


class SizeChecker:
    """Looks whenever a node comes to serve more; ``serving()`` are the nodes that serve, by the names of their runs."""

    def __init__(self, view: DiskView, serving: Callable[[], dict[str, Node]], report: Report) -> None:
        self._view = view
        self._serving = serving
        self._report = report

    def watch(self, name: str, node: Node) -> None:
        """A node has joined."""
        array = node.array
        set_capacity = array.set_capacity

        async def watched(size_sectors: int) -> None:
            before = array.size_bytes
            await set_capacity(size_sectors)
            if array.size_bytes > before:
                self._raised(name, array.size_bytes)

        array.set_capacity = watched  # type: ignore[method-assign]

    def _raised(self, name: str, size_bytes: int) -> None:
        for (disk, slot), size_sectors in self._view.sizes_said().items():
            if size_sectors * SECTOR_BYTES < size_bytes:
                what = f"slot {slot} on {disk} says {size_sectors * SECTOR_BYTES}"
                self._report("served-beyond", f"{name} serves {size_bytes} bytes, and {what}")
        for other, node in self._serving().items():
            if node.array.layout.size_bytes < size_bytes:
                what = f"{other} is at {node.array.layout.size_bytes}"
                self._report("served-beyond", f"{name} serves {size_bytes} bytes, and {what}")


def check_one_size(view: DiskView, report: Report) -> None:
    """When nobody runs, and the last nodes had time: one-size."""
    size = view.freshest.size_sectors
    for disk in view.in_sync():
        if view.size_of(disk) != size:
            report(
                "one-size", f"the superblock of {disk.name} says {view.size_of(disk)} sectors, the freshest one {size}"
            )
    for (disk_name, slot), said in view.sizes_said().items():
        if said != size:
            report("one-size", f"slot {slot} on {disk_name} says {said} sectors, the superblock {size}")
