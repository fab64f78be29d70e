"""The checkers: what they let pass and what they report, one rule at a time."""

from __future__ import annotations

import pytest

from raidfs.lock.api import Mode
from raidfs.lock.machine import Convert, Event, LockMachine, Open, Request
from raidfs.sim.checkers import LockChecker, RegisterChecker, SlotChecker, sector_bytes


class Reports(list[str]):
    def report(self, rule: str, what: str) -> None:
        self.append(rule)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def register(reports: Reports) -> RegisterChecker:
    return RegisterChecker(4, reports.report)


def test_a_read_may_return_the_last_acknowledged_write_only(register: RegisterChecker, reports: Reports) -> None:
    first, data = register.begin_write(0, 0, 1)
    register.end_write(first, durable=False)
    start = register.begin_read()
    register.end_read(start, 0, data, "m1")
    assert reports == []
    register.end_read(start, 0, sector_bytes(0), "m1")
    assert reports == ["register"]


def test_a_read_may_return_a_write_in_flight_or_the_one_before(register: RegisterChecker, reports: Reports) -> None:
    _, data = register.begin_write(0, 0, 1)
    start = register.begin_read()
    register.end_read(start, 0, data, "m1")
    register.end_read(start, 0, sector_bytes(0), "m1")
    assert reports == []


def test_a_write_that_ended_while_the_read_was_under_way_may_be_missed(
    register: RegisterChecker, reports: Reports
) -> None:
    written, data = register.begin_write(0, 0, 1)
    start = register.begin_read()
    register.end_write(written, durable=False)
    register.end_read(start, 0, sector_bytes(0), "m1")
    register.end_read(start, 0, data, "m1")
    assert reports == []


def test_a_write_that_was_never_acknowledged_is_over_when_its_writer_writes_again(
    register: RegisterChecker, reports: Reports
) -> None:
    _, lost = register.begin_write(0, 0, 1)
    written, _ = register.begin_write(0, 0, 1)
    register.end_write(written, durable=False)
    register.end_read(register.begin_read(), 0, lost, "m1")
    assert reports == ["register"]


def test_power_loss_makes_possible_again_what_was_not_flushed(register: RegisterChecker, reports: Reports) -> None:
    flushed, before = register.begin_write(0, 0, 1)
    register.end_write(flushed, durable=False)
    register.end_flush(register.begin_flush(0))
    cached, after = register.begin_write(0, 0, 1)
    register.end_write(cached, durable=False)
    register.power_loss()
    for data in (before, after):
        register.end_read(register.begin_read(), 0, data, "m1")
    assert reports == []
    register.end_read(register.begin_read(), 0, sector_bytes(0), "m1")
    assert reports == ["register"]


def test_half_a_sector_of_each_of_two_writes_is_reported(register: RegisterChecker, reports: Reports) -> None:
    register.end_read(register.begin_read(), 1, sector_bytes(0)[:256] + sector_bytes(3)[:256], "m1")
    assert reports == ["sector-whole"]


def test_two_owners_of_one_slot_are_reported_unless_one_has_left(reports: Reports) -> None:
    slots = SlotChecker(reports.report)
    slots.joined(0, "m0")
    slots.joined(1, "m1")
    slots.left("m0")
    slots.joined(0, "m2")
    assert reports == []
    slots.joined(1, "m3")
    assert reports == ["one-slot-owner"]


def test_ex_beside_ex_is_reported(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    checker = LockChecker(LockMachine(), reports.report, heard.append)
    for member in (1, 2):
        checker.step(Open(member, 1, "space", "cluster", f"m{member}"), 0.0)
        checker.step(Request(member, 2, 1, "token", Mode.NL, False, True, False), 0.0)
    checker.step(Convert(1, 3, 1, Mode.EX, False, None), 0.0)
    assert reports == []
    monkeypatch.setattr("raidfs.lock.resource.compatible", lambda one, other: True)
    event = Convert(2, 3, 1, Mode.EX, False, None)
    checker.step(event, 0.0)
    assert reports == ["lock-modes"]
    assert len(heard) == 6
    assert checker.words(event) == "m2 convert token EX"
