"""The schedules of md-cluster's history that are about legs which come and go, with real nodes; each ends here.

`test_without_its_fix` takes the fix out and sees the schedule fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import pytest
from support.protocol import Outcome
from support.sim_nodes import CHUNKS, SimNode, SimNodes

from raidfs import devices as devices_module
from raidfs import resize as resize_module
from raidfs._core import OpKind
from raidfs.array import metadata as metadata_module
from raidfs.array.array import Array
from raidfs.array.legs import ArrayLeg
from raidfs.array.search import Found
from raidfs.array.spares import recovering
from raidfs.cluster.messages import Result
from raidfs.devices import LOOK_S, Devices
from raidfs.errors import MessageNotAcknowledged, MessageRefused, RaidfsError, SyncElsewhere
from raidfs.faults import Strike
from raidfs.format.superblock import ROLE_SPARE, Superblock
from raidfs.hot_add import HotAdd
from raidfs.lock.api import Mode
from raidfs.mddev import Mddev
from raidfs.resize import Resize
from raidfs.resize_plan import Aim, Change
from raidfs.resync_lock import ResyncLock
from raidfs.sim.layout import CHUNK_BYTES

SEEDS = range(3)
SLOW = {"sync_speed_max": 4}  # KiB/s: 8 seconds for the array


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


# ---- helpers -------------------------------------------------------------------------------------------------------


def refused(cluster: SimNodes, asked: Outcome, error: type[RaidfsError], words: str = "") -> None:
    """The command ends, with this error."""
    cluster.until(lambda: asked.done)
    assert isinstance(asked.error, error), asked.error
    assert words in str(asked.error)


def at_rest(one: SimNode) -> None:
    """Nothing of an image that was not added is left on a node."""
    assert not one.node.devices.candidates
    assert one.node.channel.no_new_dev.mode is Mode.CR


def add(one: SimNode, disk: int) -> Outcome:
    return one.ask(one.node.add(f"disk{disk}", spare=False, force=False))


def fail(one: SimNode, disk: int) -> None:
    one.do(one.node.fail(f"disk{disk}"))


def whole(cluster: SimNodes, *disks: int) -> None:
    """Let the array heal; then all nodes say that these disks are in sync, and they are equal."""
    nodes = [one for one in cluster.nodes if not one.group.dead]
    wanted = {f"disk{disk}" for disk in disks}

    def healed() -> bool:
        in_sync = [{path for path, state in one.legs.items() if state == "IN_SYNC"} for one in nodes]
        return all(wanted <= paths for paths in in_sync) and not any(one.node.sync.current for one in nodes)

    cluster.until(healed)
    for disk in disks:
        assert cluster.data(disk) == cluster.data(disks[0])


def write(one: SimNode, chunk: int, fill: bytes) -> None:
    one.do(one.node.volume.write(chunk * CHUNK_BYTES, fill * 512, durable=True))


def look_takes(one: SimNode, seconds: float) -> None:
    """Let a machine take its time when it looks for images."""
    find = one.host.find_images

    async def slow(set_uuid: bytes, near: Sequence[str], search: Sequence[str]) -> list[Found]:
        await one.runtime.sleep(seconds, what="a slow /dev")
        return await find(set_uuid, near, search)

    one.host.find_images = slow  # type: ignore[method-assign]


# ---- schedules -----------------------------------------------------------------------------------------------------


def b2_the_number_of_legs_changes_during_a_resync(seed: int) -> None:
    """B changes the number of legs while A resyncs: nobody does, and B says who is in the way."""
    cluster = SimNodes(seed)
    a, b = cluster.join("A", **SLOW), cluster.join("B")
    cluster.until(lambda: a.node.sync.current is not None)
    for one in (a, b):
        refused(cluster, one.ask(one.node.set_raid_devices(3)), SyncElsewhere, "A syncs")
    assert a.node.array.superblock.raid_disks == b.node.array.superblock.raid_disks == 2
    b.do(b.node.sync_action("idle"))
    b.do(b.node.set_raid_devices(3))
    assert a.node.array.superblock.raid_disks == b.node.array.superblock.raid_disks == 3


def b5_an_image_is_not_confirmed_in_time(seed: int) -> None:
    """B looks for the image for ever. It says so in time, A names it, and nothing of the image is left anywhere."""
    cluster = SimNodes(seed, clean=True, fresh=1)
    a, b, c = (cluster.join(name) for name in "ABC")
    look_takes(b, 1e6)
    refused(cluster, add(a, 2), MessageRefused, "B (slot 1)")
    for one in (a, b, c):
        at_rest(one)
        assert one.legs == {"disk0": "IN_SYNC", "disk1": "IN_SYNC"}
        one.do(one.node.touch())


def b5_a_node_stands_still_while_it_is_asked(seed: int) -> None:
    """B answers nothing at all. A gives up and names it; when B goes on, so does everything."""
    cluster = SimNodes(seed, clean=True, fresh=1)
    a, b, c = (cluster.join(name) for name in "ABC")
    cluster.stepper.pause(b.group)
    refused(cluster, add(a, 2), MessageNotAcknowledged, "B")
    cluster.stepper.resume(b.group)
    for one in (c, a, b):
        one.do(one.node.touch())
    for one in (a, b, c):
        at_rest(one)
    added = add(b, 2)
    cluster.until(lambda: added.done)
    assert added.error is None
    assert a.legs == c.legs == {"disk0": "IN_SYNC", "disk1": "IN_SYNC", "disk2": "MISSING"}


def b6_a_spare_is_copied_by_whoever_is_first(seed: int) -> None:
    """A adds a leg and begins to sync late; B, whose bitmap is clean, comes first, and has to copy it."""
    cluster = SimNodes(seed, clean=True, fresh=1)
    for disk in (0, 1):
        cluster.scribble(disk, CHUNKS - 1)
    a, b = cluster.join("A"), cluster.join("B")
    a.node.sync.frozen = True
    fail(a, 1)
    a.do(a.node.add("disk2", spare=False, force=False))
    whole(cluster, 0, 2)
    assert (a.copied, b.copied) == (0, CHUNKS * CHUNK_BYTES)


def b7_a_leg_comes_back_while_another_recovers(seed: int) -> None:
    """A recovers a leg when it is asked to take another back: neither waits for the other."""
    cluster = SimNodes(seed, clean=True, legs=3)
    a, b = cluster.join("A", **SLOW), cluster.join("B", **SLOW)
    b.node.sync.frozen = True
    for disk in (1, 2):
        fail(a, disk)
        write(b, disk, b"m")
    a.do(a.node.re_add("disk1"))
    cluster.until(lambda: a.node.sync.current is not None)
    a.do(a.node.re_add("disk2"))
    whole(cluster, 0, 1, 2)


def b18_two_legs_go_at_once(seed: int) -> None:
    """One metadata update takes two faulty legs out; B drops both."""
    cluster = SimNodes(seed, clean=True, legs=4)
    a, b = cluster.join("A"), cluster.join("B")
    for disk in (1, 2):
        fail(a, disk)

    async def without_both() -> None:
        mutex = a.node.mddev.reconfig_mutex
        await mutex.lock("the test")
        await a.node.mddev.update_sb(lambda superblock: superblock.with_role(1, ROLE_SPARE).with_role(2, ROLE_SPARE))
        mutex.unlock()

    a.do(without_both())
    assert a.legs == b.legs == {"disk0": "IN_SYNC", "disk3": "IN_SYNC"}


def b18_a_leg_is_removed_with_a_write_in_flight(seed: int) -> None:
    """B's write hangs on a leg that A makes faulty and removes: the image stays open until the write has ended."""
    cluster = SimNodes(seed, clean=True, legs=3, fresh=1)
    a, b = cluster.join("A"), cluster.join("B")
    disk = cluster.disks[1]
    b.host.decide = lambda on, op: Strike(delay_s=30.0) if on is disk and op.data is not None else None
    before = dict(b.host.disks)
    wrote = b.ask(b.node.volume.write(0, b"x" * 512, durable=False))
    cluster.settle(1)
    a.do(a.node.fail("disk1"))
    a.do(a.node.remove("disk1"))
    assert a.legs == b.legs == {"disk0": "IN_SYNC", "disk2": "IN_SYNC"}
    assert not wrote.done
    assert b.host.disks == before
    cluster.until(lambda: wrote.done)
    assert wrote.error is None
    cluster.settle(10)
    assert disk not in b.host.disks.values()
    a.do(a.node.add("disk3", spare=False, force=False))
    whole(cluster, 0, 2, 3)


