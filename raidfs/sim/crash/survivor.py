"""A node dies beside a live one, at every write boundary: where that is, and what must be seen of the survivor.

A death comes right after a step of the simulation in which something reached a leg, ended there or was acknowledged,
and right before the next one, so that messages have been sent or not. What the node had in flight may have landed in
the ways of `raidfs.sim.crash.states`. The survivor reads all, writes, takes over, heals, reads all again and leaves.
"""

from __future__ import annotations

from collections.abc import Iterator

from raidfs.sim.crash.recording import EntryKind, LegOp, Recording
from raidfs.sim.crash.reopened import left_of, unwanted, values_of
from raidfs.sim.crash.scenario import Death
from raidfs.sim.crash.states import Cut, Cutter, Model


def deaths(recording: Recording) -> Iterator[Death]:
    """Yield every death in the last step of a recording."""
    steps = {step for entered in recording.steps[recording.last_step :] for step in (entered - 1, entered)}
    for machine in (0, 1):
        for step in sorted(steps):
            if any(who == machine and born <= step < over for who, born, over in recording.lives):
                cut = _in_flight(recording, machine, step)
                for choice in cut.choices(recording.ops):
                    yield Death(machine, step, choice)


def _in_flight(recording: Recording, machine: int, step: int) -> Cut:
    """Return the cut in which nothing is loose but the writes that a machine has in flight after a step."""
    flying: dict[int, LegOp] = {}
    for (kind, number), at in zip(recording.entries, recording.steps, strict=True):
        if at > step:
            break
        if kind is EntryKind.SUBMITTED and recording.ops[number].machine == machine:
            flying[number] = recording.ops[number]
        elif kind in (EntryKind.DONE, EntryKind.FAILED):
            flying.pop(number, None)
    loose = tuple(
        tuple(number for number, op in flying.items() if op.leg == leg and op.data is not None)
        for leg in range(len(recording.initial))
    )
    return Cut(0, Model.NODES, (), loose, ())


def broken_by_survivor(recording: Recording) -> tuple[str, str] | None:
    """Return the rule that a survivor has broken, and how; None for none."""
    places = [at for at, _ in recording.looks]
    for (at, data), wanted in zip(recording.looks, Cutter(recording).wanted(places), strict=True):
        lost = unwanted(values_of(data), wanted)
        if lost is not None:
            return "promised", f"what the survivor read at {at}: {lost}"
    if not recording.settled:
        return None
    values = values_of(recording.looks[-1][1])
    left = left_of(values, recording.final, len(values))
    if left.stale:
        return None  # what was failed stays so until a user takes it back
    outcome = left.outcome()
    return None if outcome.rule is None else (outcome.rule, f"when the survivor has left: {outcome.what}")
