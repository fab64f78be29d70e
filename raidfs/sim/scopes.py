"""Cancel scopes of the stepper, with the rules of trio's.

A scope that is cancelled cancels every wait in it, now and later, in nested scopes and in the tasks of nurseries opened
inside, except behind a shield. `Cancelled` is raised from the wait; the outermost scope to which it belongs catches it.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, ParamSpec, cast

if TYPE_CHECKING:
    from raidfs.sim.stepper import Stepper, Task, Timer

P = ParamSpec("P")


class Cancelled(BaseException):
    """Raised from a wait whose scope is cancelled."""


def inside(fn: Callable[P, Generator[None, None, None]]) -> Callable[P, Awaitable[None]]:
    """Make a generator awaitable: what it yields goes to the stepper."""
    return cast("Callable[P, Awaitable[None]]", types.coroutine(fn))


class SimCancelScope:
    """`raidfs.runtime.CancelScope` of the stepper. ``effective``: a wait in it is cancelled, by it or from outside."""

    def __init__(self, stepper: Stepper, *, deadline: float | None = None, shield: bool = False) -> None:
        self.effective = False
        self.cancelled_caught = False
        self.cancel_called = False
        self.tasks: dict[Task, None] = {}  # whose innermost scope this is
        self._stepper = stepper
        self._deadline = deadline
        self._shield = shield
        self._timer: Timer | None = None
        self._parent: SimCancelScope | None = None
        self._children: dict[SimCancelScope, None] = {}

    def cancel(self) -> None:
        """See `raidfs.runtime.CancelScope.cancel`."""
        self.cancel_called = True
        self._spread()

    def _spread(self) -> None:
        if self.effective:
            return
        self.effective = True
        for task in list(self.tasks):
            task.abort()
        for child in list(self._children):
            if not child._shield:
                child._spread()

    @property
    def _outside_is_cancelled(self) -> bool:
        return self._parent is not None and not self._shield and self._parent.effective

    def __enter__(self) -> SimCancelScope:
        task = self._stepper.task()
        self._parent = task.scope
        if self._parent is not None:
            self._parent._children[self] = None
        self.effective = self.cancel_called or self._outside_is_cancelled
        if self._deadline is not None and self._deadline != float("inf"):
            if self._deadline <= self._stepper.now:
                self.cancel()
            else:
                self._timer = self._stepper.at(self._deadline, self.cancel)
        task.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: types.TracebackType | None
    ) -> bool:
        return reraised(e, self.close(e))

    def close(self, e: BaseException | None) -> BaseException | None:
        """Leave the scope with ``e`` and return what is left of it without this scope's cancellations."""
        if self._timer is not None:
            self._timer.cancel()
        if self._parent is not None:
            self._parent._children.pop(self, None)
        task = self._stepper.current
        if task is not None:  # else the frame is being thrown away
            task.enter(self._parent)
        if e is None or not self.effective or self._outside_is_cancelled:
            return e
        if isinstance(e, Cancelled):
            self.cancelled_caught = True
            return None
        if isinstance(e, BaseExceptionGroup):
            matched, rest = e.split(Cancelled)
            self.cancelled_caught = self.cancelled_caught or matched is not None
            return rest
        return e


def reraised(e: BaseException | None, rest: BaseException | None) -> bool:
    """Return what ``__exit__`` returns for ``e`` when ``rest`` is left of it, or raise ``rest`` when it is another."""
    if rest is None:
        return True
    if rest is e:
        return False
    context = rest.__context__
    try:
        raise rest
    finally:
        rest.__context__ = context
