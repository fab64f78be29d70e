"""Resizes with real nodes, step by step: all follow or none does, whoever dies, refuses, joins or leaves (P4).

`test_without_its_fix` takes the fix of a schedule out and sees it fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from support.protocol import Outcome
from support.sim_nodes import CHUNKS, SimNode, SimNodes

from raidfs.array_size import ArraySize
from raidfs.cluster.messages import MessageType, Result
from raidfs.errors import (
    DegradedAssumeClean,
    NoRoomOnLeg,
    RaidfsError,
    ReadOnlyNode,
    ResizeRefused,
    ResizeUnfinished,
    ShrinkLosesData,
    SyncElsewhere,
)
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.lock.api import Mode
from raidfs.resize import STEPS, Resize
from raidfs.resize_plan import Aim, Change
from raidfs.sim.layout import CHUNK_BYTES
from raidfs.units import SECTOR_BYTES

SEEDS = range(3)
ROOM = 8
OLD = CHUNKS * CHUNK_BYTES // SECTOR_BYTES
NEW = (CHUNKS + 6) * CHUNK_BYTES // SECTOR_BYTES
SMALL = (CHUNKS - 3) * CHUNK_BYTES // SECTOR_BYTES


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


# ---- helpers -------------------------------------------------------------------------------------------------------


def cluster_of(seed: int, names: str, *, clean: bool = True, room: int = ROOM) -> tuple[SimNodes, list[SimNode]]:
    cluster = SimNodes(seed, clean=clean, room=room)
    return cluster, [cluster.join(name) for name in names]


def to(size_sectors: int, **options: bool) -> Change:
    return Change(size_sectors, force=True, **options)


def grow(one: SimNode, size_sectors: int, **options: bool) -> Outcome:
    return one.ask(one.node.grow(to(size_sectors, **options)))


def superblock(cluster: SimNodes, disk: int = 0) -> Superblock:
    content = cluster.disks[disk].content
    return Superblock.decode(bytes(content[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES]))


def heads(cluster: SimNodes) -> set[tuple[int, int]]:
    """Size and chunk as all slots on all legs say them that are not faulty."""
    found = set()
    nodes = alive(cluster)
    faulty = {path for path, state in nodes[0].legs.items() if state == "FAULTY"} if nodes else set()
    for disk in cluster.disks:
        if disk.name in faulty:
            continue
        for slot in range(cluster.layout.nodes):
            at = cluster.layout.slot_offset_bytes(slot)
            head = BitmapSuperblock.decode(bytes(disk.content[at : at + 4096]))
            found.add((head.sync_size_sectors, head.chunk_bytes))
    return found


def alive(cluster: SimNodes) -> list[SimNode]:
    return [one for one in cluster.nodes if one.joined is not None and not (one.group.dead or one.left)]


class Watch:
    """The invariant of every step: whoever comes to serve more has seen all slots of all legs say so before (P4)."""

    def __init__(self, cluster: SimNodes) -> None:
        self.cluster = cluster
        self.served = {one: one.node.volume.size_bytes for one in alive(cluster)}

    def __call__(self) -> None:
        for one in alive(self.cluster):
            serves = one.node.volume.size_bytes
            if serves > self.served.get(one, 0):
                agreed = min(size for size, _ in heads(self.cluster)) * SECTOR_BYTES
                assert serves <= agreed, (one.name, serves, agreed)
            self.served[one] = serves


def one_size_everywhere(cluster: SimNodes, size_sectors: int, chunk_bytes: int = CHUNK_BYTES) -> None:
    assert {superblock(cluster, disk).size_sectors for disk in range(len(cluster.disks))} == {size_sectors}
    assert heads(cluster) == {(size_sectors, chunk_bytes)}
    for one in alive(cluster):
        array = one.node.array
        assert array.layout.size_sectors == size_sectors
        assert array.layout.chunk_bytes == chunk_bytes
        assert one.node.volume.size_bytes == array.size_bytes == size_sectors * SECTOR_BYTES


def done(cluster: SimNodes, asked: Outcome) -> None:
    cluster.until(lambda: asked.done, Watch(cluster))


def go_on(cluster: SimNodes, steps: int) -> None:
    end = cluster.stepper.steps + steps
    cluster.until(lambda: cluster.stepper.steps >= end, Watch(cluster))


def both_have(cluster: SimNodes, joiner: SimNode, leaver: SimNode) -> None:
    cluster.until(lambda: joiner.joined is not None and leaver.left, Watch(cluster))


def quiet(cluster: SimNodes) -> None:
    """No node has anything left to end, and no sync runs."""

    def at_rest() -> bool:
        return not any(
            one.node.resize.unfinished or one.node.sync.is_due() or one.node.sync.current or one.node.resize.resync.held
            for one in alive(cluster)
        )

    cluster.until(at_rest, Watch(cluster))


def refused(cluster: SimNodes, asked: Outcome, error: type[RaidfsError], words: str = "") -> None:
    done(cluster, asked)
    assert isinstance(asked.error, error), asked.error
    assert words in str(asked.error)


def good(cluster: SimNodes, asked: Outcome) -> None:
    done(cluster, asked)
    if asked.error is not None:
        raise asked.error


def messages(cluster: SimNodes) -> list[str]:
    return [message.type_name for _, message in cluster.messages]


# ---- all follow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("names", ["A", "AB", "ABC"])
def test_all_nodes_have_the_new_size_when_the_command_returns(seed: int, names: str) -> None:
    cluster, nodes = cluster_of(seed, names)
    good(cluster, grow(nodes[-1], NEW, assume_clean=True))
    one_size_everywhere(cluster, NEW)
    good(cluster, grow(nodes[0], SMALL))
    one_size_everywhere(cluster, SMALL)


@pytest.mark.parametrize("seed", SEEDS)
def test_new_space_is_resynced_and_what_was_there_is_not(seed: int) -> None:
    cluster, (a, b) = cluster_of(seed, "AB")
    for disk in cluster.disks:
        disk.put(cluster.layout.end_bytes, bytes([disk is cluster.disks[0]]) * 6 * CHUNK_BYTES)
    good(cluster, grow(a, NEW))
    assert a.needed == 6
    quiet(cluster)
    assert a.copied == 6 * CHUNK_BYTES
    end = cluster.layout.data_offset_bytes + NEW * SECTOR_BYTES
    assert (
        cluster.disks[0].content[:end][cluster.layout.data_offset_bytes :]
        == cluster.disks[1].content[cluster.layout.data_offset_bytes : end]
    )
    assert b.needed == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_all_nodes_read_new_space_from_one_leg_until_it_is_resynced(seed: int) -> None:
    cluster, (a, b) = cluster_of(seed, "AB")
    for disk in cluster.disks:
        disk.put(cluster.layout.end_bytes, bytes([disk is cluster.disks[0]]) * 6 * CHUNK_BYTES)
    a.do(a.node.sync_action("idle"))
    good(cluster, grow(a, NEW))
    for one in (a, b):
        for sector in range(OLD, NEW, 3):
            found = one.start(one.node.volume.read(sector * SECTOR_BYTES, 512))
            cluster.until(lambda found=found: bool(found))  # type: ignore[misc]
            assert found == [b"\1" * 512]
    a.do(a.node.sync_action("resync"))
    cluster.settle(30.0)
    assert not b.node.array.doubts


@pytest.mark.parametrize("seed", SEEDS)
def test_space_that_is_said_to_be_clean_is_not_copied(seed: int) -> None:
    cluster, (a, _) = cluster_of(seed, "AB")
    good(cluster, grow(a, NEW, assume_clean=True))
    assert a.needed == 0
    quiet(cluster)
    assert a.copied == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_write_into_new_space_waits_for_nothing_and_one_behind_the_end_is_refused(seed: int) -> None:
    cluster, (a, b) = cluster_of(seed, "AB")
    good(cluster, grow(a, NEW, assume_clean=True))
    last = NEW * SECTOR_BYTES - 512
    b.do(b.node.volume.write(last, b"n" * 512, durable=True))
    assert a.start(a.node.volume.read(last, 1024)) is not None
    beyond = b.ask(b.node.volume.write(last + 512, b"n" * 512, durable=True))
    cluster.until(lambda: beyond.done)
    assert isinstance(beyond.error, OSError)
    good(cluster, grow(a, SMALL))
    gone = b.ask(b.node.volume.write(SMALL * SECTOR_BYTES, b"n" * 512, durable=True))
    cluster.until(lambda: gone.done)
    assert isinstance(gone.error, OSError)


@pytest.mark.parametrize("seed", SEEDS)
def test_maximum_is_the_room_of_the_smallest_leg(seed: int) -> None:
    cluster, (a, _) = cluster_of(seed, "AB")
    good(cluster, a.ask(a.node.grow(Change(maximum=True, assume_clean=True))))
    one_size_everywhere(cluster, (CHUNKS + ROOM) * CHUNK_BYTES // SECTOR_BYTES)


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_of_a_slot_whose_node_is_dead_are_kept(seed: int) -> None:
    cluster, (a,) = cluster_of(seed, "A")
    cluster.set_bits(3, [1, 7])
    good(cluster, grow(a, NEW, assume_clean=True))
    assert cluster.bits(3, 0) == cluster.bits(3, 1) == bytes([0x82])
    one_size_everywhere(cluster, NEW)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_chunk_of_the_bitmap_is_changed_on_all_nodes_and_loses_no_bit(seed: int) -> None:
    cluster, (a, b) = cluster_of(seed, "AB")
    cluster.set_bits(4, [5])
    b.do(b.node.volume.write(2 * CHUNK_BYTES, b"b" * 512, durable=True))
    good(cluster, a.ask(a.node.grow(Change(chunk_bytes=2 * CHUNK_BYTES))))
    one_size_everywhere(cluster, OLD, 2 * CHUNK_BYTES)
    assert cluster.bits(4, 0)[0] == 0x04
    assert cluster.bits(1, 0)[0] & 0x02
    good(cluster, b.ask(b.node.grow(Change(chunk_bytes=CHUNK_BYTES))))
    one_size_everywhere(cluster, OLD)
    assert cluster.bits(4, 1)[0] == 0x30


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_asked_node_sees_itself_is_refused_before_anything_is_written(seed: int) -> None:
    cluster, (a, _) = cluster_of(seed, "AB", room=2)
    before = [bytes(disk.content) for disk in cluster.disks]
    refused(cluster, grow(a, NEW), NoRoomOnLeg, "disk0 has room for 40960 bytes")
    refused(cluster, a.ask(a.node.grow(Change(SMALL))), ShrinkLosesData, "what lies behind the first 20480 bytes")
    assert [bytes(disk.content) for disk in cluster.disks] == before


@pytest.mark.parametrize("seed", SEEDS)
def test_a_degraded_array_does_not_believe_that_new_space_is_clean(seed: int) -> None:
    cluster, (a, _) = cluster_of(seed, "AB")
    a.do(a.node.fail("disk1"))
    refused(cluster, grow(a, NEW, assume_clean=True), DegradedAssumeClean)
    good(cluster, grow(a, NEW))
    assert superblock(cluster).size_sectors == NEW


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sync_of_another_node_stands_in_the_way(seed: int) -> None:
    cluster = SimNodes(seed, room=ROOM)
    a, b = cluster.join("A", sync_speed_max=4), cluster.join("B")
    cluster.until(lambda: a.node.sync.current is not None)
    refused(cluster, grow(b, NEW), SyncElsewhere, "A syncs")
    refused(cluster, grow(a, NEW), SyncElsewhere, "A syncs")
    one_size_everywhere(cluster, OLD)


def sees_a_small_disk(one: SimNode) -> None:
    """Let a machine see a device as it was before somebody made it larger."""
    room_bytes = one.host.room_bytes

    async def small(image: object) -> int:
        await room_bytes(image)  # type: ignore[arg-type]
        return one.cluster.layout.end_bytes

    one.host.room_bytes = small  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_does_not_see_the_room_is_named_and_all_go_back(seed: int) -> None:
    cluster, (a, b, c) = cluster_of(seed, "ABC")
    sees_a_small_disk(b)
    refused(cluster, grow(a, NEW), ResizeRefused, "B (slot 1): a leg is too small there")
    one_size_everywhere(cluster, OLD)
    assert not any(one.node.lost for one in (a, b, c))
    assert "CHANGE_CAPACITY" in messages(cluster)
    quiet(cluster)
    assert a.needed == b.needed == c.needed == 0
    good(cluster, grow(c, SMALL))
    one_size_everywhere(cluster, SMALL)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_is_read_only_cannot_follow(seed: int) -> None:
    cluster, (a,) = cluster_of(seed, "A")
    b = cluster.join("B", read_only=True)
    refused(cluster, grow(a, NEW), ResizeRefused, "B (slot 1): it is mounted read-only")
    refused(cluster, grow(b, NEW), ReadOnlyNode)
    refused(cluster, grow(a, SMALL), ResizeRefused, "B (slot 1): it is mounted read-only")
    assert superblock(cluster).size_sectors == OLD
    assert a.node.volume.size_bytes == b.node.volume.size_bytes == OLD * SECTOR_BYTES


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resize_first_ends_what_another_one_has_left(seed: int) -> None:
    """B acknowledges nothing for a while, so A's resize is neither done nor taken back; it is when A is asked again."""
    cluster, (a, b) = cluster_of(seed, "AB")
    cluster.stepper.pause(b.group)
    refused(cluster, grow(a, NEW), ResizeUnfinished, "was not acknowledged by B")
    cluster.stepper.resume(b.group)
    good(cluster, grow(a, SMALL))
    one_size_everywhere(cluster, SMALL)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_two_resizes_at_once_one_is_refused_or_comes_after(seed: int) -> None:
    cluster, (a, b, _) = cluster_of(seed, "ABC")
    first, second = grow(a, NEW, assume_clean=True), grow(b, SMALL)
    done(cluster, first)
    done(cluster, second)
    errors = [one.error for one in (first, second) if one.error is not None]
    assert all(isinstance(error, SyncElsewhere) for error in errors)
    assert len(errors) < 2
    quiet(cluster)
    one_size_everywhere(cluster, superblock(cluster).size_sectors)


