"""Changing how many slots a stopped array has, and the name of its cluster; what slots hold is kept.

Every slot tells both in its superblock, on every leg, so the change takes many writes. Their order makes a crash
harmless, and the same change again finishes what was begun. Each step is on stable storage before the next:

1. legs that are one event behind, or lack slots, get what they lack; legs that are missing (``run``) become faulty;
2. the bits of slots that go are added to those of slot 0;
3. new slots are written, empty, behind the others, where nobody looks yet;
4. all slots that stay or are new say the new number and name;
5. what is left of slots that have gone is erased.

Wherever that is cut off, the largest number that any slot tells is right (`raidfs.array.agreement.check_bitmaps`): it
is the old one until the last slot of a shrinking array says otherwise, and a new one only when all new slots are there.
A node that joins such an array makes all slots say so. mdadm's ``--update=nodes`` sets all bits of slot 0 instead and
clears those of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from raidfs.array.assemble import assemble
from raidfs.array.assembly import AssembledLeg, Assembly, LegState
from raidfs.array.head import read_candidate, read_slot_superblocks
from raidfs.array.images import OpenImage, image_identity, open_image
from raidfs.array.metadata import for_leg
from raidfs.array.request import check_name
from raidfs.errors import ArrayHalfResized, RaidfsError, SameImageTwice, TooManyNodes
from raidfs.format.bitmap import CLUSTER_NAME_BYTES_MAX, MAGIC, BitmapSuperblock, count_dirty
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.geometry import NODES_MAX, ArrayLayout, check_nodes
from raidfs.format.superblock import MAX_SECTOR, ROLE_FAULTY, SUPER_OFFSET_BYTES, Superblock
from raidfs.units import PAGE_BYTES, SECTOR_BYTES


@dataclasses.dataclass(frozen=True)
class UpdateRequest:
    """What shall change of the array on ``paths``; None stays. ``run`` as for `assemble`."""

    paths: tuple[str, ...]
    nodes: int | None = None
    cluster_name: str | None = None
    run: bool = False


@dataclasses.dataclass(frozen=True)
class Write:
    """Bytes for one image; offset and length are multiples of 4096."""

    path: str
    offset_bytes: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Step:
    """Writes in no particular order, all of them durable before the next step."""

    what: str
    writes: tuple[Write, ...]


@dataclasses.dataclass(frozen=True)
class Update:
    """What is done, or was, to an array: nothing when it is as asked for already."""

    set_uuid_text: str
    array_name: str
    old_nodes: int
    nodes: int
    old_cluster_name: str
    cluster_name: str
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the document that ``raidfs update --json`` prints; it may only grow."""
        return {
            "schema": 1,
            "array": {
                "uuid": self.set_uuid_text,
                "name": self.array_name,
                "nodes": self.nodes,
                "nodes_before": self.old_nodes,
                "cluster_name": self.cluster_name,
                "cluster_name_before": self.old_cluster_name,
            },
            "steps": [{"what": step.what, "writes": len(step.writes)} for step in self.steps],
            "left_out": list(self.left_out),
        }


def update_array(request: UpdateRequest, *, now_s: int, dry_run: bool = False) -> Update:
    """Do what the request says and return what it took; with ``dry_run`` nothing is written.

    All images are held under an exclusive flock for the time. Raises ImageInUse when a node of this host runs, what
    `assemble` raises, BadGeometry, TooManyNodes and ArrayHalfResized before anything is written, and ImageAccess when
    an image cannot be written: then the same request finishes it later.
    """
    if request.nodes is not None:
        check_nodes(request.nodes)
    if request.cluster_name is not None:
        check_name("cluster name", request.cluster_name, CLUSTER_NAME_BYTES_MAX, forbidden="")
    with contextlib.ExitStack() as opened:
        images: dict[str, OpenImage] = {}
        by_identity: dict[tuple[str, int, int], str] = {}
        for path in request.paths:
            if (identity := image_identity(path)) in by_identity:
                raise SameImageTwice(path=path, other_path=by_identity[identity])
            by_identity[identity] = path
            images[path] = opened.enter_context(open_image(path, writable=not dry_run, exclusive=not dry_run))
            images[path].lock(exclusive=True)
        update = plan_update(request, images, now_s=now_s)
        if not dry_run:
            for step in update.steps:
                _carry_out(step, images)
            _check(update, [image for path, image in images.items() if path not in update.left_out])
        return update


