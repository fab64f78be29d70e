"""Machines of a lab as tests use them: commands that must succeed, disks seen by the host, both kinds of array."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lab import agent
from lab.agent import Said
from lab.cluster import Lab, at_once
from lab.shape import CLUSTER_NAME, LabError, Share, Wish
from raidfs.array.examine import Examination, examine_image
from raidfs.format.bitmap import SUPER_BYTES, iter_dirty
from raidfs.format.superblock import Superblock
from raidfs.units import MIB

GUEST = pathlib.Path(__file__).parent.parent / "dlm" / "guest"
PROGRAMS = "/opt/tests"
# With pytest, for the tests that run in a machine: it has the Python that .venv is made with.
TREE = "/opt/tree"
SITE = "/opt/site"
SHARES = {GUEST: PROGRAMS, GUEST.parents[2]: TREE, sysconfig.get_path("purelib"): SITE}
MOUNTPOINT = "/mnt"
FILE = f"{MOUNTPOINT}/md0"
MD = "/dev/md0"
DATA = ("python3", f"{PROGRAMS}/data.py")
DEADLINE_S = 150.0
_LOOK_AGAIN_S = 0.1


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``condition``, looked at until a deadline: for what a machine does by itself."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(_LOOK_AGAIN_S)
    return value


class Stamping:
    """A program that writes stamped blocks on a machine; here is what it was told that it has written (P1, P5).

    What the machine has said before it goes away is what counts: it may have written more.
    """

    def __init__(self, node: Node, file: str, first: int, count: int) -> None:
        self._node, self._file, self._first, self._count = node, file, first, count
        self._lines = bytearray()
        self.failure: LabError | None = None
        self.status: int | None = None
        reader, self._until = os.pipe()
        self._input = os.fdopen(reader, "rb")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        machine, port = self._node.lab.machines[self._node.number], self._node.lab.shape.control[self._node.number - 1]
        words = (*DATA, "stamp", self._file, str(self._first), str(self._count))
        try:
            self.status = agent.execute(machine, port, words, stdin=self._input, stdout=self._lines.extend)
        except LabError as error:
            self.failure = error

    @property
    def writes(self) -> int:
        """How many writes have returned."""
        return self._lines.count(b"\n")

    def go_on(self, count: int = 20) -> None:
        """Return when so many more writes have returned."""
        wanted = self.writes + count
        eventually(lambda: self.writes >= wanted or not self._thread.is_alive(), f"{self._node} goes on writing")
        assert self._thread.is_alive(), f"{self._node} does not write any more: {self.status}, {self.failure}"

    def stop(self, *, fails: bool = False) -> None:
        """End it; none of its writes may have failed unless ``fails``."""
        if self._until >= 0:
            os.close(self._until)
            self._until = -1
        self._thread.join()
        self._input.close()
        assert fails or (self.status, self.failure) == (0, None), f"{self._node}: {self.status}, {self.failure}"

    def check(self, reader: Node) -> None:
        """Every write that has returned is there, or a later one of the same block."""
        acknowledged = _generations(bytes(self._lines).decode())
        assert acknowledged
        said = reader.run(*DATA, "stamps", self._file, self._first, self._count)
        found = _generations(said)
        lost = {block: (found[block], wanted) for block, wanted in acknowledged.items() if found[block] < wanted}
        assert not lost, f"generations that are there, and should be: {lost}"


def _generations(text: str) -> dict[int, int]:
    # A last line that was cut off does not count.
    words = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return {int(block): int(generation) for block, generation in words}


class Running:
    """A command that runs in a machine while the test goes on."""

    def __init__(self, lab: Lab, number: int, words: Sequence[str], timeout_s: float) -> None:
        self._said: Said | None = None
        self._failed: LabError | None = None
        self._words = words
        self._thread = threading.Thread(target=self._run, args=(lab, number, timeout_s), daemon=True)
        self._thread.start()

    def _run(self, lab: Lab, number: int, timeout_s: float) -> None:
        try:
            self._said = lab.run(number, *self._words, timeout_s=timeout_s)
        except LabError as error:
            self._failed = error

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def said(self) -> Said:
        """Wait for the end and return what the command said; its machine must not have gone away."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        assert self._said is not None
        return self._said

    def succeeded(self) -> str:
        said = self.said()
        assert said.status == 0, f"{shlex.join(self._words)}: {said.status}\n{said.out}{said.err}"
        return said.out


