"""A program that writes to a node and knows what it wrote, for as long as nodes die and come back.

``python -m support.stamped_writer --file M0/md0 --peer M1/md0 --writer 0 --writers 3 ...`` writes until its standard
input is closed, and then prints one JSON document. The journal of what was acknowledged is in its memory, outside the
process that is killed. Each 512-byte sector is stamped with its place, its writer and a generation. The stripes of the
array go to the writers by turns, so that all nodes share every chunk of the bitmap and no sector.

What is checked (P3): an acknowledged write is never lost; a write that failed has been done or not, sector by
sector, and stays as it was first read once its node is back; a node that was not killed fails nothing, which is for
the reader of ``failures`` to tell.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import dataclasses
import json
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Iterator

SECTOR = 512
BLOCKS = (512, 512, 1024, 3072, 4096, 4096, 4096, 8192, 16384, 65536)
FLAGS = (os.O_DIRECT, os.O_DIRECT | os.O_DSYNC, 0, os.O_DSYNC)
SLOW_S = 0.005  # writes that take longer are told one by one
LOOK_AGAIN_S = 0.02
VERIFY_BYTES = 1 << 20

_HEADER = struct.Struct("<8sQQQ")
_MAGIC = b"raidfs-w"
_ZERO = bytes(SECTOR)


def stamp(writer: int, sector: int, generation: int) -> bytes:
    """Return the content of a sector; generation 0 is what a new array holds."""
    return _HEADER.pack(_MAGIC, writer, sector, generation) * (SECTOR // _HEADER.size) if generation else _ZERO


class Lost(Exception):
    """A sector holds what it must not."""


class Journal:
    """What one thread has written: by sector the generation that was acknowledged, and those that failed since."""

    def __init__(self, writer: int, sectors: int) -> None:
        self.writer = writer
        self._acknowledged = array.array("Q", bytes(8 * sectors))
        self._perhaps: dict[int, set[int]] = {}

    def acknowledged(self, first: int, count: int, generation: int) -> None:
        for sector in range(first, first + count):
            self._acknowledged[sector] = generation
            self._perhaps.pop(sector, None)

    def failed(self, first: int, count: int, generation: int) -> None:
        for sector in range(first, first + count):
            self._perhaps.setdefault(sector, set()).add(generation)

    def check(self, first: int, data: bytes, *, settles: bool, where: str) -> None:
        """Compare what was read; ``settles``: from now on a sector that was in doubt stays as it is."""
        for number, at in enumerate(range(0, len(data), SECTOR)):
            sector, found = first + number, data[at : at + SECTOR]
            wanted = self._acknowledged[sector]
            if found == stamp(self.writer, sector, wanted):
                generation = wanted
            else:
                generation = self._generation(sector, found, where)
            if settles and sector in self._perhaps:
                self._acknowledged[sector] = generation
                del self._perhaps[sector]

    def _generation(self, sector: int, found: bytes, where: str) -> int:
        perhaps = self._perhaps.get(sector, set())
        for generation in perhaps:
            if found == stamp(self.writer, sector, generation):
                return generation
        raise Lost(
            f"{where}: sector {sector} of writer {self.writer} has {_HEADER.unpack(found[: _HEADER.size])}, "
            f"acknowledged was generation {self._acknowledged[sector]}, perhaps {sorted(perhaps)}"
        )


@dataclasses.dataclass
class Report:
    """What one thread has to tell; times are CLOCK_MONOTONIC, which all processes share."""

    writes: int = 0
    reads: int = 0
    verified_sectors: int = 0
    in_doubt: int = 0
    slow: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # began, seconds
    failures: list[tuple[float, int | None]] = dataclasses.field(default_factory=list)
    resumed: list[float] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)


class Writer(threading.Thread):
    """One thread: its stripes, its journal, its report."""

    def __init__(self, options: argparse.Namespace, number: int, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self.report = Report()
        self._options = options
        self._stopped = stopped
        self._random = random.Random(f"{options.seed}-{options.writer}-{number}")
        stripes = range(options.writer, options.size // options.stripe, options.writers)
        self._stripes = [stripe * options.stripe for stripe in stripes][number :: options.threads]
        self._journal = Journal(options.writer, options.size // SECTOR)
        self._generation = 0
        self._buffer = mmap.mmap(-1, max(BLOCKS))

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._serve()
            for file in (self._options.file, *self._options.peer):
                self._verify(file, settles=True)
        except Lost as e:
            self.report.lost.append(str(e))
        except OSError as e:
            self.report.lost.append(f"at the end: {e}")

    # As long as the node lives.
    def _serve(self) -> None:
        descriptors: list[int] = []
        try:
            for flags in FLAGS:
                descriptors.append(os.open(self._options.file, os.O_RDWR | flags))
            self._verify(self._options.file, settles=True)
            first = True
            while not self._stopped.is_set():
                self._write(self._random.choice(descriptors))
                if first:
                    self.report.resumed.append(time.monotonic())
                    first = False
                if self._random.random() < 0.1:
                    self._read(descriptors[0])
                if self._random.random() < 0.02:
                    os.fsync(descriptors[2])
                time.sleep(self._random.random() * self._options.rest_ms / 1000)
        except OSError as e:
            if descriptors:
                self.report.failures.append((time.monotonic(), e.errno))
                self._verify_at_a_peer()
            time.sleep(LOOK_AGAIN_S)  # the node is not back yet
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):  # of a node that is dead
                    os.close(descriptor)

    def _write(self, descriptor: int) -> None:
        size = self._random.choice(BLOCKS)
        stripe = self._random.choice(self._stripes)
        offset = stripe + self._random.randrange((self._options.stripe - size) // SECTOR + 1) * SECTOR
        first, count = offset // SECTOR, size // SECTOR
        self._generation += 1
        generation = self._generation
        stamps = (stamp(self._options.writer, sector, generation) for sector in range(first, first + count))
        self._buffer[:size] = b"".join(stamps)
        began = time.monotonic()
        try:
            with memoryview(self._buffer) as view:
                written = os.pwrite(descriptor, view[:size], offset)
            if written != size:
                raise OSError(0, f"a write of {size} bytes wrote {written}")
        except OSError:
            self._journal.failed(first, count, generation)
            self.report.in_doubt += count
            raise
        took = time.monotonic() - began
        self._journal.acknowledged(first, count, generation)
        self.report.writes += 1
        if took > SLOW_S:
            self.report.slow.append((began, took))

    def _read(self, descriptor: int) -> None:
        offset = self._random.choice(self._stripes) + self._random.randrange(self._options.stripe // SECTOR) * SECTOR
        size = min(self._options.stripe - offset % self._options.stripe, 16384)
        with memoryview(self._buffer) as view:
            got = os.preadv(descriptor, [view[:size]], offset)
        self._journal.check(offset // SECTOR, self._buffer[:got], settles=False, where=self._options.file)
        self.report.reads += 1

    # A survivor has every write that was acknowledged, from the first moment on; what failed it may still change.
    def _verify_at_a_peer(self) -> None:
        for peer in self._random.sample(self._options.peer, len(self._options.peer)):
            try:
                self._verify(peer, settles=False)
                return
            except OSError:
                continue  # it is gone as well

    def _verify(self, file: str, *, settles: bool) -> None:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            for offset, size in self._parts():
                data = os.pread(descriptor, size, offset)
                if len(data) != size:
                    raise Lost(f"{file}: {len(data)} of {size} bytes at {offset}")
                self._journal.check(offset // SECTOR, data, settles=settles, where=file)
                self.report.verified_sectors += size // SECTOR
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _parts(self) -> Iterator[tuple[int, int]]:
        step = min(self._options.stripe, VERIFY_BYTES)
        for stripe in self._stripes:
            for offset in range(stripe, stripe + self._options.stripe, step):
                yield offset, step


def _merged(reports: list[Report]) -> dict[str, object]:
    def total(name: str) -> int:
        return sum(getattr(one, name) for one in reports)

    def listed(name: str) -> list[object]:
        return sorted(item for one in reports for item in getattr(one, name))

    return {name: total(name) for name in ("writes", "reads", "verified_sectors", "in_doubt")} | {
        name: listed(name) for name in ("slow", "failures", "resumed", "lost")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True, help="the block file of the own node")
    parser.add_argument("--peer", action="append", default=[], help="the block file of another node")
    parser.add_argument("--writer", type=int, required=True, help="number of this writer")
    parser.add_argument("--writers", type=int, required=True, help="how many there are")
    parser.add_argument("--size", type=int, required=True, help="bytes of the array")
    parser.add_argument("--stripe", type=int, default=256 << 10, help="bytes that belong to one writer in turn")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--rest-ms", type=float, default=8.0, help="longest rest after a write")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    stopped = threading.Event()
    threads = [Writer(options, number, stopped) for number in range(options.threads)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join()
    print(json.dumps(_merged([thread.report for thread in threads])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
