"""The contract of a lock manager: what the rest of raidfs relies on, over every manager there is (see conftest)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel

from raidfs.errors import (
    LockBusy,
    LockCancelled,
    LockDeadlock,
    LockProtocolError,
    LockRefused,
    LockspaceLost,
    WrongClusterName,
)
from raidfs.lock.api import Lock, LockManager, Lockspace, Mode

if TYPE_CHECKING:
    from lock.conftest import Harness

NL, CR, CW, PR, PW, EX = Mode
CLUSTER = os.environ.get("RAIDFS_LOCK_CLUSTER", "tests")
SPACE = "6f1c9a52-33aa-4c5e-9d0f-1f2b3c4d5e6f"
PAIRS = list(itertools.product(Mode, Mode))

# Written down a second time, from the VMS documents and not from the tables of the package.
COMPATIBLE = {
    NL: {NL, CR, CW, PR, PW, EX},
    CR: {NL, CR, CW, PR, PW},
    CW: {NL, CR, CW},
    PR: {NL, CR, PR},
    PW: {NL, CR},
    EX: {NL},
}


def value(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


class Call:
    """A call that runs as a task of its own."""

    def __init__(self, nursery: trio.Nursery, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        self.done = False
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self._ended = trio.Event()
        nursery.start_soon(self._run, fn, *args)

    async def _run(self, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        try:
            with self.scope:
                await fn(*args)
                self.done = True
        except Exception as error:  # handed to the test by ended()
            self.error = error
        finally:
            self._ended.set()

    async def ended(self) -> Exception | None:
        with trio.fail_after(10):
            await self._ended.wait()
        return self.error


async def join(harness: Harness, client: str, *, space: str = SPACE) -> Lockspace:
    manager: LockManager = await harness.manager()
    return await manager.open_lockspace(space, cluster_name=CLUSTER, client=client)


async def locks(harness: Harness, count: int, resource: str = "r") -> list[Lock]:
    return [await (await join(harness, f"c{number}")).lock(resource) for number in range(count)]


async def test_a_new_lock_is_granted_in_nl_whatever_others_hold_and_wait_for(
    harness: Harness, nursery: trio.Nursery
) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    (late,) = await locks(harness, 1)
    assert late.mode is NL
    assert not waiting.done
    await a.convert(NL)
    assert await waiting.ended() is None


@pytest.mark.parametrize(("held", "asked"), PAIRS, ids=lambda mode: mode.name)
async def test_modes_are_granted_together_exactly_when_they_are_compatible(
    harness: Harness, held: Mode, asked: Mode
) -> None:
    a, b = await locks(harness, 2)
    await a.convert(held)
    if asked in COMPATIBLE[held]:
        await b.convert(asked, noqueue=True)
        assert b.mode is asked
    else:
        with pytest.raises(LockRefused) as caught:
            await b.convert(asked, noqueue=True)
        assert caught.value.resource == "r"
        assert b.mode is NL
    assert a.mode is held


async def test_a_refused_lock_keeps_its_mode_and_can_ask_again(harness: Harness) -> None:
    a, b = await locks(harness, 2)
    await a.convert(PR)
    await b.convert(CR)
    with pytest.raises(LockRefused):
        await b.convert(EX, noqueue=True)
    assert b.mode is CR
    await a.convert(NL)
    await b.convert(EX, noqueue=True)
    assert b.mode is EX


async def test_a_conversion_down_is_granted_at_once_and_lets_the_next_one_in(
    harness: Harness, nursery: trio.Nursery
) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    waiting = Call(nursery, b.convert, PR)
    await harness.settle()
    assert not waiting.done
    await a.convert(CR)
    assert await waiting.ended() is None
    assert b.mode is PR


async def test_conversions_are_granted_first_come_first_served(harness: Harness, nursery: trio.Nursery) -> None:
    holder, *others = await locks(harness, 4)
    await holder.convert(EX)
    order: list[int] = []

    async def take(number: int, lock: Lock) -> None:
        await lock.convert(EX)
        order.append(number)
        await lock.convert(NL)

    calls = []
    for number, lock in enumerate(others):
        calls.append(Call(nursery, take, number, lock))
        await harness.settle()
    await holder.convert(NL)
    for call in calls:
        assert await call.ended() is None
    assert order == [0, 1, 2]


async def test_a_conversion_that_fits_what_is_held_goes_past_the_queue(harness: Harness, nursery: trio.Nursery) -> None:
    a, b, c = await locks(harness, 3)
    await a.convert(CR)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    await c.convert(CR)
    assert c.mode is CR
    assert not waiting.done
    await a.convert(NL)
    await harness.settle()
    assert not waiting.done
    await c.convert(NL)
    assert await waiting.ended() is None


async def test_a_queued_conversion_does_not_go_past_an_earlier_one(harness: Harness, nursery: trio.Nursery) -> None:
    a, b, c = await locks(harness, 3)
    await a.convert(EX)
    first = Call(nursery, b.convert, EX)
    await harness.settle()
    second = Call(nursery, c.convert, CR)
    await harness.settle()
    await a.convert(CR)  # the second would fit now, the first does not
    await harness.settle()
    assert not first.done
    assert not second.done
    await a.convert(NL)
    assert await first.ended() is None
    await harness.settle()
    assert not second.done
    await b.convert(NL)
    assert await second.ended() is None


async def test_the_second_of_two_conversions_that_block_each_other_is_told_deadlock(
    harness: Harness, nursery: trio.Nursery
) -> None:
    a, b = await locks(harness, 2)
    await a.convert(CR)
    await b.convert(CR)
    first = Call(nursery, a.convert, EX)
    await harness.settle()
    with pytest.raises(LockDeadlock):
        await b.convert(EX)
    assert b.mode is CR
    assert not first.done
    await b.convert(NL)
    assert await first.ended() is None


async def test_a_lock_takes_one_conversion_at_a_time(harness: Harness, nursery: trio.Nursery) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    with pytest.raises(LockBusy):
        await b.convert(PR)
    await a.convert(NL)
    assert await waiting.ended() is None
    assert b.mode is EX


async def test_cancel_ends_the_wait_and_leaves_the_mode(harness: Harness, nursery: trio.Nursery) -> None:
    a, b, c = await locks(harness, 3)
    await a.convert(PR)
    await b.convert(CR)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    behind = Call(nursery, c.convert, PW)
    await harness.settle()
    assert await b.cancel() is True
    error = await waiting.ended()
    assert isinstance(error, LockCancelled)
    assert error.mode == "EX"
    assert b.mode is CR
    await a.convert(NL)
    assert await behind.ended() is None


async def test_cancelling_a_conversion_serves_those_behind_it(harness: Harness, nursery: trio.Nursery) -> None:
    a, b, c = await locks(harness, 3)
    await a.convert(CW)
    first = Call(nursery, b.convert, EX)
    await harness.settle()
    behind = Call(nursery, c.convert, PR)
    await harness.settle()
    await a.convert(CR)
    await harness.settle()
    assert not behind.done
    await b.cancel()
    assert isinstance(await first.ended(), LockCancelled)
    assert await behind.ended() is None


async def test_cancel_without_a_waiting_conversion_does_nothing(harness: Harness) -> None:
    (a,) = await locks(harness, 1)
    assert await a.cancel() is False
    await a.convert(EX)
    assert await a.cancel() is False
    assert a.mode is EX


async def test_a_conversion_of_a_cancelled_task_is_taken_back(harness: Harness, nursery: trio.Nursery) -> None:
    a, b, c = await locks(harness, 3)
    await a.convert(EX)
    doomed = Call(nursery, b.convert, EX)
    await harness.settle()
    doomed.scope.cancel()
    assert await doomed.ended() is None
    assert not doomed.done
    assert b.mode is NL
    await a.convert(NL)
    await c.convert(EX, noqueue=True)  # nobody is left in the queue and nothing was granted to it


async def test_a_late_answer_never_reaches_a_later_request(harness: Harness, nursery: trio.Nursery) -> None:
    """W3: the grant of a request that was given up is not taken for the grant of the next one."""
    a, b = await locks(harness, 2)
    for _ in range(50):
        await a.convert(EX)
        doomed = Call(nursery, b.convert, PR)
        await trio.lowlevel.checkpoint()
        releasing = Call(nursery, a.convert, CR)  # races the cancel: the grant may be on its way already
        doomed.scope.cancel()
        await doomed.ended()
        await releasing.ended()
        assert b.mode is PR or not doomed.done
        with pytest.raises(LockRefused):
            await a.convert(EX, noqueue=True) if b.mode is PR else await b.convert(EX, noqueue=True)
        await a.convert(NL)
        await b.convert(EX, noqueue=True)
        assert b.mode is EX
        await b.convert(NL)


async def test_a_holder_is_told_the_mode_in_whose_way_it_stands(harness: Harness, nursery: trio.Nursery) -> None:
    told: list[Mode] = []
    a = await (await join(harness, "a")).lock("r", on_blocking=told.append)
    b, c = await locks(harness, 2)
    await a.convert(PR)
    waiting = Call(nursery, b.convert, CW)
    await harness.settle()
    assert told == [CW]
    stronger = Call(nursery, c.convert, EX)
    await harness.settle()
    assert told == [CW, EX]
    await a.convert(NL)
    assert await waiting.ended() is None
    await b.convert(NL)
    assert await stronger.ended() is None
    assert told == [CW, EX]


async def test_a_holder_is_told_once_of_each_situation(harness: Harness, nursery: trio.Nursery) -> None:
    told: list[Mode] = []
    a = await (await join(harness, "a")).lock("r", on_blocking=told.append)
    b, c = await locks(harness, 2)
    await a.convert(CR)
    calls = [Call(nursery, b.convert, EX)]
    await harness.settle()
    calls.append(Call(nursery, c.convert, EX))
    await harness.settle()
    assert told == [EX]
    await a.convert(NL)
    assert await calls[0].ended() is None
    await b.convert(NL)
    assert await calls[1].ended() is None


async def test_locks_in_nl_and_compatible_locks_are_told_nothing(harness: Harness, nursery: trio.Nursery) -> None:
    told: list[Mode] = []
    idle = await (await join(harness, "idle")).lock("r", on_blocking=told.append)
    reader = await (await join(harness, "reader")).lock("r", on_blocking=told.append)
    await reader.convert(CR)
    a, b = await locks(harness, 2)
    await a.convert(PW)
    waiting = Call(nursery, b.convert, PW)
    await harness.settle()
    assert idle.mode is NL
    assert told == []
    await a.convert(NL)
    assert await waiting.ended() is None


async def test_a_holder_that_gets_a_mode_in_the_way_of_a_waiter_is_told(
    harness: Harness, nursery: trio.Nursery
) -> None:
    told: list[Mode] = []
    a = await (await join(harness, "a")).lock("r", on_blocking=told.append)
    holder, b = await locks(harness, 2)
    await holder.convert(CR)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    await a.convert(CR)
    await harness.settle()
    assert told == [EX]
    await a.convert(NL)
    await holder.convert(NL)
    assert await waiting.ended() is None


async def test_a_conversion_to_the_same_mode_makes_the_holder_be_told_again(
    harness: Harness, nursery: trio.Nursery
) -> None:
    told: list[Mode] = []
    a = await (await join(harness, "a")).lock("r", on_blocking=told.append)
    (b,) = await locks(harness, 1)
    await a.convert(CR)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    await a.convert(CR)
    await harness.settle()
    assert told == [EX, EX]
    await a.convert(NL)
    assert await waiting.ended() is None


async def test_a_request_that_was_cancelled_and_made_again_is_told_again(
    harness: Harness, able: Callable[[str], None], nursery: trio.Nursery
) -> None:
    able("tell again after a cancel")
    told: list[Mode] = []
    a = await (await join(harness, "a")).lock("r", on_blocking=told.append)
    (b,) = await locks(harness, 1)
    await a.convert(CR)
    for _ in range(2):
        waiting = Call(nursery, b.convert, EX)
        await harness.settle()
        await b.cancel()
        await waiting.ended()
    assert told == [EX, EX]


@pytest.mark.parametrize(("held", "asked"), PAIRS, ids=lambda mode: mode.name)
async def test_the_value_block_goes_the_way_that_the_modes_demand(harness: Harness, held: Mode, asked: Mode) -> None:
    writer, lock, reader = await locks(harness, 3)
    await writer.convert(EX)
    writer.lvb = value("resource")
    await writer.convert(NL)
    await lock.convert(held)
    lock.lvb = value("caller")
    await lock.convert(asked)
    writes = held >= PW and not (held is PW and asked is EX)
    reads = not writes and asked >= held and (held, asked) != (PW, PW)
    assert lock.lvb == (value("resource") if reads else value("caller"))
    await lock.release()
    await reader.convert(CR)
    assert reader.lvb == value("caller" if writes else "resource")
    assert reader.lvb_valid


async def test_a_value_block_that_nobody_wrote_is_zero(harness: Harness) -> None:
    (a,) = await locks(harness, 1)
    await a.convert(PR)
    assert a.lvb == bytes(32)
    assert a.lvb_valid


@pytest.mark.parametrize("held", [PW, EX], ids=lambda mode: mode.name)
async def test_the_death_of_a_writer_makes_the_value_block_not_valid_until_it_is_written(
    harness: Harness, held: Mode
) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    a.lvb = value("before")
    await a.convert(NL)
    doomed = await harness.doomed()
    await doomed.convert("r", held)
    await doomed.kill()
    await b.convert(CR)
    assert not b.lvb_valid
    await b.convert(EX)
    assert not b.lvb_valid
    b.lvb = value("after")
    await b.convert(NL)
    assert b.lvb_valid
    await a.convert(CR)
    assert a.lvb_valid
    assert a.lvb == value("after")


@pytest.mark.parametrize("held", [CR, CW, PR], ids=lambda mode: mode.name)
async def test_the_death_of_a_reader_leaves_the_value_block_valid(harness: Harness, held: Mode) -> None:
    (a,) = await locks(harness, 1)
    await a.convert(EX)
    a.lvb = value("kept")
    await a.convert(NL)
    doomed = await harness.doomed()
    await doomed.convert("r", held)
    await doomed.kill()
    await a.convert(EX)
    assert a.lvb_valid
    assert a.lvb == value("kept")


async def test_the_death_of_a_holder_lets_the_waiter_in(harness: Harness, nursery: trio.Nursery) -> None:
    (a,) = await locks(harness, 1)
    doomed = await harness.doomed()
    await doomed.convert("r", EX)
    waiting = Call(nursery, a.convert, PR)
    await harness.settle()
    assert not waiting.done
    await doomed.kill()
    assert await waiting.ended() is None
    assert a.lvb_valid == ("not valid before it was written" in harness.limits)


async def test_the_death_of_a_waiter_lets_those_behind_it_in(harness: Harness, nursery: trio.Nursery) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    doomed = await harness.doomed()
    await doomed.start("r", EX)
    waiting = Call(nursery, b.convert, CR)
    await harness.settle()
    await a.convert(CR)
    await harness.settle()
    assert not waiting.done
    await doomed.kill()
    assert await waiting.ended() is None
    assert a.lvb_valid


async def test_a_lock_is_released_while_it_waits_for_a_conversion(harness: Harness, nursery: trio.Nursery) -> None:
    """B12: FORCEUNLOCK works for a lock on the convert queue; the wait ends, and what it held is free."""
    a, b, c = await locks(harness, 3)
    await a.convert(PR)
    await b.convert(CR)
    waiting = Call(nursery, b.convert, EX)
    await harness.settle()
    await b.release()
    assert isinstance(await waiting.ended(), LockCancelled)
    await a.convert(NL)
    await c.convert(EX, noqueue=True)


async def test_a_second_release_does_nothing_and_a_released_lock_is_of_no_use(harness: Harness) -> None:
    a, b = await locks(harness, 2)
    await a.convert(EX)
    await a.release()
    await a.release()
    assert a.mode is NL
    with pytest.raises(LockProtocolError):
        await a.convert(EX)
    await b.convert(EX, noqueue=True)


async def test_release_neither_writes_nor_invalidates_the_value_block(harness: Harness) -> None:
    a, b = await locks(harness, 2)
    await b.convert(EX)
    b.lvb = value("kept")
    await b.convert(NL)
    await a.convert(EX)
    a.lvb = value("not to be written")
    await a.release()
    await b.convert(CR)
    assert b.lvb == value("kept")
    assert b.lvb_valid


async def test_leaving_releases_all_locks_in_good_order(harness: Harness, nursery: trio.Nursery) -> None:
    space = await join(harness, "leaver")
    mine = [await space.lock(name) for name in ("r", "s")]
    for lock in mine:
        await lock.convert(EX)
    other = await join(harness, "other")
    theirs = [await other.lock(name) for name in ("r", "s")]
    waiting = [Call(nursery, lock.convert, EX) for lock in theirs]
    await harness.settle()
    await space.close()
    await space.close()
    for call in waiting:
        assert await call.ended() is None
    assert all(lock.lvb_valid for lock in theirs)
    assert space.lost is None
    with pytest.raises(LockspaceLost):
        await space.lock("r")
    with pytest.raises(LockspaceLost):
        await mine[0].convert(EX)


@pytest.mark.parametrize("way", ["release", "close"])
async def test_a_task_that_is_cancelled_while_its_lock_is_given_up_does_no_harm(
    harness: Harness, nursery: trio.Nursery, way: str
) -> None:
    space = await join(harness, "leaver")
    lock = await space.lock("r")
    (other,) = await locks(harness, 1)
    await other.convert(EX)
    waiting = Call(nursery, lock.convert, EX)
    await harness.settle()
    giving_up = Call(nursery, lock.release if way == "release" else space.close)
    waiting.scope.cancel()
    assert await giving_up.ended() is None
    assert await waiting.ended() is None or isinstance(waiting.error, LockCancelled)
    assert space.lost is None
    await other.convert(NL)
    await other.convert(EX, noqueue=True)


async def test_a_manager_that_is_closed_leaves_its_lock_spaces_as_a_dead_client_does(harness: Harness) -> None:
    manager: LockManager = await harness.manager()
    space = await manager.open_lockspace(SPACE, cluster_name=CLUSTER, client="a")
    lock = await space.lock("r")
    (b,) = await locks(harness, 1)
    await lock.convert(EX)
    lock.lvb = value("before")
    await lock.convert(NL)
    await lock.convert(EX)
    await manager.close()
    with trio.fail_after(10):
        await b.convert(EX)
    assert not b.lvb_valid
    with pytest.raises(LockspaceLost):
        await lock.convert(NL)


async def test_lock_spaces_know_nothing_of_each_other(harness: Harness) -> None:
    manager: LockManager = await harness.manager()
    one = await manager.open_lockspace("one", cluster_name=CLUSTER, client="a")
    two = await manager.open_lockspace("two", cluster_name=CLUSTER, client="a")
    await (await one.lock("r")).convert(EX)
    await (await two.lock("r")).convert(EX, noqueue=True)


async def test_a_member_of_another_cluster_is_refused_by_name(harness: Harness) -> None:
    await join(harness, "a")
    manager: LockManager = await harness.manager()
    with pytest.raises(WrongClusterName) as caught:
        await manager.open_lockspace(SPACE, cluster_name="elsewhere", client="b")
    assert CLUSTER in str(caught.value)
    assert "elsewhere" in str(caught.value)
    await manager.open_lockspace(SPACE, cluster_name=CLUSTER, client="b")


async def test_query_shows_who_holds_and_who_waits(
    harness: Harness, able: Callable[[str], None], nursery: trio.Nursery
) -> None:
    able("query")
    first = await join(harness, "first")
    second = await join(harness, "second")
    a = await first.lock("token")
    b = await second.lock("token")
    await first.lock("ack")
    await a.convert(EX)
    a.lvb = value("x")
    await a.convert(EX)
    waiting = Call(nursery, b.convert, PR)
    await harness.settle()
    ack, token = await second.query()
    assert ack.name == "ack"
    assert token.name == "token"
    assert token.lvb == value("x")
    holder, waiter = token.locks
    assert (holder.client, holder.granted, holder.requested, holder.waiting_s) == ("first", EX, None, 0.0)
    assert (waiter.client, waiter.granted, waiter.requested) == ("second", NL, PR)
    assert waiter.waiting_s >= 0
    await a.convert(NL)
    assert await waiting.ended() is None


async def test_losing_the_manager_ends_every_call(
    harness: Harness, able: Callable[[str], None], nursery: trio.Nursery
) -> None:
    able("lose")
    space_a = await join(harness, "a")
    space_b = await join(harness, "b")
    a = await space_a.lock("r")
    b = await space_b.lock("r")
    await a.convert(EX)
    waiting = Call(nursery, b.convert, EX)
    watching = Call(nursery, space_b.wait_lost)
    await harness.settle()
    assert space_b.lost is None
    assert not watching.done
    await harness.lose()
    error = await waiting.ended()
    assert isinstance(error, LockspaceLost)
    assert error.name == SPACE
    assert await watching.ended() is None
    assert watching.done
    assert space_b.lost == error.reason
    with pytest.raises(LockspaceLost):
        await b.convert(NL)
    with pytest.raises(LockspaceLost):
        await space_b.lock("s")
    with pytest.raises(LockspaceLost):
        await space_b.query()
    await b.release()
    await space_b.close()


async def test_one_message_reaches_every_receiver_before_the_sender_goes_on(
    harness: Harness, nursery: trio.Nursery
) -> None:
    """The sender's and receivers' steps of md-cluster, with three nodes and three messages."""
    applied: list[tuple[int, bytes]] = []
    nodes = [await join(harness, f"node{number}") for number in range(3)]
    acks: list[Lock] = []
    messages = [await node.lock("message") for node in nodes]
    wakes = [trio.Event() for _ in nodes]
    for number, node in enumerate(nodes):

        def wake(mode: Mode, number: int = number) -> None:
            if mode is EX:
                wakes[number].set()

        acks.append(await node.lock("ack", on_blocking=wake))
        await acks[-1].convert(CR)

    async def receive(number: int) -> None:
        while True:
            await wakes[number].wait()
            wakes[number] = trio.Event()
            await messages[number].convert(CR)
            applied.append((number, messages[number].lvb))
            await acks[number].convert(NL)
            await messages[number].convert(PR)
            await acks[number].convert(CR)
            await messages[number].convert(NL)

    receivers = [Call(nursery, receive, number) for number in (1, 2)]
    for text in ("one", "two", "three"):
        with trio.fail_after(10):
            await messages[0].convert(EX)
            messages[0].lvb = value(text)
            await messages[0].convert(CW)
            await acks[0].convert(EX)
            heard = {number for number, lvb in applied if lvb == value(text)}
            assert heard == {1, 2}
            await acks[0].convert(CR)
            await messages[0].convert(NL)
    assert len(applied) == 6
    for receiver in receivers:
        receiver.scope.cancel()
        await receiver.ended()
