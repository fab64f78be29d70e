"""What a mistake made on purpose is, and how one is written down: see `raidfs.sim.planted`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


@dataclasses.dataclass(frozen=True)
class Planted:
    """One mistake: what it is, which rules it may break, and the block in which it is made."""

    what: str
    rules: frozenset[str]
    patch: Callable[[], AbstractContextManager[None]]


Patch = Callable[[], Iterator[None]]


class Mistakes(dict[str, Planted]):
    """Mistakes by their names, in the order in which they were written down."""

    def plant(self, name: str, *rules: str) -> Callable[[Patch], Patch]:
        """Register a generator function as a mistake; its docstring says what the mistake is."""

        def register(fn: Patch) -> Patch:
            self[name] = Planted((fn.__doc__ or "").strip(), frozenset(rules), contextlib.contextmanager(fn))
            return fn

        return register
