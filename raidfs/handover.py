"""Whether an array can go from raidfs to Linux's md-cluster now, or back.

Both have one disk format, so nothing is converted. What has to hold is that nobody uses the images any more, and that
they leave nothing to the other side that it would take for something else. A dirty bitmap is nothing of that kind:
whoever starts the array next resyncs the chunks, which is what a bitmap is for. All of this is told from the images and
from this machine. Of other machines corosync tells who has joined the array's lock space, when the array's cluster is
the one that this machine is in and has quorum; whoever uses the images without the DLM is not seen.

A lock space that nobody uses any more matters too: one that a process has made has value blocks of 32 bytes, md's have
64, and the DLM lets no machine join one lock space with another size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from raidfs.array.assemble import assemble
from raidfs.array.assembly import AssembledLeg, Assembly, LegState
from raidfs.array.head import Candidate, read_candidate, read_slot_bits
from raidfs.array.images import OpenImage, image_identity, open_image
from raidfs.array.metadata import for_leg
from raidfs.control import client
from raidfs.errors import (
    ArrayHalfResized,
    CorosyncOfOtherCluster,
    FeatureInTheWay,
    ImageHeld,
    ImageInUse,
    ImageServed,
    LockSpaceElsewhere,
    LockSpaceHere,
    RaidfsError,
    RecoveryUnfinished,
    SameImageTwice,
    SlotsLacking,
    SuperblocksDiffer,
    UpdateCutOff,
)
from raidfs.format.bitmap import BitmapSuperblock, count_dirty
from raidfs.format.superblock import Feature
from raidfs.lock import corosync

COROSYNC_CONF = "/etc/corosync/corosync.conf"
LOCK_SPACES = "/sys/kernel/dlm"

_BOTH_KNOW = Feature.BITMAP_OFFSET | Feature.CLUSTERED | Feature.RECOVERY_OFFSET | Feature.RECOVERY_BITMAP


@dataclasses.dataclass(frozen=True)
class DirtySlot:
    """A slot with set bits: chunks that whoever starts the array next resyncs. A stale one counts as full."""

    slot: int
    dirty: int
    bits: int
    chunk_bytes: int


@dataclasses.dataclass(frozen=True)
class Handover:
    """What was found. ``assembly`` is None when the images make up no array; ``against`` then says why."""

    assembly: Assembly | None
    against: tuple[RaidfsError, ...]
    dirty_slots: tuple[DirtySlot, ...]
    cluster_seen: bool = False  # whether corosync has told of the other machines

    @property
    def is_safe(self) -> bool:
        """Whether nothing stands against it, as far as this machine and ``cluster_seen`` reach."""
        return not self.against

    def to_json(self) -> dict[str, object]:
        """Return the document that ``raidfs handover --json`` prints; it may only grow."""
        array: dict[str, object] | None = None
        if self.assembly is not None:
            superblock = self.assembly.superblock
            array = {
                "uuid": superblock.set_uuid_text,
                "name": superblock.name,
                "cluster_name": self.assembly.cluster_name,
                "nodes": self.assembly.nodes,
                "events": superblock.events,
                "clean": superblock.is_clean,
            }
        return {
            "schema": 1,
            "safe": self.is_safe,
            "array": array,
            "against": [error.to_json() for error in self.against],
            "dirty_slots": [dataclasses.asdict(slot) for slot in self.dirty_slots],
            "cluster_seen": self.cluster_seen,
        }


def check_handover(paths: Sequence[str]) -> Handover:
    """Look at the images, all legs of one array and its spares, and at this machine. Nothing is written.

    The images are held under an exclusive flock meanwhile, so no node can start in between. Raises what opening and
    reading an image raise, SameImageTwice, and nothing for what stands against a handover: that is the result.
    """
    against: list[RaidfsError] = []
    served = _served_here()
    by_identity: dict[tuple[str, int, int], str] = {}
    with contextlib.ExitStack() as opened:
        images: dict[str, OpenImage] = {}
        for path in paths:
            identity = image_identity(path)
            if identity in by_identity:
                raise SameImageTwice(path=path, other_path=by_identity[identity])
            by_identity[identity] = path
            users: list[RaidfsError] = [ImageServed(path=path, mountpoint=found) for found in served.get(identity, ())]
            users += [ImageHeld(path=path, holder=holder) for holder in holders(path)]
            images[path] = opened.enter_context(open_image(path))
            against += users or _unnamed_user(path, images[path])
        candidates = [read_candidate(image) for image in images.values()]
        try:
            assembly = assemble(candidates, heals_bitmaps=True)
        except RaidfsError as error:
            return Handover(None, (*against, error), ())
        against += judge(assembly, candidates)
        against += _machine(assembly)
        elsewhere = _elsewhere(assembly)
        if elsewhere:
            machines = ", ".join(map(str, elsewhere))
            against.append(LockSpaceElsewhere(uuid=_dashed(assembly.set_uuid), machines=machines))
        dirty = tuple(_dirty_slots(assembly, images[assembly.bitmap_path]))
        return Handover(assembly, tuple(against), dirty, elsewhere is not None)


def judge(assembly: Assembly, candidates: Sequence[Candidate]) -> Iterator[RaidfsError]:
    """Give what the metadata says against a handover."""
    best = assembly.superblock
    legs: tuple[AssembledLeg, ...] = (*assembly.legs, *assembly.spares)
    freshest = next(leg for leg in legs if leg.superblock.dev_number == best.dev_number)
    for leg in legs:
        own = leg.superblock
        strange = Feature(own.feature_map) & ~_BOTH_KNOW
        if strange:
            names = ", ".join(flag.name or hex(flag) for flag in strange)
            yield FeatureInTheWay(path=leg.path, feature_map=hex(own.feature_map), features=names)
        if leg.state is LegState.RECOVERING:
            yield RecoveryUnfinished(path=leg.path)
        elif leg.state is LegState.IN_SYNC and for_leg(best, own) != own:
            yield SuperblocksDiffer(
                path=leg.path, events=own.events, other_path=freshest.path, other_events=best.events
            )
    for path in assembly.incomplete_bitmap_paths:
        yield SlotsLacking(path=path)
    if assembly.slots_of_other_size:
        slots = ", ".join(map(str, assembly.slots_of_other_size))
        yield ArrayHalfResized(path=assembly.bitmap_path, slots=slots)
    if assembly.half_updated:
        yield UpdateCutOff(path=assembly.bitmap_path)


def holders(path: str) -> list[str]:
    """Return the names of devices that the kernel has made of an image: of a block device, or of a file by a loop."""
    kind, device, _ = image_identity(path)
    if kind == "device":
        return _holders_of(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    real, found = os.path.realpath(path), []
    for loop in _listed("/sys/block"):
        with contextlib.suppress(OSError), open(f"/sys/block/{loop}/loop/backing_file") as file:
            if file.read().rstrip("\n") == real:
                found += _holders_of(f"/sys/block/{loop}")
    return found


def corosync_cluster_name(text: str) -> str | None:
    """Return ``totem.cluster_name`` of a corosync.conf, None when it has none."""
    match = re.search(r"^\s*cluster_name\s*:\s*(\S+)\s*$", text, re.MULTILINE)
    return match[1] if match else None


def _served_here() -> dict[tuple[str, int, int], list[str]]:
    # Nodes of this user; those of others are noticed by the flock that they hold, without a name.
    found: dict[tuple[str, int, int], list[str]] = {}
    for node in client.find_all(lambda error: None):
        with contextlib.suppress(RaidfsError):
            status = node.status()
            for leg in status.legs:
                if leg.path:
                    found.setdefault(image_identity(leg.path), []).append(status.node.mountpoint)
    return found


def _unnamed_user(path: str, image: OpenImage) -> list[RaidfsError]:
    try:
        image.lock(exclusive=True)
        if image.is_block_device:
            open_image(path, exclusive=True).close()
    except ImageInUse as error:
        return [error]
    return []


def _machine(assembly: Assembly) -> Iterator[RaidfsError]:
    uuid = _dashed(assembly.set_uuid)
    if uuid in _listed(LOCK_SPACES):
        yield LockSpaceHere(uuid=uuid)
    with contextlib.suppress(OSError), open(COROSYNC_CONF) as file:
        own = corosync_cluster_name(file.read())
        if own is not None and own != assembly.cluster_name:
            yield CorosyncOfOtherCluster(found=assembly.cluster_name, own=own)


def _elsewhere(assembly: Assembly) -> list[int] | None:
    """Return the other machines with the array's lock space, None when that cannot be known here."""
    try:
        facts = corosync.cluster_facts()
        if facts.cluster_name != assembly.cluster_name or not facts.quorate:
            return None
        users = corosync.lock_space_users(_dashed(assembly.set_uuid))
    except RaidfsError:
        return None
    return [machine for machine in users if machine != facts.node_id]


def _dirty_slots(assembly: Assembly, image: OpenImage) -> Iterator[DirtySlot]:
    layout = assembly.layout
    for slot in range(layout.nodes):
        data = image.read(layout.slot_offset_bytes(slot), layout.slot_bytes)
        stale = BitmapSuperblock.decode(data, path=image.path, slot=slot).is_stale
        dirty = layout.bits if stale else count_dirty(read_slot_bits(image, layout, slot), layout.bits)
        if dirty:
            yield DirtySlot(slot, dirty, layout.bits, layout.chunk_bytes)


def _dashed(uuid: bytes) -> str:
    # The name of the array's lock space: %pU of the kernel (join in md-cluster.c).
    text = uuid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _holders_of(device: str) -> list[str]:
    return _listed(f"{device}/holders")


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