def plan_update(request: UpdateRequest, images: dict[str, OpenImage], *, now_s: int) -> Update:
    """Return the steps that the request takes, having read the images and written nothing."""
    assembly = assemble([read_candidate(image) for image in images.values()], run=request.run, heals_bitmaps=True)
    if assembly.slots_of_other_size:
        slots = ", ".join(str(slot) for slot in assembly.slots_of_other_size)
        raise ArrayHalfResized(path=assembly.bitmap_path, slots=slots)
    nodes = assembly.nodes if request.nodes is None else request.nodes
    most = _check_room(assembly, nodes)
    name = assembly.bitmap.cluster_name if request.cluster_name is None else request.cluster_name.encode()
    update = Update(
        set_uuid_text=assembly.superblock.set_uuid_text,
        array_name=assembly.array_name,
        old_nodes=assembly.nodes,
        nodes=nodes,
        old_cluster_name=assembly.cluster_name,
        cluster_name=dataclasses.replace(assembly.bitmap, cluster_name=name).cluster_name_text,
        steps=(),
        left_out=tuple(leg.path for leg in assembly.left_out),
    )
    return dataclasses.replace(update, steps=_Planner(assembly, images, nodes, most, name, now_s).steps())


def _check_room(assembly: Assembly, nodes: int) -> int:
    """Return how many slots end before the data, and before a bad block log; raises TooManyNodes.

    ``mdadm --add`` gives new legs a log that begins within the slots that there are: that one does not count.
    """
    layout = dataclasses.replace(assembly.layout, nodes=nodes)
    room = layout.bitmap_room_bytes
    for own in (leg.superblock for leg in (*assembly.legs, *assembly.spares)):
        log_bytes = (own.bblog_offset_sectors - own.bitmap_offset_sectors) * SECTOR_BYTES
        if own.bblog_size_sectors and log_bytes >= assembly.nodes * layout.slot_bytes:
            room = min(room, log_bytes)
    need = nodes * layout.slot_bytes
    if need > room:
        raise TooManyNodes(nodes=nodes, need_bytes=need, have_bytes=room, nodes_max=room // layout.slot_bytes)
    return room // layout.slot_bytes


class _Planner:
    def __init__(
        self,
        assembly: Assembly,
        images: dict[str, OpenImage],
        nodes: int,
        nodes_max: int,
        cluster_name: bytes,
        now_s: int,
    ) -> None:
        self._assembly = assembly
        self._images = images
        self._old = assembly.layout
        self._new: ArrayLayout = dataclasses.replace(assembly.layout, nodes=nodes)
        self._nodes_max = nodes_max
        self._cluster_name = cluster_name
        self._now_s = now_s
        self._legs: Sequence[AssembledLeg] = (*assembly.legs, *assembly.spares)
        # Bits that only one of the legs has count too; slots are believed of legs in sync alone.
        self._sources = [
            leg.path
            for leg in assembly.legs
            if leg.state is LegState.IN_SYNC and leg.path not in assembly.incomplete_bitmap_paths
        ]
        self._slots = [self._slot(slot) for slot in range(self._old.nodes)]

    def steps(self) -> tuple[Step, ...]:
        """Return the steps that write something; none when all slots are as they shall be."""
        superblock = self._assembly.superblock
        merged = self._merged(self._slots[self._new.nodes :])
        adds_bits = self._dirty(merged) > self._dirty(self._slots[0])
        begun = [self._lacking_slots(), self._merge(merged), self._new_slots()]
        rewritten = {(write.path, write.offset_bytes) for step in begun for write in step.writes}
        slots = [*begun, self._heads(rewritten), self._leftovers()]
        if not any(step.writes for step in slots):
            return ()
        steps = [self._behind(superblock), self._superblock_step(superblock, adds_bits=adds_bits), *slots]
        return tuple(step for step in steps if step.writes)

    # ---- the steps -------------------------------------------------------------------------------------------------

    def _behind(self, superblock: Superblock) -> Step:
        behind = [leg for leg in self._legs if for_leg(superblock, leg.superblock) != leg.superblock]
        behind = [leg for leg in behind if leg.state is not LegState.SPARE]
        return Step("bring all superblocks to the last event", tuple(self._superblocks(superblock, behind)))

    def _superblock_step(self, superblock: Superblock, *, adds_bits: bool) -> Step:
        changed = superblock
        for number, role in enumerate(superblock.dev_roles):
            if role in self._assembly.missing_roles:
                changed = changed.with_role(number, ROLE_FAULTY)
        what = "record that missing legs are faulty"
        if adds_bits and superblock.resync_offset_sectors == MAX_SECTOR:
            # Bits of a clean array mean nothing unless it is degraded, which each slot knows by its own event count.
            changed = dataclasses.replace(changed, resync_offset_sectors=0)
            what = "record that set bits count"
        if changed == superblock:
            return Step(what, ())
        changed = dataclasses.replace(changed, events=superblock.events + 1, utime=self._now_s)
        return Step(what, tuple(self._superblocks(changed, self._legs)))

    def _lacking_slots(self) -> Step:
        lacking = set(self._assembly.incomplete_bitmap_paths)
        writes = [
            Write(path, self._offset(slot), data) for path in sorted(lacking) for slot, data in enumerate(self._slots)
        ]
        return Step("write slots that are lacking", tuple(writes))

    def _merge(self, merged: bytes) -> Step:
        what = (
            f"add the bits of {_names(self._new.nodes, self._old.nodes)} to slot 0: {self._dirty(merged)} dirty chunks"
        )
        if self._new.nodes >= self._old.nodes:
            return Step(what, ())
        self._slots[0] = merged
        return Step(what, tuple(write for write in self._writes(0, merged) if not self._holds(write.path, merged)))

    def _new_slots(self) -> Step:
        empty = self._headed(self._slots[0][:BITMAP_SUPER_BYTES].ljust(self._old.slot_bytes, b"\0"))
        added = range(self._old.nodes, self._new.nodes)
        writes = tuple(write for slot in added for write in self._writes(slot, empty))
        return Step(f"write {_names(self._old.nodes, self._new.nodes)}, empty", writes)

    def _heads(self, rewritten: set[tuple[str, int]]) -> Step:
        """Let all slots tell the new number and name; those ``rewritten`` before tell the old ones by then."""
        kept = min(self._old.nodes, self._new.nodes)
        wanted = (self._new.nodes, self._cluster_name)
        writes = []
        for leg in self._legs:
            found = read_slot_superblocks(self._images[leg.path], leg.superblock)
            for slot in range(kept):
                own = found[slot] if slot < len(found) else None
                tells = (own.nodes, own.cluster_name) if isinstance(own, BitmapSuperblock) else None
                if tells != wanted or (leg.path, self._offset(slot)) in rewritten:
                    page = self._headed(self._slots[slot])[:PAGE_BYTES]
                    writes.append(Write(leg.path, self._offset(slot), page))
        name = dataclasses.replace(self._assembly.bitmap, cluster_name=self._cluster_name).cluster_name_text
        return Step(f"let {_names(0, kept)} say {self._new.nodes} nodes, cluster {name}", tuple(writes))

    def _leftovers(self) -> Step:
        """Erase what follows the last slot and still looks like one of this array."""
        writes = []
        for leg in self._legs:
            for slot in range(self._new.nodes, min(NODES_MAX, self._nodes_max)):
                head = self._images[leg.path].read(self._offset(slot), BITMAP_SUPER_BYTES)
                is_slot = head.startswith(MAGIC.to_bytes(4, "little")) and head[8:24] == self._assembly.set_uuid
                if is_slot or slot < self._old.nodes:
                    writes.append(Write(leg.path, self._offset(slot), bytes(self._old.slot_bytes)))
        return Step("erase slots that are not needed any more", tuple(writes))

    # ---- what they are made of -------------------------------------------------------------------------------------

    def _offset(self, slot: int) -> int:
        return self._old.bitmap_start_bytes + slot * self._old.slot_bytes

    def _writes(self, slot: int, data: bytes) -> Iterator[Write]:
        for leg in self._legs:
            yield Write(leg.path, self._offset(slot), data)

    def _superblocks(self, superblock: Superblock, legs: Sequence[AssembledLeg]) -> Iterator[Write]:
        for leg in legs:
            yield Write(leg.path, SUPER_OFFSET_BYTES, for_leg(superblock, leg.superblock).encode())

    def _slot(self, slot: int) -> bytes:
        """Return a slot as all legs shall have it: the bits of all of them, behind the superblock of the first."""
        found = [self._images[path].read(self._offset(slot), self._old.slot_bytes) for path in self._sources]
        own = BitmapSuperblock.decode(found[0], path=self._sources[0], slot=slot)
        own = dataclasses.replace(own, nodes=self._old.nodes)
        return own.encode() + _union([data[BITMAP_SUPER_BYTES:] for data in found])

    def _merged(self, going: Sequence[bytes]) -> bytes:
        """Return slot 0 with the bits of those that go, and the highest of their ``events_cleared``.

        That one says which legs can be taken back with the bits alone (`raidfs.array.spares.readd_offset_sectors`).
        """
        own = BitmapSuperblock.decode(self._slots[0])
        others = [BitmapSuperblock.decode(data) for data in going]
        cleared = max(one.events_cleared for one in (own, *others))
        bits = [self._slots[0][BITMAP_SUPER_BYTES:]]
        for data, other in zip(going, others, strict=True):
            found = data[BITMAP_SUPER_BYTES:]
            bits.append(b"\xff" * len(found) if other.is_stale else found)
        return dataclasses.replace(own, events_cleared=cleared).encode() + _union(bits)

    def _holds(self, path: str, merged: bytes) -> bool:
        """Tell whether slot 0 of a leg has all that it shall take over."""
        data = self._images[path].read(self._offset(0), self._old.slot_bytes)
        try:
            own = BitmapSuperblock.decode(data)
        except RaidfsError:
            return False
        bits, wanted = data[BITMAP_SUPER_BYTES:], merged[BITMAP_SUPER_BYTES:]
        return _union([bits, wanted]) == bits and own.events_cleared >= BitmapSuperblock.decode(merged).events_cleared

    def _headed(self, data: bytes) -> bytes:
        own = BitmapSuperblock.decode(data)
        own = dataclasses.replace(own, nodes=self._new.nodes, cluster_name=self._cluster_name)
        return own.encode() + data[BITMAP_SUPER_BYTES:]

    def _dirty(self, data: bytes) -> int:
        return count_dirty(data[BITMAP_SUPER_BYTES:], self._old.bits)


def _union(bits: Sequence[bytes]) -> bytes:
    found = 0
    for one in bits:
        found |= int.from_bytes(one, "little")
    return found.to_bytes(len(bits[0]), "little")


def _names(start: int, end: int) -> str:
    return f"slot {start}" if end - start == 1 else f"slots {start} to {end - 1}"


def _carry_out(step: Step, images: dict[str, OpenImage]) -> None:
    for write in step.writes:
        images[write.path].write(write.offset_bytes, write.data)
    for path in {write.path for write in step.writes}:
        images[path].sync()


def _check(update: Update, images: Sequence[OpenImage]) -> None:
    """Believe what was written only when it has been read back."""
    try:
        found = assemble([read_candidate(image) for image in images], run=True)
    except RaidfsError as e:
        raise AssertionError(f"after the update: {e}") from e
    assert (found.nodes, found.cluster_name) == (update.nodes, update.cluster_name), found
