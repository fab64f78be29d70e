"""Legs that come, go and are recovered by the task that syncs, while nodes use the array."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from support.changing_legs import at_rest, new_image, places, superblock, until
from support.golden import golden_images
from support.nodes import CHUNK, Images, node, refused

from raidfs import errors
from raidfs.array.examine import examine_image
from raidfs.format.superblock import ROLE_FAULTY
from raidfs.lock.api import Mode
from raidfs.node import Node

pytest.importorskip("raidfs.sync_thread", reason="nothing recovers legs without the task that syncs")


async def until_quiet(node: Node) -> None:
    """Wait until no node holds ``resync``: a leg is in sync a moment before the sync has ended."""
    with trio.fail_after(20):
        while any(
            lock.granted is Mode.EX
            for resource in await node.channel.lockspace.query()
            if resource.name == "resync"
            for lock in resource.locks
        ):
            await trio.sleep(0.01)


async def test_a_leg_that_comes_back_has_its_position_at_once_and_is_written_by_all(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await a.sync_action("idle")
        await a.fail(images.paths[1])
        await b.volume.write(CHUNK, b"missed" * 1024, durable=True)
        with refused(errors.NotFormerLeg):
            await a.re_add(__file__)
        await a.re_add(images.paths[1])
        for one in (a, b):
            assert places(one) == {"leg0": "in_sync", "leg1": "recovering"}
            assert [leg.recovery_offset for leg in one.array.recovering()] == [one.array.layout.size_bytes]
            assert at_rest(one)
        own = superblock(images.paths[1])
        assert (own.feature_map & 0x82, own.recovery_offset_sectors, own.role) == (0x82, 0, 1)
        await b.volume.write(0, b"both get it " * 512, durable=True)
        assert images.data(1)[:12] == b"both get it "
        assert images.data(1)[CHUNK : CHUNK + 6] == bytes(6)
        # W13: the slots of both nodes are on the leg, and so are those of nobody.
        for slot in range(4):
            assert images.dirty(slot, leg=1) == images.dirty(slot, leg=0)
        with refused(errors.AlreadyLeg):
            await b.re_add(images.paths[1])


async def test_of_a_leg_that_comes_back_only_what_it_has_missed_is_copied(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await a.volume.write(0, bytes(range(256)) * 16384, durable=True)  # all 64 chunks
        for one in (a, b):
            await one.array.flush_bitmap()
        await a.fail(images.paths[1])
        for chunk, one in ((3, a), (3, b), (17, b), (63, b)):
            await one.volume.write(chunk * CHUNK, b"missed", durable=True)
        await a.re_add(images.paths[1])
        for one in (a, b):
            await until(one, leg1="in_sync")
        await until_quiet(a)
        copied = [one.array.port.engine.statistics()["sync"]["bytes_written"] for one in (a, b)]
        assert sorted(copied) == [0, 3 * CHUNK]
        assert images.data(0) == images.data(1)


async def test_what_the_bitmaps_do_not_tell_any_more_is_copied_in_full(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    path = new_image(tmp_path / "new")
    async with node(images, lockd, "a") as a:
        await a.fail(images.paths[1])
        await a.add(path, spare=True, force=False)
        await until(a, new="in_sync")
        await a.volume.write(0, b"whole again", durable=True)
        for _ in range(4):
            await a.array.port.sweep()  # events_cleared is on the disk
        await a.sync_action("idle")
        await a.fail(path)
        await a.re_add(images.paths[1])
        assert [leg.recovery_offset for leg in a.array.recovering()] == [0]
        assert places(a) == {"leg0": "in_sync", "leg1": "recovering", "new": "faulty"}


async def test_the_command_line_of_old_finds_the_leg_that_another_node_has_added(
    images: Images, lockd: str, tmp_path: Path
) -> None:
    path = new_image(tmp_path / "new")
    async with node(images, lockd, "a") as a:
        await a.fail(images.paths[1])
        await a.remove(images.paths[1])
        await a.add(path, spare=False, force=False)
        await until(a, new="in_sync")
        async with node(Images(images.paths[:1]), lockd, "b") as b:
            assert places(b) == {"leg0": "in_sync", "new": "in_sync"}
        (tmp_path / "copy").write_bytes(Path(path).read_bytes())
        with refused(errors.SeveralImages, number=2):
            async with node(Images(images.paths[:1]), lockd, "b"):
                pass


async def test_the_number_of_legs_grows_and_shrinks_on_all_nodes(images: Images, lockd: str, tmp_path: Path) -> None:
    path = new_image(tmp_path / "new")
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await a.add(path, spare=True, force=False)
        await until_quiet(b)
        await b.set_raid_devices(3)
        for one in (a, b):
            await until(one, new="in_sync")
        assert {superblock(path).raid_disks, superblock(images.paths[0]).raid_disks} == {3}
        await until_quiet(a)
        with refused(errors.PositionsInUse, used=3):
            await a.set_raid_devices(2)
        await a.fail(images.paths[0])
        await a.remove(images.paths[0])
        await until_quiet(b)
        await b.set_raid_devices(2)
        for one in (a, b):
            assert places(one) == {"leg1": "in_sync", "new": "in_sync"}
            assert not one.array.is_degraded
            assert sorted(leg.role or 0 for leg in one.array.legs) == [0, 1]
        await b.volume.write(0, b"two again", durable=True)


async def test_a_faulty_leg_that_was_named_can_be_taken_back_or_removed(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a") as a:
        await a.fail(images.paths[1])
    assert superblock(images.paths[0]).role_of(1) == ROLE_FAULTY
    async with node(images, lockd, "a", run=True) as a, node(Images(images.paths[:1]), lockd, "b") as b:
        assert places(a) == {"leg0": "in_sync", "leg1": "faulty"}
        assert places(b) == {"leg0": "in_sync"}
        await b.re_add(images.paths[1])
        await until(a, leg1="in_sync")
        await until(b, leg1="in_sync")


def blank(path: str, slots: range) -> None:
    """Leave a leg as ``mdadm --add`` does: without the slots of nodes that did not run."""
    with open(path, "r+b") as file:
        for slot in slots:
            file.seek(8192 + slot * 4096)
            file.write(bytes(4096))


async def test_a_leg_that_lacks_slots_has_them_before_the_node_counts(images: Images, lockd: str) -> None:
    async with node(images, lockd, "a"):
        pass  # bits count from now on
    images.set_bits(2, [5, 6])  # of a node that died
    images.scribble(1, 5 * CHUNK, b"differs")
    blank(images.paths[0], range(1, 4))
    async with node(images, lockd, "a", read_only=True) as reader:
        assert reader.array.doubts
        assert images.dirty(2, leg=0) == 0
        async with node(images, lockd, "b") as b:
            await until_quiet(b)
            for slot in range(4):
                at = 8192 + slot * 4096
                found = [Path(path).read_bytes()[at : at + 4096] for path in images.paths]
                assert found[0] == found[1]
                assert found[0][:4] == b"bitm"
            await b.wait_for_syncs()
            assert images.data(0) == images.data(1)


async def test_a_recovery_that_linux_began_is_finished(tmp_path: Path, lockd: str) -> None:
    member0, member1, _ = (image.write_to(tmp_path) for image in golden_images("007"))
    async with node(Images((member0, member1)), lockd, "a") as a:
        [before] = [leg.recovery_offset for leg in a.array.recovering()] or [0]
        with trio.fail_after(30):
            await a.wait_for_syncs()
        assert [leg.state for leg in a.status().legs] == ["in_sync", "in_sync"]
        assert before > 0
        copied = a.array.port.engine.statistics()["sync"]["bytes_written"]
        assert copied <= a.array.size_bytes - before
    for image in (member0, member1):
        assert [slot.error for slot in examine_image(image).slots] == [None] * 4
