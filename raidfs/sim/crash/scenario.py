"""What is enumerated: sequences of up to three steps of two nodes, written as words.

``w0,flush+b1/slow1``: node a writes into chunk 0; when that has returned it flushes, and at the same time node b writes
into chunk 1; leg 1 answers later than leg 0. ``,`` waits for what came before, ``+`` does not. With ``!a57:8.0,12.1``
at its end node a dies right after step 57 of the simulation, and of what it had in flight these pieces have landed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from raidfs.errors import BadArguments


@dataclasses.dataclass(frozen=True)
class Write:
    """A user's write; sectors of the array."""

    machine: int
    sector: int
    sectors: int
    durable: bool = False


WRITES = {
    "w0": Write(0, 0, 2),  # chunk 0, two sectors: it can be torn
    "w1": Write(0, 7, 2),  # the end of chunk 0 and the beginning of chunk 1
    "d1": Write(0, 10, 1, durable=True),  # chunk 1
    "b0": Write(1, 4, 2),  # chunk 0 by the other node
    "b1": Write(1, 12, 2),  # chunk 1 by the other node
}
STEPS = {
    "w0": "node a writes two sectors of chunk 0",
    "w1": "node a writes the last sector of chunk 0 and the first of chunk 1",
    "d1": "node a writes a sector of chunk 1, durably",
    "b0": "node b writes two sectors of chunk 0",
    "b1": "node b writes two sectors of chunk 1",
    "flush": "node a flushes",
    "bflush": "node b flushes",
    "fail": "node a fails leg 0, the one that is read first",
    "bfail": "node b fails leg 1",
    "break": "leg 0 fails every write and flush from now on",
    "readd": "node a takes leg 0 back, which works again",
    "breadd": "node b takes leg 1 back",
    "repair": "node a compares and repairs",
    "sync": "until no sync runs any more on any node",
    "grow": "node a makes the array two chunks larger than at first",
    "bshrink": "node b makes it one chunk smaller than at first",
    "stop": "node a leaves",
    "bstop": "node b leaves",
    "die": "node a dies; its writes in flight are lost",
    "bdie": "node b dies; its writes in flight are lost",
    "age": "16 seconds pass, in which idle bits are cleared",
}
NODE_B = frozenset({"b0", "b1", "bflush", "bfail", "breadd", "bshrink", "bstop", "bdie"})
_ALONE = {"age", "die", "bdie", "break", "sync"}  # what takes no time, or only time, goes on beside nothing
SLOW = (0, 1)

Piece = tuple[int, int]
"""Number of a leg operation, and of a piece of it."""

Choice = tuple[Piece, ...]
"""The pieces of writes in flight that are there, in the order of submission."""


@dataclasses.dataclass(frozen=True)
class Death:
    """A node dies beside the other one, who goes on: after which step, and what of its writes in flight has landed."""

    machine: int
    step: int
    landed: Choice

    def __str__(self) -> str:
        return f"{'ab'[self.machine]}{self.step}:{choice_text(self.landed)}"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A sequence; ``together[n]`` says that step n does not wait for the one before it (``together[0]`` is False)."""

    steps: tuple[str, ...]
    together: tuple[bool, ...]
    slow: int = 1
    death: Death | None = None

    def __str__(self) -> str:
        words = "".join(
            ("" if number == 0 else "+" if together else ",") + step
            for number, (step, together) in enumerate(zip(self.steps, self.together, strict=True))
        )
        return f"{words}/slow{self.slow}" + (f"!{self.death}" if self.death is not None else "")


def choice_text(choice: Choice) -> str:
    """Return a choice as it is written."""
    return ",".join(f"{number}.{piece}" for number, piece in choice)


def parse_choice(text: str) -> Choice:
    """Return the choice that `choice_text` wrote; raises ValueError."""
    pieces = [word.split(".") for word in text.split(",") if word]
    return tuple((int(number), int(piece)) for number, piece in pieces)


def parse_scenario(text: str) -> Scenario:
    """Return the scenario that `Scenario.__str__` wrote; raises BadArguments."""
    text, _, end = text.partition("!")
    words, _, order = text.partition("/")
    steps: list[str] = []
    together: list[bool] = []
    for group in words.split(",") if words else []:
        for number, step in enumerate(group.split("+")):
            if step not in STEPS:
                raise BadArguments(problem=f"{step!r} is no step", program="python -m raidfs.sim.crash")
            steps.append(step)
            together.append(number > 0)
    slow = {"": 1, "slow0": 0, "slow1": 1}
    if order not in slow:
        raise BadArguments(problem=f"{order!r} is no order", program="python -m raidfs.sim.crash")
    return Scenario(tuple(steps), tuple(together), slow[order], _parse_death(end))


def _parse_death(text: str) -> Death | None:
    if not text:
        return None
    who, _, landed = text.partition(":")
    try:
        return Death("ab".index(who[:1] or "?"), int(who[1:]), parse_choice(landed))
    except ValueError:
        raise BadArguments(problem=f"{text!r} is no death", program="python -m raidfs.sim.crash") from None


def scenarios(length: int) -> Iterator[Scenario]:
    """Return all scenarios of so many steps, without those with a step that does nothing."""
    for steps in itertools.product(STEPS, repeat=length):
        if _has_idle_step(steps):
            continue
        pairs = list(itertools.pairwise(steps))
        choices = [(False,) if {*pair} & _ALONE else (False, True) for pair in pairs]
        for together in itertools.product(*choices):
            for slow in SLOW:
                yield Scenario(steps, (False, *together)[:length], slow)


# The steps that make a step do nothing until one of the others has come in between.
_IDLE_AFTER = {
    "flush": ({"flush", "stop", "die"}, {"w0", "w1"}),
    "bflush": ({"bflush", "bstop", "bdie"}, {"b0", "b1"}),
    "stop": ({"stop", "die"}, {"w0", "w1", "d1", "fail"}),
    "die": ({"stop", "die"}, {"w0", "w1", "d1", "fail"}),
    "bstop": ({"bstop", "bdie"}, {"b0", "b1", "bfail"}),
    "bdie": ({"bstop", "bdie"}, {"b0", "b1", "bfail"}),
    "age": ({"age"}, {*STEPS} - {"age", "flush", "bflush", "break"}),
    "fail": ({"fail"}, {"readd"}),
    "bfail": ({"bfail"}, {"breadd"}),
    "break": ({"break", "fail"}, {"readd"}),
    "grow": ({"grow"}, {"bshrink"}),
    "bshrink": ({"bshrink"}, {"grow"}),
    "readd": ({"readd"}, {"fail", "break"}),
    "breadd": ({"breadd"}, {"bfail"}),
    "sync": ({"sync"}, {"readd", "breadd", "die", "bdie", "repair"}),
}
_NEEDS = {"readd": {"fail", "break"}, "breadd": {"bfail"}, "sync": {"readd", "breadd", "die", "bdie", "repair"}}


def _has_idle_step(steps: tuple[str, ...]) -> bool:
    for number, step in enumerate(steps):
        after, ends = _IDLE_AFTER.get(step, (set(), set()))
        if step in _NEEDS and not _NEEDS[step] & {*steps[:number]}:
            return True
        for earlier in reversed(steps[:number]):
            if earlier in ends:
                break
            if earlier in after:
                return True
    return False