def w6_a_slow_look_is_waited_for(seed: int) -> None:
    """B needs nearly all of the time that it is given to find the image; the image is added."""
    cluster = SimNodes(seed, clean=True, fresh=1)
    a, b = cluster.join("A"), cluster.join("B")
    look_takes(b, LOOK_S - 1)
    added = add(a, 2)
    cluster.until(lambda: added.done)
    assert added.error is None
    assert a.legs == b.legs == {"disk0": "IN_SYNC", "disk1": "IN_SYNC", "disk2": "MISSING"}


def w7_what_was_not_added_is_forgotten(seed: int) -> None:
    """C does not see the image. B, which does, knows nothing of it any more when A's command returns."""
    cluster = SimNodes(seed, clean=True, fresh=1)
    a, b, c = (cluster.join(name) for name in "ABC")
    c.host.hidden.add("disk2")
    refused(cluster, add(a, 2), MessageRefused, "C (slot 2): it does not see the image")
    for one in (a, b, c):
        at_rest(one)
        assert one.legs == {"disk0": "IN_SYNC", "disk1": "IN_SYNC"}
    assert not any(cluster.disks[2].content[4096:8192])


def w10_what_others_wrote_is_copied_too(seed: int) -> None:
    """B writes while a leg is away and goes on writing while A takes it back: A copies all that the leg has missed."""
    cluster = SimNodes(seed, clean=True)
    a, b = cluster.join("A"), cluster.join("B")
    b.node.sync.frozen = True
    fail(a, 1)
    write(b, 3, b"m")

    async def go_on_writing() -> None:
        for turn in range(40):
            await b.node.volume.write(turn % CHUNKS * CHUNK_BYTES + 512, bytes([turn]) * 512, durable=False)
        await b.node.volume.flush()

    writing = b.ask(go_on_writing())
    back = a.ask(a.node.re_add("disk1"))
    cluster.until(lambda: writing.done and back.done)
    assert (writing.error, back.error) == (None, None)
    whole(cluster, 0, 1)


