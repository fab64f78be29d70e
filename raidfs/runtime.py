"""The runtime that control code is written against, and its trio side.

Control code (node, cluster, array) never imports trio, never reads a clock and never draws a random number.
It receives a `Runtime` and waits only through it. There are two implementations of the same interface: trio in
production (`TrioRuntime`) and a deterministic, seeded stepper in the simulator, so that the very same
coroutines can be run through thousands of schedules.

Waiting is md's way: a `WaitQueue` with ``wait_event(condition)`` and ``wake_up()``. The condition is looked at
only when somebody wakes the queue, so whoever makes a condition true must wake; a forgotten wake-up shows as
a hang in the simulator and not as a slow poll in production. Every wait says in words what it waits for, and
`Runtime.waits` lists all of them: nothing in the system waits unseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import trio

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Wait:
    """One wait that is going on: the task's name, what it waits for in words, and since when (seconds)."""

    task: str
    what: str
    since: float


class WaitQueue(Protocol):
    """Tasks that sleep until a condition holds."""

    async def wait_event(self, condition: Callable[[], bool], *, what: str) -> None:
        """Return once ``condition()`` is true; it is evaluated at once and then after each `wake_up`.

        No other task runs between the evaluation that gave true and the return.
        """

    def wake_up(self) -> None:
        """Let every waiter look at its condition again."""


class Future(Protocol[T]):
    """A value that one task will set and others wait for."""

    def set(self, value: T) -> None:
        """Give the value; a second call is an error."""

    def is_set(self) -> bool:
        """Tell whether the value is there."""

    async def wait(self, *, what: str) -> T:
        """Return the value as soon as it is there."""


class CancelScope(Protocol):
    """A block that can be cancelled from outside; cancelled waits raise the runtime's cancellation."""

    def cancel(self) -> None:
        """Cancel every wait inside the block, now and later."""

    @property
    def cancelled_caught(self) -> bool:
        """Whether the block was left because of `cancel` or its deadline."""


class Nursery(Protocol):
    """Owner of tasks; the block that opened it does not end before they have."""

    cancel_scope: Any

    def start_soon(self, fn: Callable[..., Awaitable[object]], *args: object, name: str | None = None) -> None:
        """Start ``fn(*args)`` as a task of this nursery."""


class Runtime(Protocol):
    """Tasks, waiting and time."""

    def now(self) -> float:
        """Return seconds of a monotonic clock that has no meaning beyond differences."""

    async def sleep(self, seconds: float, *, what: str) -> None:
        """Wait for the time to pass."""

    def wait_queue(self) -> WaitQueue:
        """Return a new wait queue."""

    def future(self) -> Future[Any]:
        """Return a new future."""

    def open_nursery(self) -> contextlib.AbstractAsyncContextManager[Nursery]:
        """Open a nursery for ``async with``."""

    def cancel_scope(
        self, *, deadline: float | None = None, shield: bool = False
    ) -> contextlib.AbstractContextManager[CancelScope]:
        """Open a cancel scope for ``with``; ``deadline`` is a time of `now`, ``shield`` keeps outer cancels away."""

    def waits(self) -> list[Wait]:
        """Return all waits that are going on, oldest first."""


class _TrioWaits:
    """The table of waits of one runtime."""

    def __init__(self) -> None:
        self._waits: dict[int, Wait] = {}
        self._next = 0

    @contextlib.contextmanager
    def recorded(self, what: str) -> Iterator[None]:
        key = self._next
        self._next += 1
        self._waits[key] = Wait(trio.lowlevel.current_task().name, what, trio.current_time())
        try:
            yield
        finally:
            del self._waits[key]

    def all(self) -> list[Wait]:
        return list(self._waits.values())


class TrioWaitQueue:
    """`WaitQueue` on trio's parking lot."""

    def __init__(self, waits: _TrioWaits) -> None:
        self._lot = trio.lowlevel.ParkingLot()
        self._waits = waits

    async def wait_event(self, condition: Callable[[], bool], *, what: str) -> None:
        """See `WaitQueue.wait_event`."""
        if condition():
            return
        with self._waits.recorded(what):
            while True:
                await self._lot.park()
                if condition():
                    return

    def wake_up(self) -> None:
        """See `WaitQueue.wake_up`."""
        self._lot.unpark_all()


class TrioFuture(Generic[T]):
    """`Future` on a trio event."""

    def __init__(self, waits: _TrioWaits) -> None:
        self._event = trio.Event()
        self._waits = waits
        self._value: list[T] = []

    def set(self, value: T) -> None:
        """See `Future.set`."""
        if self._value:
            raise RuntimeError("the future has its value already")
        self._value.append(value)
        self._event.set()

    def is_set(self) -> bool:
        """See `Future.is_set`."""
        return bool(self._value)

    async def wait(self, *, what: str) -> T:
        """See `Future.wait`."""
        if not self._value:
            with self._waits.recorded(what):
                await self._event.wait()
        return self._value[0]


class TrioRuntime:
    """`Runtime` on trio."""

    def __init__(self) -> None:
        self._waits = _TrioWaits()

    def now(self) -> float:
        """See `Runtime.now`."""
        return trio.current_time()

    async def sleep(self, seconds: float, *, what: str) -> None:
        """See `Runtime.sleep`."""
        with self._waits.recorded(what):
            await trio.sleep(seconds)

    def wait_queue(self) -> TrioWaitQueue:
        """See `Runtime.wait_queue`."""
        return TrioWaitQueue(self._waits)

    def future(self) -> TrioFuture[Any]:
        """See `Runtime.future`."""
        return TrioFuture(self._waits)

    def open_nursery(self) -> contextlib.AbstractAsyncContextManager[trio.Nursery]:
        """See `Runtime.open_nursery`."""
        return trio.open_nursery()

    def cancel_scope(
        self, *, deadline: float | None = None, shield: bool = False
    ) -> contextlib.AbstractContextManager[trio.CancelScope]:
        """See `Runtime.cancel_scope`."""
        return trio.CancelScope(deadline=float("inf") if deadline is None else deadline, shield=shield)

    def waits(self) -> list[Wait]:
        """See `Runtime.waits`."""
        return self._waits.all()
