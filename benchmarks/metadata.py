"""How long one acknowledged metadata update takes, by the number of nodes.

``scripts/bench-metadata`` runs it. Every node is a process with a real mount; one of them does updates one after the
other, each of which writes the superblocks of both legs durably and returns when every node has read them again and
said so. The rounds of the node counts are interleaved, so that all of them meet the same neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.facts import host_facts, host_kind, load_average, medium_facts
from raidfs.control import client

_RESULTS = pathlib.Path(__file__).parent


def main() -> int:
    """Measure, print the table, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench-metadata", description=__doc__)
    parser.add_argument("--nodes", default="2,4,8,16", help="node counts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each count (%(default)s)")
    parser.add_argument("--updates", type=int, default=100, help="updates per round (%(default)s)")
    parser.add_argument("--directory", default="/dev/shm", help="where the legs are (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="the JSON file (benchmarks/DATE-HOST-metadata.json)")
    options = parser.parse_args()
    counts = [int(count) for count in options.nodes.split(",")]
    directory = pathlib.Path(options.directory)
    samples: dict[int, list[float]] = {count: [] for count in counts}
    medians: dict[int, list[float]] = {count: [] for count in counts}
    with contextlib.ExitStack() as stack:
        first = {count: stack.enter_context(_cluster(directory, count)) for count in counts}
        for _ in range(options.rounds):
            for count in counts:
                found = _updates(first[count], options.updates)
                samples[count] += found
                medians[count].append(statistics.median(found))
    document = {
        "schema": 1,
        "benchmark": "metadata update",
        "date": datetime.date.today().isoformat(),
        "host": host_facts(),
        "medium": medium_facts(directory),
        "load_average": load_average(),
        "updates_per_round": options.updates,
        "rows": [_row(count, samples[count], medians[count]) for count in counts],
    }
    output = options.output or _RESULTS / f"{document['date']}-{host_kind()}-metadata.json"
    output.write_text(json.dumps(document, indent=2) + "\n")
    print("| nodes | median ms | medians of the rounds | p99 ms |\n|---|---|---|---|")
    for row in (_row(count, samples[count], medians[count]) for count in counts):
        print(f"| {row['nodes']} | {row['median_ms']} | {row['round_medians_ms']} | {row['p99_ms']} |")
    print(f"kept in {output}", file=sys.stderr)
    return 0


def _row(count: int, samples: list[float], medians: list[float]) -> dict[str, object]:
    ordered = sorted(samples)
    return {
        "nodes": count,
        "median_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
        "round_medians_ms": [round(median * 1000, 2) for median in medians],
    }


def _updates(node: client.Client, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        node.call("touch", timeout_s=120)
        found.append(time.perf_counter() - began)
    return found


@contextlib.contextmanager
def _cluster(directory: pathlib.Path, count: int) -> Iterator[client.Client]:
    """Mount an array on that many nodes and give a conversation with the first."""
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidfs-bench-", dir=directory)))
        images = [str(place / "a.img"), str(place / "b.img")]
        _raidfs("create", "--assume-clean", "--size", "64M", "--nodes", str(max(2, count)), *images)
        for number in range(count):
            mountpoint = place / f"n{number}"
            mountpoint.mkdir()
            _raidfs("mount", *images, str(mountpoint))
            stack.callback(_raidfs, "umount", str(mountpoint))
        yield stack.enter_context(client.find(str(place / "n0")))


def _raidfs(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "raidfs", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
