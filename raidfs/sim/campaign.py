"""Campaigns: many schedules, on all processors, and what came of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from raidfs.sim.cluster import Outcome, simulate
from raidfs.sim.draw import make_plan
from raidfs.sim.plan import Plan
from raidfs.sim.planted import PLANTED
from raidfs.sim.shrink import shrink

SEEDS_PER_CAMPAIGN = 1_000_000  # schedule i of campaign s has the seed s * this + i
CHUNK = 25  # schedules that a process does before it tells


@dataclasses.dataclass(frozen=True)
class Failure:
    """A schedule that broke a rule: its seed, the rule and the words."""

    seed: int
    rule: str
    text: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of schedules; ``counts`` has events by kind."""

    schedules: int
    steps: int
    counts: Counter[str]
    failures: tuple[Failure, ...]

    def __add__(self, other: Result) -> Result:
        return Result(
            self.schedules + other.schedules,
            self.steps + other.steps,
            self.counts + other.counts,
            tuple(sorted((*self.failures, *other.failures), key=lambda failure: failure.seed)),
        )

    @property
    def first_failure(self) -> Failure | None:
        """The failure with the smallest seed."""
        return self.failures[0] if self.failures else None


NOTHING = Result(0, 0, Counter(), ())


@dataclasses.dataclass(frozen=True)
class _Work:
    seeds: tuple[int, ...]
    machines: int | None
    plant: str | None
    failures_max: int


def seeds_of(campaign: int, schedules: int) -> range:
    """Return the seeds of a campaign's schedules."""
    first = campaign * SEEDS_PER_CAMPAIGN
    return range(first, first + schedules)


def run_campaign(
    seeds: Sequence[int],
    *,
    machines: int | None = None,
    plant: str | None = None,
    jobs: int | None = None,
    failures_max: int = 1,
) -> Result:
    """Run the schedules of ``seeds``, with ``machines`` each (None: as the seed says), until so many have failed.

    ``plant`` names a mistake of `raidfs.sim.planted` to make on purpose. ``jobs`` processes are used, by default one
    for each processor; with one it is this process, and the first failure is that of the smallest seed.
    """
    jobs = jobs or os.cpu_count() or 1
    total = NOTHING
    work = [_Work(tuple(seeds[at : at + CHUNK]), machines, plant, failures_max) for at in range(0, len(seeds), CHUNK)]
    with _results(work, jobs) as results:
        for result in results:
            total += result
            if len(total.failures) >= failures_max:
                break
    return total


def shrunk(seed: int, rule: str, *, machines: int | None = None, plant: str | None = None) -> tuple[Plan, Outcome]:
    """Return the smallest plan found that breaks ``rule`` as that of ``seed`` does, and its outcome with a trace."""

    def breaks(plan: Plan) -> str | None:
        failure = simulate(plan).failure
        return failure.rule if failure is not None else None

    with planted_mistake(plant):
        plan = shrink(make_plan(seed, machines=machines), rule, breaks)
        return plan, simulate(plan, keep_trace=True)


def planted_mistake(name: str | None) -> contextlib.AbstractContextManager[None]:
    """Return the block in which the code has this mistake; None is no mistake."""
    return contextlib.nullcontext() if name is None else PLANTED[name].patch()


@contextlib.contextmanager
def _results(work: Sequence[_Work], jobs: int) -> Iterator[Iterator[Result]]:
    if jobs == 1 or len(work) == 1:
        yield map(_run, work)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(work)), initializer=gc.freeze) as pool:
        yield iter(pool.imap_unordered(_run, work))


def _run(work: _Work) -> Result:
    total = NOTHING
    with planted_mistake(work.plant):
        for seed in work.seeds:
            outcome = simulate(make_plan(seed, machines=work.machines))
            failures: tuple[Failure, ...] = ()
            if outcome.failure is not None:
                failures = (Failure(seed, outcome.failure.rule, str(outcome.failure)),)
            total += Result(1, outcome.steps, outcome.counts, failures)
            if len(total.failures) >= work.failures_max:
                break
    return total