# ---- W8, and what else a plan without its fix would do --------------------------------------------------------------


def w8_the_old_size_is_written_before_it_is_announced(seed: int) -> None:
    """A node refuses; whoever reads the superblock that the second METADATA_UPDATED announces finds the old size."""
    cluster, (a, b) = cluster_of(seed, "AB")
    sees_a_small_disk(b)
    asked = grow(a, NEW)
    announced: list[tuple[int, int]] = []

    def watch() -> None:
        seen = [message for _, message in cluster.messages if message.type == MessageType.METADATA_UPDATED]
        while len(announced) < len(seen):
            announced.append((seen[len(announced)].high, superblock(cluster).size_sectors))

    cluster.until(lambda: asked.done, watch)
    assert [said for said, _ in announced][-2:] == [NEW, OLD]
    assert all(said == written for said, written in announced)
    assert isinstance(asked.error, ResizeRefused)
    one_size_everywhere(cluster, OLD)


def an_absent_slot_is_written_too(seed: int) -> None:
    """C joins after the resize, with a slot that nobody had."""
    cluster, (a, _) = cluster_of(seed, "AB")
    good(cluster, grow(a, NEW, assume_clean=True))
    assert heads(cluster) == {(NEW, CHUNK_BYTES)}


def nobody_serves_what_one_has_not(seed: int) -> None:
    """B takes its time; A serves the old size until B has the new one on the disk."""
    cluster, (a, _b) = cluster_of(seed, "AB")
    good(cluster, grow(a, NEW, assume_clean=True))


