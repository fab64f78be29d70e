"""The checkers of legs and syncs: what they let pass and what they report, one rule at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from raidfs._core import OpKind
from raidfs.cluster.messages import Message, MessageType
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import SUPER_OFFSET_BYTES, Feature
from raidfs.lock.api import Mode
from raidfs.lock.machine import LockMachine
from raidfs.sim.checkers import LockChecker, MetadataChecker, RegisterChecker, check_healed, check_legs, sector_bytes
from raidfs.sim.disk_view import DiskView
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.host import SimHost
from raidfs.sim.layout import format_disks, sim_layout
from raidfs.sim.leg_checker import LegChecker
from raidfs.sim.policies import RandomPolicy
from raidfs.sim.size_checker import check_one_size
from raidfs.sim.stepper import Stepper
from raidfs.sim.sync_checker import SyncChecker
from raidfs.sim.trace import Trace
from raidfs.units import SECTOR_BYTES

CHUNKS = 8
LAYOUT = sim_layout(CHUNKS)


class Stage:
    """Two legs and a spare, all of them watched; what checkers report is in ``reports``."""

    def __init__(self) -> None:
        rng = Random(1)
        stepper = Stepper(RandomPolicy(rng), rng)
        world = stepper.group("world")
        self.syncer = stepper.group("m0")
        self.other = stepper.group("m1")
        trace = Trace(keep=False)
        self.disks = tuple(SimDisk(f"disk{n}", LAYOUT.end_bytes, stepper, world, rng, trace) for n in range(3))
        format_disks(self.disks, LAYOUT, legs=2, clean=True)
        self.reports: list[str] = []
        self.metadata = MetadataChecker(self.disks, self.report)
        self.view = DiskView(LAYOUT, self.metadata.superblocks)
        self.legs = LegChecker(self.view, self.disks, lambda name: name == "m0", self.report)
        for disk in self.disks:
            disk.watchers.append(self.legs.landed)

    def report(self, rule: str, what: str) -> None:
        self.reports.append(rule)

    def write(self, disk: int, offset: int, data: bytes, *, durable: bool = True) -> None:
        self.disks[disk]._write(self.syncer, offset, data, durable=durable)

    def write_chunk(self, disk: int, chunk: int, value: int, *, durable: bool = True) -> None:
        data = sector_bytes(value) * (LAYOUT.chunk_bytes // SECTOR_BYTES)
        self.write(disk, self.view.chunk(chunk).start, data, durable=durable)

    def set_bits(self, disk: int, slot: int, bits: int) -> None:
        self.write(disk, LAYOUT.slot_offset_bytes(slot) + BITMAP_SUPER_BYTES, bits.to_bytes(512, "little"))

    def superblocks(self, roles: dict[int, int], *, offset_sectors: int | None = None) -> None:
        """Write what the roles of device numbers are; disk 2 recovers from ``offset_sectors`` on, None: no more."""
        for number in (0, 1, 2):
            own = self.metadata.superblocks[self.disks[number]]
            for device, role in roles.items():
                own = own.with_role(device, role)
            if number == 2:
                own = dataclasses.replace(
                    own,
                    feature_map=own.feature_map & ~Feature.RECOVERY_OFFSET
                    | (Feature.RECOVERY_OFFSET if offset_sectors is not None else 0),
                    recovery_offset_sectors=offset_sectors or 0,
                )
            own = dataclasses.replace(own, events=own.events + 1)
            self.write(number, SUPER_OFFSET_BYTES, own.encode())

    def spare_takes_over(self) -> None:
        self.superblocks({1: 0xFFFE, 2: 1}, offset_sectors=0)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_spare_that_has_everything_may_become_in_sync(stage: Stage) -> None:
    stage.spare_takes_over()
    assert stage.view.recovering() == [stage.disks[2]]
    stage.superblocks({})
    assert stage.reports == []
    assert stage.view.in_sync() == [stage.disks[0], stage.disks[2]]


def test_a_leg_in_sync_that_lacks_a_chunk_is_reported(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.write_chunk(0, 3, 7)
    stage.superblocks({})
    assert stage.reports == ["in-sync-copied"]


def test_a_chunk_with_a_bit_on_the_leg_may_be_lacking(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.write_chunk(0, 3, 7)
    for disk in (0, 2):
        stage.set_bits(disk, 1, 1 << 3)
    stage.superblocks({})
    assert stage.reports == []


def test_what_was_copied_and_not_flushed_is_reported(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.write_chunk(0, 3, 7)
    stage.write_chunk(2, 3, 7, durable=False)
    stage.superblocks({})
    assert stage.reports == ["in-sync-copied"]


def test_a_leg_in_sync_without_the_bits_of_another_slot_is_reported(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.set_bits(0, 4, 1)
    stage.superblocks({})
    assert stage.reports == ["slots-on-leg"]


def test_a_leg_is_called_in_sync_by_the_holder_of_resync_only(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.syncer = stage.other
    stage.superblocks({})
    assert stage.reports == ["one-syncer"]


def test_a_checkpoint_beyond_what_was_copied_is_reported(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.write_chunk(0, 3, 7)
    chunk_sectors = LAYOUT.chunk_bytes // SECTOR_BYTES
    stage.superblocks({}, offset_sectors=3 * chunk_sectors)
    assert stage.reports == []
    stage.superblocks({}, offset_sectors=4 * chunk_sectors)
    assert stage.reports == ["recovery-offset"]


def test_a_checkpoint_before_the_flush_is_reported(stage: Stage) -> None:
    stage.spare_takes_over()
    stage.write_chunk(0, 0, 7)
    stage.write_chunk(2, 0, 7, durable=False)
    stage.superblocks({}, offset_sectors=LAYOUT.chunk_bytes // SECTOR_BYTES)
    assert stage.reports == ["recovery-offset"]


def test_the_last_bit_of_a_chunk_is_cleared_when_legs_agree(stage: Stage) -> None:
    for disk in (0, 1):
        stage.set_bits(disk, 0, 1 << 2)
        stage.set_bits(disk, 1, 1 << 2)
    stage.write_chunk(0, 2, 7)
    stage.set_bits(0, 0, 0)
    assert stage.reports == [], "slot 1 has the bit still"
    stage.set_bits(0, 1, 0)
    assert stage.reports == ["cleared-when-equal"]
    stage.write_chunk(1, 2, 7)
    stage.reports.clear()
    stage.set_bits(1, 0, 0)
    stage.set_bits(1, 1, 0)
    assert stage.reports == []


def test_a_bit_that_is_cleared_before_the_data_is_durable_or_under_a_write_is_reported(stage: Stage) -> None:
    stage.set_bits(0, 0, 1 << 2)
    for disk in (0, 1):
        stage.write_chunk(disk, 2, 7, durable=False)
    stage.set_bits(0, 0, 0)
    assert stage.reports == ["cleared-when-equal"] * 2
    stage.reports.clear()
    stage.set_bits(0, 0, 1 << 3)
    op = DiskOp(stage.other, OpKind.WRITE, stage.view.chunk(3).start, 512, bytes(512), lambda result, data: None)
    stage.disks[1].in_flight[op] = None
    stage.set_bits(0, 0, 0)
    assert stage.reports == ["cleared-when-equal"]


def test_any_leg_may_be_the_one_whose_bits_are_believed(stage: Stage) -> None:
    stage.write_chunk(0, 2, 0)
    stage.disks[0].put(stage.view.chunk(2).start, bytes([1]) * 512)
    stage.set_bits(0, 0, 1 << 2)
    check_legs(stage.view, RegisterChecker(CHUNKS * 8, lambda rule, what: None), stage.report)
    assert set(stage.reports) == {"legs-equal"}


def test_bits_and_positions_that_are_left_over_are_reported_when_the_array_should_have_healed(stage: Stage) -> None:
    check_healed(stage.view, stage.report)
    assert stage.reports == []
    stage.set_bits(0, 3, 1)
    check_healed(stage.view, stage.report)
    assert stage.reports == ["healed"]
    stage.reports.clear()
    stage.superblocks({1: 0xFFFE})
    check_healed(stage.view, stage.report)
    assert stage.reports == ["healed"], "there is a spare"
    stage.reports.clear()
    stage.superblocks({2: 0xFFFE})
    check_healed(stage.view, stage.report)
    assert stage.reports == [], "there is none"


def test_a_disk_that_was_removed_is_no_spare_once_its_number_is_another_ones(stage: Stage) -> None:
    own = stage.metadata.superblocks[stage.disks[2]]
    stage.superblocks({1: 0xFFFE})
    stage.write(1, SUPER_OFFSET_BYTES, dataclasses.replace(own, events=own.events + 2).encode())
    assert stage.view.usable_spares() == [stage.disks[1]]


def test_slots_and_superblocks_of_another_size_are_reported_when_all_should_have_ended(stage: Stage) -> None:
    check_one_size(stage.view, stage.report)
    assert stage.reports == []
    start = LAYOUT.slot_offset_bytes(3)
    head = BitmapSuperblock.decode(bytes(stage.disks[1].content[start : start + BITMAP_SUPER_BYTES]))
    stage.write(1, start, dataclasses.replace(head, sync_size_sectors=head.sync_size_sectors + 8).encode())
    check_one_size(stage.view, stage.report)
    assert stage.reports == ["one-size"]
    stage.write(1, start, bytes(BITMAP_SUPER_BYTES))
    check_one_size(stage.view, stage.report)
    assert stage.reports == ["one-size"] * 2
    stage.write(1, start, head.encode())
    own = stage.metadata.superblocks[stage.disks[0]]
    smaller = dataclasses.replace(own, size_sectors=own.size_sectors - 8, events=own.events + 1)
    stage.reports.clear()
    stage.write(0, SUPER_OFFSET_BYTES, smaller.encode())
    check_one_size(stage.view, stage.report)
    assert set(stage.reports) == {"one-size"}


# ---- syncs ---------------------------------------------------------------------------------------------------------


class SyncStage(Stage):
    def __init__(self) -> None:
        super().__init__()
        self.locks = LockChecker(LockMachine(), self.report, lambda event: None)
        self.copies = Counter[str]()
        self.syncs = SyncChecker(self.view, self.disks, self.locks, self.report, self.count)
        self.holder = ""
        self.locks.holds = lambda client, resource, mode: client == self.holder  # type: ignore[method-assign]
        self.hosts = {name: _NamedHost(name) for name in ("m0", "m1")}

    def count(self, name: str, length: int) -> None:
        self.copies[name] += length

    def announce(self, start: int, end: int, *, acknowledged: bool = True) -> None:
        low, high = start // SECTOR_BYTES, end // SECTOR_BYTES
        self.syncs.published("m0", Message(MessageType.RESYNCING, 0, low=low, high=high))
        if acknowledged:
            self.locks.on_granted("m0", "ack", Mode.EX)

    def copy(self, name: str, at: int) -> None:
        self.submit(name, at, bytes(512))  # what all disks have

    def submit(self, name: str, at: int, data: bytes) -> None:
        offset = LAYOUT.data_offset_bytes + at
        self.syncs.on_op(self.hosts[name], self.disks[1], OpKind.WRITE, offset, data)


class _NamedHost(SimHost):
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def syncing() -> SyncStage:
    stage = SyncStage()
    stage.holder = "m0"
    return stage


def test_copies_are_counted_inside_the_window_and_reported_outside(syncing: SyncStage) -> None:
    syncing.announce(0, 8192)
    syncing.copy("m0", 4096)
    assert syncing.reports == []
    assert syncing.copies == {"m0": 512}
    syncing.copy("m0", 8192)
    assert syncing.reports == ["sync-in-window"]


def test_a_window_counts_when_all_have_acknowledged_it_and_the_old_one_only_as_far_as_both_reach(
    syncing: SyncStage,
) -> None:
    syncing.announce(0, 8192)
    syncing.announce(4096, 12288, acknowledged=False)
    syncing.copy("m0", 4096)
    assert syncing.reports == []
    syncing.copy("m0", 8192)
    syncing.copy("m0", 0)
    assert syncing.reports == ["sync-in-window"] * 2


def test_who_copies_without_resync_is_reported(syncing: SyncStage) -> None:
    syncing.announce(0, 8192)
    syncing.holder = "m1"
    syncing.copy("m0", 0)
    assert syncing.reports == ["one-syncer"]


def test_others_do_not_write_in_the_window(syncing: SyncStage) -> None:
    syncing.announce(0, 8192)
    syncing.submit("m0", 0, sector_bytes(5))
    syncing.submit("m1", 8192, sector_bytes(6))
    assert syncing.reports == []
    syncing.submit("m1", 4096, sector_bytes(7))
    assert syncing.reports == ["window-quiet"]


@pytest.mark.parametrize(("owner", "reports"), [("other", ["window-quiet"]), ("syncer", [])])
def test_what_others_still_write_when_all_have_acknowledged_is_reported(
    syncing: SyncStage, owner: str, reports: list[str]
) -> None:
    group = getattr(syncing, owner)
    op = DiskOp(group, OpKind.WRITE, LAYOUT.data_offset_bytes, 512, sector_bytes(1), lambda result, data: None)
    syncing.disks[0].in_flight[op] = None
    syncing.announce(0, 4096)
    assert syncing.reports == reports


# ---- reads of what the dead left -----------------------------------------------------------------------------------


def half_done(register: RegisterChecker) -> Callable[[str, int], None]:
    """Let m0 die in a write of sector 0 that m1 knows of; return what reads a value of it."""
    _, _ = register.begin_write(0, 0, 1, "m0")
    register.ends("m0", 0, ["m1"])
    register.over("m0")

    def read(who: str, value: int) -> None:
        register.end_read(register.begin_read(), 0, sector_bytes(value), who)

    return read


def test_a_read_does_not_go_back_behind_another_one_when_the_death_is_known(stage: Stage) -> None:
    register = RegisterChecker(4, stage.report)
    read = half_done(register)
    for value in (1, 0, 1, 0):
        read("m1", value)
    assert stage.reports == [], "m1 has not heard of the death"
    register.knows("m1", 0)
    read("m1", 0)
    read("m1", 1)
    assert stage.reports == []
    read("m2", 0)
    assert stage.reports == ["read-atomic"]


def test_a_read_may_go_back_when_a_leg_has_failed(stage: Stage) -> None:
    register = RegisterChecker(4, stage.report)
    read = half_done(register)
    read("m2", 1)
    register.upset()
    read("m2", 0)
    assert stage.reports == []
