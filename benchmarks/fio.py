"""Runs one fio job file and returns the figures that we keep."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
from typing import Any

JOBS = pathlib.Path(__file__).parent.parent / "scripts" / "fio"

# In the order of the tables.
ROWS = (
    "randread-4k-qd1",
    "randwrite-4k-qd1",
    "randread-4k-qd32",
    "randwrite-4k-qd32",
    "read-1m-qd8",
    "write-1m-qd8",
    "fsync-4k",
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


def run_job(row: str, file: pathlib.Path, *, size_bytes: int, seconds: float) -> Figures:
    """Run ``scripts/fio/ROW.fio`` over ``file``; raises FioFailed."""
    job = _fio([str(JOBS / f"{row}.fio")], file=file, size_bytes=size_bytes, seconds=seconds)
    side = max(job["read"], job["write"], key=lambda found: found["io_bytes"])
    percentiles = side["clat_ns"]["percentile"]
    return Figures(
        iops=round(side["iops"], 1),
        bytes_per_s=side["bw_bytes"],
        latency_p50_us=percentiles["50.000000"] / 1000,
        latency_p99_us=percentiles["99.000000"] / 1000,
    )


def fill(file: pathlib.Path, *, size_bytes: int) -> None:
    """Write all of ``file`` once, so that no run pays for the allocation of blocks."""
    options = ["--name=fill", "--rw=write", "--bs=1M", "--direct=1", "--ioengine=psync", "--end_fsync=1"]
    _fio([*options, f"--filename={file}", f"--size={size_bytes}"], file=file, size_bytes=size_bytes, seconds=0)


def _fio(words: list[str], *, file: pathlib.Path, size_bytes: int, seconds: float) -> dict[str, Any]:
    environment = {**os.environ, "FIO_FILE": str(file), "FIO_SIZE": str(size_bytes), "FIO_SECONDS": f"{seconds:g}"}
    done = subprocess.run(
        ["fio", "--output-format=json", *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise FioFailed((done.stderr + done.stdout).strip()[:500])
    # fio may put a warning before its document.
    job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job
