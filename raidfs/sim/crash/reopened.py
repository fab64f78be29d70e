"""Opens what a crash has left with the real node, lets it heal, and looks at what comes of it.

A node never looks at users' data while it opens and heals an array: it reads, copies, and decides by metadata alone.
So legs with the same metadata are opened once, with a value of its own in every sector (`Reopener`), and what came of
that says for any data where each sector ended up. That this is so is checked: a part of the states is opened as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from random import Random

from raidfs._core import LegState
from raidfs.errors import NotFormerLeg, RaidfsError
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import ROLE_FAULTY, SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.sim.checkers import sector_bytes
from raidfs.sim.crash.disk import PlainDisk
from raidfs.sim.crash.layout import LARGER_SECTORS, LAYOUT
from raidfs.sim.crash.recording import CrashHost, InOrder, words
from raidfs.sim.crash.states import LegImage, Wanted
from raidfs.sim.host import SimStorage
from raidfs.sim.locks import SimulatedLocks
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Stepper
from raidfs.units import SECTOR_BYTES

STEPS_MAX = 50_000
MIXED = -1  # the value of a sector that no write has written so
MARKS = 1 << 40  # values from here on mark places
CHECKED_OF = 32


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a node made of a state: the values that it read, and the rule that was broken, or None."""

    values: tuple[int, ...]
    rule: str | None = None
    what: str = ""


