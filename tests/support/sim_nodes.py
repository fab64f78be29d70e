"""Real nodes on the stepper, over simulated disks and locks, for schedules that a test drives itself.

A test starts nodes, lets them run up to a condition, and lets one die or leave; the seed decides what is left open.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, ClassVar

from support.protocol import Outcome

from raidfs._core import LegState
from raidfs.cluster.messages import Message
from raidfs.format.bitmap import SUPER_BYTES, count_dirty
from raidfs.lock.api import Mode
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.sim.checkers import LockChecker
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimHost, SimStorage
from raidfs.sim.layout import CHUNK_BYTES, format_disks, sim_layout
from raidfs.sim.locks import SimulatedLocks
from raidfs.sim.policies import RandomPolicy
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Stepper
from raidfs.sim.trace import Trace

CHUNKS = 8


class SimNode:
    """One node; ``node`` is there once it has joined."""

    def __init__(self, cluster: SimNodes, name: str, options: dict[str, Any]) -> None:
        self.cluster = cluster
        self.name = name
        self.group = cluster.stepper.group(name)
        self.runtime = SimRuntime(cluster.stepper, self.group)
        self.host = SimHost(name, cluster.stepper, self.group, cluster.storage, cluster.locks)
        self.joined: Node | None = None
        self.left = False
        self._leave = False
        self._wait = self.runtime.wait_queue()
        self._options = options
        cluster.nodes.append(self)
        cluster.stepper.spawn(self.group, self._run(), name="node", on_end=self._ended)

    @property
    def node(self) -> Node:
        assert self.joined is not None
        return self.joined

    @property
    def copied(self) -> int:
        """Bytes that its syncs have written to legs."""
        return self.node.array.port.engine.statistics()["sync"]["bytes_written"]

    @property
    def needed(self) -> int:
        """Chunks that are to be resynced as far as it knows."""
        return self.node.array.port.engine.statistics()["chunks_needed"]

    @property
    def position(self) -> int:
        """How far its sync is."""
        current = self.node.sync.current
        return 0 if current is None else current.progress.position_bytes

    async def _run(self) -> None:
        options = NodeOptions(
            images=tuple(disk.name for disk in self.cluster.disks[: self.cluster.named]),
            client_name=self.name,
            lock="simulated",
            sync_window_bytes=(1024, 4096),
            **self._options,
        )
        async with open_node(self.runtime, options, self.host) as node:
            self.host.slot = node.membership.slot
            self.joined = node
            await self._wait.wait_event(lambda: self._leave, what="the test")
        self.left = True

    def _ended(self, task: object, e: BaseException | None) -> None:
        if e is not None:
            raise e

    def start(self, coro: Coroutine[Any, Any, Any], name: str = "user") -> list[Any]:
        """Run something on the node; the list has its result once it is there."""
        results: list[Any] = []

        async def run() -> None:
            results.append(await coro)

        self.cluster.stepper.spawn(self.group, run(), name=name, on_end=self._ended)
        return results

    def ask(self, coro: Coroutine[Any, Any, Any]) -> Outcome:
        """Run a command on the node that may fail."""
        outcome = Outcome()
        self.cluster.started.append(coro)

        async def run() -> None:
            try:
                outcome.value = await coro
            except Exception as e:
                outcome.error = e
            outcome.done = True

        self.cluster.stepper.spawn(self.group, run(), name="a command", on_end=self._ended)
        return outcome

    def do(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Run a command on the node to its end, which is a good one."""
        outcome = self.ask(coro)
        self.cluster.until(lambda: outcome.done)
        if outcome.error is not None:
            raise outcome.error

    @property
    def legs(self) -> dict[str, str]:
        """What it makes of each disk."""
        return {leg.path: LegState(leg.state).name for leg in self.node.array.legs}

    def leave(self) -> None:
        """Begin to leave."""
        self._leave = True
        self._wait.wake_up()

    def die(self) -> None:
        """Be dead and fenced at once: its locks are free, and nothing of it takes place any more."""
        self.cluster.stepper.crash(self.group)
        self.host.sever()
        self.host.fence()


