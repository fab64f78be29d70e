"""``python -m raidfs.sim``: run schedules, or one of them again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from raidfs.errors import EXIT_FAILED
from raidfs.sim.campaign import Failure, Result, planted_mistake, run_campaign, seeds_of, shrunk
from raidfs.sim.checkers import RULES
from raidfs.sim.cluster import Outcome, simulate
from raidfs.sim.draw import make_plan
from raidfs.sim.plan import MACHINES_MAX, OF_A_DISK, Life, Op, OpKind, Plan
from raidfs.sim.planted import PLANTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    args = _parser().parse_args(arguments)
    if args.replay is not None:
        return _replay(args)
    started = time.perf_counter()
    seeds = seeds_of(args.seed, args.schedules)
    result = run_campaign(seeds, machines=args.nodes, plant=args.plant, jobs=args.jobs, failures_max=args.failures)
    _print_result(result, time.perf_counter() - started)
    for failure in result.failures:
        _print_failure(failure, args)
    if result.first_failure is not None and args.shrink:
        _print_shrunk(result.first_failure, args)
    return EXIT_FAILED if result.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raidfs.sim",
        description="Run real nodes on simulated machines, disks and locks through many schedules and check that no "
        "promise is broken. The same seed gives the same schedule, event by event.",
    )
    parser.add_argument("--schedules", type=int, default=1000, metavar="N", help="how many schedules (1000)")
    parser.add_argument("--seed", type=int, default=1, help="which campaign: other seeds, other schedules (1)")
    parser.add_argument(
        "--nodes", type=int, choices=range(1, MACHINES_MAX + 1), help="nodes of every schedule (2 to 5)"
    )
    parser.add_argument("--jobs", type=int, help="processes (one for each processor)")
    parser.add_argument("--failures", type=int, default=1, metavar="N", help="stop after so many failures (1)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run the schedule of this seed and print its trace")
    parser.add_argument(
        "--plant", choices=sorted(PLANTED), metavar="NAME", help="make this mistake: " + ", ".join(PLANTED)
    )
    parser.add_argument(
        "--no-shrink", dest="shrink", action="store_false", help="do not make a failing schedule smaller"
    )
    return parser


def _replay(args: argparse.Namespace) -> int:
    with planted_mistake(args.plant):
        outcome = simulate(make_plan(args.replay, machines=args.nodes), keep_trace=True)
    sys.stdout.write(outcome.trace.text())
    print(f"seed {args.replay}: {outcome.steps} steps, trace {outcome.trace.digest()}")
    if outcome.failure is None:
        print("no rule was broken")
        return 0
    _print_broken(outcome)
    return EXIT_FAILED


def _print_result(result: Result, seconds: float) -> None:
    counts = result.counts
    print(
        f"{result.schedules} schedules, {result.steps} steps in {seconds:.1f} s ({result.steps / seconds:.0f} a second)"
    )
    print(
        f"{counts['start']} runs of nodes: {counts['joined']} joined, {counts['left']} left, {counts['crash']} crashed"
    )
    print(
        f"{counts['stop-request']} stop requests, {counts['pause']} pauses, {counts['locks-lost']} lost the locks, "
        f"{counts['power-loss']} disks lost power, {counts['error']} requests failed"
    )
    print(
        f"{counts['written']} writes, {counts['read']} reads, {counts['flushed']} flushes acknowledged: "
        f"{counts['written'] + counts['read']} reads and writes checked"
    )
    print(
        f"{counts['copied']} blocks ({counts['copied-bytes']} bytes) copied by syncs; legs: {counts['re-add']} back, "
        f"{counts['add'] + counts['add-spare']} added, {counts['leg-failed']} failed by users, "
        f"{counts['remove']} removed; {counts['healed']} times seen healed"
    )
    print(
        f"{counts['touched'] + counts['leg-failed']} metadata updates, {counts['published']} messages between nodes, "
        f"{counts['given-up']} given up; {counts['message']} requests to the lock manager"
    )
    print(f"{len(result.failures)} failures")


def _again(args: argparse.Namespace, seed: int) -> str:
    nodes = f" --nodes {args.nodes}" if args.nodes else ""
    plant = f" --plant {args.plant}" if args.plant else ""
    return f"python -m raidfs.sim --replay {seed}{nodes}{plant}"


def _print_failure(failure: Failure, args: argparse.Namespace) -> None:
    print(f"\nFAILED seed {failure.seed}: {failure.text}")
    print(f"rule {failure.rule}: {RULES.get(failure.rule, 'the simulation must come to an end')}")
    print(f"again: {_again(args, failure.seed)}")


def _print_broken(outcome: Outcome) -> None:
    assert outcome.failure is not None
    print(f"BROKEN {outcome.failure}")


def _print_shrunk(failure: Failure, args: argparse.Namespace) -> None:
    print("\nmaking it smaller ...")
    plan, outcome = shrunk(failure.seed, failure.rule, machines=args.nodes, plant=args.plant)
    print(plan_text(plan))
    sys.stdout.write(outcome.trace.text())
    if outcome.failure is not None:
        _print_broken(outcome)


def plan_text(plan: Plan) -> str:
    """Return a plan for people."""
    lines = [
        f"plan: schedule {plan.schedule_seed}, {plan.legs} legs, {plan.spares} spares, {plan.fresh} new disks, "
        f"windows of {plan.window_sectors} sectors, {plan.healers} healers, "
        + ("even picking" if not plan.pct_depth else f"PCT of depth {plan.pct_depth}")
        + ("" if plan.clean else ", not clean")
        + (f", power loss at {plan.power_loss_s:.3f} s" if plan.power_loss_s is not None else "")
        + (f", power loss after {plan.power_loss_after} flushes" if plan.power_loss_after is not None else "")
    ]
    lines += [f"  disk{disk}: write or flush number {nth} fails" for disk, nth in plan.fail_writes]
    lines += [f"  disk{disk}: read number {nth} fails" for disk, nth in plan.fail_reads]
    for machine, lives in enumerate(plan.machines):
        for number, life in enumerate(lives):
            without = f" without disk{life.missing_leg}" if life.missing_leg is not None else ""
            lines.append(f"  m{machine}.{number} starts{without} after {life.start_after_s} s{_faults_text(life)}")
            lines += [f"    user: {', '.join(_op_text(op) for op in ops) or 'nothing'}" for ops in life.workers]
    return "\n".join(lines)


def _faults_text(life: Life) -> str:
    return "".join(
        f"; {fault.kind.value} at its step {fault.at_step}" + (f" for {fault.seconds} s" if fault.seconds else "")
        for fault in life.faults
    )


def _op_text(op: Op) -> str:
    if op.kind in (OpKind.READ, OpKind.WRITE, OpKind.WRITE_DURABLE):
        return f"{op.kind.value} {op.sector}+{op.sectors}"
    if op.kind in OF_A_DISK:
        return f"{op.kind.value} disk{op.leg}"
    if op.kind is OpKind.RAID_DEVICES:
        return f"{op.kind.value} {op.count}"
    rest = f" {op.rest_s} s" if op.rest_s else ""
    give_up = f" for at most {op.give_up_s} s" if op.give_up_s is not None else ""
    return f"{op.kind.value}{rest}{give_up}"


if __name__ == "__main__":
    sys.exit(main())