@dataclasses.dataclass(frozen=True)
class Healed:
    """What a node has read, what the legs hold when it has left, and what else is wrong with them then.

    ``broken`` is the rule that was broken before anything could be read. ``stale`` are the legs that are not in sync,
    ``served`` is what the node served when it left, ``sizes`` what superblocks and slots say, all in sectors.
    """

    broken: tuple[str, str] | None
    values: tuple[int, ...] = ()
    legs: tuple[tuple[int, ...], ...] = ()
    stale: frozenset[int] = frozenset()
    served: int = 0
    sizes: frozenset[int] = frozenset()
    dirty: tuple[int, ...] = ()

    def outcome(self) -> Outcome:
        """Return what to make of it."""
        if self.broken is not None:
            return Outcome(self.values, *self.broken)
        for leg, found in enumerate(self.legs):
            if leg in self.stale:
                return Outcome(self.values, "heals", f"leg {leg} is not in sync")
            if found[: len(self.values)] != self.values:
                for sector, (have, read) in enumerate(zip(found, self.values, strict=False)):
                    if have != read:
                        what = f"sector {sector}: leg {leg} has {have}, read was {read}"
                        return Outcome(self.values, "legs-equal", what)
            first = self.legs[0]
            for sector in range(len(self.values), self.served):
                if found[sector] != first[sector]:
                    what = f"sector {sector}: leg {leg} has {found[sector]}, leg 0 has {first[sector]}"
                    return Outcome(self.values, "legs-equal", what)
        if self.sizes != {self.served}:
            said = f"superblocks and slots say {sorted(self.sizes)} sectors"
            return Outcome(self.values, "one-size", f"{said}, {self.served} are served")
        if self.dirty:
            return Outcome(self.values, "heals", f"chunks {list(self.dirty)} are dirty")
        return Outcome(self.values)

    def of(self, value_of: Mapping[int, int]) -> Healed:
        """Return what it would have been with other values in the sectors; those that are not named stay."""

        def renamed(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple([value_of.get(value, value) for value in values])

        return dataclasses.replace(self, values=renamed(self.values), legs=tuple(renamed(leg) for leg in self.legs))


RULES = {
    "superblock": "every leg's superblock is one that mdadm accepts",
    "opens": "the array opens, heals and is left without an error",
    "promised": "what was acknowledged (model N) or is durable (model S) is there, or something newer",
    "same-again": "what a node has read of the array once is what the healed legs hold",
    "legs-equal": "healed legs are equal, those that were failed and taken back included",
    "heals": "in the end all legs are in sync and no bit is set",
    "one-size": "in the end superblocks and slots on all legs say the size that is served",
    "data-blind": "what a node does with legs that it opens does not depend on what users have written",
}


def values_of(data: bytes) -> tuple[int, ...]:
    """Return the value of each sector, see `raidfs.sim.checkers.sector_bytes`."""
    found = []
    for at in range(0, len(data), SECTOR_BYTES):
        sector = data[at : at + SECTOR_BYTES]
        found.append(int.from_bytes(sector[:8], "little") if sector == sector[:8] * (SECTOR_BYTES // 8) else MIXED)
    return tuple(found)


class Reopener:
    """Opens legs, those with the same metadata once; ``opened`` counts how often a node did.

    Of one in ``checked_of`` states (0: of none) it is looked whether opening the legs themselves comes to the same.
    """

    def __init__(self, *, checked_of: int = CHECKED_OF) -> None:
        self.opened = 0
        self._checked_of = checked_of
        self._healed: dict[tuple[bytes, ...], Healed] = {}
        self._values: dict[bytes, tuple[int, ...]] = {}

    def forget(self) -> None:
        """Open everything anew: the code is another one now."""
        self._healed.clear()

    def outcome(self, legs: Sequence[LegImage]) -> Outcome:
        """Return what comes of opening legs."""
        metadata = tuple([leg.metadata for leg in legs])
        healed = self._healed.get(metadata)
        if healed is None:
            self.opened += 1
            healed = self._healed[metadata] = heal([_marked(number, leg.data) for number, leg in enumerate(legs)])
        value_of: dict[int, int] = {}
        for number, leg in enumerate(legs):
            value_of.update(zip(_marks(number), self._values_of(leg), strict=True))
        outcome = healed.of(value_of).outcome()
        if self._checked_of and sum(leg.digest[0] for leg in legs) % self._checked_of == 0:
            self.opened += 1
            found = reopen([leg.data for leg in legs])
            if found != outcome:
                return Outcome(found.values, "data-blind", f"with other data it was {outcome}, with these {found}")
        return outcome

    def _values_of(self, leg: LegImage) -> tuple[int, ...]:
        values = self._values.get(leg.digest)
        if values is None:
            values = self._values[leg.digest] = values_of(leg.data[LAYOUT.data_offset_bytes :])
        return values


def _marks(leg: int) -> range:
    return range(MARKS + leg * LARGER_SECTORS, MARKS + (leg + 1) * LARGER_SECTORS)


def _marked(leg: int, image: bytes) -> bytes:
    """Return a leg with a value of its own in every sector."""
    return image[: LAYOUT.data_offset_bytes] + b"".join(map(sector_bytes, _marks(leg)))


def reopen(images: Sequence[bytes]) -> Outcome:
    """Open the legs, heal, leave, and look; the images' only use is to be read."""
    return heal(images).outcome()


def heal(images: Sequence[bytes]) -> Healed:
    """Open the legs, heal and leave."""
    for leg, image in enumerate(images):
        try:
            _superblock(leg, image)
        except RaidfsError as e:
            return Healed(("superblock", str(e)))
    stepper = Stepper(InOrder(), Random(0), steps_max=STEPS_MAX)
    world = stepper.group("world")
    disks = [PlainDisk(leg, stepper, world) for leg in range(len(images))]
    for disk, image in zip(disks, images, strict=True):
        disk.content[:] = image
    locks = SimulatedLocks(SimRuntime(stepper, world))
    group = stepper.group("c0")
    host = CrashHost("c0", stepper, group, SimStorage(disks), locks)
    read: list[bytes] = []
    served: list[int] = []
    errors: list[str] = []

    async def session() -> None:
        options = NodeOptions(images=tuple(disk.name for disk in disks), client_name="c0", lock="simulated", run=True)
        async with open_node(SimRuntime(stepper, group), options, host) as node:
            read.append(await node.volume.read(0, LARGER_SECTORS * SECTOR_BYTES))
            await node.wait_for_syncs()
            for disk in disks:
                if not any(leg.path == disk.name and leg.state != LegState.FAULTY for leg in node.array.legs):
                    await _take_back(node, disk.name)
                    await node.wait_for_syncs()
            served.append(node.volume.size_bytes // SECTOR_BYTES)

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
        return Healed(("opens", errors[0]))
    return left_of(values_of(read[0]), [bytes(disk.content) for disk in disks], served[0])


async def _take_back(node: Node, path: str) -> None:
    """Take a leg back as its user would: again what it was, or where it was left half-way, as a new one."""
    try:
        await node.re_add(path)
    except NotFormerLeg:
        await node.add(path, spare=False, force=True)


def left_of(values: tuple[int, ...], images: Sequence[bytes], served: int) -> Healed:
    """Return what legs hold that nobody uses any more; ``values`` were read of the array, ``served`` sectors it had."""
    try:
        superblocks = [_superblock(leg, image) for leg, image in enumerate(images)]
    except RaidfsError as e:
        return Healed(("superblock", str(e)), values)
    freshest = max(superblocks, key=lambda superblock: superblock.events)
    return Healed(
        None,
        values,
        tuple(values_of(image[LAYOUT.data_offset_bytes :]) for image in images),
        frozenset(
            leg
            for leg, own in enumerate(superblocks)
            if freshest.role_of(own.dev_number) >= ROLE_FAULTY or own.is_recovering
        ),
        served,
        frozenset(own.size_sectors for own in superblocks) | frozenset(map(_size_said, images)),
        tuple(sorted(_dirty_chunks(images[0], served))),
    )


def _slot(image: bytes, slot: int) -> bytes:
    start = LAYOUT.slot_offset_bytes(slot)
    return image[start : start + LAYOUT.slot_bytes]


def _size_said(image: bytes) -> int:
    """Return the size in sectors that all slots of a leg say, or MIXED."""
    found = {BitmapSuperblock.decode(_slot(image, slot)).sync_size_sectors for slot in range(LAYOUT.nodes)}
    return found.pop() if len(found) == 1 else MIXED


def _dirty_chunks(image: bytes, sectors: int) -> set[int]:
    """Return the chunks of so many sectors whose bits are set in some slot, as the first leg has it: that one counts.

    Another leg may have a bit of a write that did not come to its data; nobody looks at it while the first leg lives.
    """
    dirty = set()
    chunks = sectors * SECTOR_BYTES // LAYOUT.chunk_bytes
    for slot in range(LAYOUT.nodes):
        bits = _slot(image, slot)[BITMAP_SUPER_BYTES:]
        dirty |= {chunk for chunk in range(chunks) if bits[chunk // 8] >> chunk % 8 & 1}
    return dirty


def _superblock(leg: int, image: bytes) -> Superblock:
    return Superblock.decode(image[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES], path=f"disk{leg}")


def broken_promise(outcome: Outcome, wanted: Wanted) -> tuple[str, str] | None:
    """Return the rule that an outcome breaks where these values are wanted, and how; None for none."""
    if outcome.rule is not None:
        return outcome.rule, outcome.what
    lost = unwanted(outcome.values, wanted)
    return None if lost is None else ("promised", lost)


def unwanted(values: Sequence[int], wanted: Wanted) -> str | None:
    """Return what was read that may not be, or is not there; None for nothing."""
    for sector, allowed in enumerate(wanted):
        if allowed and sector >= len(values):
            return f"sector {sector} is not served, allowed are {sorted(allowed)}"
        if allowed and values[sector] not in allowed:
            return f"sector {sector} has {values[sector]}, allowed are {sorted(allowed)}"
    return None
