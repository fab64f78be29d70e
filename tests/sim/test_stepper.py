"""The stepper: order from a seed, crashes that leave no trace, deadlocks that are told."""

from __future__ import annotations

import gc
from random import Random

import pytest

from raidfs.errors import NothingCanRun, TooManySteps
from raidfs.sim.policies import PctPolicy, RandomPolicy
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Group, Stepper


def make(seed: int = 0, *, pct_depth: int = 0, steps_max: int = 10_000) -> tuple[Stepper, Group, SimRuntime]:
    rng = Random(seed)
    policy = PctPolicy(rng, depth=pct_depth, steps=100) if pct_depth else RandomPolicy(rng)
    stepper = Stepper(policy, rng, steps_max=steps_max)
    group = stepper.group("m0")
    return stepper, group, SimRuntime(stepper, group)


def order_of(seed: int, *, pct_depth: int = 0) -> str:
    stepper, group, runtime = make(seed, pct_depth=pct_depth)
    seen = []

    async def count(name: str) -> None:
        for _ in range(4):
            seen.append(name)
            await runtime.sleep(0, what="a moment")

    for name in "abc":
        stepper.spawn(group, count(name), name=name)
    stepper.run(until=lambda: not group.tasks)
    return "".join(seen)


def test_one_seed_gives_one_order_and_many_seeds_give_many() -> None:
    assert all(order_of(seed) == order_of(seed) for seed in range(10))
    assert len({order_of(seed) for seed in range(50)}) > 30


def test_pct_lets_one_task_run_as_long_as_it_can_and_changes_its_mind_d_minus_1_times() -> None:
    stepper, group, runtime = make(3, pct_depth=1)
    seen = []
    queue = runtime.wait_queue()

    async def work(name: str) -> None:
        for _ in range(3):
            seen.append(name)
            queue.wake_up()
            await runtime.sleep(0.1, what="a disk")

    for name in "ab":
        stepper.spawn(group, work(name), name=name)
    stepper.run(until=lambda: not group.tasks)
    first = seen[0]
    assert "".join(seen) == (first + ("b" if first == "a" else "a")) * 3
    assert len({order_of(seed, pct_depth=3) for seed in range(50)}) > 10


def test_a_crash_runs_no_finally_block_not_even_when_the_run_is_over() -> None:
    stepper, group, runtime = make()
    world = stepper.group("world")
    tidied = []

    async def wait() -> None:
        try:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(child)
                await runtime.sleep(100, what="for ever")
        finally:
            tidied.append("owner")

    async def child() -> None:
        try:
            await runtime.wait_queue().wait_event(lambda: False, what="never")
        finally:
            tidied.append("child")

    async def crash() -> None:
        await SimRuntime(stepper, world).sleep(1, what="the time to crash")
        stepper.crash(group)

    stepper.spawn(group, wait(), name="wait")
    stepper.spawn(world, crash(), name="crash")
    stepper.run(until=lambda: not world.tasks)
    gc.collect()
    assert tidied == []
    assert stepper.all_waits() == []
    stepper.dispose()  # only now may dead frames go, when nobody looks any more


def test_the_frames_of_dead_tasks_cannot_wait_when_they_are_thrown_away() -> None:
    stepper, group, runtime = make()
    reached = []

    async def stubborn() -> None:
        try:
            await runtime.sleep(100, what="for ever")
        finally:
            with runtime.cancel_scope(shield=True):
                await runtime.sleep(1, what="clean-up")
                reached.append(1)

    stepper.spawn(group, stubborn(), name="stubborn")
    stepper.at(1, stepper.stop)
    stepper.run()
    stepper.dispose()
    assert reached == []


def test_nothing_of_a_dead_group_is_woken() -> None:
    stepper, group, runtime = make()
    world = stepper.group("world")
    future = runtime.future()
    got = []

    async def wait() -> None:
        got.append(await future.wait(what="a reply"))

    async def kill() -> None:
        await SimRuntime(stepper, world).sleep(1, what="the time to crash")
        stepper.crash(group)
        future.set("too late")
        await SimRuntime(stepper, world).sleep(1, what="a while")

    stepper.spawn(group, wait(), name="wait")
    stepper.spawn(world, kill(), name="kill")
    stepper.run(until=lambda: not world.tasks)
    stepper.dispose()
    assert got == []


def test_a_deadlock_is_told_with_who_waits_for_what() -> None:
    stepper, group, runtime = make()

    async def wait() -> None:
        async with runtime.open_nursery() as nursery:
            nursery.start_soon(never, name="child")

    async def never() -> None:
        await runtime.wait_queue().wait_event(lambda: False, what="lock token, held by m1")

    stepper.spawn(group, wait(), name="node")
    with pytest.raises(NothingCanRun) as caught:
        stepper.run()
    stepper.dispose()
    assert "m0: child waits since 0.000000 s for lock token, held by m1" in str(caught.value)
    assert "m0: node waits since 0.000000 s for its tasks child" in str(caught.value)


def test_tasks_that_wake_each_other_for_ever_are_ended() -> None:
    stepper, group, runtime = make(steps_max=1000)

    async def spin() -> None:
        while True:
            await runtime.sleep(0, what="a moment")

    stepper.spawn(group, spin(), name="spin")
    with pytest.raises(TooManySteps):
        stepper.run()
    stepper.dispose()


def test_a_paused_group_goes_on_where_it_was() -> None:
    stepper, group, runtime = make()
    times = []

    async def tick() -> None:
        for _ in range(3):
            await runtime.sleep(1, what="a second")
            times.append(round(runtime.now()))

    stepper.spawn(group, tick(), name="tick")
    stepper.at(1.5, lambda: stepper.pause(group))
    stepper.at(9.0, lambda: stepper.resume(group))
    stepper.run(until=lambda: not group.tasks)
    assert times == [1, 9, 10]


def test_a_trip_strikes_before_the_step_with_its_number() -> None:
    stepper, group, runtime = make()
    steps = []

    async def count() -> None:
        while True:
            steps.append(1)
            await runtime.sleep(0, what="a moment")

    group.trip_at = 7
    group.on_trip = stepper.stop
    stepper.spawn(group, count(), name="count")
    stepper.run()
    stepper.dispose()
    assert len(steps) == 7
