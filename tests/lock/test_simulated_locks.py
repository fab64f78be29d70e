from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from raidfs.errors import LockCancelled, LockDeadlock, LockRefused, LockspaceLost
from raidfs.lock.api import Lock, Mode
from raidfs.runtime import TrioRuntime
from raidfs.sim.locks import SimulatedClient, SimulatedLocks

NL, CR, CW, PR, PW, EX = Mode


@contextlib.asynccontextmanager
async def simulated(delay_s: Callable[[], float]) -> AsyncIterator[SimulatedLocks]:
    async with trio.open_nursery() as nursery:
        locks = SimulatedLocks(TrioRuntime(), delay_s=delay_s)
        nursery.start_soon(locks.run)
        yield locks
        nursery.cancel_scope.cancel()


async def lock_of(client: SimulatedClient) -> Lock:
    space = await client.hub.open_lockspace("space", cluster_name="c", client=str(client.number))
    return await space.lock("r")


async def test_a_round_trip_takes_what_both_ways_take(autojump_clock: MockClock) -> None:
    async with simulated(lambda: 2.0) as locks:
        lock = await lock_of(locks.connect())
        start = trio.current_time()
        await lock.convert(EX)
        assert trio.current_time() - start == pytest.approx(4.0)


async def test_what_is_under_way_for_less_time_arrives_first(autojump_clock: MockClock) -> None:
    delays = [0.0] * 8  # two clients join and make their locks, each with a way there and back
    async with simulated(lambda: delays.pop(0)) as locks:
        slow, fast = await lock_of(locks.connect()), await lock_of(locks.connect())
        delays += [10.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.convert, EX)
            await trio.sleep(0.5)
            await fast.convert(EX)
            assert trio.current_time() == pytest.approx(1.5)
            await fast.convert(NL)
        assert slow.mode is EX
        assert trio.current_time() == pytest.approx(10.0)


async def test_what_one_client_sends_keeps_its_order(autojump_clock: MockClock) -> None:
    delays = [0.0] * 4
    async with simulated(lambda: delays.pop(0) if delays else 0.0) as locks:
        client = locks.connect()
        lock = await lock_of(client)
        delays += [5.0, 0.0]
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1) as scope:
                await lock.convert(EX)
            nursery.cancel_scope.cancel()
        # The cancel must not overtake the conversion, or it would find nothing to cancel.
        assert scope.cancelled_caught
        assert lock.mode is EX
        assert trio.current_time() == pytest.approx(5.0)


async def test_the_dead_are_told_nothing_and_what_they_sent_arrives(autojump_clock: MockClock) -> None:
    async with simulated(lambda: 1.0) as locks:
        doomed, other = locks.connect(), locks.connect()
        dead, lock = await lock_of(doomed), await lock_of(other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dead.convert, EX)
            for _ in range(2):  # the order within one round of trio's loop is random
                await trio.lowlevel.checkpoint()
            doomed.kill()
            await trio.sleep(10)
            assert dead.mode is NL
            nursery.cancel_scope.cancel()
            doomed.hub.lost = "killed"
        await lock.convert(EX)
        assert not lock.lvb_valid, "the dead one was granted EX before it was buried"
        assert locks.statistics().members == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
async def test_holders_exclude_each_other_whatever_is_delayed_and_given_up(
    autojump_clock: MockClock, seed: int
) -> None:
    """What a member believes to hold is what it may do: two beliefs that do not go together are a corruption."""
    generator = random.Random(seed)
    belief: dict[int, Mode] = {}
    steps = 0

    def check() -> None:
        held = [mode for mode in belief.values() if mode is not NL]
        if EX in held:
            assert len(held) == 1
        if PW in held:
            assert held.count(PW) == 1
            assert set(held) <= {PW, CR}

    async def wander(number: int, lock: Lock) -> None:
        nonlocal steps
        for _ in range(60):
            mode = generator.choice([NL, NL, CR, PR, PW, EX])
            if mode < belief[number]:
                belief[number] = mode  # it stops to rely on the old mode before it gives it up
            with contextlib.suppress(LockRefused, LockDeadlock, LockCancelled, LockspaceLost):
                with trio.move_on_after(generator.choice([0.0, 0.5, 3.0, 50.0])):
                    await lock.convert(mode, noqueue=generator.random() < 0.2)
                await trio.lowlevel.checkpoint()
            belief[number] = lock.mode
            check()
            steps += 1
            await trio.sleep(generator.choice([0.0, 0.2, 1.0]))
            if generator.random() < 0.5:
                belief[number] = NL
                await lock.convert(NL)
        belief[number] = NL
        await lock.convert(NL)

    async with simulated(lambda: generator.choice([0.0, 0.1, 0.1, 1.0, 2.0])) as locks:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                belief[number] = NL
                nursery.start_soon(wander, number, await lock_of(locks.connect()))
        assert steps == 180
        assert locks.statistics().waiting == 0
