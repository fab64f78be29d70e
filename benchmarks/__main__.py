"""The command line of the benchmark; see ``scripts/bench --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import pathlib
import sys
import tempfile
from typing import Any

from benchmarks import facts, fio, first_touch, plot, profiles, report, workers
from benchmarks.targets import TARGETS, Target, TargetMissing, measures

SCHEMA_VERSION = 1
FIRST_TOUCH_BYTES = 4 << 30
RESULTS = pathlib.Path(__file__).parent
MEDIA = {"tmpfs": pathlib.Path("/dev/shm"), "disk": pathlib.Path("/var/tmp")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure a node with fio, beside one raw leg and qemu-storage-daemon's mirror. Targets take turns, "
        "so that what else happens on the machine hits all of them. Prints a Markdown table and keeps the figures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each job runs on each target")
    parser.add_argument("--seconds", type=float, default=4, metavar="S", help="how long each run takes")
    parser.add_argument("--size-mib", type=int, default=512, metavar="M", help="size of each leg")
    parser.add_argument("--medium", choices=[*MEDIA, "both"], default="both", help="where the legs are")
    parser.add_argument("--tmpfs-dir", type=pathlib.Path, default=MEDIA["tmpfs"], metavar="DIR", help="legs in memory")
    parser.add_argument("--disk-dir", type=pathlib.Path, default=MEDIA["disk"], metavar="DIR", help="legs on a disk")
    parser.add_argument(
        "--rows", nargs="+", choices=fio.ROWS, default=fio.ROWS, metavar="ROW", help="jobs of scripts/fio"
    )
    parser.add_argument(
        "--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET", help="what is measured"
    )
    parser.add_argument("--host-kind", default=facts.host_kind(), metavar="NAME", help="for the name of the result")
    parser.add_argument("--no-keep", action="store_true", help="print only; keep nothing in benchmarks/")
    parser.add_argument(
        "--table",
        type=pathlib.Path,
        metavar="JSON",
        help="print the table of a kept result (of its --rows and --targets), and end",
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="JSON", help="draw a kept result as SVG beside it, and end"
    )
    parser.add_argument(
        "--compare", type=pathlib.Path, nargs=2, metavar="JSON", help="print how two kept results differ, and end"
    )
    parser.add_argument("--profile", action="store_true", help="perf of a node for the four main rows, kept beside")
    parser.add_argument("--note", default="", metavar="TEXT", help="kept with the facts about the host")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        metavar="N",
        help="instead: pools of N leg I/O threads, without FUSE, at depth 32",
    )
    return parser


def main() -> int:
    """Measure, print, keep; returns the exit code."""
    options = _parser().parse_args()
    if options.table:
        print(report.markdown(json.loads(options.table.read_text()), options.rows, options.targets))
        return 0
    if options.plot:
        plot.draw(json.loads(options.plot.read_text()), options.plot.with_suffix(".svg"))
        return 0
    if options.compare:
        print(report.compare(*(json.loads(path.read_text()) for path in options.compare)))
        return 0
    began = datetime.datetime.now(datetime.UTC)
    document: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "date": f"{began:%Y-%m-%d %H:%M} UTC",
        "host": facts.host_facts() | ({"note": options.note} if options.note else {}),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "size_bytes": options.size_mib << 20,
    }
    places = {"tmpfs": options.tmpfs_dir, "disk": options.disk_dir}
    chosen = [options.medium] if options.medium != "both" else list(places)
    measure = _workers if options.workers else _medium
    document["media"] = [measure(options, name, places[name]) for name in chosen]
    if not options.workers:
        print(report.markdown(document, options.rows, options.targets))
    found = [f"{medium['name']}\n\n{medium.pop('profiles')}" for medium in document["media"] if "profiles" in medium]
    if options.no_keep:
        print("\n".join(found))
    else:
        kind = "-workers" if options.workers else ""
        path = RESULTS / f"{began:%Y-%m-%d}-{options.host_kind}{kind}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"kept in {path}", file=sys.stderr)
        if found:
            profiles.path_beside(path).write_text("\n".join(found))
    return 0


def _medium(options: argparse.Namespace, name: str, directory: pathlib.Path) -> dict[str, Any]:
    size_bytes = options.size_mib << 20
    medium: dict[str, Any] = {"name": name, **facts.medium_facts(directory), "load_before": facts.load_average()}
    runs: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidfs-bench-", dir=directory)))
        opened: dict[str, Target] = {}
        for name_ in options.targets:
            try:
                opened[name_] = stack.enter_context(TARGETS[name_](place, size_bytes))
            except TargetMissing as missing:
                left_out[name_] = str(missing)
                continue
            fio.fill(opened[name_], size_bytes=size_bytes)
        medium["rss_idle_mib"] = {name_: fio.rss_mib(target.pids[0]) for name_, target in opened.items() if target.pids}
        for number in range(options.rounds):
            for row in options.rows:
                for name_, target in opened.items():
                    if not measures(name_, row):
                        continue
                    figures = fio.run_job(row, target, size_bytes=size_bytes, seconds=options.seconds)
                    runs.append({"round": number, "row": row, "target": name_, **dataclasses.asdict(figures)})
                    print(f"{name} {number} {row} {name_}: {figures.iops:.0f} IOPS", file=sys.stderr)
        if options.profile and "raidfs" in opened:
            medium["profiles"] = profiles.measure(opened["raidfs"], size_bytes=size_bytes, seconds=options.seconds)
    if "raidfs" in options.targets:
        medium["first_touch"] = first_touch.measure(directory, size_bytes=FIRST_TOUCH_BYTES, rounds=options.rounds)
    return {**medium, "load_after": facts.load_average(), "left_out": left_out, "runs": runs}


def _workers(options: argparse.Namespace, name: str, directory: pathlib.Path) -> dict[str, Any]:
    medium: dict[str, Any] = {"name": name, **facts.medium_facts(directory), "load_before": facts.load_average()}
    medium["pools"] = workers.measure(
        directory,
        options.workers,
        size_bytes=options.size_mib << 20,
        rounds=options.rounds,
        seconds=options.seconds,
        depth=32,
    )
    for pool in medium["pools"]:
        line = (
            f"{pool['workers']:3} workers {pool['direction']:5}: {pool['iops']:6} IOPS ({pool['low']}-{pool['high']})"
        )
        print(f"{name} {line}")
    return {**medium, "load_after": facts.load_average()}


if __name__ == "__main__":
    sys.exit(main())
