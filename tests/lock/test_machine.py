from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raidfs.errors import LockProtocolError, WrongClusterName
from raidfs.lock.api import NAME_BYTES_MAX, Mode
from raidfs.lock.machine import (
    LOCKS_PER_MEMBER_MAX,
    Action,
    Answer,
    Blocking,
    Cancel,
    Cancelled,
    Close,
    Convert,
    Deadlocked,
    Died,
    Done,
    Event,
    Failed,
    Granted,
    LockMachine,
    Open,
    Query,
    Refused,
    Release,
    Request,
)

NL, CR, CW, PR, PW, EX = Mode
TOGETHER = {(a, b) for a, row in zip(Mode, ("NCcRWX", "NCcRW", "NCc", "NCR", "NC", "N"), strict=True) for b in Mode
            if "NCcRWX"[b] in row}  # fmt: skip


def value(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


def new(member: int, tag: int, lock: int, resource: str = "r", mode: Mode = NL, **flags: bool) -> Request:
    options = {"noqueue": False, "expedite": mode is NL, "blocking": True, **flags}
    return Request(member, tag, lock, resource, mode, **options)


def machine_with(members: int) -> LockMachine:
    machine = LockMachine()
    for member in range(members):
        assert machine.step(Open(member, 0, "space", "c", f"client{member}"), 0.0) == [Done(member, 0)]
        (granted,) = machine.step(new(member, 1, 1), 0.0)
        assert isinstance(granted, Granted)
    return machine


def test_a_lock_space_ends_with_its_last_member_and_its_cluster_with_it() -> None:
    machine = LockMachine()
    machine.step(Open(1, 0, "space", "one", "a"), 0.0)
    (failed,) = machine.step(Open(2, 0, "space", "two", "b"), 0.0)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, WrongClusterName)
    machine.step(Close(1, 1), 0.0)
    assert machine.step(Open(2, 0, "space", "two", "b"), 0.0) == [Done(2, 0)]


def test_a_machine_of_one_cluster_serves_no_other() -> None:
    machine = LockMachine(cluster_name="mine")
    (failed,) = machine.step(Open(1, 0, "space", "theirs", "a"), 0.0)
    assert isinstance(failed, Failed)
    assert machine.statistics().lockspaces == 0
    assert machine.step(Open(1, 0, "space", "mine", "a"), 0.0) == [Done(1, 0)]


def test_a_resource_and_its_value_block_end_with_the_last_lock() -> None:
    machine = machine_with(1)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    machine.step(Convert(0, 3, 1, NL, False, value("x")), 0.0)
    machine.step(Release(0, 4, 1), 0.0)
    assert machine.statistics().resources == 0
    assert machine.step(new(0, 5, 2), 0.0) == [Granted(0, 5, 2, NL, bytes(32), True)]


def test_only_members_that_want_them_get_blocking_notices() -> None:
    machine = LockMachine()
    for member, blocking in enumerate((False, True, True)):
        machine.step(Open(member, 0, "space", "c", "x"), 0.0)
        machine.step(new(member, 1, 1, blocking=blocking), 0.0)
    for member in (0, 1):
        machine.step(Convert(member, 2, 1, CR, False, None), 0.0)
    assert machine.step(Convert(2, 2, 1, EX, False, None), 0.0) == [Blocking(1, 1, EX)]


def test_a_query_tells_how_long_a_request_has_waited() -> None:
    machine = machine_with(2)
    machine.step(Convert(0, 2, 1, EX, False, None), 10.0)
    machine.step(Convert(1, 2, 1, PR, False, None), 12.0)
    (answer,) = machine.step(Query(0, 3), 15.5)
    assert isinstance(answer, Answer)
    assert [lock.waiting_s for lock in answer.resources[0].locks] == [0.0, 3.5]


def test_the_dead_are_answered_nothing_and_leave_nothing() -> None:
    machine = machine_with(2)
    machine.step(new(1, 2, 2, "s"), 0.0)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    machine.step(Convert(1, 3, 1, EX, False, None), 0.0)
    assert machine.step(Died(1), 0.0) == []
    statistics = machine.statistics()
    assert (statistics.members, statistics.resources, statistics.waiting) == (1, 1, 0)
    assert machine.step(Died(1), 0.0) == []


