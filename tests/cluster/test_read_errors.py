"""Reads that a leg fails, with real nodes on simulated disks: who writes anew, when a leg is given up, what is lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from support.sim_nodes import CHUNKS, SimNode, SimNodes

from raidfs._core import OpKind
from raidfs.array.read_errors import HALVED_S, LOST_TRY_AGAIN_S, READ_ERRORS_MAX
from raidfs.cluster.messages import MessageType
from raidfs.faults import Strike
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.layout import CHUNK_BYTES, DATA_OFFSET_BYTES

SEEDS = range(3)
SIZE = CHUNKS * CHUNK_BYTES


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


class BadPlaces:
    """Sectors that disks cannot read; those that are ``cured`` can be read once they were written."""

    def __init__(self, cluster: SimNodes, *, cured: bool) -> None:
        self._cluster = cluster
        self._cured = cured
        self._bad: set[tuple[str, int]] = set()

    def spoil(self, disk: int, chunk: int, *, sectors: int = CHUNK_BYTES // 512) -> None:
        first = chunk * CHUNK_BYTES // 512
        self._bad |= {(self._cluster.disks[disk].name, first + number) for number in range(sectors)}

    def strike(self, one: SimNode) -> None:
        one.host.decide = self._decide

    def _decide(self, disk: SimDisk, op: DiskOp) -> Strike | None:
        first = (op.offset - DATA_OFFSET_BYTES) // 512
        last = (op.offset + op.length - 1 - DATA_OFFSET_BYTES) // 512
        hit = {place for place in self._bad if place[0] == disk.name and first <= place[1] <= last}
        if hit and op.kind == OpKind.READ:
            return Strike(errno=errno.EIO)
        if hit and op.data is not None and self._cured:
            self._bad -= hit
        return None


def corrected(one: SimNode) -> list[int]:
    return [leg["corrected_reads"] for leg in one.node.array.port.engine.statistics()["legs"]]


def states(one: SimNode) -> list[str]:
    return [leg.state.name for leg in one.node.array.legs]


def read(one: SimNode, chunk: int) -> bytes:
    got = one.start(one.node.volume.read(chunk * CHUNK_BYTES, CHUNK_BYTES))
    one.cluster.until(lambda: bool(got))
    return bytes(got[0])


def superblock(disk: SimDisk) -> Superblock:
    return Superblock.decode(bytes(disk.content[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES]))


def is_quiet(one: SimNode) -> bool:
    return not (one.node.sync.current or one.node.sync.is_due())


def pair(seed: int, *, cured: bool, clean: bool = True) -> tuple[SimNodes, SimNode, SimNode, BadPlaces]:
    cluster = SimNodes(seed, clean=clean)
    for disk in range(2):
        cluster.scribble(disk, 3, 0x77)
    places = BadPlaces(cluster, cured=cured)
    a, b = cluster.join("A"), cluster.join("B")
    for one in (a, b):
        places.strike(one)
    return cluster, a, b, places


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_leg_cannot_read_is_read_elsewhere_and_written_anew(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=True)
    places.spoil(0, 3)
    for _ in range(6):
        assert read(a, 3) == b"\x77" * CHUNK_BYTES
    cluster.until(lambda: is_quiet(a) and b.node.mddev.remote.slot is None)
    assert corrected(a) == [1, 0]
    assert states(a) == states(b) == ["IN_SYNC", "IN_SYNC"]
    assert all(read(b, 3) == b"\x77" * CHUNK_BYTES for _ in range(6))
    assert corrected(b) == [0, 0]
    assert a.node.status().legs[0].corrected_reads == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_superblock_of_a_leg_counts_the_sectors_that_were_written_anew_by_any_node(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=True)
    for reader, chunk in ((a, 3), (b, 5)):
        places.spoil(0, chunk)
        for _ in range(6):
            read(reader, chunk)
        cluster.until(lambda reader=reader: is_quiet(reader) and corrected(reader)[0] > 0)  # type: ignore[misc]
        cluster.until(lambda: all(one.node.mddev.remote.slot is None for one in (a, b)))
    blocks = corrected(a)[0] + corrected(b)[0]
    counts = [superblock(cluster.disks[number]).cnt_corrected_read for number in range(2)]
    assert counts == [blocks * CHUNK_BYTES // 512, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_other_nodes_write_nothing_there_while_it_is_written_anew(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=True)
    places.spoil(0, 3)
    a.start(a.node.volume.read(3 * CHUNK_BYTES, CHUNK_BYTES))
    seen = []

    def look() -> None:
        # What A has in flight on the leg lies inside what B has suspended.
        window = b.node.mddev.remote.window
        for op in cluster.disks[0].in_flight:
            at = op.offset - DATA_OFFSET_BYTES
            if op.owner is a.group and op.kind == OpKind.WRITE and at >= 0:
                assert window.start <= at < window.end
                seen.append(at)

    wrote: list[list[int]] = []

    def write_on() -> None:
        look()
        if len(wrote) < 20 and (not wrote or wrote[-1]):
            wrote.append(b.start(b.node.volume.write(3 * CHUNK_BYTES, bytes([len(wrote)]) * 512, durable=False)))

    cluster.until(lambda: len(wrote) == 20 and bool(wrote[-1]) and corrected(a)[0] == 1 and is_quiet(a), write_on)
    assert seen
    cluster.settle(1)
    assert cluster.data(0) == cluster.data(1)
    assert cluster.data(0)[3 * CHUNK_BYTES] == 19


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leg_that_gives_back_nothing_of_what_was_written_anew_is_failed(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=False)
    places.spoil(0, 3)
    read(a, 3)
    cluster.until(lambda: states(a) == states(b) == ["FAULTY", "IN_SYNC"])
    cluster.until(lambda: is_quiet(a))
    assert read(b, 3) == b"\x77" * CHUNK_BYTES


def fails_reads(a: SimNode, places: BadPlaces, times: int) -> None:
    def gave_up() -> bool:
        return states(a)[0] != "IN_SYNC"

    for want in range(1, times + 1):
        places.spoil(0, 3)
        read(a, 3)
        a.cluster.until(lambda: (is_quiet(a) and corrected(a)[0] >= want) or gave_up())  # noqa: B023


@pytest.mark.parametrize(("pause_s", "state"), [(0.0, "FAULTY"), (HALVED_S, "IN_SYNC")])
def test_a_leg_that_fails_too_many_reads_within_hours_is_failed(pause_s: float, state: str) -> None:
    cluster = SimNodes(1, clean=True)
    places = BadPlaces(cluster, cured=True)
    a = cluster.join("A")
    places.strike(a)
    fails_reads(a, places, READ_ERRORS_MAX)
    assert states(a)[0] == "IN_SYNC"
    if pause_s:
        last = a.node.array.read_errors._counts[0]
        a.node.array.read_errors._counts[0] = (last[0], last[1] - pause_s)  # an hour is long in the simulator
    before = corrected(a)[0]
    places.spoil(0, 3)
    read(a, 3)
    cluster.until(lambda: is_quiet(a) and (corrected(a)[0] > before or states(a)[0] == "FAULTY"))
    assert states(a)[0] == state


@pytest.mark.parametrize("seed", SEEDS)
def test_what_no_leg_can_read_is_the_users_error_and_fails_no_leg(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=False)
    places.spoil(0, 3)
    places.spoil(1, 3)
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            read(a, 3)
        cluster.until(lambda: is_quiet(a))
    said = [message for _, message in cluster.messages if message.type == MessageType.RESYNCING_START]
    assert len(said) == 1  # it is not tried again and again
    assert states(a) == states(b) == ["IN_SYNC", "IN_SYNC"]
    assert corrected(a) == [0, 0]


@pytest.mark.parametrize("sectors", [1, 8])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_heal_leaves_out_what_no_leg_can_read_and_does_all_the_rest_once(seed: int, sectors: int) -> None:
    cluster = SimNodes(seed)
    for chunk in range(CHUNKS):
        cluster.scribble(1, chunk)
    places = BadPlaces(cluster, cured=False)
    places.spoil(0, 3, sectors=sectors)
    places.spoil(1, 3, sectors=sectors)
    a = cluster.begin("A")
    places.strike(a)
    cluster.until(lambda: a.joined is not None)
    cluster.until(lambda: is_quiet(a))
    assert a.needed == 1
    cluster.settle(20)
    begun = [message for _, message in cluster.messages if message.type == MessageType.RESYNCING_START]
    assert len(begun) == 1
    assert a.node.sync_status().state == "idle"
    first, second = cluster.data(0), cluster.data(1)
    different = {at // 512 for at in range(0, SIZE, 512) if first[at : at + 512] != second[at : at + 512]}
    assert different == set(range(24, 24 + sectors))
    assert states(a) == ["IN_SYNC", "IN_SYNC"]
    places._bad.clear()
    a.start(a.node.sync_action("resync"))
    cluster.until(lambda: a.needed == 0 and is_quiet(a))
    assert cluster.data(0) == cluster.data(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leg_is_not_in_sync_before_the_last_block_could_be_read(seed: int) -> None:
    cluster, a, b, places = pair(seed, cured=True)
    failed = a.start(a.node.fail("disk1"))
    cluster.until(lambda: bool(failed))
    for chunk in range(CHUNKS):
        wrote = a.start(a.node.volume.write(chunk * CHUNK_BYTES, bytes([chunk]) * CHUNK_BYTES, durable=False))
        cluster.until(lambda: bool(wrote))  # noqa: B023
    places.spoil(0, 3)
    back = a.start(a.node.re_add("disk1"))
    cluster.until(lambda: bool(back) and is_quiet(a) and is_quiet(b) and b.node.mddev.remote.slot is None)
    assert states(a) == states(b) == ["IN_SYNC", "RECOVERING"]
    cluster.settle(10)
    assert states(a) == ["IN_SYNC", "RECOVERING"]
    wrote = b.start(b.node.volume.write(3 * CHUNK_BYTES, b"w" * CHUNK_BYTES, durable=False))  # which cures it
    cluster.until(lambda: bool(wrote))
    b.start(b.node.sync_action("resync"))
    cluster.until(lambda: states(a) == states(b) == ["IN_SYNC", "IN_SYNC"])
    assert cluster.data(0) == cluster.data(1)


def test_what_is_lost_is_tried_again_after_some_time() -> None:
    cluster = SimNodes(1)
    places = BadPlaces(cluster, cured=False)
    places.spoil(0, 3)
    places.spoil(1, 3)
    a = cluster.begin("A")
    places.strike(a)
    cluster.until(lambda: a.joined is not None and a.needed == 1 and is_quiet(a))
    places._bad.clear()
    a.node.sync._aside._until -= LOST_TRY_AGAIN_S
    cluster.until(lambda: a.needed == 0)