class SimNodes:
    """Disks, locks and nodes of one test; ``messages`` are all that were sent: client and message.

    Of the disks ``legs`` make up the array, then come ``spares``; these the nodes are given. ``fresh`` are blank. Each
    has room for ``room`` chunks more than the array has.
    """

    made: ClassVar[list[SimNodes]] = []

    def __init__(
        self, seed: int, *, clean: bool = False, legs: int = 2, spares: int = 0, fresh: int = 0, room: int = 0
    ) -> None:
        self.made.append(self)
        self.nodes: list[SimNode] = []
        self.started: list[Coroutine[Any, Any, Any]] = []
        self.named = legs + spares
        rng = Random(seed)
        self.stepper = Stepper(RandomPolicy(rng), rng, steps_max=60_000)
        self.world = self.stepper.group("world")
        self.layout = sim_layout(CHUNKS)
        trace = Trace(keep=False)
        self.disks = [
            SimDisk(f"disk{n}", self.layout.end_bytes + room * CHUNK_BYTES, self.stepper, self.world, rng, trace)
            for n in range(legs + spares + fresh)
        ]
        format_disks(self.disks[: self.named], self.layout, legs=legs, clean=clean)
        self.storage = SimStorage(self.disks)
        self.locks = SimulatedLocks(SimRuntime(self.stepper, self.world))
        self.messages: list[tuple[str, Message]] = []
        checker = LockChecker(self.locks._machine, self._broken, lambda event: None)
        checker.on_value = self._value
        self.locks._machine = checker  # type: ignore[assignment]
        self.stepper.spawn(self.world, self.locks.run(), name="locks")

    @classmethod
    def dispose_all(cls) -> None:
        """Throw the frames away of all that were made so far."""
        for cluster in cls.made:
            cluster.stepper.dispose()
            for coro in cluster.started:
                if inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
                    coro.close()
        cls.made.clear()

    def _broken(self, rule: str, what: str) -> None:
        raise AssertionError(f"{rule}: {what}")

    def _value(self, client: str, resource: str, mode: Mode, value: bytes) -> None:
        message = Message.decode(value) if resource == "message" and mode is Mode.CW else None
        if message is not None:
            self.messages.append((client, message))

    def begin(self, name: str, **options: Any) -> SimNode:
        """Start a node that joins when the test lets things run."""
        return SimNode(self, name, options)

    def join(self, name: str, **options: Any) -> SimNode:
        """Start a node and return it when it has joined."""
        one = self.begin(name, **options)
        self.until(lambda: one.joined is not None)
        return one

    def until(self, condition: Callable[[], bool], always: Callable[[], None] = lambda: None) -> None:
        """Let things run until a condition holds; ``always`` is called after each step."""

        def look() -> bool:
            always()
            return condition()

        self.stepper.run(look)

    def settle(self, seconds: float) -> None:
        """Let things run for a while."""
        end = self.stepper.now + seconds
        self.stepper.at(end, lambda: None)
        self.until(lambda: self.stepper.now >= end)

    # ---- disks -----------------------------------------------------------------------------------------------------

    def set_bits(self, slot: int, chunks: list[int]) -> None:
        """Set bits in a slot on all disks, as a node leaves them that died."""
        for disk in self.disks:
            at = self.layout.slot_offset_bytes(slot) + SUPER_BYTES
            disk.put(at, bytes([disk.content[at] | sum(1 << chunk for chunk in chunks)]))

    def scribble(self, disk: int, chunk: int, fill: int = 0x5A) -> None:
        """Make a chunk of one disk differ from the others."""
        at = self.layout.data_offset_bytes + chunk * CHUNK_BYTES
        self.disks[disk].put(at, bytes([fill]) * CHUNK_BYTES)

    def dirty(self, slot: int, disk: int = 0) -> int:
        """How many bits a slot has on a disk."""
        return count_dirty(self.bits(slot, disk), CHUNKS)

    def bits(self, slot: int, disk: int) -> bytes:
        """Return the bits of a slot on a disk."""
        at = self.layout.slot_offset_bytes(slot) + SUPER_BYTES
        return bytes(self.disks[disk].content[at : at + CHUNKS // 8])

    def data(self, disk: int) -> bytes:
        """Return a disk's data."""
        return bytes(self.disks[disk].content[self.layout.data_offset_bytes : self.layout.end_bytes])
