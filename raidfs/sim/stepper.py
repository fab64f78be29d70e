"""The stepper: runs coroutines one switch at a time, in an order that one seed decides.

What can run is a list; a `Policy` picks from it, and what it picks runs up to its next wait. There is no other source
of order: a task that is woken, a callback whose time has come (a disk that answers, a fault that strikes) all go into
the same list. Time is a number. It moves when nothing can run, to the next timer, and now and then a little although
something could run (`SLIP_S_MAX`): a slow processor, so that timers also fire in the middle of work.

Tasks belong to a `Group`, which is one run of one machine. `Stepper.crash` ends a group as a power switch does: from
then on none of its tasks takes another step, and no ``finally`` tidies up behind it. The dead frames are kept until the
run has been judged; `Stepper.dispose` throws them away then, with every wait in them refused.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any, Protocol, TypeVar

from raidfs.errors import NothingCanRun, TooManySteps
from raidfs.runtime import Wait
from raidfs.sim.scopes import Cancelled, SimCancelScope, inside

T = TypeVar("T")

SLIP_S_MAX = 0.05  # far below every timeout of the code under test, which shall fire for a reason
SLIP_STEPS_MEAN = 200  # one slip in so many switches, about


class Runnable(Protocol):
    """What a policy picks from: a task or a callback."""

    name: str
    group: Group
    priority: float

    def step(self) -> None:
        """Run up to the next wait."""


class Policy(Protocol):
    """The order in which things run."""

    def admit(self) -> float:
        """Return the priority of something new."""

    def pick(self, ready: list[Runnable]) -> Runnable:
        """Remove one from ``ready``, which is not empty, and return it."""


class Group:
    """One run of one machine: the tasks that live and die together.

    ``after_step`` is called after each step of one of its tasks; ``trip_at`` and ``on_trip`` strike before the step
    with that number (of this group). All are for the simulator's machinery.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused = False
        self.steps = 0
        self.trip_at = -1
        self.on_trip: Callable[[], None] = _nothing
        self.after_step: Callable[[], None] | None = None
        self.tasks: dict[Task, None] = {}
        self.held: list[Runnable] = []  # could run, were the group not paused


class Callback:
    """A function that runs as one step."""

    __slots__ = ("_fn", "group", "name", "priority")

    def __init__(self, group: Group, name: str, fn: Callable[[], None], priority: float) -> None:
        self.group = group
        self.name = name
        self.priority = priority
        self._fn = fn

    def step(self) -> None:
        """See `Runnable.step`."""
        self._fn()


