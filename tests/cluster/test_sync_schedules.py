"""The schedules of md-cluster's history that are about resync and takeover, with real nodes; each ends here.

`test_without_its_fix` takes the fix out and sees the schedule fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
from support.sim_nodes import CHUNKS, SimNode, SimNodes

from raidfs import takeover as takeover_module
from raidfs.cluster.messages import MessageType
from raidfs.remote_resync import RemoteResync
from raidfs.sim.layout import CHUNK_BYTES
from raidfs.sync_pass import SyncPass
from raidfs.sync_thread import SyncThread
from raidfs.takeover import Takeover

SEEDS = range(3)
SLOW = {"sync_speed_max": 4}  # KiB/s: 8 seconds for the array

ENDED = (MessageType.RESYNCING, 0)


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


def said(cluster: SimNodes, who: SimNode) -> list[tuple[int, int]]:
    """What a node has sent: type and high."""
    return [(message.type, message.high) for client, message in cluster.messages if client == who.name]


def equal(cluster: SimNodes) -> None:
    for disk in range(1, len(cluster.disks)):
        assert cluster.data(0) == cluster.data(disk)


def b8_the_resync_lock_is_waited_for(seed: int) -> None:
    """B has something to resync while A does; it waits for its turn and has it, although nothing else happens."""
    cluster = SimNodes(seed)
    a = cluster.join("A", **SLOW)
    cluster.until(lambda: a.node.sync.current is not None)
    cluster.set_bits(1, [7])
    b = cluster.join("B")
    cluster.until(lambda: b.node.sync.waiting)
    a.node.sync.freeze(frozen=True)
    cluster.until(lambda: a.node.sync.current is None)
    cluster.settle(10)
    assert b.needed == 0
    assert b.copied == CHUNK_BYTES


def b8_the_need_is_looked_at_again(seed: int) -> None:
    """B waits for ``resync`` while A resyncs what B has, too; when B has it, there is nothing left to do."""
    cluster = SimNodes(seed)
    a = cluster.join("A", **SLOW)
    cluster.until(lambda: a.node.sync.current is not None)
    cluster.set_bits(1, [7])
    b = cluster.join("B")
    cluster.until(lambda: b.node.sync.waiting)
    cluster.until(lambda: a.node.sync.current is None)
    cluster.settle(8)
    assert (MessageType.RESYNCING_START, 0) not in said(cluster, b)


def b9_stop_while_waiting_for_resync(seed: int) -> None:
    """B leaves while it waits for ``resync``, which A does not give back for a long time."""
    cluster = SimNodes(seed)
    a = cluster.join("A", **SLOW)
    cluster.until(lambda: a.node.sync.current is not None)
    cluster.set_bits(1, [7])
    b = cluster.join("B")
    cluster.until(lambda: b.node.sync.waiting)
    b.leave()
    cluster.until(lambda: b.left)
    assert a.node.sync.current is not None
    assert cluster.dirty(1) == 1  # B has left it to the others


def b14_bits_end_with_another_nodes_resync(seed: int) -> None:
    """A and B have the same dirty chunks; who comes second copies nothing."""
    cluster = SimNodes(seed)
    a = cluster.join("A", **SLOW)
    cluster.until(lambda: a.node.sync.current is not None)
    cluster.set_bits(1, [5, 6, 7])
    b = cluster.join("B")
    assert b.needed == 3
    cluster.until(lambda: a.needed == 0 and a.node.sync.current is None)
    cluster.settle(8)
    assert (b.needed, b.copied) == (0, 0)
    assert a.copied == CHUNKS * CHUNK_BYTES
    cluster.settle(8)
    assert cluster.dirty(1) == 0


def b15_who_leaves_does_not_say_that_it_is_finished(seed: int) -> None:
    """A leaves half-way; the others must not believe that all is done, and B goes on."""
    cluster = SimNodes(seed)
    cluster.scribble(1, CHUNKS - 1)
    a = cluster.join("A", **SLOW)
    b = cluster.join("B")
    cluster.until(lambda: a.position > CHUNK_BYTES)
    a.leave()
    cluster.until(lambda: a.left)
    assert ENDED not in said(cluster, a)
    assert (MessageType.BITMAP_NEEDS_SYNC, 0) in said(cluster, a)
    cluster.until(lambda: b.copied > 0 and b.needed == 0 and b.node.sync.current is None)
    assert b.copied < CHUNKS * CHUNK_BYTES
    equal(cluster)


def b16_a_resync_elsewhere_shows_as_that(seed: int) -> None:
    """B tells that A resyncs and how far it is, and not that a resync is pending."""
    cluster = SimNodes(seed)
    a = cluster.join("A", **SLOW)
    cluster.set_bits(1, [7])
    b = cluster.join("B")
    seen = set()

    def look() -> None:
        status = b.node.sync_status()
        if status.state == "remote":
            assert (status.action, status.slot) == ("resync", 0)
            seen.add(status.done_bytes)

    cluster.until(lambda: b.node.mddev.remote.slot is not None)
    cluster.until(lambda: a.node.sync.current is None, look)
    assert len(seen) > 3
    assert b.node.sync_status().state != "remote"


def b17_a_dead_nodes_range_opens_when_its_bits_are_known(seed: int) -> None:
    """A dies in the middle of a window. Until B has its bits the window stays suspended, and reads use one leg."""
    cluster = SimNodes(seed)
    cluster.scribble(1, 0)
    a = cluster.join("A", sync_speed_max=3)
    b = cluster.join("B", **SLOW)
    cluster.until(lambda: b.node.mddev.remote.window.end > b.node.mddev.remote.window.start)
    a.die()

    def look() -> None:
        assert b.node.mddev.remote.slot == 0 or b.needed > 0, "the range is open, and nobody knows A's bits"

    cluster.until(lambda: b.node.mddev.remote.slot is None and b.copied > 0, look)
    b.node.sync.freeze(frozen=True)
    assert cluster.dirty(0) == 0
    assert cluster.dirty(1) > 0


def w5_chunk_0_alone_is_not_nothing(seed: int) -> None:
    """A node dies whose only dirty chunk is chunk 0."""
    cluster = SimNodes(seed, clean=True)
    a = cluster.join("A")
    b = cluster.join("B")
    wrote = b.start(b.node.volume.write(0, b"x" * 512, durable=False))
    cluster.until(lambda: bool(wrote))
    cluster.scribble(1, 0)
    b.die()
    cluster.until(lambda: cluster.dirty(1) == 0 and a.node.sync.current is None and not a.node.takeover.recovery_map)
    cluster.settle(1)
    assert a.copied == CHUNK_BYTES
    equal(cluster)


def w9_one_node_resyncs_at_a_time(seed: int) -> None:
    """Two nodes have chunks to resync; one suspended range is enough, since only one of them does it."""
    cluster = SimNodes(seed, clean=True)
    cluster.join("A")
    nodes = []
    for slot in (1, 2):
        cluster.set_bits(slot, [slot, 5 + slot])
        one = cluster.join(f"node{slot}", sync_speed_max=2)
        nodes.append(one)
        cluster.until(lambda: nodes[0].node.sync.current is not None)

    def look() -> None:
        at_it = [one.name for one in nodes if one.node.sync.current is not None]
        assert len(at_it) < 2, at_it

    cluster.until(lambda: not any(one.node.sync.is_due() or one.node.sync.current for one in nodes), look)
    assert sum(one.copied for one in nodes) == 4 * CHUNK_BYTES


SCHEDULES = [
    b8_the_resync_lock_is_waited_for,
    b8_the_need_is_looked_at_again,
    b9_stop_while_waiting_for_resync,
    b14_bits_end_with_another_nodes_resync,
    b15_who_leaves_does_not_say_that_it_is_finished,
    b16_a_resync_elsewhere_shows_as_that,
    b17_a_dead_nodes_range_opens_when_its_bits_are_known,
    w5_chunk_0_alone_is_not_nothing,
    w9_one_node_resyncs_at_a_time,
]
Schedule = Callable[[int], None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule(schedule: Schedule, seed: int) -> None:
    schedule(seed)


# ---- without the fixes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tried_once() -> Iterator[None]:
    async def wrong(sync: SyncThread) -> None:
        await sync._resync.trylock("the sync")
        await sync._sync()
        await sync._resync.unlock()

    with patch.object(SyncThread, "_turn", wrong), patch("raidfs.sync_thread.RETRY_S", 1e6):
        yield


@contextlib.contextmanager
def not_looked_again() -> Iterator[None]:
    async def wrong(sync: SyncThread) -> None:
        await sync._resync.lock("the sync")
        await sync._sync()
        await sync._resync.unlock()

    with patch.object(SyncThread, "_turn", wrong):
        yield


@contextlib.contextmanager
def wait_not_cancelled() -> Iterator[None]:
    async def wrong(sync: SyncThread) -> None:
        sync._stopping = True
        sync.wake()
        await sync._queue.wait_event(lambda: not sync._running, what="the sync of this node to end")

    with patch.object(SyncThread, "stop", wrong):
        yield


@contextlib.contextmanager
def bits_not_ended() -> Iterator[None]:
    with patch.object(RemoteResync, "_cover", lambda *args, **options: None):
        yield


@contextlib.contextmanager
def always_says_the_end() -> Iterator[None]:
    end = SyncPass.end

    async def wrong(sync: SyncPass, *, leaving: bool) -> None:
        await end(sync, leaving=False)

    with patch.object(SyncPass, "end", wrong):
        yield


@contextlib.contextmanager
def not_marked() -> Iterator[None]:
    begin = RemoteResync._begin

    def wrong(remote: RemoteResync, slot: int) -> None:
        begin(remote, slot)
        remote.slot = None

    with patch.object(RemoteResync, "_begin", wrong), patch.object(RemoteResync, "started", wrong):
        yield


@contextlib.contextmanager
def opened_at_once() -> Iterator[None]:
    suspect = Takeover.suspect

    def wrong(takeover: Takeover, slot: int) -> None:
        suspect(takeover, slot)
        takeover._remote.gone(slot)

    with patch.object(Takeover, "suspect", wrong):
        yield


@contextlib.contextmanager
def last_dirty_chunk() -> Iterator[None]:
    def wrong(bits: bytes, count: int) -> int:
        return max((chunk for chunk in range(count) if bits[chunk // 8] >> chunk % 8 & 1), default=0)

    with patch.object(takeover_module, "count_dirty", wrong):
        yield


@contextlib.contextmanager
def without_the_lock() -> Iterator[None]:
    async def wrong(sync: SyncThread) -> None:
        await sync._sync()

    with patch.object(SyncThread, "_turn", wrong):
        yield


WITHOUT = [
    (b8_the_resync_lock_is_waited_for, tried_once),
    (b8_the_need_is_looked_at_again, not_looked_again),
    (b9_stop_while_waiting_for_resync, wait_not_cancelled),
    (b14_bits_end_with_another_nodes_resync, bits_not_ended),
    (b15_who_leaves_does_not_say_that_it_is_finished, always_says_the_end),
    (b16_a_resync_elsewhere_shows_as_that, not_marked),
    (b17_a_dead_nodes_range_opens_when_its_bits_are_known, opened_at_once),
    (w5_chunk_0_alone_is_not_nothing, last_dirty_chunk),
    (w9_one_node_resyncs_at_a_time, without_the_lock),
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
