"""How fast a resync and a check are beside dd, and how long writes of another node wait meanwhile.

``scripts/bench-sync`` runs it. Everything takes turns over the same two legs, so that all of it meets the same
neighbours: dd from one leg to the other (direct I/O, 1 MiB) and a resync of a new array; dd from both legs at the same
time and a check; a resync while another node writes 4 KiB at random places, one write at a time, and the same writes
without it. Rates are bytes of the array in a second. Those of raidfs are taken between two looks at the node's
status, so what comes before and after the copying is not in them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.facts import host_facts, host_kind, load_average, medium_facts
from raidfs.array.head import read_candidates
from raidfs.control import client
from raidfs.control.schema import SyncStatus
from raidfs.format.superblock import Superblock

_RESULTS = pathlib.Path(__file__).parent
_LOOK_S = 0.05
_DEADLINE_S = 600.0
_SECTOR_BYTES = 512
_MIB = 1 << 20

_RATES = ("dd copy", "resync", "dd read", "check", "resync beside writes")
_LATENCIES = ("writes beside a resync", "writes alone")


class Round:
    """One round over the legs of a directory."""

    def __init__(self, place: pathlib.Path, size_bytes: int, options: list[str]) -> None:
        self._images = [place / "a.img", place / "b.img"]
        self._mounts = [place / "m0", place / "m1"]
        self._size_bytes = size_bytes
        self._options = options
        for mount in self._mounts:
            mount.mkdir(exist_ok=True)

    def prepare(self) -> None:
        """Make the legs, every byte of them written: what is measured are no allocations."""
        for image in self._images:
            _run("dd", "if=/dev/zero", f"of={image}", "bs=1M", f"count={self._size_bytes // _MIB + 64}", "conv=fsync")

    def run(self) -> dict[str, Any]:
        """Measure everything once."""
        found: dict[str, Any] = {}
        self._create()
        found["dd copy"] = self._dd_copy()
        with self._mounted(1) as (node,):
            found["resync"] = self._rate(node, "resync")
            found["dd read"] = self._dd_read()
            node.call("sync_action", action="check")
            found["check"] = self._rate(node, "check")
        self._create()
        with self._mounted(2) as (node, _other):
            with self._writing() as said:
                found["resync beside writes"] = self._rate(node, "resync")
            found["writes beside a resync"] = _latency(said)
            with self._writing() as said:
                time.sleep(3.0)
            found["writes alone"] = _latency(said)
        return found

    def _create(self) -> None:
        _raidfs("create", "--force", "--size", str(self._size_bytes), *map(str, self._images))

    @contextlib.contextmanager
    def _mounted(self, nodes: int) -> Iterator[list[client.Client]]:
        with contextlib.ExitStack() as stack:
            found = []
            for mount in self._mounts[:nodes]:
                _raidfs("mount", *self._options, *map(str, self._images), str(mount))
                stack.callback(_raidfs, "umount", str(mount))
                found.append(stack.enter_context(client.find(str(mount))))
            yield found

    def _rate(self, node: client.Client, action: str) -> float:
        """Return the bytes per second of a sync that has begun or is about to, when it has ended."""
        deadline = time.monotonic() + _DEADLINE_S
        looks: list[tuple[float, int]] = []
        while time.monotonic() < deadline:
            sync: SyncStatus = node.status().sync
            if sync.state == "running" and sync.action == action:
                if not looks or sync.done_bytes > looks[-1][1]:
                    looks.append((time.monotonic(), sync.done_bytes))
            elif sync.state == "idle" and looks:
                break
            time.sleep(_LOOK_S)
        (began, first), (ended, last) = looks[0], looks[-1]
        if last - first < self._size_bytes // 4:
            raise RuntimeError(f"too little of the {action} was seen: take a larger --size-mib")
        return (last - first) / (ended - began)

    def _dd_copy(self) -> float:
        source, target = map(str, self._images)
        skip = self._data_offset_mib()
        began = time.monotonic()
        _run("dd", f"if={source}", f"of={target}", "bs=1M", f"count={self._size_bytes // _MIB}", f"skip={skip}",
             f"seek={skip}", "iflag=direct", "oflag=direct", "conv=notrunc,fdatasync")  # fmt: skip
        return self._size_bytes / (time.monotonic() - began)

    def _dd_read(self) -> float:
        words = [f"count={self._size_bytes // _MIB}", f"skip={self._data_offset_mib()}", "bs=1M", "iflag=direct"]
        began = time.monotonic()
        readers = [
            subprocess.Popen(["dd", f"if={image}", "of=/dev/null", *words], stderr=subprocess.DEVNULL)
            for image in self._images
        ]
        codes = [reader.wait() for reader in readers]
        if any(codes):
            raise RuntimeError("dd failed")
        return self._size_bytes / (time.monotonic() - began)

    def _data_offset_mib(self) -> int:
        superblock = read_candidates([str(self._images[0])])[0].superblock
        assert isinstance(superblock, Superblock)
        return superblock.data_offset_sectors * _SECTOR_BYTES // _MIB

    @contextlib.contextmanager
    def _writing(self) -> Iterator[dict[str, Any]]:
        """Let the second node write for the length of the block; fio's document is there after it."""
        said: dict[str, Any] = {}
        command = ["fio", "--name=other", f"--filename={self._mounts[1] / 'md0'}", "--rw=randwrite", "--bs=4k"]
        command += ["--direct=1", "--ioengine=psync", "--time_based", "--runtime=600", "--output-format=json"]
        process = subprocess.Popen(
            [*command, f"--size={self._size_bytes}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield said
        finally:
            process.send_signal(signal.SIGINT)
            text = process.communicate()[0]
        said.update(json.loads(text[text.index("{") :]))


def main() -> int:
    """Measure, print the tables, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench-sync", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument("--size-mib", type=int, default=4096, help="size of the array (%(default)s)")
    parser.add_argument(
        "--directory", action="append", help="where legs are; can be repeated (/dev/shm and the temporary directory)"
    )
    parser.add_argument("--mount-option", action="append", default=[], help="for each mount, as --mount-option=--X=Y")
    parser.add_argument("--output", type=pathlib.Path, help="the JSON file (benchmarks/DATE-HOST-sync.json)")
    options = parser.parse_args()
    directories = [pathlib.Path(one) for one in options.directory or ["/dev/shm", tempfile.gettempdir()]]
    document: dict[str, Any] = {
        "schema": 1,
        "benchmark": "sync",
        "date": datetime.date.today().isoformat(),
        "host": host_facts(),
        "size_bytes": options.size_mib * _MIB,
        "rounds": options.rounds,
        "mount_options": options.mount_option,
        "media": [],
    }
    for directory in directories:
        before = load_average()
        with tempfile.TemporaryDirectory(prefix="raidfs-bench-", dir=directory) as place:
            one = Round(pathlib.Path(place), options.size_mib * _MIB, options.mount_option)
            one.prepare()
            rounds = [one.run() for _ in range(options.rounds)]
        medium = {**medium_facts(directory), "load_before": before, "load_after": load_average(), "rounds": rounds}
        document["media"].append(medium)
        print("\n".join(_table(medium)), flush=True)
    output = options.output or _RESULTS / f"{document['date']}-{host_kind()}-sync.json"
    output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"kept in {output}", file=sys.stderr)
    return 0


def _table(medium: dict[str, Any]) -> Iterator[str]:
    rounds = medium["rounds"]
    yield f"{medium['file_system']} on {medium['device']}, load average {medium['load_before']} to "\
        f"{medium['load_after']}"  # fmt: skip
    yield ""
    yield "| | MB/s | of dd, in the same round |\n|---|---|---|"
    for name in _RATES:
        rates = [one[name] / 1e6 for one in rounds]
        beside = "dd read" if name in ("dd read", "check") else "dd copy"
        ratios = [one[name] / one[beside] for one in rounds]
        yield f"| {name} | {_spread(rates, 0)} | {'' if name == beside else _spread(ratios, 2)} |"
    yield ""
    yield "| 4 KiB writes of the other node | p50 ms | p99 ms | p99.9 ms | max ms | a second |"
    yield "|---|---|---|---|---|---|"
    for name in _LATENCIES:
        keys = ("p50_ms", "p99_ms", "p99_9_ms", "max_ms")
        cells = [_spread([one[name][key] for one in rounds], 2) for key in keys]
        yield f"| {name} | {' | '.join(cells)} | {_spread([one[name]['iops'] for one in rounds], 0)} |"
    yield ""


def _spread(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}-{high})"


def _latency(said: dict[str, Any]) -> dict[str, float]:
    write = said["jobs"][0]["write"]
    if not write["total_ios"]:
        raise RuntimeError("it was over before fio wrote: take a larger --size-mib")
    percentiles = write["clat_ns"]["percentile"]
    return {
        "writes": write["total_ios"],
        "iops": round(write["iops"], 1),
        "p50_ms": round(percentiles["50.000000"] / 1e6, 3),
        "p99_ms": round(percentiles["99.000000"] / 1e6, 3),
        "p99_9_ms": round(percentiles["99.900000"] / 1e6, 3),
        "max_ms": round(write["clat_ns"]["max"] / 1e6, 3),
    }


def _raidfs(*words: str) -> None:
    _run(sys.executable, "-m", "raidfs", *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