def test_a_refused_new_request_leaves_no_lock() -> None:
    machine = machine_with(1)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    assert machine.step(new(0, 3, 2, mode=PR, noqueue=True), 0.0) == [Refused(0, 3, 2)]
    (granted,) = machine.step(new(0, 4, 2), 0.0)
    assert isinstance(granted, Granted)


def test_a_cancelled_new_request_leaves_no_lock() -> None:
    machine = machine_with(1)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    assert machine.step(new(0, 3, 2, mode=PR), 0.0) == [Blocking(0, 1, PR)]
    assert machine.step(Cancel(0, 4, 2, 3), 0.0) == [Cancelled(0, 3, 2), Done(0, 4)]
    assert machine.step(Cancel(0, 5, 2, 3), 0.0) == [Done(0, 5)]
    (granted,) = machine.step(new(0, 6, 2), 0.0)
    assert isinstance(granted, Granted)


def test_a_cancel_takes_back_only_the_request_that_it_names() -> None:
    machine = machine_with(2)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    machine.step(Convert(1, 7, 1, EX, False, None), 0.0)
    assert machine.step(Cancel(1, 8, 1, 6), 0.0) == [Done(1, 8)]
    assert machine.step(Cancel(1, 9, 1, 7), 0.0) == [Cancelled(1, 7, 1), Done(1, 9)]


