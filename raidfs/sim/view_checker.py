"""Whether nodes agree when it is quiet: same-view.

Quiet means that for SETTLE_S no superblock was written and no machine was paused. By then deaths are known, and what
the dead left half announced has been read by those who live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raidfs._core import LegState
from raidfs.array.legs import ArrayLeg
from raidfs.format.superblock import ROLE_FAULTY, SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.node import Node
from raidfs.sim.checkers import MetadataChecker, Report
from raidfs.sim.disks import SimDisk
from raidfs.sim.stepper import Group, Stepper

SETTLE_S = 5.0  # a second for a death to be known, another until the members are looked at, milliseconds for the rest


class ViewChecker:
    """Compares the metadata of all nodes that ``serving()`` returns with the freshest on the disks.

    ``counts_events``: also the event count has to be the same. It need not when users may give up a metadata update
    between its write and its message; what it changed is then announced by the next one.
    """

    def __init__(
        self,
        stepper: Stepper,
        metadata: MetadataChecker,
        serving: Callable[[], Mapping[str, Node]],
        report: Report,
        *,
        counts_events: bool,
    ) -> None:
        self.looks = 0
        self._stepper = stepper
        self._metadata = metadata
        self._serving = serving
        self._report = report
        self._counts_events = counts_events
        self._settled_at = 0.0

    def disturbed(self, seconds: float = 0.0) -> None:
        """From now on, and for so many seconds, something goes on that nodes may hear of late."""
        self._settled_at = max(self._settled_at, self._stepper.now + seconds + SETTLE_S)
        self._stepper.at(self._settled_at, self._look)

    def landed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        """See `raidfs.sim.disks.Watcher`."""
        if offset < SUPER_OFFSET_BYTES + SUPER_BYTES and offset + length > SUPER_OFFSET_BYTES:
            self.disturbed()

    def _look(self) -> None:
        if self._stepper.now < self._settled_at:
            return
        self.looks += 1
        freshest = max(self._metadata.superblocks.values(), key=lambda superblock: superblock.events)
        for name, node in self._serving().items():
            events = node.array.superblock.events
            if self._counts_events and events != freshest.events:
                self._report("same-view", f"{name} has event {events}; the disks have {freshest.events}")
            for leg in node.array.legs:
                self._compare(name, leg, freshest)
            if self._counts_events and node.mddev.devices.candidates:
                self._report("same-view", f"{name} keeps images open that nobody adds")

    def _compare(self, name: str, leg: ArrayLeg, freshest: Superblock) -> None:
        role = freshest.role_of(leg.number)
        is_used = leg.state in (LegState.IN_SYNC, LegState.RECOVERING)
        if is_used and role == ROLE_FAULTY:
            self._report("same-view", f"{name} uses {leg.path}, which event {freshest.events} calls faulty")
        if self._counts_events and is_used != (role < freshest.raid_disks):
            self._report("same-view", f"{name}: {leg.path} is {leg.state.name}; event {freshest.events}: role {role}")
