"""``python -m raidfs.sim.crash``: enumerate crashes, or make one of them again."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Sequence

from raidfs.errors import EXIT_FAILED, RaidfsError
from raidfs.sim.crash.campaign import STEPS_MAX, Failure, parse_recipe, replay, run_campaign
from raidfs.sim.crash.planted import PLANTED
from raidfs.sim.crash.recording import EntryKind, LegOp, Recording, UserResize, UserWrite
from raidfs.sim.crash.reopened import RULES
from raidfs.sim.crash.scenario import STEPS, parse_scenario

STATES = 100_000

_EPILOG = "steps of a scenario:\n" + "\n".join(f"  {step:<8} {what}" for step, what in STEPS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    args = _parser().parse_args(arguments)
    if args.replay is not None:
        try:
            return _replay(args)
        except RaidfsError as e:
            print(e, file=sys.stderr)
            return e.exit_code
    started = time.perf_counter()
    chosen = [parse_scenario(text) for text in args.scenario] or None
    result = run_campaign(
        args.states, steps=args.steps, jobs=args.jobs, plant=args.plant, failures_max=args.failures, chosen=chosen
    )
    counts = result.counts
    print(
        f"{len(result.states)} distinct states of {counts['tried']} in {time.perf_counter() - started:.1f} s; "
        f"{counts['scenarios']} scenarios, {counts['leg writes']} writes and flushes of legs, {counts['cuts']} cuts"
    )
    print(
        f"{counts['deaths']} deaths beside a survivor, {counts['reopened']} arrays opened and healed, "
        f"{len(result.failures)} failures"
    )
    for failure in result.failures:
        _print_failure(failure, args.plant)
    return EXIT_FAILED if result.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raidfs.sim.crash",
        description="Run every short sequence of operations with real nodes over simulated disks, cut it at every "
        "write, leave the disks in every way that a crash may leave them, open the array again and look whether "
        "anything is lost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--states", type=int, default=STATES, metavar="N", help=f"stop after so many distinct states ({STATES})"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS_MAX, choices=range(STEPS_MAX + 1), help=f"longest scenario ({STEPS_MAX})"
    )
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        metavar="STEPS",
        help="this one only, e.g. w0,fail+b1; can be repeated",
    )
    parser.add_argument("--jobs", type=int, help="processes (one for each processor)")
    parser.add_argument("--failures", type=int, default=1, metavar="N", help="stop after so many failures (1)")
    parser.add_argument("--replay", metavar="RECIPE", help="make this state again and tell all of it")
    parser.add_argument("--save", metavar="DIR", help="with --replay: write the legs to files there, as they were left")
    parser.add_argument(
        "--plant", choices=sorted(PLANTED), metavar="NAME", help="make this mistake: " + ", ".join(PLANTED)
    )
    return parser


def _print_failure(failure: Failure, plant: str | None) -> None:
    print(f"\nFAILED {failure.scenario}: {failure.what}")
    if failure.recipe is None:
        print(f"rule {failure.rule}, while it was recorded")
        planted = f" --plant {plant}" if plant else ""
        print(f"again: python -m raidfs.sim.crash{planted} --scenario '{failure.scenario}'")
        return
    print(f"rule {failure.rule}: {RULES[failure.rule]}")
    planted = f" --plant {plant}" if plant else ""
    print(f"again: python -m raidfs.sim.crash{planted} --replay '{failure.recipe}'")


def _replay(args: argparse.Namespace) -> int:
    recipe = parse_recipe(args.replay)
    with contextlib.nullcontext() if args.plant is None else PLANTED[args.plant].patch():
        recording, images, outcome, broken = replay(recipe)
    for at, (kind, number) in enumerate(recording.entries):
        if at == recipe.at:
            there = ", ".join(f"#{number}.{piece}" for number, piece in recipe.choice) or "none"
            print(f"---- cut here, model {recipe.model.value}; the pieces of loose writes that are there: {there}")
        print(f"{at:4} {_entry(recording, kind, number)}")
    if args.save is not None:
        for leg, image in enumerate(images):
            pathlib.Path(args.save, f"disk{leg}.img").write_bytes(image)
    print(f"read: {' '.join(map(str, outcome.values))}")
    if broken is None:
        print("no rule was broken")
        return 0
    print(f"BROKEN {broken[0]}: {broken[1]}")
    return EXIT_FAILED


def _entry(recording: Recording, kind: EntryKind, number: int) -> str:
    if kind in (EntryKind.BEGUN, EntryKind.ACKNOWLEDGED):
        request = recording.requests[number]
        who = "ab"[request.machine]
        what = (
            f"write {request.value} to sectors {request.sector}+{request.sectors}"
            if isinstance(request, UserWrite)
            else f"resize to {request.sectors} sectors"
            if isinstance(request, UserResize)
            else "flush"
        )
        return f"{who}: {what} {kind.name.lower()}"
    return f"leg {recording.ops[number].leg}: #{number} {_op(recording.ops[number])} {kind.name.lower()}"


def _op(op: LegOp) -> str:
    if op.data is None:
        return "flush"
    return f"write{' (durable)' if op.durable else ''} of {len(op.data)} bytes at {op.offset}"


if __name__ == "__main__":
    sys.exit(main())
