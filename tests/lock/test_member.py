from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from raidfs.errors import LockProtocolError, LockspaceLost
from raidfs.lock import machine
from raidfs.lock.api import NAME_BYTES_MAX, Mode
from raidfs.lock.member import DRAIN_S, MemberHub, MemberLock, MemberLockspace
from raidfs.runtime import TrioRuntime

NL, CR, CW, PR, PW, EX = Mode


class HandCarrier:
    """A carrier whose other end is the test."""

    def __init__(self) -> None:
        self.runtime = TrioRuntime()
        self.hub = MemberHub(self.runtime, self)
        self.sent: list[machine.Event] = []
        self.closed = False
        self.machine: machine.LockMachine | None = machine.LockMachine()

    def send(self, event: machine.Event) -> None:
        self.sent.append(event)
        if self.machine is not None:
            for action in self.machine.step(event, 0.0):
                self.hub.deliver(action)

    def close(self) -> None:
        self.closed = True

    def lifelines(self) -> tuple[int, ...]:
        return ()

    def stalled(self) -> bool:
        return False

    async def lock(self) -> tuple[MemberLockspace, MemberLock]:
        space = await self.hub.open_lockspace("space", cluster_name="c", client="me")
        return space, await space.lock("r")


async def test_a_manager_that_answers_no_cancel_is_given_up_and_the_task_goes_on(autojump_clock: MockClock) -> None:
    carrier = HandCarrier()
    space, lock = await carrier.lock()
    carrier.machine = None
    with trio.move_on_after(1) as scope:
        await lock.convert(EX)
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1 + DRAIN_S)
    assert carrier.closed
    assert space.lost is not None
    assert f"{DRAIN_S:.0f} s" in space.lost
    with pytest.raises(LockspaceLost, match="did not answer"):
        await lock.convert(EX)


async def test_a_grant_that_crosses_the_cancel_counts(autojump_clock: MockClock) -> None:
    carrier = HandCarrier()
    _, lock = await carrier.lock()
    carrier.machine = None
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.convert, EX)
            await trio.testing.wait_all_tasks_blocked()
            convert = carrier.sent[-1]
            assert isinstance(convert, machine.Convert)
            scope.cancel()
            nursery.start_soon(answer_late, carrier, convert)
    assert lock.mode is EX
    assert not carrier.closed


async def answer_late(carrier: HandCarrier, convert: machine.Convert) -> None:
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()
        cancel = carrier.sent[-1]
        assert isinstance(cancel, machine.Cancel)
        assert cancel.request == convert.tag
        carrier.hub.deliver(machine.Granted(convert.member, convert.tag, convert.lock, EX, None, True))
        carrier.hub.deliver(machine.Done(cancel.member, cancel.tag))


@pytest.mark.parametrize("way", ["release", "close"])
async def test_a_wait_that_ends_after_its_lock_was_given_up_sends_nothing_more(
    autojump_clock: MockClock, way: str
) -> None:
    carrier = HandCarrier()
    space, lock = await carrier.lock()
    carrier.machine = None
    scope = trio.CancelScope()

    async def convert() -> None:
        with scope:
            await lock.convert(EX)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(convert)
        await trio.testing.wait_all_tasks_blocked()
        asked = carrier.sent[-1]
        assert isinstance(asked, machine.Convert)
        nursery.start_soon(lock.release if way == "release" else space.close)
        await trio.testing.wait_all_tasks_blocked()
        last = carrier.sent[-1]
        assert isinstance(last, machine.Release | machine.Close)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert carrier.sent[-1] is last
        carrier.hub.deliver(machine.Cancelled(asked.member, asked.tag, asked.lock))
        carrier.hub.deliver(machine.Done(last.member, last.tag))
    assert scope.cancelled_caught
    assert trio.current_time() == 0


async def test_every_wait_can_be_seen_with_its_lock_and_modes(autojump_clock: MockClock) -> None:
    carrier = HandCarrier()
    _, lock = await carrier.lock()
    await lock.convert(CR)
    carrier.machine = None

    async def convert() -> None:
        with pytest.raises(LockspaceLost, match="enough"):
            await lock.convert(EX)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(convert)
        await trio.sleep(3)
        (wait,) = carrier.runtime.waits()
        assert wait.what == "lock r: CR to EX"
        carrier.hub.lose("enough")


async def test_an_answer_to_nothing_is_a_protocol_error() -> None:
    carrier = HandCarrier()
    await carrier.lock()
    with pytest.raises(LockProtocolError, match="which was answered"):
        carrier.hub.deliver(machine.Done(1, 1))


async def test_joining_that_is_cancelled_is_undone(autojump_clock: MockClock) -> None:
    carrier = HandCarrier()
    carrier.machine = None
    with trio.move_on_after(1):
        await carrier.hub.open_lockspace("space", cluster_name="c", client="me")
    opened, closed = carrier.sent
    assert isinstance(opened, machine.Open)
    assert isinstance(closed, machine.Close)
    assert opened.member == closed.member


async def test_a_lock_whose_creation_is_cancelled_is_released(autojump_clock: MockClock) -> None:
    carrier = HandCarrier()
    space = await carrier.hub.open_lockspace("space", cluster_name="c", client="me")
    carrier.machine = None
    with trio.move_on_after(1):
        await space.lock("r")
    request, release = carrier.sent[-2:]
    assert isinstance(request, machine.Request)
    assert isinstance(release, machine.Release)
    assert request.lock == release.lock


async def test_a_blocking_notice_for_a_lock_that_has_given_way_is_dropped() -> None:
    carrier = HandCarrier()
    told: list[Mode] = []
    space = await carrier.hub.open_lockspace("space", cluster_name="c", client="me")
    lock = await space.lock("r", on_blocking=told.append)
    carrier.hub.deliver(machine.Blocking(space.number, lock.number, EX))
    assert told == []
    await lock.convert(CR)
    carrier.hub.deliver(machine.Blocking(space.number, lock.number, EX))
    assert told == [EX]


@pytest.mark.parametrize("name", ["", "n" * (NAME_BYTES_MAX + 1)])
async def test_names_that_the_manager_would_refuse_are_refused_here(name: str) -> None:
    carrier = HandCarrier()
    space, _ = await carrier.lock()
    sent = len(carrier.sent)
    with pytest.raises(LockProtocolError):
        await space.lock(name)
    with pytest.raises(LockProtocolError):
        await carrier.hub.open_lockspace(name, cluster_name="c", client="me")
    assert len(carrier.sent) == sent


async def test_a_value_block_of_another_size_is_refused() -> None:
    carrier = HandCarrier()
    _, lock = await carrier.lock()
    lock.lvb = b"short"
    with pytest.raises(ValueError, match="32"):
        await lock.convert(EX)
