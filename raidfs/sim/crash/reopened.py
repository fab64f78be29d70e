"""Opens what a crash has left with the real node, lets it heal, and looks at what comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

from raidfs._core import LegState
from raidfs.errors import NotFormerLeg, RaidfsError
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.superblock import ROLE_FAULTY, SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.sim.crash.disk import PlainDisk
from raidfs.sim.crash.layout import LAYOUT, SECTORS
from raidfs.sim.crash.recording import CrashHost, InOrder, words
from raidfs.sim.crash.states import Wanted
from raidfs.sim.host import SimStorage
from raidfs.sim.locks import SimulatedLocks
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Stepper
from raidfs.units import SECTOR_BYTES

STEPS_MAX = 50_000
MIXED = -1  # the value of a sector that no write has written so


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a node made of a state: the values that it read, and the rule that was broken, or None."""

    values: tuple[int, ...]
    rule: str | None = None
    what: str = ""


RULES = {
    "superblock": "every leg's superblock is one that mdadm accepts",
    "opens": "the array opens, heals and is left without an error",
    "promised": "what was acknowledged (model N) or is durable (model S) is there, or something newer",
    "same-again": "what a node has read of the array once is what the healed legs hold",
    "legs-equal": "healed legs are equal, those that were failed and taken back included",
    "heals": "in the end all legs are in sync and no bit is set",
}


def values_of(data: bytes) -> tuple[int, ...]:
    """Return the value of each sector, see `raidfs.sim.checkers.sector_bytes`."""
    found = []
    for at in range(0, len(data), SECTOR_BYTES):
        sector = data[at : at + SECTOR_BYTES]
        found.append(int.from_bytes(sector[:8], "little") if sector == sector[:8] * (SECTOR_BYTES // 8) else MIXED)
    return tuple(found)


def reopen(images: Sequence[bytes]) -> Outcome:
    """Open the legs, heal, leave, and look; the images' only use is to be read."""
    for leg, image in enumerate(images):
        try:
            _superblock(leg, image)
        except RaidfsError as e:
            return Outcome((), "superblock", str(e))
    stepper = Stepper(InOrder(), Random(0), steps_max=STEPS_MAX)
    world = stepper.group("world")
    disks = [PlainDisk(leg, stepper, world) for leg in range(len(images))]
    for disk, image in zip(disks, images, strict=True):
        disk.content[:] = image
    locks = SimulatedLocks(SimRuntime(stepper, world))
    group = stepper.group("c0")
    host = CrashHost("c0", stepper, group, SimStorage(disks), locks)
    read: list[bytes] = []
    errors: list[str] = []

    async def session() -> None:
        options = NodeOptions(images=tuple(disk.name for disk in disks), client_name="c0", lock="simulated", run=True)
        async with open_node(SimRuntime(stepper, group), options, host) as node:
            read.append(await node.volume.read(0, SECTORS * SECTOR_BYTES))
            await node.wait_for_syncs()
            for disk in disks:
                if not any(leg.path == disk.name and leg.state != LegState.FAULTY for leg in node.array.legs):
                    await _take_back(node, disk.name)
                    await node.wait_for_syncs()

    stepper.spawn(world, locks.run(), name="locks")
    task = stepper.spawn(
        group, session(), name="node", on_end=lambda task, e: errors.append(words(e)) if e is not None else None
    )
    try:
        stepper.run(until=lambda: task not in group.tasks)
    except RaidfsError as e:
        errors.append(str(e))
    stepper.dispose()
    if errors:
        return Outcome((), "opens", errors[0])
    return _judged(values_of(read[0]), [bytes(disk.content) for disk in disks])


async def _take_back(node: Node, path: str) -> None:
    """Take a leg back as its user would: again what it was, or where it was left half-way, as a new one."""
    try:
        await node.re_add(path)
    except NotFormerLeg:
        await node.add(path, spare=False, force=True)


def _judged(values: tuple[int, ...], images: Sequence[bytes]) -> Outcome:
    try:
        superblocks = [_superblock(leg, image) for leg, image in enumerate(images)]
    except RaidfsError as e:
        return Outcome(values, "superblock", str(e))
    freshest = max(superblocks, key=lambda superblock: superblock.events)
    for leg, own in enumerate(superblocks):
        if freshest.role_of(own.dev_number) >= ROLE_FAULTY or own.is_recovering:
            return Outcome(values, "heals", f"leg {leg} is not in sync")
        found = values_of(images[leg][LAYOUT.data_offset_bytes :])
        for sector in range(SECTORS):
            if found[sector] != values[sector]:
                return Outcome(
                    values, "legs-equal", f"sector {sector}: leg {leg} has {found[sector]}, read was {values[sector]}"
                )
    dirty = _dirty_chunks(images[0])
    return Outcome(values, "heals", f"chunks {sorted(dirty)} are dirty") if dirty else Outcome(values)


def _dirty_chunks(image: bytes) -> set[int]:
    """Return the chunks whose bits are set in some slot, as the first leg has it: that one counts.

    Another leg may have a bit of a write that did not come to its data; nobody looks at it while the first leg lives.
    """
    dirty = set()
    for slot in range(LAYOUT.nodes):
        bits = LAYOUT.slot_offset_bytes(slot) + BITMAP_SUPER_BYTES
        dirty |= {chunk for chunk in range(LAYOUT.bits) if image[bits + chunk // 8] >> chunk % 8 & 1}
    return dirty


def _superblock(leg: int, image: bytes) -> Superblock:
    return Superblock.decode(image[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES], path=f"disk{leg}")


def broken_promise(outcome: Outcome, wanted: Wanted) -> tuple[str, str] | None:
    """Return the rule that an outcome breaks where these values are wanted, and how; None for none."""
    if outcome.rule is not None:
        return outcome.rule, outcome.what
    for sector, value in enumerate(outcome.values):
        if value not in wanted[sector]:
            return "promised", f"sector {sector} has {value}, allowed are {sorted(wanted[sector])}"
    return None