def w13_a_new_leg_has_every_slot_before_it_counts(seed: int) -> None:
    """When a leg is called in sync it tells the same of every node's bits as the others do."""
    cluster = SimNodes(seed, clean=True, legs=3, fresh=1)
    a, b = cluster.join("A"), cluster.join("B")
    fail(a, 1)
    write(b, 5, b"m")  # so the bit stays
    fail(a, 2)
    new = cluster.disks[3]
    b.host.decide = lambda on, op: Strike(delay_s=3.0) if on is new and op.data is not None else None
    added = a.ask(a.node.add("disk3", spare=False, force=False))
    seen: list[int] = []

    def look() -> None:
        if not seen and "IN_SYNC" in (a.legs.get("disk3"), b.legs.get("disk3")):
            for slot in range(cluster.layout.nodes):
                assert cluster.bits(slot, 3) == cluster.bits(slot, 0), f"slot {slot}"
            seen.append(cluster.dirty(1, 3))

    cluster.until(lambda: added.done and bool(seen), look)
    assert seen == [1]


def a_spare_that_cannot_be_written_gives_way(seed: int) -> None:
    """The first spare does not take the slots that it gets before its position: it is faulty, the second is taken."""
    cluster = SimNodes(seed, clean=True, spares=2)
    a, b = cluster.join("A"), cluster.join("B")
    bad, slots = cluster.disks[2], cluster.layout.slot_offset_bytes(0)
    for one in (a, b):
        one.host.decide = lambda on, op: (
            Strike(errno=errno.EIO, keep_bytes=0)
            if on is bad and op.kind == OpKind.WRITE_DURABLE and op.offset >= slots
            else None
        )
    fail(b, 1)
    whole(cluster, 0, 3)
    assert a.legs == b.legs == {"disk0": "IN_SYNC", "disk1": "FAULTY", "disk2": "FAULTY", "disk3": "IN_SYNC"}


