"""Where a node's processor time goes for the four main rows: ``perf record`` of it while a job runs once more."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile

from benchmarks import fio
from benchmarks.targets import Target

ROWS = ("randread-4k-qd32", "randwrite-4k-qd32", "read-1m-qd8", "write-1m-qd8")
LINES = 30


def measure(target: Target, *, size_bytes: int, seconds: float) -> str:
    """Return the functions with the largest shares for each row, as text; raises OSError without ``perf``."""
    parts = []
    for row in ROWS:
        with tempfile.NamedTemporaryFile() as data:
            command = ["perf", "record", "-q", "-F", "2000", "-p", str(target.pids[0]), "-o", data.name]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as recording:
                fio.run_job(row, target, size_bytes=size_bytes, seconds=seconds)
                recording.terminate()
            command = ["perf", "report", "-i", data.name, "--no-children", "--stdio", "--sort", "symbol"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = [line.rstrip() for line in said.splitlines() if line.strip() and not line.startswith("#")]
        parts.append("\n".join([f"{row}:", *lines[:LINES], ""]))
    return "\n".join(parts)


def path_beside(result: pathlib.Path) -> pathlib.Path:
    """Return where the profiles of a kept result are."""
    return result.with_suffix(".profiles.txt")