def new_space_is_marked_before_the_superblock_speaks_of_it(seed: int) -> None:
    """A dies as soon as the superblock has the new size: B resyncs the new space."""
    cluster, (a, b) = cluster_of(seed, "AB")
    for disk in cluster.disks:
        disk.put(cluster.layout.end_bytes, bytes([disk is cluster.disks[0]]) * 6 * CHUNK_BYTES)
    grow(a, NEW)
    cluster.until(lambda: superblock(cluster).size_sectors == NEW)
    a.die()
    cluster.until(lambda: b.node.resize.unfinished or b.node.volume.size_bytes > OLD * SECTOR_BYTES)
    quiet(cluster)
    size = superblock(cluster).size_sectors
    one_size_everywhere(cluster, size)
    start = cluster.layout.data_offset_bytes
    end = start + size * SECTOR_BYTES
    equal = cluster.disks[0].content[start:end] == cluster.disks[1].content[start:end]
    assert equal  # pytest would spend minutes on telling how megabytes differ


Schedule = Callable[[int], None]


@contextlib.contextmanager
def announced_before_written() -> Iterator[None]:
    async def wrong(resize: Resize, aim: Aim) -> None:
        announced = resize._array.superblock
        resize._array.metadata.superblock = announced
        await resize._mddev.reconfig_mutex.lock("resize")
        try:
            await resize._mddev.update_sb(always=True)
        finally:
            resize._mddev.reconfig_mutex.unlock()
        await agree(resize, aim)

    agree = Resize._agree
    with patch.object(Resize, "_agree", wrong):
        yield


