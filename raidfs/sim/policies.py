"""Scheduling policies: which of the things that can run goes next.

`RandomPolicy` picks evenly. `PctPolicy` is probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi,
Nagarakatte: "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010): everything has a
random priority and the highest runs; at d - 1 random steps of the schedule whatever runs is put below all others.
A bug that needs d events in one order is found by a schedule of k steps and n tasks with a chance of at least
1 / (n * k ** (d - 1)), whereas even picking hardly ever lets one task wait for very long.
"""

from __future__ import annotations

from random import Random

from raidfs.sim.stepper import Runnable


class RandomPolicy:
    """Each thing that can run is as likely as every other."""

    def __init__(self, rng: Random) -> None:
        self._random = rng.random

    def admit(self) -> float:
        """See `raidfs.sim.stepper.Policy`."""
        return 0.0

    def pick(self, ready: list[Runnable]) -> Runnable:
        """See `raidfs.sim.stepper.Policy`."""
        last = ready.pop()
        index = int(self._random() * (len(ready) + 1))
        if index == len(ready):
            return last
        picked = ready[index]
        ready[index] = last
        return picked


class PctPolicy:
    """The highest priority goes first; ``depth`` is the paper's d, ``steps`` its k, the expected length of a schedule.

    Priorities of things are in [1, 2); the i-th change point lowers what runs to -i.
    """

    def __init__(self, rng: Random, *, depth: int, steps: int) -> None:
        self._random = rng.random
        self._step = 0
        self._changes = sorted((rng.randrange(1, steps) for _ in range(depth - 1)), reverse=True)
        self._lowered = 0

    def admit(self) -> float:
        """See `raidfs.sim.stepper.Policy`."""
        return 1.0 + self._random()

    def pick(self, ready: list[Runnable]) -> Runnable:
        """See `raidfs.sim.stepper.Policy`."""
        self._step += 1
        best = max(range(len(ready)), key=lambda index: ready[index].priority)
        while self._changes and self._changes[-1] <= self._step:
            self._changes.pop()
            self._lowered += 1
            ready[best].priority = -float(self._lowered)
            best = max(range(len(ready)), key=lambda index: ready[index].priority)
        return ready.pop(best)
