"""Enumerating: all scenarios up to a length, every cut, every choice; distinct states only, on all processors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

from raidfs.errors import BadArguments
from raidfs.sim.crash.planted import PLANTED
from raidfs.sim.crash.recording import Recording, quiet, record
from raidfs.sim.crash.reopened import Outcome, Reopener, broken_promise, reopen
from raidfs.sim.crash.scenario import Choice, Scenario, choice_text, parse_choice, parse_scenario, scenarios
from raidfs.sim.crash.states import Cut, Cutter, Model, Pieces, digest_of
from raidfs.sim.crash.survivor import broken_by_survivor, deaths

STEPS_MAX = 3
ALL_DEATHS_STEPS = 1  # of scenarios that are shorter every death is tried, of others DEATHS that are drawn
DEATHS = 2
CUT_OF = 4  # in one of so many of what survivors do both die at some place, too
CHUNK = 32  # scenarios that a process does before it tells
_PROGRAM = "python -m raidfs.sim.crash"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One state: a scenario, where it was cut, the model, and what of the loose writes was there.

    Written ``w0,flush/slow0@24S:8.0,12.0,12.1``: numbers of leg operations and of their pieces.
    """

    scenario: Scenario
    at: int
    model: Model
    choice: Choice

    def __str__(self) -> str:
        return f"{self.scenario}@{self.at}{self.model.value}:{choice_text(self.choice)}"


def parse_recipe(text: str) -> Recipe:
    """Return the recipe that `Recipe.__str__` wrote; raises BadArguments."""
    scenario, _, rest = text.partition("@")
    cut, _, there = rest.partition(":")
    try:
        return Recipe(parse_scenario(scenario), int(cut[:-1]), Model(cut[-1:]), parse_choice(there))
    except ValueError:
        raise BadArguments(problem=f"{text!r} is no recipe", program=_PROGRAM) from None


@dataclasses.dataclass(frozen=True)
class Failure:
    """A broken rule; ``recipe`` makes the state again, None when the nodes failed while the scenario was recorded."""

    scenario: Scenario
    recipe: Recipe | None
    rule: str
    what: str


@dataclasses.dataclass
class Result:
    """What came of scenarios; ``states`` are digests of the distinct ones, ``counts`` of scenarios, cuts and so on."""

    states: set[bytes] = dataclasses.field(default_factory=set)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: list[Failure] = dataclasses.field(default_factory=list)


def run_campaign(
    states: int,
    *,
    steps: int = STEPS_MAX,
    jobs: int | None = None,
    plant: str | None = None,
    failures_max: int = 1,
    chosen: Sequence[Scenario] | None = None,
) -> Result:
    """Enumerate until there are so many distinct states (rounded up to whole chunks), or no more, or failures.

    Scenarios of fewer than three steps come first and in order; those of three in a shuffled one, always the same.
    ``chosen`` takes these and no other ones. ``jobs`` processes are used, by default one for each processor; how many
    makes no difference to the result.
    """
    total = Result()
    jobs = jobs or os.cpu_count() or 1
    every = itertools.chain.from_iterable(map(_in_order, range(steps + 1))) if chosen is None else iter(chosen)
    with _results(_chunks(every), jobs, plant) as results:
        for result in results:
            total.states |= result.states
            total.counts += result.counts
            total.failures += result.failures
            if len(total.states) >= states or len(total.failures) >= failures_max:
                break
    return total


def replay(recipe: Recipe) -> tuple[Recording, tuple[bytes, ...], Outcome, tuple[str, str] | None]:
    """Make a state again: the recording, the legs, what a node makes of them, and the rule that is broken and how."""
    recording = record(recipe.scenario)
    cut = next((cut for cut in Cutter(recording).cuts(only=recipe.at) if cut.model is recipe.model), None)
    if cut is None or not {number for number, _ in recipe.choice} <= {n for loose in cut.loose for n in loose}:
        raise BadArguments(problem=f"{recipe} is no state of the scenario", program=_PROGRAM)
    images = cut.images(recipe.choice, recording.ops)
    outcome = reopen(images)
    return recording, images, outcome, broken_promise(outcome, cut.wanted)


def _chunks(every: Iterator[Scenario]) -> Iterator[tuple[Scenario, ...]]:
    while chunk := tuple(itertools.islice(every, CHUNK)):
        yield chunk


def _in_order(length: int) -> Sequence[Scenario]:
    found = list(scenarios(length))
    if length >= STEPS_MAX:
        Random(0).shuffle(found)
    return found


@contextlib.contextmanager
def _results(chunks: Iterator[tuple[Scenario, ...]], jobs: int, plant: str | None) -> Iterator[Iterator[Result]]:
    work = functools.partial(_run, plant=plant)
    if jobs == 1:
        _reopener.forget()
        yield map(work, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=gc.freeze) as pool:
        yield pool.imap(work, list(chunks))


# Keeps what was found of legs in this process; a mistake that is planted is the same for the whole life of a process,
# or of a campaign.
_reopener = Reopener()


def _run(chunk: Sequence[Scenario], *, plant: str | None) -> Result:
    result = Result()
    opened = _reopener.opened
    with quiet(), contextlib.nullcontext() if plant is None else PLANTED[plant].patch():
        seen: set[int] = set()
        for scenario in chunk:
            _enumerate(scenario, result, seen)
    result.counts["reopened"] += _reopener.opened - opened
    return result


def _enumerate(scenario: Scenario, result: Result, seen: set[int]) -> None:
    recording = _recorded(scenario, result)
    if recording is None:
        return
    result.counts["scenarios"] += 1
    broken: set[str] = set()
    # What lies before the last step, or the death, was seen with the shorter scenario.
    for cut in Cutter(recording).cuts(start=recording.last_step):
        _try(cut, scenario, recording, result, seen, broken)
    if scenario.death is not None:
        return
    rng = Random(str(scenario))
    found = list(deaths(recording))
    if len(scenario.steps) >= ALL_DEATHS_STEPS:
        found = rng.sample(found, min(len(found), DEATHS))
    for death in found:
        deadly = dataclasses.replace(scenario, death=death)
        survived = _recorded(deadly, result)
        if survived is not None:
            result.counts["deaths"] += 1
            if rng.randrange(CUT_OF):
                continue
            at = rng.randint(survived.last_step, len(survived.entries))
            for cut in Cutter(survived).cuts(only=at):
                _try(cut, deadly, survived, result, seen, broken)


def _recorded(scenario: Scenario, result: Result) -> Recording | None:
    recording = record(scenario)
    result.counts["leg writes"] += len(recording.ops)
    broken = ("recording", recording.problem) if recording.problem is not None else broken_by_survivor(recording)
    if broken is not None:
        result.failures.append(Failure(scenario, None, *broken))
        return None
    return recording


def _try(cut: Cut, scenario: Scenario, recording: Recording, result: Result, seen: set[int], broken: set[str]) -> None:
    result.counts["cuts"] += 1
    key = hash(cut.key(recording.ops))
    if key in seen:
        return
    seen.add(key)
    demands = repr([sorted(values) for values in cut.wanted]).encode()
    pieces = Pieces(cut, recording.ops)
    for choice in cut.choices(recording.ops):
        result.counts["tried"] += 1
        legs = pieces.legs(choice)
        state = digest_of(*[leg.digest for leg in legs], demands)
        if state in result.states:
            continue
        result.states.add(state)
        found = broken_promise(_reopener.outcome(legs), cut.wanted)
        if found is not None and found[0] not in broken:
            broken.add(found[0])
            recipe = Recipe(scenario, cut.at, cut.model, choice)
            result.failures.append(Failure(scenario, recipe, *found))