@contextlib.contextmanager
def absent_slots_forgotten() -> Iterator[None]:
    async def wrong(resize: Resize, *args: object) -> None:
        return

    steps = tuple(
        dataclasses.replace(step, do=wrong) if step.do in (Resize.absent, Resize.compare) else step for step in STEPS
    )
    with patch("raidfs.resize.STEPS", steps):
        yield


@contextlib.contextmanager
def capacity_with_the_size() -> Iterator[None]:
    follow = ArraySize.follow

    async def wrong(size: ArraySize, superblock: Superblock) -> Result:
        result = await follow(size, superblock)
        if result is Result.APPLIED:
            await size._array.set_capacity(superblock.size_sectors)
        return result

    with patch.object(ArraySize, "follow", wrong):
        yield


@contextlib.contextmanager
def not_marked() -> Iterator[None]:
    async def wrong(resize: Resize, size_sectors: int, from_sectors: int) -> None:
        return

    with patch.object(Resize, "_mark", wrong):
        yield


SCHEDULES: dict[Schedule, Callable[[], contextlib.AbstractContextManager[None]]] = {
    w8_the_old_size_is_written_before_it_is_announced: announced_before_written,
    an_absent_slot_is_written_too: absent_slots_forgotten,
    nobody_serves_what_one_has_not: capacity_with_the_size,
    new_space_is_marked_before_the_superblock_speaks_of_it: not_marked,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule(schedule: Schedule, seed: int) -> None:
    schedule(seed)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_its_fix(schedule: Schedule) -> None:
    with SCHEDULES[schedule]():
        failed = 0
        for seed in SEEDS:
            try:
                schedule(seed)
            except AssertionError:
                failed += 1
            SimNodes.dispose_all()
        assert failed


# ---- deaths --------------------------------------------------------------------------------------------------------


def steps_of(seed: int, size_sectors: int, names: str) -> int:
    """How many steps of the stepper the resize takes."""
    cluster, nodes = cluster_of(seed, names)
    before = cluster.stepper.steps
    good(cluster, grow(nodes[0], size_sectors))
    steps = cluster.stepper.steps - before
    SimNodes.dispose_all()
    return steps


@pytest.mark.parametrize("size_sectors", [NEW, SMALL])
@pytest.mark.parametrize("victim", ["A", "B"])
def test_whoever_dies_at_whatever_step_leaves_one_of_the_two_sizes(size_sectors: int, victim: str) -> None:
    steps = steps_of(0, size_sectors, "ABC")
    for at in range(0, steps, max(1, steps // 60)):
        cluster, (a, b, _c) = cluster_of(0, "ABC")
        asked = grow(a, size_sectors)
        go_on(cluster, at)
        (a if victim == "A" else b).die()
        if victim == "B":
            done(cluster, asked)
        cluster.settle(10.0)
        quiet(cluster)
        size = superblock(cluster).size_sectors
        assert size in (OLD, size_sectors)
        one_size_everywhere(cluster, size)
        SimNodes.dispose_all()


@pytest.mark.parametrize("size_sectors", [NEW, SMALL])
def test_when_all_die_in_a_resize_the_next_to_open_the_array_ends_it(size_sectors: int) -> None:
    steps = steps_of(0, size_sectors, "AB")
    for at in range(0, steps, max(1, steps // 60)):
        cluster, (a, b) = cluster_of(0, "AB")
        grow(a, size_sectors)
        go_on(cluster, at)
        a.die()
        b.die()
        watch = Watch(cluster)
        cluster.join("C")
        watch()
        cluster.settle(10.0)
        quiet(cluster)
        size = superblock(cluster).size_sectors
        assert size in (OLD, size_sectors)
        one_size_everywhere(cluster, size)
        SimNodes.dispose_all()


@pytest.mark.parametrize("size_sectors", [NEW, SMALL])
@pytest.mark.parametrize("leaver", ["A", "B"])
def test_a_node_that_joins_or_leaves_at_whatever_step_has_the_size_of_all(size_sectors: int, leaver: str) -> None:
    steps = steps_of(0, size_sectors, "AB")
    for at in range(0, steps, max(1, steps // 40)):
        cluster, (a, b) = cluster_of(0, "AB")
        asked = grow(a, size_sectors)
        go_on(cluster, at)
        joiner = cluster.begin("C")
        leaves = a if leaver == "A" else b
        leaves.leave()
        done(cluster, asked)
        both_have(cluster, joiner, leaves)
        cluster.settle(5.0)
        quiet(cluster)
        size = superblock(cluster).size_sectors
        assert size in (OLD, size_sectors)
        assert asked.error is None or isinstance(asked.error, (ResizeRefused, ResizeUnfinished)), asked.error
        one_size_everywhere(cluster, size)
        SimNodes.dispose_all()


def test_an_update_of_another_node_in_the_middle_of_a_resize_is_followed() -> None:
    for seed in SEEDS:
        cluster, (a, b, _) = cluster_of(seed, "ABC")
        asked, failed = grow(a, NEW), b.ask(b.node.fail("disk1"))
        done(cluster, asked)
        done(cluster, failed)
        assert failed.error is None
        good(cluster, asked)
        assert superblock(cluster).size_sectors == NEW
        SimNodes.dispose_all()


@pytest.mark.parametrize("seed", SEEDS)
def test_who_resizes_keeps_the_lock_of_its_own_slot_though_a_leg_lacks_the_slot(seed: int) -> None:
    cluster, [a] = cluster_of(seed, "A")
    a.do(a.node.resize.absent(Change(), Aim(NEW)))  # as when a leg has failed that the slot was not written to
    granted = a.ask(a.node.channel.lockspace.query())
    cluster.until(lambda: granted.done)
    [slot] = [resource for resource in granted.value if resource.name == "bitmap0000"]
    assert [lock.granted for lock in slot.locks] == [Mode.PW]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leg_that_was_away_while_the_array_grew_says_that_it_has_room(seed: int) -> None:
    cluster, [a] = cluster_of(seed, "A")
    own = superblock(cluster, 1)
    short = dataclasses.replace(own, data_size_sectors=OLD)  # as it was before its image was made longer
    cluster.disks[1].put(SUPER_OFFSET_BYTES, short.encode())
    a.do(a.node.fail("disk1"))
    good(cluster, grow(a, NEW))
    a.do(a.node.re_add("disk1"))
    quiet(cluster)
    assert a.legs == {"disk0": "IN_SYNC", "disk1": "IN_SYNC"}
    assert superblock(cluster, 1).data_size_sectors >= NEW
