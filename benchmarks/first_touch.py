"""What the bitmap costs: random writes that touch clean chunks, beside the same writes over dirty chunks."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

CHUNK_BYTES = 64 * 1024
DEPTH = 32


def measure(directory: pathlib.Path, *, size_bytes: int, rounds: int) -> dict[str, Any]:
    """Return the IOPS of each round, clean and dirty.

    4 KiB are written at random to a quarter as many places as there are chunks, so about 8 of 9 writes find a clean
    one; then to the same places again. The array is mounted anew for each round: leaving it clears the bits.
    """
    writes = size_bytes // CHUNK_BYTES // 4
    found: dict[str, Any] = {"chunk_bytes": CHUNK_BYTES, "writes": writes, "clean": [], "dirty": []}
    place = pathlib.Path(tempfile.mkdtemp(prefix="raidfs-bench-", dir=directory))
    images = [str(place / name) for name in ("a.img", "b.img")]
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    try:
        options = ["--assume-clean", "--bitmap-chunk", str(CHUNK_BYTES), "--size", str(size_bytes)]
        _raidfs("create", *options, *images)
        for number in range(rounds + 1):
            _raidfs("mount", *images, str(mountpoint))
            try:
                for state in ("clean", "dirty"):
                    iops = _write(mountpoint / "md0", size_bytes)
                    if number:  # the first round allocates the blocks
                        found[state].append(iops)
            finally:
                _raidfs("umount", str(mountpoint))
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(place)
    return found


def _write(file: pathlib.Path, size_bytes: int) -> float:
    command = ["fio", "--name=touch", "--rw=randwrite", "--bs=4k", f"--blockalign={CHUNK_BYTES}", "--direct=1",
               "--ioengine=io_uring", f"--iodepth={DEPTH}", f"--filename={file}", f"--size={size_bytes}",
               f"--io_size={size_bytes // CHUNK_BYTES // 4 * 4096}", "--randrepeat=1",
               "--output-format=json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]["iops"])


def _raidfs(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "raidfs", *words], check=True, stdout=subprocess.DEVNULL)
