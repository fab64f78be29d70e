"""Runs one fio job file and returns the figures that we keep."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
from typing import Any

from benchmarks.targets import Target

JOBS = pathlib.Path(__file__).parent.parent / "scripts" / "fio"

# In the order of the tables.
ROWS = (
    "randread-4k-qd1",
    "randwrite-4k-qd1",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "randread-4k-2x32",
    "randwrite-4k-2x32",
    "randrw-4k-qd32",
    "read-1m-qd8",
    "write-1m-qd8",
    "fsync-4k",
    "two-nodes-4k-qd32",
)


class FioFailed(Exception):
    """fio ended with an error; the text is what it said."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one run of one job gave: the side (read or write) that the job measures."""

    iops: float
    bytes_per_s: int
    latency_p50_us: float
    latency_p99_us: float
    cpu_us_per_io: float | None  # of the processes that serve the target
    rss_mib: float | None  # of each of them, the most of all so far


def run_job(row: str, target: Target, *, size_bytes: int, seconds: float) -> Figures:
    """Run ``scripts/fio/ROW.fio`` over a target; raises FioFailed."""
    before = sum(map(cpu_seconds, target.pids))
    with target.busy():
        job = _fio([str(JOBS / f"{row}.fio")], target, size_bytes=size_bytes, seconds=seconds)
    cpu = sum(map(cpu_seconds, target.pids)) - before
    side = max(job["read"], job["write"], key=lambda found: found["io_bytes"])
    percentiles = side["clat_ns"]["percentile"]
    return Figures(
        iops=round(job["read"]["iops"] + job["write"]["iops"], 1),
        bytes_per_s=job["read"]["bw_bytes"] + job["write"]["bw_bytes"],
        latency_p50_us=percentiles["50.000000"] / 1000,
        latency_p99_us=percentiles["99.000000"] / 1000,
        cpu_us_per_io=round(cpu * 1e6 / max(1, job["read"]["total_ios"] + job["write"]["total_ios"]), 1)
        if target.pids
        else None,
        rss_mib=max(map(rss_mib, target.pids), default=None),
    )


def fill(target: Target, *, size_bytes: int) -> None:
    """Write all of a target once, so that no run pays for the allocation of blocks."""
    options = ["--name=fill", "--rw=write", "--bs=1M", "--direct=1", "--ioengine=psync", "--end_fsync=1"]
    size = size_bytes * target.files
    _fio([*options, f"--filename={target.file}", f"--size={size}"], target, size_bytes=size_bytes, seconds=0)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Return the memory that a process has now, in MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _fio(words: list[str], target: Target, *, size_bytes: int, seconds: float) -> dict[str, Any]:
    environment = {
        **os.environ,
        "FIO_FILE": target.file,
        "FIO_FILE2": target.second,
        "FIO_SIZE": str(size_bytes * target.files),
        "FIO_SECONDS": f"{seconds * 1000:.0f}ms",
    }
    done = subprocess.run(
        ["fio", "--output-format=json", *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise FioFailed((done.stderr + done.stdout).strip()[:500])
    # fio may put a warning before its document.
    job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job
