"""The checker of messages: what it lets pass and what it reports, one rule at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, MessageType, Result, SlotValue
from raidfs.format.superblock import SUPER_OFFSET_BYTES
from raidfs.lock.api import Mode
from raidfs.lock.machine import Close, Convert, LockMachine, Open, Request
from raidfs.sim.checkers import LockChecker
from raidfs.sim.disks import SimDisk
from raidfs.sim.message_checker import MessageChecker
from raidfs.sim.stepper import Group

TOUCH = Message(MessageType.METADATA_UPDATED, 0, sequence=7, low=3)
A, B = 1, 2  # members
RESOURCES = ("message", "token", "bitmap0000", "bitmap0001")  # each member's locks, from 1 on


class Locks:
    """Two nodes, a and b, at a lock manager that is watched."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.published: list[str] = []
        self.locks = LockChecker(LockMachine(None), lambda rule, what: self.reports.append(rule), lambda event: None)
        self.checker = MessageChecker(
            self.locks,
            lambda rule, what: self.reports.append(rule),
            lambda client, message: self.published.append(f"{client}: {message.type_name}"),
        )
        self._tag = 0
        for member, client in ((A, "a"), (B, "b")):
            self.locks.step(Open(member, self.tag(), "space", "cluster", client), 0.0)
            for lock, resource in enumerate(RESOURCES, start=1):
                request = Request(member, self.tag(), lock, resource, Mode.NL, False, True, False)
                self.locks.step(request, 0.0)

    def tag(self) -> int:
        self._tag += 1
        return self._tag

    def convert(self, member: int, resource: str, mode: Mode, lvb: bytes | None = None) -> None:
        lock = RESOURCES.index(resource) + 1
        self.locks.step(Convert(member, self.tag(), lock, mode, False, lvb), 0.0)

    def publish(self, message: Message) -> None:
        self.convert(A, "message", Mode.EX)
        self.convert(A, "message", Mode.CW, message.encode())
        self.convert(A, "message", Mode.NL)

    def answer(self, result: Result) -> None:
        self.convert(B, "bitmap0001", Mode.PW)
        self.convert(B, "bitmap0001", Mode.PW, SlotValue(sequence=7, result=result).encode())

    def serving(self, *, b_at: int) -> dict[str, Channel]:
        return {
            "a": cast(Channel, SimpleNamespace(sequence_seen=7)),
            "b": cast(Channel, SimpleNamespace(sequence_seen=b_at)),
        }


@pytest.fixture
def locks() -> Locks:
    return Locks()


def test_a_message_that_every_member_has_applied_is_fine(locks: Locks) -> None:
    sending = locks.checker.begin("a", locks.serving(b_at=6))
    locks.publish(TOUCH)
    locks.answer(Result.APPLIED)
    locks.checker.end(sending, locks.serving(b_at=7))
    assert locks.reports == []
    assert locks.published == ["a: METADATA_UPDATED"]


def test_a_member_that_has_not_come_to_the_message_was_not_waited_for(locks: Locks) -> None:
    sending = locks.checker.begin("a", locks.serving(b_at=6))
    locks.publish(TOUCH)
    locks.checker.end(sending, locks.serving(b_at=6))
    assert locks.reports == ["applied-before-acked"]


def test_who_joined_after_the_request_began_may_have_missed_the_message(locks: Locks) -> None:
    sending = locks.checker.begin("a", {})
    locks.publish(TOUCH)
    locks.checker.end(sending, locks.serving(b_at=0))
    assert locks.reports == []


def test_a_request_that_was_to_send_and_has_not_is_not_acknowledged(locks: Locks) -> None:
    locks.publish(TOUCH)
    sending = locks.checker.begin("a", locks.serving(b_at=7))
    locks.checker.end(sending, locks.serving(b_at=7))
    assert locks.reports == ["applied-before-acked"]


def test_a_refusal_must_reach_the_sender_unless_who_refused_has_gone(locks: Locks) -> None:
    sending = locks.checker.begin("a", locks.serving(b_at=6))
    locks.publish(TOUCH)
    locks.answer(Result.SIZE)
    locks.checker.end(sending, locks.serving(b_at=7))
    assert locks.reports == ["refusals-told"]
    locks.locks.step(Close(B, locks.tag()), 0.0)
    locks.checker.end(sending, {})
    assert locks.reports == ["refusals-told"]


def test_a_message_that_nobody_knows_cannot_be_applied(locks: Locks) -> None:
    sending = locks.checker.begin("a", locks.serving(b_at=6))
    locks.publish(TOUCH)
    locks.checker.end(sending, locks.serving(b_at=7), is_known=False)
    assert locks.reports == ["refusals-told"]
    alone = {"a": locks.serving(b_at=0)["a"]}
    sending = locks.checker.begin("a", alone)
    locks.publish(TOUCH)
    locks.checker.end(sending, alone, is_known=False)
    assert locks.reports == ["refusals-told"]


def test_a_superblock_is_written_by_who_has_the_token(locks: Locks) -> None:
    disk, a = cast(SimDisk, SimpleNamespace(name="disk0", content=b"\1" * 8192)), cast(Group, SimpleNamespace(name="a"))
    locks.convert(A, "token", Mode.EX)
    locks.checker.landed(disk, a, SUPER_OFFSET_BYTES, 512)
    locks.checker.landed(disk, None, SUPER_OFFSET_BYTES, 512)  # whoever made the array
    assert locks.reports == []
    locks.convert(A, "token", Mode.NL)
    locks.checker.landed(disk, a, SUPER_OFFSET_BYTES + 4096 + 512, 512)  # not the superblock
    assert locks.reports == []
    locks.checker.landed(disk, a, SUPER_OFFSET_BYTES, 512)
    assert locks.reports == ["superblock-under-token"]


def test_what_makes_no_sense_to_the_lock_manager_is_reported(locks: Locks) -> None:
    locks.convert(A, "token", Mode.EX)
    locks.convert(B, "token", Mode.EX)
    locks.convert(B, "token", Mode.PR)
    assert locks.reports == ["lock-protocol"]