class Task:
    """One coroutine. ``what`` and ``since`` tell what it waits for; ``what`` is "" for waits that are not recorded."""

    __slots__ = (
        "_abortable",
        "_cancelled",
        "_coro",
        "_lot",
        "_parked",
        "_stepper",
        "group",
        "name",
        "nested",
        "on_end",
        "priority",
        "scope",
        "since",
        "what",
    )

    def __init__(
        self,
        stepper: Stepper,
        group: Group,
        name: str,
        coro: Coroutine[Any, Any, object],
        scope: SimCancelScope | None,
        on_end: Callable[[Task, BaseException | None], None],
    ) -> None:
        self.group = group
        self.name = name
        self.priority = stepper.policy.admit()
        self.scope = scope
        self.what = ""
        self.since = 0.0
        self.nested: list[str] = []  # the names of the tasks that the end of its nursery waits for
        self.on_end = on_end
        self._stepper = stepper
        self._coro = coro
        self._parked = False
        self._abortable = False
        self._cancelled = False
        self._lot: dict[Task, None] | None = None

    def step(self) -> None:
        """See `Runnable.step`."""
        try:
            self._coro.send(None)
        except StopIteration:
            self._ended(None)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:
            self._ended(e)

    def _ended(self, e: BaseException | None) -> None:
        del self.group.tasks[self]
        if self.scope is not None:
            self.scope.tasks.pop(self, None)
        self.on_end(self, e)

    def enter(self, scope: SimCancelScope | None) -> None:
        """Make ``scope`` the innermost one of this task."""
        if self.scope is not None:
            self.scope.tasks.pop(self, None)
        self.scope = scope
        if scope is not None:
            scope.tasks[self] = None

    @inside
    def park(self, lot: dict[Task, None] | None = None) -> Generator[None, None, None]:
        """Wait until `wake`, at a place in ``lot`` that is given up when the wait is cancelled.

        A task whose scope is cancelled already is woken by that at once; the switch takes place all the same.
        """
        if self._stepper.disposed:
            raise GeneratorExit
        if self.scope is not None and self.scope.effective:
            self._stepper.ready(self)
            yield
            raise Cancelled
        if lot is not None:
            lot[self] = None
        self._lot = lot
        self._parked = self._abortable = True
        yield
        if self._cancelled:
            self._cancelled = False
            raise Cancelled

    @inside
    def park_shielded(self) -> Generator[None, None, None]:
        """Wait until `wake`, whatever is cancelled meanwhile."""
        if self._stepper.disposed:
            raise GeneratorExit
        self._parked = True
        yield

    @inside
    def switch(self) -> Generator[None, None, None]:
        """Let others run, whatever is cancelled.

        It takes a new priority: who gives way on purpose must not be picked again and again for being important.
        """
        if self._stepper.disposed:
            raise GeneratorExit
        self.priority = self._stepper.policy.admit()
        self._stepper.ready(self)
        yield

    def wake(self) -> None:
        """End the wait of `park`; nothing when the task does not wait."""
        if self._parked:
            self._parked = self._abortable = False
            self._lot = None
            self._stepper.ready(self)

    def abort(self) -> None:
        """End the wait of `park` by raising Cancelled from it; nothing when that is not to be had."""
        if self._abortable:
            if self._lot is not None:
                self._lot.pop(self, None)
            self._cancelled = True
            self.wake()

    def dispose(self) -> None:
        """Throw the frame away."""
        try:
            self._coro.close()
        except BaseException:
            # What a dead frame raises while it is thrown away (its waits are refused) concerns nobody.
            return


class Timer:
    """Something that happens at a time, unless it is taken back."""

    __slots__ = ("fire",)

    def __init__(self, fire: Callable[[], None]) -> None:
        self.fire: Callable[[], None] | None = fire

    def cancel(self) -> None:
        """Take it back."""
        self.fire = None


