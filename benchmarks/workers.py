"""How many leg I/O threads: a node's volume without FUSE, 4 KiB requests at one queue depth, several pools."""

from __future__ import annotations

import functools
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import trio

from raidfs.array.port import EnginePort
from raidfs.backend import LegBackend, ThreadedLegs
from raidfs.host import LinuxHost
from raidfs.node import Volume, open_node
from raidfs.node_options import NodeOptions
from raidfs.runtime import TrioRuntime

BLOCK_BYTES = 4096


class _Host(LinuxHost):
    def __init__(self, workers: int) -> None:
        self._workers = workers

    def backend(self, port: EnginePort) -> LegBackend:
        return ThreadedLegs(port, self._workers)


def measure(
    directory: pathlib.Path, counts: list[int], *, size_bytes: int, rounds: int, seconds: float, depth: int
) -> list[dict[str, Any]]:
    """Return for each pool and direction the median and range of IOPS; the pools take turns."""
    found: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="raidfs-workers-", dir=directory) as place:
        images = (f"{place}/a.img", f"{place}/b.img")
        create = [sys.executable, "-m", "raidfs", "create", "--assume-clean", "--size", str(size_bytes), *images]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
        for image in images:
            _allocate(image)
        for _ in range(rounds):
            for workers in counts:
                run = functools.partial(_one, images, workers, seconds=seconds, depth=depth)
                for direction, iops in trio.run(run).items():
                    found.setdefault((workers, direction), []).append(iops)
    return [
        {"workers": w, "direction": d, "iops": round(statistics.median(v)), "low": round(min(v)), "high": round(max(v))}
        for (w, d), v in found.items()
    ]


async def _one(images: tuple[str, ...], workers: int, *, seconds: float, depth: int) -> dict[str, float]:
    runtime = TrioRuntime()
    result = {}
    async with open_node(runtime, NodeOptions(images=images, client_name="bench"), _Host(workers)) as node:
        for direction in ("read", "write"):
            done = [0]
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for number in range(depth):
                        nursery.start_soon(_requests, node.volume, direction, random.Random(number), done)
            result[direction] = done[0] / seconds
    return result


async def _requests(volume: Volume, direction: str, chance: random.Random, done: list[int]) -> None:
    data = bytes(BLOCK_BYTES)
    blocks = volume.size_bytes // BLOCK_BYTES
    while True:
        offset = chance.randrange(blocks) * BLOCK_BYTES
        if direction == "read":
            await volume.read(offset, BLOCK_BYTES)
        else:
            await volume.write(offset, data, durable=False)
        done[0] += 1


def _allocate(image: str) -> None:
    # Writes every block behind the metadata once, so that no pool pays for the allocation.
    size = os.stat(image).st_size
    with open(image, "r+b") as file:
        for offset in range(1 << 20, size - size % (1 << 20), 1 << 20):
            file.seek(offset)
            file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
