"""Slots: held for a while and given back whatever happens meanwhile; and who runs, as the locks tell."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from raidfs.cluster.membership import Membership, bitmap_name
from raidfs.lock.api import Mode, ResourceView
from raidfs.lock.member import MemberLockspace
from raidfs.runtime import TrioRuntime
from raidfs.sim.locks import SimulatedClient, SimulatedLocks

DELAY_S = 2.0  # of each message, to the lock manager and back


async def test_an_idle_slot_that_was_granted_just_before_its_wait_was_cancelled_is_given_back(
    autojump_clock: MockClock,
) -> None:
    runtime = TrioRuntime()
    locks = SimulatedLocks(runtime, delay_s=lambda: DELAY_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.run)
        one, other = [
            Membership(runtime, await locks.connect().hub.open_lockspace("a", cluster_name="c", client=name), 4)
            for name in ("one", "other")
        ]
        async with one.idle_slot(0) as idle:
            assert idle
        for cancelled_after_s in (1.0, 3.0, 5.0):  # on its way there, on its way back, while it is held
            with trio.move_on_after(cancelled_after_s):
                async with one.idle_slot(0):
                    await trio.sleep_forever()
            bitmap = await other.lock(bitmap_name(0))
            with trio.fail_after(60):
                await bitmap.convert(Mode.PW)
            await bitmap.convert(Mode.NL)
        nursery.cancel_scope.cancel()


async def test_who_runs_is_known_by_locks_whatever_the_lock_manager_tells_of_names(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(MemberLockspace, "query", nobody_answers)
    cluster = Cluster(nursery)
    a = await cluster.joined("a")
    assert await cluster.live(a) == []
    b = await cluster.joined("b")
    assert (a.slot, b.slot) == (0, 1)
    assert await cluster.live(a) == [1]
    assert await cluster.live(b) == [0]
    nursery.start_soon(a.wait_gone, 1)
    await wait_all_tasks_blocked()
    assert await cluster.live(a) == [1]
    cluster.kill("b")
    await wait_all_tasks_blocked()
    assert await cluster.live(a) == []
    c = await cluster.joined("c")
    assert c.slot == 1
    assert await cluster.live(a) == [1]


async def test_nobody_is_asked_about_slots_that_are_watched_or_idle_until_somebody_joins(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asked: list[int] = []
    runs = Membership.runs

    async def counted(membership: Membership, slot: int) -> bool:
        asked.append(slot)
        return await runs(membership, slot)

    monkeypatch.setattr(Membership, "runs", counted)
    cluster = Cluster(nursery)
    a, _ = await cluster.joined("a"), await cluster.joined("b")
    await cluster.live(a)
    nursery.start_soon(a.wait_gone, 1)
    await wait_all_tasks_blocked()
    asked.clear()
    assert await cluster.live(a) == [1]
    assert asked == []
    await cluster.joined("c")
    assert await cluster.live(a) == [1, 2]
    assert asked == [2, 3]


async def test_a_count_of_joins_that_was_lost_with_nodes_does_not_hide_a_join(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    a = await cluster.joined("a")
    await cluster.joined("b")
    assert await cluster.live(a) == [1]
    cluster.kill("b")
    await wait_all_tasks_blocked()
    assert await cluster.live(a) == []
    # What a new master of the DLM restores is the copy of a node that has not heard of the last joins, and not valid.
    token = await a.lock("token")
    await token.convert(Mode.EX)
    token.lvb, token.lvb_valid = (1).to_bytes(8, "little") + bytes(24), False
    a.token_granted()
    await token.convert(Mode.NL)
    await cluster.joined("c")
    assert await cluster.live(a) == [1]


class Cluster:
    """Members of one lock space, each a client of its own."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._runtime = TrioRuntime()
        self._locks = SimulatedLocks(self._runtime)
        self._clients: dict[str, SimulatedClient] = {}
        nursery.start_soon(self._locks.run)

    async def joined(self, name: str) -> Membership:
        client = self._clients[name] = self._locks.connect()
        space = await client.hub.open_lockspace("a", cluster_name="c", client=name)
        membership = Membership(self._runtime, space, 4)
        async with membership.token():
            await membership.claim_slot()
        return membership

    async def live(self, membership: Membership) -> list[int]:
        async with membership.token():
            return await membership.live_slots()

    def kill(self, name: str) -> None:
        self._clients[name].kill()


async def nobody_answers(lockspace: MemberLockspace) -> list[ResourceView]:
    return []
