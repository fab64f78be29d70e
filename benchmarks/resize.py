"""How long a resize takes, by the number of nodes.

``scripts/bench-resize`` runs it. Every node is a process with a real mount; one of them makes the array larger and
smaller again, by turns. Each time is from the request to the answer, when every node serves the new size and its kernel
knows it. The new space is said to be the same on both legs, so that no resync is measured. The rounds of the node
counts are interleaved, so that all of them meet the same neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.facts import host_facts, host_kind, load_average, medium_facts
from raidfs.control import client
from raidfs.resize_plan import Change
from raidfs.units import MIB, SECTOR_BYTES

_RESULTS = pathlib.Path(__file__).parent
_SIZES = (96 * MIB, 64 * MIB)  # it begins with the second
_REST_S = 0.3  # after a resize the nodes look whether something is to be resynced, with the lock that the next needs
_WAIT_S = 300


def main() -> int:
    """Measure, print the table, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench-resize", description=__doc__)
    parser.add_argument("--nodes", default="2,4,8,16", help="node counts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each count (%(default)s)")
    parser.add_argument("--resizes", type=int, default=10, help="pairs of resizes per round (%(default)s)")
    parser.add_argument("--directory", default="/dev/shm", help="where the legs are (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="the JSON file (benchmarks/DATE-HOST-resize.json)")
    options = parser.parse_args()
    counts = [int(count) for count in options.nodes.split(",")]
    directory = pathlib.Path(options.directory)
    samples: dict[int, list[list[float]]] = {count: [[], []] for count in counts}
    medians: dict[int, list[list[float]]] = {count: [[], []] for count in counts}
    with contextlib.ExitStack() as stack:
        clusters = {count: stack.enter_context(_cluster(directory, count)) for count in counts}
        for _ in range(options.rounds):
            for count in counts:
                for kind, found in enumerate(_resizes(*clusters[count], options.resizes)):
                    samples[count][kind] += found
                    medians[count][kind].append(statistics.median(found))
    rows = [_row(count, samples[count], medians[count]) for count in counts]
    document = {
        "schema": 1,
        "benchmark": "resize",
        "date": datetime.date.today().isoformat(),
        "host": host_facts(),
        "medium": medium_facts(directory),
        "load_average": load_average(),
        "pairs_per_round": options.resizes,
        "sizes_bytes": list(_SIZES),
        "rows": rows,
    }
    output = options.output or _RESULTS / f"{document['date']}-{host_kind()}-resize.json"
    output.write_text(json.dumps(document, indent=2) + "\n")
    print("| nodes | larger, median ms | medians of the rounds | worst | smaller, median ms | medians | worst |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        larger, smaller = row["larger"], row["smaller"]
        assert isinstance(larger, dict)
        assert isinstance(smaller, dict)
        cells = [cell for kind in (larger, smaller) for cell in (kind["median"], kind["round_medians"], kind["max"])]
        print(f"| {row['nodes']} | {' | '.join(map(str, cells))} |")
    print(f"kept in {output}", file=sys.stderr)
    return 0


def _row(count: int, samples: list[list[float]], medians: list[list[float]]) -> dict[str, object]:
    def ms(seconds: float) -> float:
        return round(seconds * 1000, 1)

    return {"nodes": count} | {
        name: {
            "median": ms(statistics.median(samples[kind])),
            "max": ms(max(samples[kind])),
            "round_medians": [ms(one) for one in medians[kind]],
        }
        for kind, name in enumerate(("larger", "smaller"))
    }


def _resizes(node: client.Client, files: list[pathlib.Path], pairs: int) -> list[list[float]]:
    """Return the seconds of each growth and of each shrink."""
    found: list[list[float]] = [[], []]
    for _ in range(pairs):
        for kind, size_bytes in enumerate(_SIZES):
            time.sleep(_REST_S)
            change = Change(size_sectors=size_bytes // SECTOR_BYTES, assume_clean=True, force=True)
            began = time.perf_counter()
            node.call("grow", timeout_s=_WAIT_S, **change.to_json())
            found[kind].append(time.perf_counter() - began)
            assert {os.stat(file).st_size for file in files} == {size_bytes}
    return found


@contextlib.contextmanager
def _cluster(directory: pathlib.Path, count: int) -> Iterator[tuple[client.Client, list[pathlib.Path]]]:
    """Mount an array on that many nodes; gives a conversation with the first, and the files of all."""
    with contextlib.ExitStack() as stack:
        place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidfs-bench-", dir=directory)))
        images = [place / "a.img", place / "b.img"]
        for image in images:
            with image.open("xb") as file:
                file.truncate(_SIZES[0] + 2 * MIB)
        names = [str(image) for image in images]
        _raidfs("create", "--assume-clean", "--size", str(_SIZES[1]), "--nodes", str(max(2, count)), *names)
        files = []
        for number in range(count):
            mountpoint = place / f"n{number}"
            mountpoint.mkdir()
            _raidfs("mount", *names, str(mountpoint))
            stack.callback(_raidfs, "umount", str(mountpoint))
            files.append(mountpoint / "md0")
        _raidfs("wait", str(place / "n0"))
        yield stack.enter_context(client.find(str(place / "n0"))), files


def _raidfs(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "raidfs", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
