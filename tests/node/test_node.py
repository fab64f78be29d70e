"""Nodes on real images with the real lock server: joining, serving, leaving, and everything that stands against it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing
from support.arrays import make_array
from support.nodes import CHUNK, Images, node, refused

from raidfs import errors
from raidfs.array.images import open_image
from raidfs.format.bitmap import count_dirty
from raidfs.format.superblock import MAX_SECTOR
from raidfs.lock.address import LockAddress
from raidfs.lock.client import connected
from raidfs.node import Node
from raidfs.runtime import TrioRuntime
from raidfs.units import MIB


async def test_two_nodes_read_what_the_other_wrote(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        assert (a.membership.slot, b.membership.slot) == (0, 1)
        await a.volume.write(1000, b"from a", durable=False)
        await b.volume.write(2 * MIB + 1, b"from b", durable=False)
        assert await b.volume.read(1000, 6) == b"from a"
        assert await a.volume.read(2 * MIB + 1, 6) == b"from b"
    assert images.data(0) == images.data(1)


async def test_after_a_clean_stop_of_an_assume_clean_array_no_bit_is_set(images: Images, lockd: str) -> None:
    async with node(images, lockd) as a:
        await a.volume.write(0, os.urandom(300_000), durable=False)
        assert images.dirty(0) > 0
    assert [images.dirty(slot, leg) for slot in range(4) for leg in (0, 1)] == [0] * 8
    assert images.data(0) == images.data(1)


async def test_needed_bits_of_a_fresh_array_survive_a_stop_before_its_resync(fresh: Images, lockd: str) -> None:
    before = fresh.dirty(0)
    async with node(fresh, lockd) as a:
        await a.sync_action("idle")
        assert a.status().array.sync == "frozen"
        await a.volume.write(0, b"x" * 4096, durable=False)
    assert 0 < fresh.dirty(0) == fresh.dirty(0, leg=1) <= before == 4 * MIB // CHUNK


async def test_resync_offset_is_zero_on_all_legs_before_the_first_write_is_possible(images: Images, lockd: str) -> None:
    assert [superblock.resync_offset_sectors for superblock in images.superblocks()] == [MAX_SECTOR] * 2
    async with node(images, lockd):
        assert [superblock.resync_offset_sectors for superblock in images.superblocks()] == [0, 0]
        assert [superblock.events for superblock in images.superblocks()] == [1, 1]
    assert [superblock.resync_offset_sectors for superblock in images.superblocks()] == [0, 0]


async def test_a_read_only_node_writes_not_a_byte(images: Images, lockd: str) -> None:
    before = [Path(path).read_bytes() for path in images.paths]
    async with node(images, lockd, read_only=True) as a:
        assert await a.volume.read(0, 10) == bytes(10)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            await a.volume.write(0, b"x", durable=False)
    assert [Path(path).read_bytes() for path in images.paths] == before


async def test_as_many_nodes_as_slots_and_no_more(images: Images, lockd: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for name in "abcd":
            await stack.enter_async_context(node(images, lockd, name))
        with refused(errors.NoFreeSlot, nodes=4, holders="a, b, c, d"):
            async with node(images, lockd, "e"):
                pass


async def test_a_slot_that_is_taken_is_refused_by_name(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a"):
        with refused(errors.SlotTaken, slot=0, holder="a"):
            async with node(images, lockd, "b", slot=0):
                pass
        async with node(images, lockd, "b", slot=3) as b:
            assert b.membership.slot == 3


async def test_a_slot_that_does_not_exist_is_a_usage_error(images: Images, lockd: str) -> None:
    with refused(errors.SlotOutOfRange, slot=4, nodes=4):
        async with node(images, lockd, slot=4):
            pass


async def test_the_wrong_cluster_name_is_refused(images: Images, lockd: str) -> None:
    with refused(errors.OtherCluster, wanted="elsewhere"):
        async with node(images, lockd, cluster_name="elsewhere"):
            pass


async def test_a_missing_leg_needs_run_and_then_keeps_its_bits(images: Images, lockd: str) -> None:
    alone = Images(images.paths[:1])
    os.unlink(images.paths[1])
    with refused(errors.LegMissing, role=1):
        async with node(alone, lockd):
            pass
    async with node(alone, lockd, run=True) as a:
        assert [leg.state for leg in a.status().legs] == ["in_sync", "missing"]
        await a.volume.write(0, b"only one leg", durable=False)
    assert alone.dirty(0) > 0


async def test_nodes_of_a_second_lock_manager_are_refused(images: Images, lockd: str) -> None:
    async with node(images, lockd):
        with refused(errors.OtherManager):
            async with node(images, "auto"):
                pass


async def test_an_image_that_another_program_has_locked_is_refused(images: Images, lockd: str) -> None:
    with open_image(images.paths[1]) as image:
        image.lock(exclusive=True)
        with refused(errors.OtherManager, path=images.paths[1]):
            async with node(images, lockd):
                pass


async def test_losing_the_lock_server_is_losing_the_membership(images: Images, lockd: str, tmp_path: Path) -> None:
    async with node(images, lockd) as a:
        await a.volume.write(0, b"x" * 512, durable=False)
        os.kill(int((tmp_path / "lock.pid").read_text()), signal.SIGKILL)
        with trio.fail_after(20):
            while a.lost is None:
                await trio.sleep(0.01)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await a.volume.write(0, b"y" * 512, durable=False)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await a.volume.read(0, 512)
        assert a.status().node.lost is not None
    assert images.data(0)[:512] == b"x" * 512
    assert images.dirty(0) > 0


async def test_a_failed_leg_is_out_on_every_node_when_the_command_returns(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b, node(images, lockd, "c") as c:
        await b.mddev.fail(images.paths[1])
        for one in (a, b, c):
            assert [leg.state for leg in one.status().legs] == ["in_sync", "faulty"]
            assert one.status().array.events == 2
        await c.volume.write(0, b"degraded", durable=False)
        assert await a.volume.read(0, 8) == b"degraded"
        with refused(errors.LastLeg):
            await a.mddev.fail(images.paths[0])
        with refused(errors.NoSuchLeg):
            await a.mddev.fail("/nonexistent")
    first, second = images.superblocks()
    assert (first.events, second.events) == (2, 1)
    assert [first.role_of(0), first.role_of(1)] == [0, 0xFFFE]


async def test_a_write_error_on_one_node_fails_the_leg_for_all_before_the_write_returns(
    images: Images, lockd: str
) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await b.volume.write(0, b"x" * 512, durable=False)
        read_only = os.open(images.paths[1], os.O_RDONLY)
        try:
            b.devices.backend.attach(1, read_only)
            await b.volume.write(0, b"y" * 512, durable=False)
            assert [leg.state for leg in a.status().legs] == ["in_sync", "faulty"]
            for _ in range(4):
                assert await a.volume.read(0, 512) == b"y" * 512
        finally:
            os.close(read_only)
    assert images.superblocks()[0].role_of(1) == 0xFFFE


async def test_updates_from_all_nodes_at_once_end_with_the_same_events_everywhere(images: Images, lockd: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(images, lockd, name)) for name in "abc"]
        start = nodes[0].status().array.events

        async def updates(one: Node) -> None:
            for _ in range(20):
                await one.mddev.touch()

        async with trio.open_nursery() as nursery:
            for one in nodes:
                nursery.start_soon(updates, one)
        assert {one.status().array.events for one in nodes} == {start + 60}
        for one in nodes:
            assert {flag.name for flag in one.channel.state} == {"ALREADY_IN_CLUSTER"}
    assert {superblock.events for superblock in images.superblocks()} == {start + 60}


async def test_a_suspended_range_parks_writes_until_it_is_lifted(images: Images, lockd: str) -> None:
    async with node(images, lockd) as a:
        await a.suspend_range(0, MIB)
        done = []

        async def write() -> None:
            done.append(await a.volume.write(4096, b"parked", durable=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await a.volume.write(2 * MIB, b"goes on", durable=False)
            assert await a.volume.read(4096, 6) == bytes(6)
            assert a.status().engine.parked == 1
            assert not done
            await a.suspend_range(0, 0)
        assert done == [6]


async def test_all_waits_of_a_node_are_told_in_words(images: Images, lockd: str) -> None:
    async with node(images, lockd) as a:
        await trio.testing.wait_all_tasks_blocked(0.05)
        what = {wait.task: wait.what for wait in a.status().waits}
        assert what["receiver"] == "a message"
        assert what["leg failures"] == "a leg to fail"


async def test_a_node_of_another_protocol_version_is_refused_by_name(
    images: Images, lockd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(images, lockd, "old") as a:
        await a.channel.publish(protocol=9)
        with refused(errors.ProtocolMismatch, node="old", theirs=9):
            async with node(images, lockd, "new"):
                pass


async def test_the_lock_space_is_empty_after_the_last_node_has_left(images: Images, lockd: str) -> None:
    async with node(images, lockd) as a:
        name = a.membership.lockspace.name
    async with connected(LockAddress(lockd.removeprefix("unix:")), runtime=TrioRuntime()) as manager:
        space = await manager.open_lockspace(name, cluster_name="raidfs", client="observer")
        assert await space.query() == []
        await space.close()


async def test_a_node_that_sees_other_storage_is_named_and_serves_nothing_any_more(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    copies = []
    for path in images.paths:  # W12: the message carries the event count, so reading something older is noticed
        copies.append(f"{path}.copy")
        Path(copies[-1]).write_bytes(Path(path).read_bytes())
    async with node(images, lockd, "a") as a, node(Images(tuple(copies)), lockd, "b") as b:
        with refused(errors.MessageRefused, message="METADATA_UPDATED"):
            for _ in range(3):  # b wrote its copies once when it joined
                await a.mddev.touch()
        assert b.lost is not None
        assert "older than the message" in b.lost
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await b.volume.read(0, 512)
        await a.mddev.touch()  # b has nothing more to say no to
        assert await a.volume.read(0, 1) == b"\0"


async def test_an_update_that_gets_no_token_writes_nothing_and_restores_everything(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:  # W2
        before = images.superblocks()
        async with b.membership.token():
            with trio.move_on_after(0.3) as scope:
                await a.mddev.touch()
            assert scope.cancelled_caught
            assert images.superblocks() == before
            assert {flag.name for flag in a.channel.state} == {"ALREADY_IN_CLUSTER"}
            assert a.mddev.reconfig_mutex.owner is None
        await a.mddev.touch()
        assert {one.status().array.events for one in (a, b)} == {before[0].events + 1}


async def test_a_leg_that_is_missing_at_the_start_is_faulty_before_anything_is_written(
    images: Images, lockd: str
) -> None:
    async with node(Images(images.paths[1:]), lockd, run=True) as a:
        assert images.superblocks()[1].role_of(0) == 0xFFFE
        await a.volume.write(0, b"new" * 512, durable=False)
    with refused(errors.LegLeftOut, path=images.paths[0]):
        async with node(images, lockd):
            pass
    async with node(images, lockd, run=True) as a:
        assert [leg.state for leg in a.status().legs] == ["in_sync", "faulty"]
        assert await a.volume.read(0, 3) == b"new"


async def test_a_node_without_a_leg_that_others_use_does_not_join(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a:
        with refused(errors.LegInUseElsewhere, role=1):
            async with node(Images(images.paths[:1]), lockd, "b", run=True):
                pass
        await a.mddev.fail(images.paths[1])
        async with node(Images(images.paths[:1]), lockd, "b", run=True) as b:
            await b.volume.write(0, b"x", durable=False)
            assert await a.volume.read(0, 1) == b"x"


async def test_a_last_chunk_that_is_only_partly_there_ages_away_like_the_others(tmp_path: Path, lockd: str) -> None:
    created = make_array(tmp_path, chunk_bytes=CHUNK, assume_clean=True, size_bytes=4 * MIB + 4096)
    images = Images(tuple(image.path for image in created.images))
    async with node(images, lockd) as a:
        assert a.status().bitmap.bits == 65
        assert a.status().array.sync == "idle"
    data = Path(images.paths[0]).read_bytes()[8192 : 8192 + 4096]
    assert count_dirty(data[256:], 65) == 0