NONSENSE: dict[str, Event] = {
    "joining twice": Open(0, 9, "space", "c", "again"),
    "a lock space without a name": Open(5, 9, "", "c", "x"),
    "a lock space with a long name": Open(5, 9, "n" * (NAME_BYTES_MAX + 1), "c", "x"),
    "a lock number that is taken": new(0, 9, 1),
    "a resource with a long name": new(0, 9, 2, "ä" * NAME_BYTES_MAX),
    "EXPEDITE for a mode that holds": new(0, 9, 2, mode=EX, expedite=True),
    "a member that there is not": new(7, 9, 2),
    "a conversion of a lock that there is not": Convert(0, 9, 3, EX, False, None),
    "a conversion of a lock that waits": Convert(1, 9, 1, PR, False, None),
    "the release of a lock that there is not": Release(0, 9, 3),
    "a query of a stranger": Query(7, 9),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_an_event_without_a_meaning_is_refused_and_changes_nothing(nonsense: str) -> None:
    machine = machine_with(2)
    machine.step(Convert(0, 2, 1, EX, False, None), 0.0)
    machine.step(Convert(1, 2, 1, EX, False, None), 0.0)
    before = machine.step(Query(0, 3), 1.0)
    with pytest.raises(LockProtocolError):
        machine.step(NONSENSE[nonsense], 1.0)
    assert machine.step(Query(0, 3), 1.0) == before


def test_a_member_makes_only_so_many_locks() -> None:
    machine = machine_with(1)
    for number in range(2, LOCKS_PER_MEMBER_MAX + 1):
        machine.step(new(0, number, number, f"r{number}"), 0.0)
    with pytest.raises(LockProtocolError):
        machine.step(new(0, 0, 0, "one more"), 0.0)


# ---- against a slow twin -------------------------------------------------------------------------------------


@dataclasses.dataclass
class _TwinLock:
    """A lock of the twin: ``order`` is when its request came, over all requests."""

    member: int
    number: int
    resource: str
    held: Mode | None = None
    asked: Mode | None = None
    tag: int = 0
    order: int = 0


class _Twin:
    """The lock machine told as one list of locks that is searched anew for everything."""

    def __init__(self) -> None:
        self.locks: list[_TwinLock] = []
        self.values: dict[str, tuple[bytes, bool]] = {}
        self.order = 0
        self.told: dict[tuple[int, int], Mode] = {}
        self.actions: list[Any] = []

    def lock(self, member: int, number: int) -> _TwinLock:
        return next(lock for lock in self.locks if (lock.member, lock.number) == (member, number))

    def fits(self, asking: _TwinLock, mode: Mode) -> bool:
        return all(
            (mode, lock.held) in TOGETHER
            for lock in self.locks
            if lock is not asking and lock.resource == asking.resource and lock.held is not None
        )

    def queue(self, resource: str, *, conversions: bool) -> list[_TwinLock]:
        waiting = [lock for lock in self.locks if lock.resource == resource and lock.asked is not None]
        return sorted((k for k in waiting if (k.held is not None) == conversions), key=lambda lock: lock.order)

    def grant(self, lock: _TwinLock, mode: Mode, tag: int, lvb: bytes | None) -> None:
        current, valid = self.values.get(lock.resource, (bytes(32), True))
        read = None
        if lock.held is EX or (lock.held is PW and mode is not EX):
            if lvb is not None:
                current, valid = lvb, True
        elif lock.held is None or mode >= lock.held:
            read = current
        self.values[lock.resource] = (current, valid)
        lock.held, lock.asked = mode, None
        self.told.pop((lock.member, lock.number), None)
        self.actions.append(Granted(lock.member, tag, lock.number, mode, read, valid))

    def request(self, lock: _TwinLock, tag: int, mode: Mode, *, noqueue: bool, lvb: bytes | None = None) -> None:
        is_new = lock.held is None
        queued = self.queue(lock.resource, conversions=True)
        busy = queued + self.queue(lock.resource, conversions=False)
        at_once = self.fits(lock, mode) and not (is_new and busy)
        if at_once:
            self.grant(lock, mode, tag, lvb)
        elif noqueue:
            self.actions.append(Refused(lock.member, tag, lock.number))
            if is_new:
                self.locks.remove(lock)
        elif not is_new and any((lock.held, other.asked) not in TOGETHER for other in queued):
            self.actions.append(Deadlocked(lock.member, tag, lock.number))
        else:
            self.order += 1
            lock.asked, lock.tag, lock.order = mode, tag, self.order

    def cancel(self, lock: _TwinLock) -> None:
        self.actions.append(Cancelled(lock.member, lock.tag, lock.number))
        lock.asked = None
        if lock.held is None:
            self.locks.remove(lock)

    def remove(self, lock: _TwinLock, *, dead: bool) -> None:
        if lock in self.locks:
            self.locks.remove(lock)
        self.told.pop((lock.member, lock.number), None)
        if dead and lock.held in (PW, EX):
            self.values[lock.resource] = (self.values.get(lock.resource, (bytes(32), True))[0], False)
        if not any(other.resource == lock.resource for other in self.locks):
            self.values.pop(lock.resource, None)

    def settle(self, resource: str) -> list[Any]:
        """Serve the queues of a resource; return all actions, the blocking notices as a set at the end."""
        while True:
            conversions = self.queue(resource, conversions=True)
            head = (conversions or self.queue(resource, conversions=False))[:1]
            if not head or head[0].asked is None or not self.fits(head[0], head[0].asked):
                break
            self.grant(head[0], head[0].asked, head[0].tag, None)
        notices = set()
        waiting = self.queue(resource, conversions=True) + self.queue(resource, conversions=False)
        for lock in self.locks:
            if lock.resource != resource or lock.held is None or lock.asked is not None:
                continue
            blocked = [k.asked for k in waiting if k.asked is not None and (lock.held, k.asked) not in TOGETHER]
            strongest = max(blocked, default=NL)
            if strongest > self.told.get((lock.member, lock.number), NL):
                notices.add(Blocking(lock.member, lock.number, strongest))
            self.told[lock.member, lock.number] = strongest
        actions, self.actions = self.actions, []
        return [*actions, notices]


members = st.integers(0, 3)
picks = st.integers(0, 999)  # one of what there is, modulo how much there is
resources = st.sampled_from(["r", "s"])
some_modes = st.sampled_from(Mode)


class MachineAgainstTwin(RuleBasedStateMachine):
    """Random events to the machine and to the twin; both say the same at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = LockMachine()
        self.twin = _Twin()
        self.joined: set[int] = set()
        self.tag = 0
        self.numbers = 0

    def next_tag(self) -> int:
        self.tag += 1
        return self.tag

    def compare(self, resource: str, actions: list[Action]) -> None:
        *expected, notices = self.twin.settle(resource)
        told = [action for action in actions if isinstance(action, Blocking)]
        answers = [action for action in actions if not isinstance(action, Blocking | Done)]
        assert answers == expected
        assert set(told) == notices
        assert len(told) == len(notices)

    @initialize()
    def all_join(self) -> None:
        for member in range(4):
            self.join(member)
            self.ask(member, "r", NL, noqueue=False)

    @rule(member=members)
    def join(self, member: int) -> None:
        if member not in self.joined:
            self.joined.add(member)
            tag = self.next_tag()
            assert self.machine.step(Open(member, tag, "space", "c", str(member)), 0.0) == [Done(member, tag)]

    @rule(member=members, resource=resources, mode=some_modes, noqueue=st.booleans())
    def ask(self, member: int, resource: str, mode: Mode, noqueue: bool) -> None:
        if member not in self.joined:
            return
        self.numbers += 1
        tag = self.next_tag()
        lock = _TwinLock(member, self.numbers, resource)
        self.twin.locks.append(lock)
        self.twin.request(lock, tag, mode, noqueue=noqueue)
        event = Request(member, tag, self.numbers, resource, mode, noqueue, expedite=False, blocking=True)
        self.compare(resource, self.machine.step(event, 0.0))

    @rule(choices=st.lists(st.tuples(picks, some_modes, st.integers(0, 3)), min_size=1, max_size=8))
    def convert(self, choices: list[tuple[int, Mode, int]]) -> None:
        for pick, mode, chance in choices:
            free = [lock for lock in self.twin.locks if lock.asked is None]
            if free:
                lvb = value(str(pick)) if chance else None
                self.convert_one(free[pick % len(free)], mode, noqueue=chance == 1, lvb=lvb)

    def convert_one(self, lock: _TwinLock, mode: Mode, *, noqueue: bool, lvb: bytes | None) -> None:
        tag = self.next_tag()
        self.twin.request(lock, tag, mode, noqueue=noqueue, lvb=lvb)
        event = Convert(lock.member, tag, lock.number, mode, noqueue, lvb)
        self.compare(lock.resource, self.machine.step(event, 0.0))

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        waiting = [lock for lock in self.twin.locks if lock.asked is not None]
        if not waiting:
            return
        lock = waiting[pick % len(waiting)]
        event = Cancel(lock.member, self.next_tag(), lock.number, lock.tag)
        self.twin.cancel(lock)
        self.compare(lock.resource, self.machine.step(event, 0.0))

    @rule(pick=picks)
    def release(self, pick: int) -> None:
        if not self.twin.locks:
            return
        lock = self.twin.locks[pick % len(self.twin.locks)]
        if lock.asked is not None:
            self.twin.cancel(lock)
        self.twin.remove(lock, dead=False)
        self.compare(lock.resource, self.machine.step(Release(lock.member, self.next_tag(), lock.number), 0.0))

    @rule(member=members)
    def die(self, member: int) -> None:
        if member not in self.joined:
            return
        self.joined.discard(member)
        actions = self.machine.step(Died(member), 0.0)
        gone = [lock for lock in self.twin.locks if lock.member == member]
        for resource in dict.fromkeys(lock.resource for lock in gone):
            for lock in [lock for lock in gone if lock.resource == resource]:
                self.twin.remove(lock, dead=True)
            *expected, notices = self.twin.settle(resource)
            here = [action for action in actions if self.is_of(action, resource)]
            assert [action for action in here if not isinstance(action, Blocking)] == expected
            assert {action for action in here if isinstance(action, Blocking)} == notices

    def is_of(self, action: Action, resource: str) -> bool:
        assert isinstance(action, Granted | Blocking)
        return self.twin.lock(action.member, action.lock).resource == resource

    @invariant()
    def both_know_the_same_locks(self) -> None:
        if not self.joined:
            assert self.machine.statistics().lockspaces == 0
            return
        (answer,) = self.machine.step(Query(min(self.joined), self.next_tag()), 0.0)
        assert isinstance(answer, Answer)
        seen = {
            resource.name: sorted((lock.client, lock.granted, lock.requested or NL) for lock in resource.locks)
            for resource in answer.resources
        }
        known: dict[str, list[tuple[str, Mode, Mode]]] = {}
        for lock in self.twin.locks:
            known.setdefault(lock.resource, []).append((str(lock.member), lock.held or NL, lock.asked or NL))
        assert seen == {name: sorted(locks) for name, locks in known.items()}
        values = {resource.name: (resource.lvb, resource.lvb_valid) for resource in answer.resources}
        assert values == {name: self.twin.values.get(name, (bytes(32), True)) for name in known}


TestMachineAgainstTwin = pytest.mark.slow(MachineAgainstTwin.TestCase)
TestMachineAgainstTwin.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
