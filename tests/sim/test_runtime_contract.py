"""One contract for both runtimes: what control code may rely on holds under trio and under the stepper."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
import trio.testing

from raidfs.runtime import Runtime, TrioRuntime
from raidfs.sim.policies import PctPolicy, RandomPolicy
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Stepper, Task

Main = Callable[[Runtime], Awaitable[object]]
Run = Callable[[Main], None]


def run_on_trio(main: Main) -> None:
    async def start() -> None:
        await main(TrioRuntime())

    trio.run(start, clock=trio.testing.MockClock(autojump_threshold=0))


def run_stepped(main: Main, *, seed: int = 0, pct: bool = False) -> None:
    rng = Random(seed)
    stepper = Stepper(PctPolicy(rng, depth=3, steps=200) if pct else RandomPolicy(rng), rng)
    group = stepper.group("tested")
    ended: list[BaseException | None] = []

    async def start() -> None:
        await main(SimRuntime(stepper, group))

    def on_end(task: Task, e: BaseException | None) -> None:
        ended.append(e)

    stepper.spawn(group, start(), name="main", on_end=on_end)
    try:
        stepper.run(until=lambda: bool(ended))
        if ended[0] is not None:
            raise ended[0]
    finally:
        stepper.dispose()


def run_in_many_orders(main: Main) -> None:
    for seed in range(20):
        run_stepped(main, seed=seed, pct=seed % 2 == 1)


@pytest.fixture(params=[run_on_trio, run_in_many_orders], ids=["trio", "stepper"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param  # type: ignore[no-any-return]


async def others_run(runtime: Runtime) -> None:
    """Return when everything else waits."""
    await runtime.sleep(0.001, what="the others")


def test_wait_event_returns_at_once_without_a_switch_when_the_condition_holds(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ran = []

        async def other() -> None:
            ran.append(1)

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(other)
            await runtime.wait_queue().wait_event(lambda: True, what="nothing")
            assert not ran

    run(main)


def test_a_set_future_is_read_without_a_switch(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ran = []

        async def other() -> None:
            ran.append(1)

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(other)
            future = runtime.future()
            future.set("value")
            assert await future.wait(what="nothing") == "value"
            assert not ran

    run(main)


def test_wait_event_looks_at_its_condition_only_when_woken(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        queue = runtime.wait_queue()
        state = {"there": False, "looks": 0}

        def look() -> bool:
            state["looks"] += 1
            return bool(state["there"])

        async def wait() -> None:
            await queue.wait_event(look, what="it")

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(wait)
            await others_run(runtime)
            assert state["looks"] == 1
            queue.wake_up()
            await others_run(runtime)
            assert state["looks"] == 2
            state["there"] = True
            await others_run(runtime)
            assert state["looks"] == 2
            queue.wake_up()
        assert state["looks"] == 3

    run(main)


def test_nobody_runs_between_a_condition_that_held_and_the_return(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        queue = runtime.wait_queue()
        free = [True]
        held = [0]

        async def take() -> None:
            await queue.wait_event(lambda: free[0], what="the mutex")
            assert free[0]
            free[0] = False
            held[0] += 1
            await runtime.sleep(0.01, what="work")
            free[0] = True
            queue.wake_up()

        async with runtime.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(take)
        assert held[0] == 5

    run(main)


def test_a_future_gives_its_value_to_all_who_wait_and_takes_one_only(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        future = runtime.future()
        got = []

        async def wait() -> None:
            got.append(await future.wait(what="the value"))

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await others_run(runtime)
            assert not future.is_set()
            future.set(7)
            assert future.is_set()
        assert got == [7, 7]
        with pytest.raises(RuntimeError, match="already"):
            future.set(8)

    run(main)


def test_sleeps_end_in_the_order_of_their_times(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ended = []
        start = runtime.now()

        async def sleep(seconds: float) -> None:
            await runtime.sleep(seconds, what="a time")
            assert runtime.now() - start >= seconds - 1e-9
            ended.append(seconds)

        async with runtime.open_nursery() as nursery:
            for seconds in (3, 1, 2):
                nursery.start_soon(sleep, seconds)
        assert ended == [1, 2, 3]
        assert runtime.now() - start == pytest.approx(3, abs=0.1)

    run(main)


def test_a_sleep_of_zero_is_a_switch(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ran = []

        async def other() -> None:
            ran.append(1)

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(100):
                await runtime.sleep(0, what="a moment")
            assert ran

    run(main)


def test_a_nursery_ends_after_its_tasks(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ended = []

        async def child(name: str) -> None:
            await runtime.sleep(1, what="a second")
            ended.append(name)

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(child, "a")
            nursery.start_soon(child, "b")
        assert sorted(ended) == ["a", "b"]

    run(main)


def test_a_failing_task_cancels_the_others_and_the_body(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        tidied = []

        async def fail() -> None:
            raise KeyError("child")

        async def wait() -> None:
            try:
                await runtime.sleep(1000, what="for ever")
            finally:
                tidied.append("child")

        async def block() -> None:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(wait)
                await others_run(runtime)
                nursery.start_soon(fail)
                try:
                    await runtime.sleep(1000, what="for ever")
                finally:
                    tidied.append("body")

        with pytest.raises(ExceptionGroup) as caught:
            await block()
        assert [type(e) for e in caught.value.exceptions] == [KeyError]
        assert sorted(tidied) == ["body", "child"]

    run(main)


def test_an_error_of_the_body_comes_out_in_a_group_after_the_tasks_were_cancelled(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        tidied = []

        async def wait() -> None:
            try:
                await runtime.sleep(1000, what="for ever")
            finally:
                tidied.append(1)

        async def block() -> None:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(wait)
                await others_run(runtime)
                raise KeyError("body")

        with pytest.raises(ExceptionGroup) as caught:
            await block()
        assert [type(e) for e in caught.value.exceptions] == [KeyError]
        assert tidied == [1]

    run(main)


def test_errors_of_several_tasks_come_together(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        async def fail(error: type[Exception]) -> None:
            try:
                await runtime.sleep(1000, what="for ever")
            finally:
                raise error

        async def block() -> None:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(fail, KeyError)
                nursery.start_soon(fail, IndexError)
                await others_run(runtime)
                nursery.cancel_scope.cancel()

        with pytest.raises(ExceptionGroup) as caught:
            await block()
        assert {type(e) for e in caught.value.exceptions} == {KeyError, IndexError}

    run(main)


def test_cancelling_a_nursery_is_no_error(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        async with runtime.open_nursery() as nursery:
            nursery.start_soon(runtime_forever(runtime))
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught

    run(main)


def runtime_forever(runtime: Runtime) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        await runtime.sleep(float("inf"), what="for ever")

    return wait


def test_a_nursery_that_has_ended_takes_no_tasks(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        async with runtime.open_nursery() as nursery:
            pass

        async def child() -> None: ...

        with pytest.raises(RuntimeError):
            nursery.start_soon(child)

    run(main)


def test_a_deadline_ends_waits_and_is_caught_by_its_scope(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        start = runtime.now()
        with runtime.cancel_scope(deadline=start + 2) as scope:
            await runtime.sleep(5, what="longer")
        assert scope.cancelled_caught
        assert runtime.now() - start == pytest.approx(2, abs=0.1)
        with runtime.cancel_scope(deadline=runtime.now() + 2) as scope:
            await runtime.sleep(1, what="shorter")
        assert not scope.cancelled_caught

    run(main)


def test_a_deadline_that_has_passed_cancels_the_first_wait(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        with runtime.cancel_scope(deadline=runtime.now() - 1) as scope:
            await runtime.future().wait(what="a value that never comes")
        assert scope.cancelled_caught

    run(main)


def test_every_wait_of_a_cancelled_scope_is_cancelled_also_later_ones(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        cancelled = []
        with runtime.cancel_scope() as scope:
            scope.cancel()
            for wait in (
                lambda: runtime.sleep(0, what="a moment"),
                lambda: runtime.future().wait(what="a value"),
                lambda: runtime.wait_queue().wait_event(lambda: False, what="an event"),
            ):
                try:
                    await wait()
                except BaseException as e:
                    cancelled.append(isinstance(e, Exception))
            await runtime.sleep(1, what="the last one")
        assert cancelled == [False] * 3
        assert scope.cancelled_caught

    run(main)


def test_a_shield_keeps_an_outer_cancel_away_until_it_ends(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        done = []
        with runtime.cancel_scope() as outer:
            outer.cancel()
            with runtime.cancel_scope(shield=True):
                await runtime.sleep(1, what="clean-up")
                done.append("shielded")
            await runtime.sleep(1, what="more")
            done.append("not reached")
        assert done == ["shielded"]
        assert outer.cancelled_caught

    run(main)


def test_a_shielded_scope_has_its_own_deadline(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        with runtime.cancel_scope() as outer:
            outer.cancel()
            with runtime.cancel_scope(shield=True, deadline=runtime.now() + 1) as inner:
                await runtime.sleep(9, what="too long")
            assert inner.cancelled_caught
        assert not outer.cancelled_caught

    run(main)


def test_the_outer_of_two_cancelled_scopes_catches(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        with runtime.cancel_scope() as outer:
            with runtime.cancel_scope() as inner:
                outer.cancel()
                inner.cancel()
                await runtime.sleep(1, what="time")
            raise AssertionError("not reached")
        assert outer.cancelled_caught
        assert not inner.cancelled_caught

    run(main)


def test_cancel_reaches_the_tasks_of_a_nursery_inside(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        ended = []

        async def child() -> None:
            try:
                await runtime.sleep(1000, what="for ever")
            finally:
                ended.append(1)

        with runtime.cancel_scope() as scope:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(child)
                await others_run(runtime)
                scope.cancel()
        assert ended == [1, 1]
        assert scope.cancelled_caught
        assert not nursery.cancel_scope.cancelled_caught

    run(main)


def test_a_wait_that_was_woken_is_not_cancelled_afterwards(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        future = runtime.future()
        got = []

        async def wait() -> None:
            got.append(await future.wait(what="the value"))

        with runtime.cancel_scope() as scope:
            async with runtime.open_nursery() as nursery:
                nursery.start_soon(wait)
                await others_run(runtime)
                future.set(1)
                scope.cancel()
        assert got == [1]

    run(main)


def test_a_cancelled_waiter_leaves_its_queue(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        queue = runtime.wait_queue()
        looks = [0]

        def look() -> bool:
            looks[0] += 1
            return False

        with runtime.cancel_scope(deadline=runtime.now() + 1):
            await queue.wait_event(look, what="never")
        queue.wake_up()
        await others_run(runtime)
        assert looks[0] == 1

    run(main)


def test_waits_tells_what_is_waited_for_and_since_when(run: Run) -> None:
    async def main(runtime: Runtime) -> None:
        async def wait(seconds: float) -> None:
            await runtime.sleep(seconds, what=f"{seconds} seconds")

        async with runtime.open_nursery() as nursery:
            nursery.start_soon(wait, 7, name="first")
            await runtime.sleep(1, what="one second")
            nursery.start_soon(wait, 8, name="second")
            await runtime.sleep(1, what="one second")
            waits = runtime.waits()
            assert [wait.what for wait in waits] == ["7 seconds", "8 seconds"]
            assert ["first" in waits[0].task, "second" in waits[1].task] == [True, True]
            assert waits[1].since - waits[0].since == pytest.approx(1, abs=0.1)
            nursery.cancel_scope.cancel()
        assert runtime.waits() == []

    run(main)
