"""raidfs over the DLM beside the kernel's md-cluster, on the same two virtual machines and disks of one kind.

``scripts/bench-lab`` runs it. Both arrays and a bare disk are up at the same time, all of them on both machines, and
take turns; fio runs on the first machine. Without KVM a machine's processor is emulated, some ten times slower than its
disks are: ratios tell what a request costs in instructions, not what it would take on real hosts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from benchmarks.facts import host_facts, host_kind, load_average
from lab.cluster import Lab
from lab.shape import CLUSTER_NAME, Wish
from raidfs.units import MIB

_RESULTS = pathlib.Path(__file__).parent
ROWS = {f"{rw} qd{depth}": (rw, depth) for rw in ("randread", "randwrite") for depth in (1, 16)}
TARGETS = {"bare disk": "/dev/shared4", "md-cluster": "/dev/md0", "raidfs": "/mnt/md0"}
UPDATES = """
import statistics, time
from raidfs.control import client
with client.find("/mnt") as node:
    for _ in range({count}):
        began = time.perf_counter()
        node.call("touch", timeout_s=120)
        print(time.perf_counter() - began)
"""


def main() -> int:
    """Measure, print the tables, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench-lab", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="of each job (%(default)s)")
    parser.add_argument("--updates", type=int, default=20, help="metadata updates in each round (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="the JSON file (benchmarks/DATE-HOST-lab.json)")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    updates: list[float] = []
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="raidfs-bench-lab-", dir="/var/tmp") as place:
        lab = Lab.up(pathlib.Path(place), Wish(nodes=2, disks_bytes=(128 * MIB,) * 5), tell)
        try:
            prepare(lab)
            for number in range(options.rounds):
                for row, (rw, depth) in ROWS.items():
                    for target, file in TARGETS.items():
                        iops = fio(lab, file, rw, depth, options.seconds)
                        runs.append({"round": number, "row": row, "target": target, "iops": iops})
                        tell(f"{number} {row} {target}: {iops:.0f} IOPS")
                said = lab.checked(
                    1,
                    "env",
                    "PYTHONPATH=/opt/raidfs/site",
                    "python3",
                    "-c",
                    UPDATES.format(count=options.updates),
                    timeout_s=300,
                )
                updates += [float(line) for line in said.split()]
        finally:
            lab.down(keep_logs=False)
    document = {
        "schema": 1,
        "benchmark": "several hosts",
        "date": datetime.date.today().isoformat(),
        "host": {**host_facts(), "note": "two virtual machines with one emulated processor each, Debian's kernel"},
        "load_average": [load, load_average()],
        "seconds": options.seconds,
        "runs": runs,
        "metadata_updates_s": updates,
    }
    output = options.output or _RESULTS / f"{document['date']}-{host_kind()}-lab.json"
    output.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(table(document)))
    tell(f"kept in {output}")
    return 0


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def prepare(lab: Lab) -> None:
    """Start both arrays on both machines; all that is measured later has been written once."""
    raidfs, md = ["/dev/shared0", "/dev/shared1"], ["/dev/shared2", "/dev/shared3"]
    lab.checked(1, "raidfs", "create", "--assume-clean", "--cluster-name", CLUSTER_NAME, *raidfs)
    options = ["--level=1", "--raid-devices=2", "--bitmap=clustered", "--metadata=1.2", "--assume-clean", "--run"]
    for number in (1, 2):
        lab.checked(number, "modprobe", "-a", "raid1", "md-cluster")
        lab.checked(number, "raidfs", "mount", "--lock", "dlm", "--allow-unfenced", *raidfs, "/mnt", timeout_s=120)
        if number == 1:
            lab.checked(1, "mdadm", "--create", "/dev/md0", *options, *md, timeout_s=120)
        else:
            lab.checked(2, "mdadm", "--assemble", "/dev/md0", *md, timeout_s=120)
    for file in TARGETS.values():
        lab.checked(1, "dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=64", "oflag=direct", "conv=notrunc",
                    timeout_s=300)  # fmt: skip


def fio(lab: Lab, file: str, rw: str, depth: int, seconds: int) -> float:
    """Return the IOPS of one job on the first machine."""
    shape = ["--ioengine=libaio", "--direct=1", "--bs=4k", f"--iodepth={depth}", f"--rw={rw}", "--size=64M"]
    time = ["--time_based", f"--runtime={seconds}", "--ramp_time=1", "--norandommap", "--output-format=json"]
    said = lab.checked(1, "fio", "--name=job", f"--filename={file}", *shape, *time, timeout_s=300)
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    return float(job["read"]["iops"] + job["write"]["iops"])


def table(document: dict[str, Any]) -> list[str]:
    """Return the Markdown tables of a document."""
    lines = ["| | " + " | ".join(TARGETS) + " | raidfs of md-cluster |", "|---" * (len(TARGETS) + 2) + "|"]
    for row in ROWS:
        found = {
            target: [run["iops"] for run in document["runs"] if (run["row"], run["target"]) == (row, target)]
            for target in TARGETS
        }
        middle = {target: statistics.median(values) for target, values in found.items()}
        cells = [f"{middle[target]:.0f} ({min(found[target]):.0f}-{max(found[target]):.0f})" for target in TARGETS]
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {middle['raidfs'] / middle['md-cluster']:.2f} |")
    ordered = sorted(document["metadata_updates_s"])
    middle_ms, most_ms = statistics.median(ordered) * 1000, ordered[-1] * 1000
    both = f"median {middle_ms:.1f} ms, at most {most_ms:.1f} ms, {len(ordered)} of them"
    lines += ["", f"A metadata update that both nodes have followed: {both}."]
    return lines


if __name__ == "__main__":
    sys.exit(main())