SCHEDULES = [
    a_spare_that_cannot_be_written_gives_way,
    b2_the_number_of_legs_changes_during_a_resync,
    b5_an_image_is_not_confirmed_in_time,
    b5_a_node_stands_still_while_it_is_asked,
    b6_a_spare_is_copied_by_whoever_is_first,
    b7_a_leg_comes_back_while_another_recovers,
    b18_two_legs_go_at_once,
    b18_a_leg_is_removed_with_a_write_in_flight,
    w6_a_slow_look_is_waited_for,
    w7_what_was_not_added_is_forgotten,
    w10_what_others_wrote_is_copied_too,
    w13_a_new_leg_has_every_slot_before_it_counts,
]
Schedule = Callable[[int], None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule(schedule: Schedule, seed: int) -> None:
    schedule(seed)


# ---- without the fixes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nobody_is_asked_who_syncs() -> Iterator[None]:
    async def taken(lock: ResyncLock, owner: str) -> None:
        assert lock._mutex.trylock(owner)

    async def looked(resize: Resize, change: Change, aim: Aim) -> str:
        return ""

    no_sync, *others = resize_module.STEPS
    steps = (dataclasses.replace(no_sync, look=looked), *others)
    with patch.object(ResyncLock, "trylock", taken), patch.object(resize_module, "STEPS", steps):
        yield


@contextlib.contextmanager
def look_for_ever() -> Iterator[None]:
    with patch.object(devices_module, "LOOK_S", 1e9):
        yield


@contextlib.contextmanager
def no_end_of_the_wait_for_ack() -> Iterator[None]:
    with patch("raidfs.cluster.channel.NO_PROGRESS_S", 1e9):
        yield


@contextlib.contextmanager
def spare_kept() -> Iterator[None]:
    async def wrong(mddev: Mddev) -> list[int]:
        await mddev.reconfig_mutex.lock("spares")
        try:
            await mddev.update_sb(mddev._with_spares, prepare=mddev._copy_slots_to_spares)
        finally:
            mddev.reconfig_mutex.unlock()
        return [leg.number for leg in mddev.array.recovering()]

    with patch.object(Mddev, "activate_spares", wrong):
        yield


@contextlib.contextmanager
def by_the_bitmap() -> Iterator[None]:
    for_leg = metadata_module.for_leg

    def wrong(array: Superblock, leg: Superblock) -> Superblock:
        made = for_leg(array, leg)
        return recovering(made, made.size_sectors) if made.is_recovering and not leg.is_recovering else made

    with patch.object(metadata_module, "for_leg", wrong):
        yield


@contextlib.contextmanager
def sync_ended_first() -> Iterator[None]:
    take_back = HotAdd._take_back

    async def wrong(hot_add: HotAdd, path: str) -> None:
        one = next(one for one in SimNodes.made[-1].nodes if one.joined is not None and one.node.hot_add is hot_add)
        await hot_add._channel.lock_comm(True)
        one.node.sync.freeze(frozen=True)
        await one.node.sync.wait_stopped(one.node.mddev.remote)
        one.node.sync.freeze(frozen=False)
        await hot_add._channel.unlock_comm()
        await take_back(hot_add, path)

    with patch.object(HotAdd, "_take_back", wrong):
        yield


@contextlib.contextmanager
def dropped_in_place() -> Iterator[None]:
    def wrong(array: Array, leg: ArrayLeg) -> None:
        array.release(leg)
        array.metadata.drop(leg.index)
        array.legs.remove(leg)

    with patch.object(Array, "detach", wrong), patch.object(devices_module, "list", iter, create=True):
        yield


@contextlib.contextmanager
def closed_at_once() -> Iterator[None]:
    def wrong(devices: Devices) -> None:
        for index in devices._leaving:
            devices.backend.attach(index, -1)

    with patch.object(Devices, "reap", wrong):
        yield


@contextlib.contextmanager
def jiffies() -> Iterator[None]:
    with patch.object(devices_module, "LOOK_S", 5.0):
        yield


@contextlib.contextmanager
def not_told() -> Iterator[None]:
    async def wrong(hot_add: HotAdd, *facts: object) -> None:
        return

    with patch.object(HotAdd, "_forget_candidates", wrong):
        yield


@contextlib.contextmanager
def own_bits_only() -> Iterator[None]:
    async def wrong(mddev: Mddev, superblock: Superblock) -> None:
        mddev.array.port.engine.need_dirty()

    with patch.object(Mddev, "_gather_bits", wrong):
        yield


@contextlib.contextmanager
def own_slot_only() -> Iterator[None]:
    async def applied(mddev: Mddev, superblock: Superblock) -> Result:
        await mddev.devices.before_following(superblock)
        return mddev._follow(superblock)[0]

    async def nothing(mddev: Mddev, legs: Sequence[ArrayLeg]) -> None:
        return

    with patch.object(Mddev, "_applied", applied), patch.object(Mddev, "copy_slots", nothing):
        yield


WITHOUT = [
    (a_spare_that_cannot_be_written_gives_way, spare_kept),
    (b2_the_number_of_legs_changes_during_a_resync, nobody_is_asked_who_syncs),
    (b5_an_image_is_not_confirmed_in_time, look_for_ever),
    (b5_a_node_stands_still_while_it_is_asked, no_end_of_the_wait_for_ack),
    (b6_a_spare_is_copied_by_whoever_is_first, by_the_bitmap),
    (b7_a_leg_comes_back_while_another_recovers, sync_ended_first),
    (b18_two_legs_go_at_once, dropped_in_place),
    (b18_a_leg_is_removed_with_a_write_in_flight, closed_at_once),
    (w6_a_slow_look_is_waited_for, jiffies),
    (w7_what_was_not_added_is_forgotten, not_told),
    (w10_what_others_wrote_is_copied_too, own_bits_only),
    (w13_a_new_leg_has_every_slot_before_it_counts, own_slot_only),
]


@pytest.mark.parametrize(("schedule", "without"), WITHOUT)
def test_without_its_fix(schedule: Schedule, without: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    def fails(seed: int) -> bool:
        try:
            schedule(seed)
        except Exception:
            return True
        return False

    with without():
        assert any(fails(seed) for seed in SEEDS)