class Stepper:
    """All tasks of one simulation. ``steps`` counts the switches so far, ``now`` is seconds of simulated time."""

    def __init__(self, policy: Policy, rng: Random, *, steps_max: int = 1_000_000) -> None:
        self.policy = policy
        self.now = 0.0
        self.steps = 0
        self.stopped = False
        self.disposed = False
        self.digest = 0  # of all picks: equal for equal schedules
        self.current: Task | None = None
        self._rng = rng
        self._steps_max = steps_max
        self._ready: list[Runnable] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._timers_total = 0
        self._groups: list[Group] = []
        self._graveyard: list[Task] = []
        self._next_slip = rng.randrange(1, 2 * SLIP_STEPS_MEAN)

    def group(self, name: str) -> Group:
        """Return a new group."""
        group = Group(name)
        self._groups.append(group)
        return group

    def task(self) -> Task:
        """Return the task that runs now; in a frame that is being thrown away go on throwing it away."""
        if self.disposed:
            raise GeneratorExit
        assert self.current is not None, "only a task of the simulation can wait"
        return self.current

    def spawn(
        self,
        group: Group,
        coro: Coroutine[Any, Any, object],
        *,
        name: str,
        scope: SimCancelScope | None = None,
        on_end: Callable[[Task, BaseException | None], None] | None = None,
    ) -> Task:
        """Start a task; without ``on_end`` its exception ends the simulation."""
        task = Task(self, group, name, coro, None, on_end or _raise)
        task.enter(scope)
        group.tasks[task] = None
        self.ready(task)
        return task

    def ready(self, runnable: Runnable) -> None:
        """Let something run when it is picked."""
        self._ready.append(runnable)

    def soon(self, group: Group, name: str, fn: Callable[[], None]) -> None:
        """Run ``fn`` as a step of its own, some time."""
        self._ready.append(Callback(group, name, fn, self.policy.admit()))

    def at(self, time: float, fire: Callable[[], None]) -> Timer:
        """Call ``fire`` when it is ``time``, between two steps."""
        timer = Timer(fire)
        self._timers_total += 1
        heapq.heappush(self._timers, (time, self._timers_total, timer))
        return timer

    def later(self, group: Group, name: str, delay_s: float, fn: Callable[[], None]) -> None:
        """Run ``fn`` as a step of its own, ``delay_s`` seconds from now or after."""
        self.at(self.now + delay_s, lambda: self.soon(group, name, fn))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Take steps until ``until()`` or `stop`.

        Raises NothingCanRun, with all waits, when nothing can run and no timer is left; TooManySteps when it does not
        come to an end; and what a task raised for whom nobody answers.
        """
        ready = self._ready
        pick = self.policy.pick
        while not self.stopped and not until():
            if not ready:
                if not self._jump():
                    raise NothingCanRun(waits=waits_text(self.all_waits()))
                continue
            runnable = pick(ready)
            group = runnable.group
            if group.dead:
                continue
            if group.paused:
                group.held.append(runnable)
                continue
            if group.steps == group.trip_at:
                group.trip_at = -1
                ready.append(runnable)
                group.on_trip()
                continue
            group.steps += 1
            self.steps += 1
            self.digest = (self.digest * 1000003 + group.steps + len(ready)) & 0xFFFFFFFFFFFF
            self.current = runnable if isinstance(runnable, Task) else None
            runnable.step()
            self.current = None
            if group.after_step is not None:
                group.after_step()
            if self.steps >= self._next_slip:
                self._slip()

    def stop(self) -> None:
        """End `run` after this step."""
        self.stopped = True

    def crash(self, group: Group) -> None:
        """Abandon all tasks of a group, as they are."""
        group.dead = True
        group.after_step = None
        self._graveyard += group.tasks
        group.tasks.clear()
        group.held.clear()

    def pause(self, group: Group) -> None:
        """Let no task of the group run until `resume`."""
        group.paused = True

    def resume(self, group: Group) -> None:
        """End `pause`."""
        group.paused = False
        self._ready += group.held
        group.held.clear()

    def dispose(self) -> None:
        """Throw all frames away. The code in their ``finally`` blocks runs now; no wait in it is possible."""
        self.stopped = self.disposed = True
        for group in self._groups:
            self.crash(group)
        for task in self._graveyard:
            task.dispose()
        self._graveyard.clear()

    def all_waits(self) -> list[Wait]:
        """Return all waits of all living tasks, those for the end of a nursery included, oldest first."""
        return self.waits_of(self._groups, nested=True)

    def waits_of(self, groups: list[Group], *, nested: bool = False) -> list[Wait]:
        """Return the waits of groups, oldest first; with ``nested`` also those for the end of a nursery."""
        found = []
        for group in groups:
            for task in group.tasks:
                if task.what:
                    found.append(Wait(f"{group.name}: {task.name}", task.what, task.since))
                elif nested and task.nested:
                    found.append(Wait(f"{group.name}: {task.name}", "its tasks " + ", ".join(task.nested), task.since))
        return sorted(found, key=lambda wait: wait.since)

    def _jump(self) -> bool:
        """Go to the next timer and fire what is due then; return whether there was one."""
        timers = self._timers
        while timers and timers[0][2].fire is None:
            heapq.heappop(timers)
        if not timers:
            return False
        if self.steps >= self._steps_max:
            raise TooManySteps(steps=self.steps, waits=waits_text(self.all_waits()))
        self.now = max(self.now, timers[0][0])
        self._fire_due()
        return True

    def _fire_due(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            fire = heapq.heappop(timers)[2].fire
            if fire is not None:
                fire()

    def _slip(self) -> None:
        self._next_slip = self.steps + self._rng.randrange(1, 2 * SLIP_STEPS_MEAN)
        if self.steps >= self._steps_max:
            raise TooManySteps(steps=self.steps, waits=waits_text(self.all_waits()))
        if self._timers and self._timers[0][0] - self.now <= SLIP_S_MAX:
            self.now = max(self.now, self._timers[0][0])
            self._fire_due()


def waits_text(waits: list[Wait]) -> str:
    """Return waits for people, one on a line."""
    return "\n".join(f"  {wait.task} waits since {wait.since:.6f} s for {wait.what}" for wait in waits)


def _nothing() -> None:
    return


def _raise(task: Task, e: BaseException | None) -> None:
    if e is not None:
        raise e
