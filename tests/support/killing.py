"""Three nodes, each written to by a program that knows what it wrote, while nodes are killed and come back.

`Campaign.run` returns the report; what must hold is asserted on the way. The lock server survives, as the lock
manager of a cluster does.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from support.mounted import Node, eventually, is_mounted, raidfs

from raidfs.control import client
from raidfs.errors import RaidfsError

NODES = 3
SIZE_BYTES = 96 << 20
CHUNK_BYTES = 256 << 10
SYNC_SPEED_KIB = 24 << 10  # so that kills find syncs half-way
KILLS_PER_LEG_WORK = 3
MOUNT_TRIES = 6  # while another node may be adding a new disk

_TESTS = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass
class Kill:
    """One node was killed at ``at`` (CLOCK_MONOTONIC), and was mounted again at ``back``."""

    node: int
    at: float
    during: str
    back: float = float("inf")


class Campaign:
    """``kills`` kills; the same ``seed`` makes the same plan, though not the same interleaving."""

    size_bytes = SIZE_BYTES  # that the writers write to

    def __init__(self, directory: pathlib.Path, kills: int, seed: str) -> None:
        self.images = [directory / "a.img", directory / "b.img"]
        self.kills: list[Kill] = []
        self._directory = directory
        self._count = kills
        self._seed = seed
        self._random = random.Random(seed)
        self._lock = f"unix:{directory}/lock"
        self._mounts = [directory / f"m{number}" for number in range(NODES)]
        self._nodes: dict[int, Node] = {}
        self._refused: list[str] = []
        self._leg_work = 0

    def run(self) -> dict[str, Any]:
        """Do it all, and leave an array that is stopped."""
        made = raidfs(
            "create", "--size", str(SIZE_BYTES), "--nodes", str(NODES), "--bitmap-chunk", str(CHUNK_BYTES), *self.images
        )
        assert made.returncode == 0, made.stderr
        for mount in self._mounts:
            mount.mkdir()
        began = time.monotonic()
        with contextlib.ExitStack() as ends:
            ends.enter_context(self._lock_server())
            ends.callback(self._kill_all)
            for number in range(NODES):
                self._mount(number)
            writers = [ends.enter_context(self._writer(number)) for number in range(NODES)]
            while len(self.kills) < self._count:
                self._round()
            self._make_complete()
            said = [self._stopped(writer) for writer in writers]
            self._wait_until_quiet()
            for number in range(NODES):
                done = raidfs("umount", self._mounts[number])
                assert done.returncode == 0, done.stderr
                del self._nodes[number]
        return self._report(said, time.monotonic() - began)

    # ---- one kill --------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._rest(0.3, 1.5)
        work = self._some_leg_work() if len(self.kills) > self._leg_work * KILLS_PER_LEG_WORK else None
        if work is not None:
            self._rest(0.0, 0.8)
        victims = [self._random.randrange(NODES)]
        if work is not None and self._random.random() < 0.5:
            victims = [self._syncing(victims[0])]
        self._kill(victims[0])
        if self._random.random() < 0.25:  # and the one that took its work over
            self._rest(0.0, 0.5)
            victims.append(self._syncing(self._random.choice(sorted(self._nodes))))
            self._kill(victims[1])
        self._rest(0.0, 1.0)
        for victim in victims:
            self._mount(victim)
        if work is not None:
            self._command_ended(work)

    def _kill(self, number: int) -> None:
        during = self._nodes[number].status().sync
        node = self._nodes.pop(number)
        kill = Kill(number, time.monotonic(), f"{during.action} {during.state}")
        node.signal(signal.SIGKILL)
        self.kills.append(kill)
        node.wait_gone()
        eventually(lambda: not is_mounted(node.directory), f"{node.directory} is detached")

    def _mount(self, number: int) -> None:
        directory = self._mounts[number]
        options = ["--lock", self._lock, "--sync-speed-max", str(SYNC_SPEED_KIB)]
        for attempt in range(MOUNT_TRIES):
            # Degraded, and then without the new disk, which nobody has added yet, is what an operator has to ask for.
            degraded = ["--run"] if attempt % 3 else []
            images = self.images[:1] if attempt % 3 == 2 else self.images
            said = raidfs("mount", *options, *degraded, *images, directory)
            if said.returncode == 0:
                break
            self._refused.append(said.stderr.strip())
        assert said.returncode == 0, f"node {number} after {len(self.kills)} kills: {said.stderr}"
        with client.find(str(directory)) as found:
            node = Node(directory, directory / "md0", found.hello.pid)
        assert node.status().node.slot in range(NODES)
        self._nodes[number] = node
        for kill in self.kills:
            if kill.node == number and kill.back == float("inf"):
                kill.back = time.monotonic()

    def _rest(self, least_s: float, most_s: float) -> None:
        time.sleep(self._random.uniform(least_s, most_s))

    def _syncing(self, otherwise: int) -> int:
        return next((one for one, node in self._nodes.items() if node.status().sync.state == "running"), otherwise)

    # ---- the legs --------------------------------------------------------------------------------------------------

    def _some_leg_work(self) -> subprocess.Popen[str] | None:
        """Take the second leg away if it is there, and begin to bring it back: by the bitmaps, or as a whole."""
        asked = self._any_node()
        states = self._leg_states(asked)
        if states == ["in_sync", "in_sync"]:
            assert raidfs("fail", asked.directory, self.images[1]).returncode == 0
            self._rest(0.0, 0.5)
            if self._random.random() < 0.5:
                assert raidfs("remove", asked.directory, self.images[1]).returncode == 0
                self.images[1].unlink()  # a new disk: it is recovered as a whole
                with open(self.images[1], "xb") as file:
                    file.truncate(self.images[0].stat().st_size)
        elif "recovering" in states or "spare" in states:
            return None
        self._leg_work += 1
        return self._bring_back(asked)

    def _bring_back(self, asked: Node) -> subprocess.Popen[str]:
        faulty = [leg.path for leg in asked.status().legs if leg.state == "faulty"]
        verb = "re-add" if str(self.images[1]) in faulty else "add"
        return subprocess.Popen(
            [sys.executable, "-m", "raidfs", verb, str(asked.directory), str(self.images[1])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_TESTS.parent,
        )

    def _command_ended(self, command: subprocess.Popen[str]) -> None:
        # It may be refused, for the node that was asked has died; it must not hang.
        said = command.communicate(timeout=90)[1]
        if command.returncode:
            self._refused.append(said.strip())

    def _make_complete(self) -> None:
        self._wait_until_quiet()
        asked = self._any_node()
        if self._leg_states(asked) != ["in_sync", "in_sync"]:
            command = self._bring_back(asked)
            said = command.communicate(timeout=90)[1]
            assert command.returncode == 0, (said, [(leg.path, leg.state) for leg in asked.status().legs])
            self._wait_until_quiet()
        for node in self._nodes.values():
            assert self._leg_states(node) == ["in_sync", "in_sync"]

    def _wait_until_quiet(self) -> None:
        for node in self._nodes.values():
            waited = raidfs("wait", node.directory)
            assert waited.returncode == 0, waited.stderr

    def _any_node(self) -> Node:
        return self._nodes[self._random.choice(sorted(self._nodes))]

    def _leg_states(self, node: Node) -> list[str]:
        return [leg.state for leg in node.status().legs]

    # ---- processes -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock_server(self) -> Iterator[None]:
        command = [sys.executable, "-m", "raidfs", "lockd", "--listen", self._lock]
        with (
            open(self._directory / "lock.log", "wb") as log,
            subprocess.Popen(command, cwd=_TESTS.parent, stderr=log) as process,
        ):
            try:
                eventually(pathlib.Path(self._lock.removeprefix("unix:")).exists, "the lock server listens")
                yield
            finally:
                process.terminate()

    @contextlib.contextmanager
    def _writer(self, number: int) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "support.stamped_writer", "--seed", self._seed, "--size", str(self.size_bytes)]
        command += ["--writer", str(number), "--writers", str(NODES), "--file", str(self._mounts[number] / "md0")]
        for other in range(NODES):
            if other != number:
                command += ["--peer", str(self._mounts[other] / "md0")]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_TESTS,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_TESTS.parent)},
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _stopped(self, writer: subprocess.Popen[str]) -> dict[str, Any]:
        said = writer.communicate(timeout=90)[0]
        assert writer.returncode == 0
        report: dict[str, Any] = json.loads(said)
        return report

    def _kill_all(self) -> None:
        for node in self._nodes.values():
            with contextlib.suppress(ProcessLookupError, RaidfsError):
                node.signal(signal.SIGKILL)
                node.wait_gone()

    # ---- the report ------------------------------------------------------------------------------------------------

    def _report(self, writers: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        stalls = sorted(stall for kill in self.kills for stall in self._stalls(kill, writers))
        away = sorted(kill.back - kill.at for kill in self.kills)
        log = "".join(path.read_text() for path in pathlib.Path(os.environ["RAIDFS_RUNTIME_DIR"]).glob("*.log"))
        return {
            "kills": len(self.kills),
            "seed": self._seed,
            "seconds": round(seconds, 1),
            "writes": sum(one["writes"] for one in writers),
            "reads": sum(one["reads"] for one in writers),
            "verified_sectors": sum(one["verified_sectors"] for one in writers),
            "sectors_in_doubt": sum(one["in_doubt"] for one in writers),
            "lost": [text for one in writers for text in one["lost"]],
            "strange_failures": self._strange_failures(writers),
            "survivor_stall_ms": {
                "p50": _ms(stalls, 0.5), "p90": _ms(stalls, 0.9), "p99": _ms(stalls, 0.99), "max": _ms(stalls, 1.0)
            },
            "away_ms": {"p50": _ms(away, 0.5), "max": _ms(away, 1.0)},
            "killed_during": {
                during: sum(kill.during == during for kill in self.kills)
                for during in sorted({kill.during for kill in self.kills})
            },
            "leg_work": self._leg_work,
            "commands_refused": collections.Counter(text.replace(f"{self._directory}/", "") for text in self._refused),
            "log_lines": len(log.splitlines()),
            "tracebacks": log.count("Traceback"),
        }  # fmt: skip

    def _stalls(self, kill: Kill, writers: list[dict[str, Any]]) -> Iterator[float]:
        """For each survivor of a kill, its longest write from then until the killed node was back."""
        dead = {other.node for other in self.kills if other.at <= kill.back and kill.at <= other.back}
        for number, writer in enumerate(writers):
            if number not in dead:
                during = (took for began, took in writer["slow"] if began + took >= kill.at and began <= kill.back)
                yield max(during, default=0.0)

    def _strange_failures(self, writers: list[dict[str, Any]]) -> list[str]:
        """Failures of nodes that were not killed just before."""
        return [
            f"node {number} at {at:.3f}: {os.strerror(code or 0)}"
            for number, writer in enumerate(writers)
            for at, code in writer["failures"]
            if not any(kill.node == number and kill.at <= at <= kill.back + 1 for kill in self.kills)
        ]


def _ms(ordered: list[float], part: float) -> float:
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))], 1) if ordered else 0.0