@dataclasses.dataclass(frozen=True)
class Node:
    """One machine of the lab."""

    lab: Lab
    number: int

    def __str__(self) -> str:
        return f"n{self.number}"

    def said(self, *words: object, timeout_s: float = DEADLINE_S) -> Said:
        return self.lab.run(self.number, *map(str, words), timeout_s=timeout_s)

    def run(self, *words: object, timeout_s: float = DEADLINE_S) -> str:
        """Run a command that must succeed and return what it printed."""
        said = self.said(*words, timeout_s=timeout_s)
        command = shlex.join(map(str, words))
        assert said.status == 0, f"{self}: {command}: {said.status}\n{said.out}{said.err}"
        return said.out

    def shell(self, text: str, timeout_s: float = DEADLINE_S) -> str:
        return self.run("sh", "-c", text, timeout_s=timeout_s)

    def begin(self, *words: object, timeout_s: float = 300) -> Running:
        return Running(self.lab, self.number, list(map(str, words)), timeout_s)

    def kill(self) -> None:
        """Cut its power."""
        self.lab.machines[self.number].kill()

    def write(self, path: str, seed: int, offset: int, length: int) -> None:
        self.run(*DATA, "write", path, seed, offset, length)

    def checksum(self, path: str, offset: int, length: int) -> str:
        return self.run(*DATA, "sum", path, offset, length).strip()


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk that all machines share: a file of the host, and its name in the machines."""

    host: pathlib.Path
    guest: str

    def wipe(self) -> None:
        """Make it as it was when it was new. Nobody may be using it."""
        size = self.host.stat().st_size
        subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(size), self.host], check=True)

    def examine(self) -> Examination:
        return examine_image(str(self.host))

    @property
    def superblock(self) -> Superblock:
        return self.examine().superblock

    def data(self) -> bytes:
        """Return the array's data on this leg."""
        superblock = self.superblock
        with open(self.host, "rb") as file:
            file.seek(superblock.data_offset_sectors * 512)
            return file.read(superblock.size_sectors * 512)

    def scribble(self) -> None:
        """Overwrite the array's data on this leg with something else."""
        superblock = self.superblock
        with open(self.host, "r+b") as file:
            file.seek(superblock.data_offset_sectors * 512)
            file.write(b"no data of that array at all\0\0\0\0" * (superblock.size_sectors * 16))
            file.flush()
            os.fsync(file.fileno())

    def dirty_chunks(self, slots: Sequence[int] | None = None) -> set[int]:
        """Return the chunks whose bit is set in any slot, or in any of ``slots``."""
        layout = self.examine().layout
        assert layout is not None
        found: set[int] = set()
        with open(self.host, "rb") as file:
            for slot in range(layout.nodes) if slots is None else slots:
                file.seek(layout.slot_offset_bytes(slot))
                found |= set(iter_dirty(file.read(layout.slot_bytes)[SUPER_BYTES:], layout.bits))
        return found


def equal_chunks(disks: Sequence[Disk], chunk_bytes: int) -> set[int]:
    """Return the numbers of the chunks that two legs have in common."""
    first, second = (disk.data() for disk in disks)
    places = range(0, len(first), chunk_bytes)
    return {at // chunk_bytes for at in places if first[at : at + chunk_bytes] == second[at : at + chunk_bytes]}


def checksum_of(seed: int, length: int) -> str:
    """Return what `Node.checksum` gives after `Node.write` of that seed and length."""
    rng, found = random.Random(seed), hashlib.sha256()
    for start in range(0, length, MIB):
        found.update(rng.randbytes(MIB)[: length - start])
    return found.hexdigest()


class Cluster:
    """The machines and disks of one lab for one test after the other."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nodes = [Node(lab, number) for number in lab.shape.numbers]
        self.disks = [Disk(pathlib.Path(path), f"/dev/shared{n}") for n, path in enumerate(lab.shape.disks)]

    def on_all(self, function: Callable[[Node], object]) -> None:
        """Call ``function(node)`` for all nodes at the same time."""
        at_once([node.number for node in self.nodes], lambda number: function(self.nodes[number - 1]))

    def make_ready(self) -> None:
        """Boot what is off or cannot be tidied, and make all disks new."""
        bad: set[int] = set()

        def tidy(node: Node) -> None:
            machine = self.lab.machines[node.number]
            if machine.pid is not None and machine.state == "paused":
                machine.resume()
            with contextlib.suppress(LabError):
                if machine.pid is not None:
                    said = node.said(f"{PROGRAMS}/tidy", timeout_s=60)
                    if said.status == 0:
                        return
                    print(f"{node} is booted anew: {said.out}")
            bad.add(node.number)

        self.lab.set_links(self.lab.machines, up=True)
        self.on_all(tidy)
        if bad:
            # One that was killed may have left a lock space in recovery on the others: all together are as new.
            for machine in self.lab.machines.values():
                machine.kill()
            self.lab.start(self.lab.shape.numbers)
        for disk in self.disks:
            disk.wipe()


@contextlib.contextmanager
def lab_up(name: str, **wish: Any) -> Iterator[Cluster]:
    """Give a lab of its own below the run directory of ``scripts/lab test``, and switch it off afterwards."""
    shares = tuple(Share(str(host), guest, read_only=True) for host, guest in SHARES.items())
    lab = Lab.up(pathlib.Path(os.environ["RAIDFS_LAB_RUN"]) / name, Wish(shares=shares, **wish))
    try:
        yield Cluster(lab)
    finally:
        lab.down()


# ---- raidfs and the kernel's md on a machine -------------------------------------------------------------------


def raidfs_create(node: Node, disks: Sequence[Disk], *options: str) -> None:
    node.run("raidfs", "create", "--cluster-name", CLUSTER_NAME, *options, *[disk.guest for disk in disks])


def raidfs_mount(node: Node, disks: Sequence[Disk], *options: str) -> None:
    node.run("raidfs", "mount", *options, *[disk.guest for disk in disks], MOUNTPOINT)


def raidfs_umount(node: Node) -> None:
    node.run("raidfs", "umount", MOUNTPOINT)


def raidfs_status(node: Node) -> dict[str, Any]:
    (found,) = json.loads(node.run("raidfs", "status", "--json", MOUNTPOINT))["nodes"]
    status: dict[str, Any] = found
    return status


def md_assemble(node: Node, disks: Sequence[Disk], *options: str) -> None:
    node.run("modprobe", "-a", "raid1", "md-cluster")
    node.run("mdadm", "--assemble", *options, MD, *[disk.guest for disk in disks])


def md_stop(node: Node) -> None:
    node.run("mdadm", "--stop", MD)


def md_state(node: Node) -> str:
    """Return what ``sync_action`` of the array says: idle, resync, recover ..."""
    return node.run("cat", "/sys/block/md0/md/sync_action").strip()


def md_is_quiet(node: Node) -> bool:
    """Whether no sync runs, is due, or is done by another node."""
    text = node.run("cat", "/proc/mdstat")
    return re.search(r"(resync|recovery|check|reshape)\s*=", text) is None and md_state(node) == "idle"
