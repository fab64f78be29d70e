"""Resync, check and repair with real nodes, images and the real lock server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from support.arrays import make_array
from support.nodes import CHUNK, Images, node, refused

from raidfs import errors
from raidfs.node import Node
from raidfs.units import KIB, MIB

SLOW = {"sync_speed_max": 4096, "sync_window_bytes": (64 * KIB, 128 * KIB)}  # a second for the whole array


@pytest.fixture
def differing(tmp_path: Path) -> Images:
    """A new array whose second leg is full of something else."""
    images = Images(tuple(image.path for image in make_array(tmp_path, chunk_bytes=CHUNK).images))
    images.scribble(leg=1, offset=0, data=os.urandom(4 * MIB))
    return images


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


async def quiet(*nodes: Node) -> None:
    with trio.fail_after(30):
        for one in nodes:
            await one.wait_for_syncs()


def copied(one: Node) -> int:
    return one.array.port.engine.statistics()["sync"]["bytes_written"]


async def test_a_new_array_is_resynced_by_itself_and_once(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a") as a, node(differing, lockd, "b") as b:
        await quiet(a, b)
        assert a.sync_status().state == b.sync_status().state == "idle"
        assert copied(a) == 4 * MIB
        assert copied(b) == 0
    assert differing.data(0) == differing.data(1) == bytes(4 * MIB)
    assert differing.dirty_everywhere() == 0


async def test_the_other_node_sees_who_resyncs_and_how_far_it_is_and_both_write(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a", **SLOW) as a, node(differing, lockd, "b") as b:
        seen = set()
        written: dict[int, bytes] = {}

        async def writes(one: Node, first: int) -> None:
            for number in range(first, 64, 2):
                data = os.urandom(5000)
                await one.volume.write(number * CHUNK + 77, data, durable=False)
                written[number] = data

        async def looks() -> None:
            while (status := b.sync_status()).state == "remote":
                assert (status.action, status.slot, status.client) == ("resync", 0, "a")
                seen.add(status.done_bytes)
                await trio.sleep(0.01)

        await until(lambda: b.sync_status().state == "remote")
        assert a.sync_status().state == "running"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes, a, 0)
            nursery.start_soon(writes, b, 1)
            nursery.start_soon(looks)
        await quiet(a, b)
        assert len(seen) > 5
        for number, data in written.items():
            for one in (a, b):
                assert await one.volume.read(number * CHUNK + 77, 5000) == data
    assert differing.data(0) == differing.data(1)
    assert differing.dirty_everywhere() == 0


async def test_only_chunks_whose_bits_are_set_are_copied(images: Images, lockd: str) -> None:
    async with node(images, lockd):
        pass
    images.set_bits(slot=2, chunks=[0, 5, 6, 40])
    async with node(images, lockd) as a:
        await quiet(a)
        assert copied(a) == 4 * CHUNK


async def test_the_bits_of_a_slot_whose_node_died_are_taken_over_and_cleared_there(images: Images, lockd: str) -> None:
    async with node(images, lockd):
        pass
    images.set_bits(slot=2, chunks=[0])  # nothing but chunk 0 (W5)
    images.scribble(leg=1, offset=100, data=b"half a write")
    async with node(images, lockd) as a:
        assert images.dirty(2) == images.dirty(2, leg=1) == 0
        await quiet(a)
        assert copied(a) == CHUNK
        assert await a.volume.read(100, 12) == bytes(12)
    assert images.data(0) == images.data(1)
    assert images.dirty_everywhere() == 0


async def test_a_node_that_leaves_half_way_says_nothing_and_the_other_one_goes_on(
    differing: Images, lockd: str
) -> None:
    leave = trio.Event()
    left_after = []

    async def leaves(task_status: trio.TaskStatus[Node]) -> None:
        async with node(differing, lockd, "a", **SLOW) as a:
            task_status.started(a)
            await leave.wait()
        left_after.append(copied(a))

    async with trio.open_nursery() as nursery:
        a = await nursery.start(leaves)
        async with node(differing, lockd, "b") as b:
            await until(lambda: copied(a) > MIB)
            leave.set()
            await until(lambda: bool(left_after))
            await until(lambda: copied(b) > 0)
            await quiet(b)
            assert left_after[0] + copied(b) <= 4 * MIB + CHUNK + 128 * KIB
    assert differing.data(0) == differing.data(1)
    assert differing.dirty_everywhere() == 0


async def test_half_a_resync_is_gone_on_with_where_bits_are_still_set(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a", **SLOW) as a:
        async with node(differing, lockd, "b") as b:
            await until(lambda: b.sync_status().done_bytes > MIB)
            await b.sync_action("idle")
            await until(lambda: a.sync_status().state == "frozen")
            done = copied(a)
            assert MIB <= done < 4 * MIB
        assert a.sync.current is None
    first = differing.dirty(0)
    assert 0 < first <= 48
    async with node(differing, lockd, "c") as c:
        await quiet(c)
        assert copied(c) <= 4 * MIB - done + CHUNK + 128 * KIB
    assert differing.data(0) == differing.data(1)


async def test_idle_stops_the_sync_of_any_node_and_resync_lets_it_go_on(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a", **SLOW) as a, node(differing, lockd, "b") as b:
        await until(lambda: b.sync_status().state == "remote")
        await b.sync_action("idle")
        await until(lambda: a.sync_status().state == "frozen")
        assert a.sync_status().action == "resync"
        before = copied(a)
        with refused(errors.SyncStopped):
            await a.sync_action("check")
        await trio.sleep(0.05)
        assert copied(a) == before
        assert b.mddev.remote.slot is None
        await b.volume.write(0, b"nobody holds this up", durable=False)
        await b.sync_action("resync")
        await quiet(a, b)
    assert differing.data(0) == differing.data(1)


async def test_a_check_counts_what_differs_and_tells_where_and_a_repair_makes_it_equal(
    images: Images, lockd: str
) -> None:
    async with node(images, lockd, "a") as a, node(images, lockd, "b") as b:
        await a.volume.write(0, b"good" * 1000, durable=True)
        images.scribble(leg=1, offset=512, data=b"x" * 1024)
        images.scribble(leg=1, offset=3 * MIB, data=b"y")
        await b.sync_action("check")
        await quiet(a, b)
        status = b.sync_status()
        assert status.mismatch_sectors == 3
        assert [(found.start_bytes, found.length_bytes) for found in status.mismatch_ranges] == [
            (512, 1024),
            (3 * MIB, 512),
        ]
        assert images.data(0) != images.data(1)
        await b.sync_action("repair")
        await quiet(a, b)
        assert b.sync_status().mismatch_sectors == 3  # md counts what it has repaired
        await b.sync_action("check")
        await quiet(a, b)
        assert b.sync_status().mismatch_sectors == 0
        assert (b.sync_status().last_action, b.sync_status().last_interrupted) == ("check", False)
    assert images.data(0) == images.data(1)
    assert images.data(0)[:4000] == b"good" * 1000


async def test_a_check_is_refused_while_somebody_syncs_and_names_who(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a", **SLOW) as a, node(differing, lockd, "b") as b:
        await until(lambda: b.sync_status().state == "remote")
        with refused(errors.SyncRuns, who="a"):
            await b.sync_action("check")
        with refused(errors.SyncRuns, who="a"):
            await a.sync_action("repair")
        with refused(errors.UnknownSyncAction, action="dance"):
            await a.sync_action("dance")


async def test_a_check_finds_nothing_while_both_nodes_write(images: Images, lockd: str) -> None:
    options = {"sync_window_bytes": (64 * KIB, 128 * KIB)}
    async with node(images, lockd, "a", **options) as a, node(images, lockd, "b") as b:
        done = False

        async def writes(one: Node, first: int) -> None:
            number = first
            while not done:
                number += 2
                await one.volume.write(number % 64 * CHUNK, os.urandom(CHUNK // 2), durable=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writes, a, 0)
            nursery.start_soon(writes, b, 1)
            for _ in range(3):
                await a.sync_action("check")
                await quiet(a)
                assert a.sync_status().mismatch_sectors == 0
            done = True
    assert images.data(0) == images.data(1)


async def test_waiting_tells_whether_there_was_something_to_wait_for(differing: Images, lockd: str) -> None:
    async with node(differing, lockd, "a", **SLOW) as a, node(differing, lockd, "b") as b:
        assert await b.wait_for_syncs()
        assert a.sync_status().state == "idle"
        assert not await b.wait_for_syncs()
