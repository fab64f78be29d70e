"""Three nodes, each written to below the smallest size, while any of them resizes the array and some are killed.

`Resizes.run` returns the report; what must hold is asserted on the way: when the command has ended well, every node
has the new size at once, in its kernel too; when it has not, all have one size, the old one or the new one.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import pathlib
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from support.killing import NODES, SYNC_SPEED_KIB, Campaign, Kill
from support.mounted import Node, eventually, raidfs

from raidfs.array.head import read_candidates
from raidfs.control import client
from raidfs.errors import RaidfsError
from raidfs.format.bitmap import BitmapSuperblock
from raidfs.format.superblock import Superblock
from raidfs.resize_plan import Change
from raidfs.units import SECTOR_BYTES

LOWEST_BYTES = 48 << 20
ROOM_BYTES = 96 << 20  # of the images, for data
DATA_OFFSET_BYTES = 1 << 20
CHUNK_BYTES = 256 << 10
BLOCK = 4096
KILL_CHANCE = 0.5
ALL_DIE_CHANCE = 0.08
COMMAND_S = 150  # more than the patience of a sender and of a drain together


class _Command:
    """``raidfs grow`` without the start of a Python, so that kills meet the resize."""

    def __init__(self, directory: pathlib.Path, change: Change) -> None:
        self.took_s = 0.0
        self._refusal: str | None = None
        self._change = change
        self._node = client.find(str(directory))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            with self._node as node:
                node.call("grow", timeout_s=None, **self._change.to_json())
        except RaidfsError as e:
            self._refusal = str(e)
        self.took_s = time.monotonic() - began

    def ended(self) -> str | None:
        """Return when it has ended: None, or why it was refused."""
        self._thread.join(COMMAND_S)
        assert not self._thread.is_alive(), "the resize hangs"
        return self._refusal


class Resizes(Campaign):
    """``count`` resizes that came to their end, or were cut off by a kill; the same ``seed`` makes the same plan."""

    size_bytes = LOWEST_BYTES

    def __init__(self, directory: pathlib.Path, count: int, seed: str) -> None:
        super().__init__(directory, count, seed)
        self.size = LOWEST_BYTES
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._took: list[float] = []
        self._generation = 0
        self._held: dict[int, int] = {}  # a descriptor of each node's file from before

    def run(self) -> dict[str, Any]:
        """Do it all, and leave an array that is stopped."""
        for image in self.images:
            with open(image, "xb") as file:
                file.truncate(DATA_OFFSET_BYTES + ROOM_BYTES)
        chunk = ["--bitmap-chunk", str(CHUNK_BYTES)]
        made = raidfs("create", "--size", str(LOWEST_BYTES), "--nodes", str(NODES), *chunk, *self.images)
        assert made.returncode == 0, made.stderr
        for mount in self._mounts:
            mount.mkdir()
        began = time.monotonic()
        with contextlib.ExitStack() as ends:
            ends.enter_context(self._lock_server())
            ends.callback(self._kill_all)
            ends.callback(self._let_go)
            for number in range(NODES):
                self._mount(number)
            writers = [ends.enter_context(self._writer(number)) for number in range(NODES)]
            with self._telling():
                while self._outcomes["done"] + self._outcomes["cut off"] < self._count:
                    self._resize()
            self._wait_until_quiet()
            said = raidfs("grow", self._mounts[0], "--size", "max")
            assert said.returncode == 0, said.stderr
            self._check(ROOM_BYTES)
            reports = [self._stopped(writer) for writer in writers]
            self._wait_until_quiet()
            for number in range(NODES):
                self._let_go(number)
                done = raidfs("umount", self._mounts[number])
                assert done.returncode == 0, done.stderr
                del self._nodes[number]
        return {
            **self._report(reports, time.monotonic() - began),
            "resizes": dict(self._outcomes),
            "resize_ms": {"p50": _ms(self._took, 0.5), "max": _ms(self._took, 1.0)},
        }

    # ---- one resize ------------------------------------------------------------------------------------------------

    def _resize(self) -> None:
        self._wait_until_quiet()
        self._rest(0.0, 0.2)
        number = self._random.choice(sorted(self._nodes))
        maximum = self._random.random() < 0.1
        blocks = self._random.randrange(LOWEST_BYTES // BLOCK, ROOM_BYTES // BLOCK + 1)
        wanted = ROOM_BYTES if maximum else blocks * BLOCK
        old = self.size
        change = Change(None if maximum else wanted // SECTOR_BYTES, maximum=maximum, force=True)
        command = _Command(self._mounts[number], change)
        if self._random.random() < ALL_DIE_CHANCE:
            self._die_all(command, {old, wanted})
            return
        victim = self._victim(number) if self._random.random() < KILL_CHANCE else None
        refusal = command.ended()
        if refusal is None:
            self._outcomes["done"] += 1
            self._took += [command.took_s] if victim is None else []
            self._check(wanted)
        elif victim is None:
            self._refused.append(refusal)
            assert "sync" in refusal, refusal  # of what a node left that was killed before
            self._outcomes["refused"] += 1
            self._check(old)
        else:
            self._refused.append(refusal)
            kept = victim != number and "half-done" not in refusal
            if kept:
                self._check(old)
            size = self._agreed({old} if kept else {old, wanted}, refusal)
            self._outcomes["cut off"] += 1
            self._outcomes["and finished" if size == wanted else "and taken back"] += 1
            self._check(size)
        if victim is not None:
            self._mount(victim)
            self._check(self.size)

    def _victim(self, asked: int) -> int:
        """Kill a node, half of the time the one that was asked, at any time of the resize."""
        self._rest(0.0, 1.1 * self._usual())
        victim = asked if self._random.random() < 0.5 else self._random.randrange(NODES)
        self._kill_in_resize(victim)
        return victim

    def _usual(self) -> float:
        return statistics.median(self._took[-9:]) if self._took else 0.1

    def _kill_in_resize(self, victim: int) -> None:
        node = self._nodes.pop(victim)
        node.signal(signal.SIGKILL)
        self.kills.append(Kill(victim, time.monotonic(), "a resize"))
        self._let_go(victim)
        node.wait_gone()

    def _die_all(self, command: _Command, sizes: set[int]) -> None:
        """Kill all nodes at any time of the resize; the first that is mounted again ends it, one way or the other."""
        self._rest(0.0, 1.1 * self._usual())
        victims = self._random.sample(sorted(self._nodes), NODES)
        for victim in victims:
            self._kill_in_resize(victim)
        self._refused += [refusal] if (refusal := command.ended()) is not None else []
        self._mount(victims[0])
        found = self._agreed(sizes, "all nodes have died")
        self._outcomes["cut off"] += 1
        self._outcomes["with all nodes"] += 1
        self._check(found)
        for victim in victims[1:]:
            self._mount(victim)
            self._check(found)

    def _agreed(self, sizes: set[int], said: str) -> int:
        """Return the size that all nodes come to, when superblocks and slots say that nothing is left to be done."""
        self._wait_until_quiet()

        def agreed() -> int:
            found = {os.stat(node.file).st_size for node in self._nodes.values()}
            found |= {node.status().array.size_bytes for node in self._nodes.values()}
            for candidate in read_candidates([str(path) for path in self.images]):
                for head in (candidate.superblock, *candidate.slots):
                    if isinstance(head, BitmapSuperblock):
                        found.add(head.sync_size_sectors * SECTOR_BYTES)
                    else:
                        found.add(head.size_sectors * SECTOR_BYTES if isinstance(head, Superblock) else 0)
            return found.pop() if len(found) == 1 and found <= sizes else 0

        size = eventually(agreed, f"the nodes have one size again; the command said: {said}")
        assert isinstance(size, int)
        return size

    def _check(self, size: int) -> None:
        """Every node has this size and nothing behind it, and what one writes at the end the others read."""
        self.size = size
        self._generation += 1
        for number, node in self._nodes.items():
            assert os.stat(node.file).st_size == os.fstat(self._held[number]).st_size == size, number
        writer = self._random.choice(sorted(self._nodes))
        if size > LOWEST_BYTES:
            block = self._generation.to_bytes(8, "little") * (BLOCK // 8)
            with open(self._nodes[writer].file, "r+b", buffering=0) as file:
                file.seek(size - BLOCK)
                assert file.write(block) == BLOCK
        buffer = mmap.mmap(-1, BLOCK)
        for number, descriptor in self._held.items():
            assert os.preadv(descriptor, [buffer], size) == 0, number
            assert os.preadv(descriptor, [buffer], size - BLOCK) == BLOCK, number
            assert size == LOWEST_BYTES or buffer[:] == block, (number, size)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """When something goes wrong, tell who waits for whom before all is killed."""
        try:
            yield
        except BaseException:
            print(raidfs("explain").stdout)
            print({number: (node.pid, node.status()) for number, node in self._nodes.items()})
            for path in pathlib.Path(os.environ["RAIDFS_RUNTIME_DIR"]).glob("*.log"):
                print(path.name, path.read_text())
            raise

    # ---- processes -------------------------------------------------------------------------------------------------

    def _mount(self, number: int) -> None:
        directory = self._mounts[number]
        options = ["--lock", self._lock, "--sync-speed-max", str(2 * SYNC_SPEED_KIB)]
        said = raidfs("mount", *options, *self.images, directory)
        assert said.returncode == 0, f"node {number} after {dict(self._outcomes)}: {said.stderr}"
        with client.find(str(directory)) as found:
            self._nodes[number] = node = Node(directory, directory / "md0", found.hello.pid)
        self._held[number] = os.open(node.file, os.O_RDONLY | os.O_DIRECT)
        for kill in self.kills:
            if kill.node == number and kill.back == float("inf"):
                kill.back = time.monotonic()

    def _let_go(self, number: int | None = None) -> None:
        for one in [*self._held] if number is None else [number]:
            with contextlib.suppress(OSError):  # of a node that is dead
                os.close(self._held.pop(one))


def _ms(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))], 1) if ordered else 0.0
