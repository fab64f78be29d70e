"""Simulated disks: what may be lost, and what may not."""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidfs._core import OpKind
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.policies import RandomPolicy
from raidfs.sim.stepper import Group, Stepper
from raidfs.sim.trace import Trace

SECTOR = 512
SIZE = 16 * SECTOR


class Bench:
    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self.stepper = Stepper(RandomPolicy(rng), rng)
        self.world = self.stepper.group("world")
        self.owner = self.stepper.group("m0")
        self.disk = SimDisk("disk0", SIZE, self.stepper, self.world, rng, Trace(keep=False))
        self.results: list[tuple[int, bytes | None]] = []

    def submit(self, kind: OpKind, sector: int = 0, data: bytes = b"", *, owner: Group | None = None) -> None:
        op = DiskOp(
            owner or self.owner, kind, sector * SECTOR, len(data), None if kind == OpKind.READ else data,
            lambda result, found: self.results.append((result, found)),
        )  # fmt: skip
        self.disk.submit(op)

    def settle(self) -> None:
        self.stepper.run(until=lambda: not self.disk.in_flight)

    def do(self, kind: OpKind, sector: int = 0, data: bytes = b"") -> tuple[int, bytes | None]:
        self.submit(kind, sector, data)
        self.settle()
        return self.results.pop()

    def sector(self, number: int) -> bytes:
        return bytes(self.disk.content[number * SECTOR : number * SECTOR + 1])


def sectors(text: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in text)


@pytest.mark.parametrize("seed", range(5))
def test_a_completed_write_is_read_by_everybody(seed: int) -> None:
    bench = Bench(seed)
    assert bench.do(OpKind.WRITE, 2, sectors("ab")) == (2 * SECTOR, None)
    assert bench.do(OpKind.READ, 3, bytes(SECTOR)) == (SECTOR, sectors("b"))


def test_operations_in_flight_end_in_any_order() -> None:
    orders = set()
    for seed in range(60):
        bench = Bench(seed)
        for letter in "abc":
            bench.submit(OpKind.WRITE, 0, sectors(letter))
        bench.settle()
        orders.add(bench.sector(0))
    assert orders == {b"a", b"b", b"c"}


def test_power_loss_takes_any_sectors_that_were_not_flushed_and_no_others() -> None:
    found = set()
    for seed in range(100):
        bench = Bench(seed)
        bench.do(OpKind.WRITE, 0, sectors("aaaa"))
        bench.do(OpKind.FLUSH)
        bench.do(OpKind.WRITE, 0, sectors("bb"))
        bench.do(OpKind.WRITE_DURABLE, 2, sectors("c"))
        bench.disk.lose_power()
        found.add(b"".join(bench.sector(n) for n in range(4)))
        assert bench.disk.content == bench.disk.durable
    assert found == {b"aaca", b"abca", b"baca", b"bbca"}


def test_a_flush_covers_what_was_complete_when_it_was_asked_for() -> None:
    kept = set()
    for seed in range(60):
        bench = Bench(seed)
        bench.do(OpKind.WRITE, 0, sectors("a"))
        bench.submit(OpKind.FLUSH)
        bench.submit(OpKind.WRITE, 1, sectors("b"))
        bench.settle()
        bench.disk.lose_power()
        assert bench.sector(0) == b"a"
        kept.add(bench.sector(1))
    assert kept == {b"\0", b"b"}


def test_a_durable_write_is_not_undone_by_an_older_cached_one() -> None:
    for seed in range(20):
        bench = Bench(seed)
        bench.do(OpKind.WRITE, 0, sectors("a"))
        bench.do(OpKind.WRITE_DURABLE, 0, sectors("b"))
        bench.do(OpKind.FLUSH)
        bench.disk.lose_power()
        assert bench.sector(0) == b"b"


def test_a_death_tears_writes_in_flight_at_sectors_and_keeps_completed_ones() -> None:
    found = set()
    for seed in range(300):
        bench = Bench(seed)
        bench.do(OpKind.WRITE, 0, sectors("aaa"))
        bench.submit(OpKind.WRITE, 0, sectors("bbb"))
        bench.stepper.crash(bench.owner)
        bench.disk.sever(bench.owner)
        bench.settle()
        assert bench.results == []
        found.add(b"".join(bench.sector(n) for n in range(3)))
    assert {b"aaa", b"bbb", b"aba", b"bab"} <= found


def test_nothing_of_a_fenced_machine_takes_place() -> None:
    for seed in range(50):
        bench = Bench(seed)
        bench.submit(OpKind.WRITE, 0, sectors("b"))
        bench.stepper.crash(bench.owner)
        bench.disk.sever(bench.owner)
        bench.disk.fence(bench.owner)
        bench.settle()
        assert bench.sector(0) == b"\0"


def test_errors_come_where_the_plan_has_them() -> None:
    bench = Bench(0)
    bench.disk.fail_write = frozenset({1})
    bench.disk.fail_read = frozenset({0})
    assert bench.do(OpKind.WRITE, 0, sectors("a"))[0] == SECTOR
    assert bench.do(OpKind.FLUSH) == (-errno.EIO, None)
    assert bench.do(OpKind.FLUSH) == (0, None)
    assert bench.do(OpKind.READ, 0, bytes(SECTOR))[0] == -errno.EIO
    assert bench.do(OpKind.READ, 0, bytes(SECTOR))[0] == SECTOR


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    ops=st.lists(
        st.tuples(st.sampled_from([OpKind.WRITE, OpKind.WRITE_DURABLE, OpKind.FLUSH]), st.integers(0, 15)), max_size=20
    ),
)
def test_after_power_loss_each_sector_has_a_version_since_it_was_last_durable(
    seed: int, ops: list[tuple[OpKind, int]]
) -> None:
    bench = Bench(seed)
    versions: list[list[int]] = [[0] for _ in range(16)]
    for number, (kind, sector) in enumerate(ops, start=1):
        if kind == OpKind.FLUSH:
            bench.do(kind)
            versions = [found[-1:] for found in versions]
        else:
            bench.do(kind, sector, bytes([number]) * SECTOR)
            versions[sector] = [number] if kind == OpKind.WRITE_DURABLE else [*versions[sector], number]
    bench.disk.lose_power()
    assert all(bench.sector(sector)[0] in found for sector, found in enumerate(versions))
