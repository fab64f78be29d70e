"""`raidfs.runtime.Runtime` on the stepper: control code cannot tell it from trio, except by its speed.

The rules of switching are those of `raidfs.runtime.TrioRuntime`, no stricter and no weaker, so that what is shown here
holds there: a wait whose condition holds already does not switch; a woken waiter looks at its condition when it is its
turn, not when it is woken; a wait that was woken and then cancelled ends as woken; the end of a nursery is
always a switch. One contract suite (``tests/sim/test_runtime_contract.py``) runs over both.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

from raidfs.runtime import Wait
from raidfs.sim.scopes import Cancelled, SimCancelScope, reraised
from raidfs.sim.stepper import Group, Stepper, Task

T = TypeVar("T")


class SimWaitQueue:
    """See `raidfs.runtime.WaitQueue`."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._lot: dict[Task, None] = {}

    async def wait_event(self, condition: Callable[[], bool], *, what: str) -> None:
        """See `raidfs.runtime.WaitQueue.wait_event`."""
        if condition():
            return
        task = self._stepper.task()
        task.what = what
        task.since = self._stepper.now
        try:
            while True:
                await task.park(self._lot)
                if condition():
                    return
        finally:
            task.what = ""

    def wake_up(self) -> None:
        """See `raidfs.runtime.WaitQueue.wake_up`."""
        woken, self._lot = self._lot, {}
        for task in woken:
            task.wake()


class SimFuture(Generic[T]):
    """See `raidfs.runtime.Future`."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._lot: dict[Task, None] = {}
        self._value: list[T] = []

    def set(self, value: T) -> None:
        """See `raidfs.runtime.Future.set`."""
        if self._value:
            raise RuntimeError("the future has its value already")
        self._value.append(value)
        for task in self._lot:
            task.wake()
        self._lot.clear()

    def is_set(self) -> bool:
        """See `raidfs.runtime.Future.is_set`."""
        return bool(self._value)

    async def wait(self, *, what: str) -> T:
        """See `raidfs.runtime.Future.wait`."""
        if not self._value:
            task = self._stepper.task()
            task.what = what
            task.since = self._stepper.now
            try:
                await task.park(self._lot)
            finally:
                task.what = ""
        return self._value[0]


class SimNursery:
    """See `raidfs.runtime.Nursery`."""

    def __init__(self, stepper: Stepper, group: Group) -> None:
        self.cancel_scope = SimCancelScope(stepper)
        self._stepper = stepper
        self._group = group
        self._children: dict[Task, None] = {}
        self._owner: Task | None = None
        self._owner_waits = False
        self._errors: list[BaseException] = []
        self._open = True

    async def __aenter__(self) -> SimNursery:
        self._owner = self._stepper.task()
        self.cancel_scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: types.TracebackType | None
    ) -> bool:
        owner = self._owner
        assert owner is not None
        if e is not None:
            self._failed(e)
        if self._children:
            owner.nested = [task.name for task in self._children]
            owner.since = self._stepper.now
            self._owner_waits = True
            await owner.park_shielded()
            owner.nested = []
        else:
            self._open = False
            await owner.switch()
        self._open = False
        errors = self.cancel_scope.close(
            BaseExceptionGroup("errors of a nursery", self._errors) if self._errors else None
        )
        return reraised(e, errors)

    def start_soon(self, fn: Callable[..., Awaitable[object]], *args: object, name: str | None = None) -> None:
        """See `raidfs.runtime.Nursery.start_soon`."""
        if not self._open:
            raise RuntimeError("the nursery has ended: it takes no tasks any more")
        coro = cast("Coroutine[Any, Any, object]", fn(*args))
        task = self._stepper.spawn(
            self._group,
            coro,
            name=name or str(getattr(fn, "__qualname__", "task")),
            scope=self.cancel_scope,
            on_end=self._child_ended,
        )
        self._children[task] = None

    def _failed(self, e: BaseException) -> None:
        self._errors.append(e)
        self.cancel_scope.cancel()

    def _child_ended(self, task: Task, e: BaseException | None) -> None:
        del self._children[task]
        if e is not None:
            self._failed(e)
        if self._owner_waits:
            assert self._owner is not None
            self._owner.nested = [child.name for child in self._children]
            if not self._children:
                self._owner_waits = self._open = False
                self._owner.wake()


class SimRuntime:
    """`raidfs.runtime.Runtime` for the tasks of one group."""

    def __init__(self, stepper: Stepper, group: Group) -> None:
        self._stepper = stepper
        self._group = group

    def now(self) -> float:
        """See `raidfs.runtime.Runtime.now`."""
        return self._stepper.now

    async def sleep(self, seconds: float, *, what: str) -> None:
        """See `raidfs.runtime.Runtime.sleep`."""
        if seconds < 0:
            raise ValueError("a sleep of less than nothing")
        stepper = self._stepper
        task = stepper.task()
        if seconds == 0:
            await task.switch()
            if task.scope is not None and task.scope.effective:
                raise Cancelled
            return
        task.what = what
        task.since = stepper.now
        timer = stepper.at(stepper.now + seconds, task.wake) if seconds != float("inf") else None
        try:
            await task.park()
        finally:
            task.what = ""
            if timer is not None:
                timer.cancel()

    def wait_queue(self) -> SimWaitQueue:
        """See `raidfs.runtime.Runtime.wait_queue`."""
        return SimWaitQueue(self._stepper)

    def future(self) -> SimFuture[Any]:
        """See `raidfs.runtime.Runtime.future`."""
        return SimFuture(self._stepper)

    def open_nursery(self) -> SimNursery:
        """See `raidfs.runtime.Runtime.open_nursery`."""
        return SimNursery(self._stepper, self._group)

    def cancel_scope(self, *, deadline: float | None = None, shield: bool = False) -> SimCancelScope:
        """See `raidfs.runtime.Runtime.cancel_scope`."""
        return SimCancelScope(self._stepper, deadline=deadline, shield=shield)

    def waits(self) -> list[Wait]:
        """See `raidfs.runtime.Runtime.waits`; only those of this group."""
        return self._stepper.waits_of([self._group])
