"""Runs a scenario with real nodes over simulated disks, and writes down everything that reaches the legs.

A recording is one list of entries in the order in which they happened: an operation was submitted to a leg, it ended, a
user's request began, it was acknowledged. There is no chance in it: the same scenario gives the same recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
from collections.abc import Coroutine, Iterator, Sequence
from random import Random
from typing import Any

from raidfs._core import OpKind
from raidfs.errors import (
    AlreadyLeg,
    LastLeg,
    MessageRefused,
    MetadataLost,
    NoSuchLeg,
    NotFormerLeg,
    NoVacantPosition,
    RaidfsError,
    ResizeRefused,
    ResizeUnfinished,
    SyncElsewhere,
    SyncRuns,
)
from raidfs.faults import Strike
from raidfs.format.superblock import ROLE_FAULTY, SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.resize_plan import Change
from raidfs.sim.checkers import JUNK, sector_bytes
from raidfs.sim.crash.disk import PlainDisk
from raidfs.sim.crash.layout import LARGER_SECTORS, LAYOUT, LEGS, SECTORS, SMALLER_SECTORS
from raidfs.sim.crash.scenario import NODE_B, WRITES, Death, Scenario
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.host import SimHost, SimStorage
from raidfs.sim.layout import CREATED_S, format_disks
from raidfs.sim.locks import SimulatedLocks
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.scopes import SimCancelScope
from raidfs.sim.stepper import Group, Runnable, Stepper, Task, waits_text
from raidfs.sim.strikes import Decide
from raidfs.units import SECTOR_BYTES

STEPS_MAX = 100_000
SETTLE_S = 3.0  # after a death: it becomes known, and what follows from it is done
AGE_S = 16.0  # three sweeps of the bitmap, one every 5 s
SLOW_S = 0.0005
SYNCS_S_MAX = 120.0  # what was delayed and every pause before a sync is tried again are far shorter


class InOrder:
    """`raidfs.sim.stepper.Policy`: what could run first runs first."""

    def admit(self) -> float:
        """See `Policy.admit`."""
        return 0.0

    def pick(self, ready: list[Runnable]) -> Runnable:
        """See `Policy.pick`."""
        return ready.pop(0)


class CrashHost(SimHost):
    """A machine whose wall clock stands: states that differ in nothing but the time are one state."""

    def wall_time(self) -> int:
        """See `raidfs.host.Host.wall_time`."""
        return CREATED_S


class EntryKind(enum.Enum):
    """What an entry of a recording tells."""

    SUBMITTED = enum.auto()  # leg operation number
    DONE = enum.auto()
    FAILED = enum.auto()
    BEGUN = enum.auto()  # user's request number
    ACKNOWLEDGED = enum.auto()


@dataclasses.dataclass(frozen=True)
class LegOp:
    """A write or a flush that reached a leg; bytes of the image. A flush has no data."""

    leg: int
    offset: int
    data: bytes | None
    durable: bool
    machine: int


def pieces_of(op: LegOp) -> int:
    """Return of how many pieces a write is, each of which is there or not, see `raidfs.sim.crash.states`."""
    assert op.data is not None
    sectors = len(op.data) // SECTOR_BYTES
    return sectors if op.offset >= LAYOUT.data_offset_bytes else min(sectors, 2)


def piece_of(op: LegOp, piece: int) -> tuple[int, bytes]:
    """Return where a piece of a write begins on the leg, and its bytes."""
    assert op.data is not None
    start = piece * SECTOR_BYTES
    end = len(op.data) if piece == pieces_of(op) - 1 else start + SECTOR_BYTES
    return op.offset + start, op.data[start:end]


@dataclasses.dataclass(frozen=True)
class UserWrite:
    """A user's write; each has a value of its own, which fills its sectors."""

    value: int
    machine: int
    sector: int
    sectors: int
    durable: bool


@dataclasses.dataclass(frozen=True)
class UserFlush:
    """A user's flush, or a node's leaving in good order, which implies one."""

    machine: int


@dataclasses.dataclass(frozen=True)
class UserResize:
    """A user asks for another size; what lies behind a smaller one is not promised any more."""

    machine: int
    sectors: int


@dataclasses.dataclass
class Recording:
    """What happened; ``last_step`` is where in ``entries`` the last step or the death began, ``final`` the legs at the
    end.

    ``steps`` are the steps of the simulation in which the entries came, ``lives`` from which step to which one a
    machine ran. ``looks`` are what a survivor has read of the whole array, and behind how many entries; it ``settled``
    when it has healed the array and left it.
    """

    initial: list[bytes]
    ops: list[LegOp] = dataclasses.field(default_factory=list)
    requests: list[UserWrite | UserFlush | UserResize] = dataclasses.field(default_factory=list)
    entries: list[tuple[EntryKind, int]] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    lives: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    looks: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    last_step: int = 0
    settled: bool = False
    final: tuple[bytes, ...] = ()
    problem: str | None = None


def record(scenario: Scenario, decide: Decide | None = None) -> Recording:
    """Run a scenario; a node that failed or never ended is told in ``problem``.

    ``decide`` may let I/O go wrong. Then a node that cannot join says so and tries once more, and what a user asks may
    fail where no other leg is in sync than the one that was struck.
    """
    return _Recorder(scenario, decide).run()


class _Machine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = 0
        self.host: SimHost | None = None
        self.node: Node | None = None
        self.stopping = False
        self.ended = True
        self.born = 0


class _Recorder:
    def __init__(self, scenario: Scenario, decide: Decide | None) -> None:
        self._scenario = scenario
        self._decide_strike = decide
        self._stepper = Stepper(InOrder(), Random(0), steps_max=STEPS_MAX)
        self._world = self._stepper.group("world")
        self._runtime = SimRuntime(self._stepper, self._world)
        self._disks = [
            PlainDisk(leg, self._stepper, self._world, latency_s=SLOW_S if scenario.slow == leg else 0.0)
            for leg in range(LEGS)
        ]
        format_disks([*self._disks], LAYOUT, clean=True)
        for disk in self._disks:  # what is new to the array is not the same on both
            disk.put(LAYOUT.end_bytes, sector_bytes(JUNK + disk.leg) * (LARGER_SECTORS - SECTORS))
        self._storage = SimStorage(self._disks)
        self._locks = SimulatedLocks(self._runtime)
        self._machines = [_Machine("a"), _Machine("b")]
        self._changed = self._runtime.wait_queue()
        self._working: dict[Task, Group] = {}
        self._numbers: dict[DiskOp, int] = {}
        self._recording = Recording([bytes(disk.content) for disk in self._disks])
        self._struck = 0
        self._syncing: tuple[_Machine, SimCancelScope] | None = None
        # One leg that fails what it is asked, the other failed by a user: then errors are what users get.
        self._is_hopeless = {"break", "bfail"} <= {*scenario.steps}
        for disk in self._disks:
            disk.recorder = self

    def run(self) -> Recording:
        """Do it."""
        self._stepper.spawn(self._world, self._locks.run(), name="locks")
        driver = self._stepper.spawn(self._world, self._drive(), name="driver")
        death = self._scenario.death
        try:
            if death is not None:
                self._stepper.run(until=lambda: self._stepper.steps >= death.step or driver not in self._world.tasks)
                self._dies(death)
            self._stepper.run(until=lambda: driver not in self._world.tasks)
        except RaidfsError as e:
            self._problem(str(e))
        for machine in self._machines:
            if machine.host is not None:
                self._over(machine)
        self._stepper.dispose()
        self._recording.final = tuple(bytes(disk.content) for disk in self._disks)
        return self._recording

    def submitted(self, leg: int, op: DiskOp) -> None:
        """See `raidfs.sim.crash.disk.Recorder`."""
        self._numbers[op] = self._submitted(
            LegOp(leg, op.offset, op.data, op.kind == OpKind.WRITE_DURABLE, "ab".index(op.owner.name[0]))
        )

    def _submitted(self, op: LegOp) -> int:
        ops = self._recording.ops
        ops.append(op)
        self._enter(EntryKind.SUBMITTED, len(ops) - 1)
        return len(ops) - 1

    def _enter(self, kind: EntryKind, number: int) -> None:
        self._recording.entries.append((kind, number))
        self._recording.steps.append(self._stepper.steps)

    def completed(self, leg: int, op: DiskOp, *, done: bool) -> None:
        """See `raidfs.sim.crash.disk.Recorder`."""
        self._enter(EntryKind.DONE if done else EntryKind.FAILED, self._numbers.pop(op))

    def _problem(self, text: str) -> None:
        if self._recording.problem is None:
            self._recording.problem = text
        self._stepper.stop()

    # ---- driving ---------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        for machine in self._machines:
            await self._start(machine)
        for step, together in zip(self._scenario.steps, self._scenario.together, strict=True):
            if not together:
                await self._all_done()
            self._recording.last_step = len(self._recording.entries)
            await self._begin(step)
        await self._all_done()
        if self._scenario.steps[-1:] in (("readd",), ("breadd",), ("repair",)):
            await self._sync()
        await self._runtime.sleep(2 * SLOW_S, what="what the last step has left in flight")
        if self._scenario.death is not None:
            await self._outlive(self._machines[1 - self._scenario.death.machine])

    async def _all_done(self) -> None:
        await self._changed.wait_event(lambda: not self._working, what="the steps before")

    async def _begin(self, step: str) -> None:
        machine = self._machines[step in NODE_B]
        match step.removeprefix("b"):
            case "age":
                await self._runtime.sleep(AGE_S, what="bits to age")
            case "reak":
                self._disks[0].broken = True
            case "sync":
                await self._sync()
            case "die":
                await self._die(machine)
            case "stop":
                if machine.node is not None:
                    self._work(machine, self._flush(machine, leaving=True))
            case kind:
                await self._running(machine)
                if machine.node is not None:
                    requests = {
                        "flush": self._flush,
                        "fail": self._fail,
                        "readd": self._take_back,
                        "repair": self._repair,
                        "grow": self._resize,
                        "shrink": self._resize,
                    }
                    self._work(machine, requests[kind](machine) if kind in requests else self._write(machine, step))

    async def _running(self, machine: _Machine) -> None:
        if machine.node is None or machine.stopping:
            await self._changed.wait_event(lambda: machine.node is None, what="the node to leave")
            await self._start(machine)

    async def _start(self, machine: _Machine) -> None:
        group = self._stepper.group(f"{machine.name}{machine.lives}")
        machine.lives += 1
        machine.stopping = machine.ended = False
        machine.born = self._stepper.steps
        machine.host = CrashHost(group.name, self._stepper, group, self._storage, self._locks, decide=self._decide)
        self._stepper.spawn(
            group, self._live(machine, machine.host), name="node", on_end=lambda task, e: self._ended(machine, e)
        )
        struck = self._struck
        await self._changed.wait_event(lambda: machine.node is not None or machine.ended, what="the node to join")
        if machine.node is None and self._struck > struck:
            await self._start(machine)

    async def _live(self, machine: _Machine, host: SimHost) -> None:
        names = tuple(disk.name for disk in self._disks)
        options = NodeOptions(images=names, client_name=host.name, lock="simulated", run=True)
        runtime = SimRuntime(self._stepper, host.group)
        async with open_node(runtime, options, host) as node:
            machine.node = node
            self._changed.wake_up()
            await self._changed.wait_event(lambda: machine.stopping, what="to be stopped")

    def _ended(self, machine: _Machine, e: BaseException | None) -> None:
        # Joining with a leg that cannot be read or written is refused.
        is_refused = machine.node is None and (self._disks[0].broken or self._struck)
        if e is not None and not (is_refused or self._is_hopeless):
            self._problem(f"node {machine.name}: {words(e)}")
        self._over(machine)

    def _over(self, machine: _Machine) -> None:
        self._recording.lives.append((self._machines.index(machine), machine.born, self._stepper.steps))
        machine.node = machine.host = None
        machine.ended = True
        self._changed.wake_up()

    def _work(self, machine: _Machine, coro: Coroutine[Any, Any, None]) -> None:
        assert machine.host is not None
        group = machine.host.group

        def ended(task: Task, e: BaseException | None) -> None:
            del self._working[task]
            if e is not None:
                self._problem(f"node {machine.name}: {words(e)}")
            self._changed.wake_up()

        task = self._stepper.spawn(group, coro, name="user", on_end=ended)
        self._working[task] = group

    async def _die(self, machine: _Machine) -> None:
        if machine.node is not None:
            self._kill(machine)
            await self._runtime.sleep(SETTLE_S, what="the death to be known")

    def _kill(self, machine: _Machine) -> None:
        host = machine.host
        assert host is not None
        self._stepper.crash(host.group)
        host.sever()
        host.fence()
        for task, group in list(self._working.items()):
            if group is host.group:
                del self._working[task]
        self._over(machine)
        if self._syncing is not None and self._syncing[0] is machine:
            self._syncing[1].cancel()

    def _dies(self, death: Death) -> None:
        """Let a node die in the middle of what it does, and some of its writes take place at that moment."""
        self._recording.last_step = len(self._recording.entries)
        machine = self._machines[death.machine]
        if machine.host is None:
            self._problem(f"node {machine.name} does not run at step {death.step}")
            return
        self._kill(machine)
        for op, number in list(self._numbers.items()):
            if op.owner.dead:
                del self._numbers[op]
                self._enter(EntryKind.FAILED, number)
        for number, piece in death.landed:
            op_of = self._recording.ops[number]
            start, data = piece_of(op_of, piece)
            self._disks[op_of.leg].content[start : start + len(data)] = data
            landed = self._submitted(dataclasses.replace(op_of, offset=start, data=data))
            self._enter(EntryKind.DONE, landed)

    async def _outlive(self, survivor: _Machine) -> None:
        """Let the survivor read, write, heal the array, read again and leave."""
        if survivor.node is None:
            await self._start(survivor)
        node = survivor.node
        if node is None or self._is_hopeless:
            return  # it may not join when a leg is broken, or gets errors
        await self._look(node)
        for step in ("w0", "w1") if survivor is self._machines[0] else ("b0", "b1"):
            await self._write(survivor, step)
        await self._runtime.sleep(SETTLE_S, what="the death to be known")
        await self._sync()
        await self._look(node)
        await self._runtime.sleep(AGE_S, what="bits to age")
        await self._flush(survivor, leaving=True)
        self._recording.settled = True

    async def _look(self, node: Node) -> None:
        at = len(self._recording.entries)
        self._recording.looks.append((at, await node.volume.read(0, LARGER_SECTORS * SECTOR_BYTES)))

    def _decide(self, disk: SimDisk, op: DiskOp) -> Strike | None:
        strike = None if self._decide_strike is None else self._decide_strike(disk, op)
        if strike is not None:
            self._struck += 1
            if not any(other is not disk and is_in_sync(other, self._disks) for other in self._disks):
                self._is_hopeless = True
        return strike

    # ---- requests --------------------------------------------------------------------------------------------------

    def _begun(self, request: UserWrite | UserFlush | UserResize) -> int:
        number = len(self._recording.requests)
        self._recording.requests.append(request)
        self._enter(EntryKind.BEGUN, number)
        return number

    def _acknowledged(self, number: int) -> None:
        self._enter(EntryKind.ACKNOWLEDGED, number)

    async def _write(self, machine: _Machine, step: str) -> None:
        write = WRITES[step]
        value = len(self._recording.requests) + 1
        number = self._begun(UserWrite(value, write.machine, write.sector, write.sectors, write.durable))
        assert machine.node is not None
        try:
            data = sector_bytes(value) * write.sectors
            await machine.node.volume.write(write.sector * SECTOR_BYTES, data, durable=write.durable)
        except OSError as e:
            self._failed("write", machine, e)
            return
        self._acknowledged(number)

    async def _flush(self, machine: _Machine, *, leaving: bool = False) -> None:
        number = self._begun(UserFlush(self._machines.index(machine)))
        node = machine.node
        assert node is not None
        try:
            if leaving:
                machine.stopping = True
                self._changed.wake_up()
                await self._changed.wait_event(lambda: machine.node is not node, what="the node to leave")
            else:
                await node.volume.flush()
        except OSError as e:
            self._failed("flush", machine, e)
            return
        self._acknowledged(number)

    async def _fail(self, machine: _Machine) -> None:
        assert machine.node is not None
        try:
            await machine.node.fail(f"disk{self._machines.index(machine)}")
        except (LastLeg, NoSuchLeg, MessageRefused):
            return
        except MetadataLost:
            if not (self._struck or self._is_hopeless):  # the other leg fails too, and says so first
                raise
        except RaidfsError:
            if not self._is_hopeless:
                raise

    async def _take_back(self, machine: _Machine) -> None:
        assert machine.node is not None
        leg = self._machines.index(machine)
        self._disks[leg].broken = False
        try:
            await machine.node.re_add(f"disk{leg}")
        except (AlreadyLeg, NoVacantPosition, NotFormerLeg, MessageRefused):
            return
        except (RaidfsError, OSError):
            if not (self._is_hopeless or self._struck):
                raise

    async def _repair(self, machine: _Machine) -> None:
        assert machine.node is not None
        try:
            await machine.node.sync_action("repair")
        except SyncRuns:
            return

    async def _resize(self, machine: _Machine) -> None:
        assert machine.node is not None
        index = self._machines.index(machine)
        sectors = SMALLER_SECTORS if index else LARGER_SECTORS
        number = self._begun(UserResize(index, sectors))
        try:
            await machine.node.grow(Change(sectors, force=True))
        except (SyncElsewhere, ResizeRefused, ResizeUnfinished):
            return  # unfinished: who is left, or opens the array next, ends it
        except (RaidfsError, OSError):
            if not (self._is_hopeless or self._struck):
                raise
        self._acknowledged(number)

    async def _sync(self) -> None:
        # Whichever node runs: it knows of the other one's. When it dies, the other one is asked.
        until = self._runtime.now() + SYNCS_S_MAX
        while machine := next((machine for machine in self._machines if machine.node is not None), None):
            node = machine.node
            assert node is not None
            with self._runtime.cancel_scope(deadline=until) as scope:
                self._syncing = (machine, scope)
                await node.wait_for_syncs()
            self._syncing = None
            if not scope.cancelled_caught:
                return
            if machine.node is node:
                break
        if machine is not None and not self._is_hopeless:
            self._problem(f"syncs do not end; who waits for what:\n{waits_text(self._stepper.all_waits())}")

    def _failed(self, what: str, machine: _Machine, e: OSError) -> None:
        if not self._is_hopeless:
            self._problem(f"node {machine.name}: a {what} failed although a leg was good: {e}")


def is_in_sync(disk: SimDisk, disks: Sequence[SimDisk]) -> bool:
    """Tell whether the freshest superblock on the disks calls one of them in sync, and itself does not deny it."""
    found = {other: _superblock(other) for other in disks}
    freshest = max(found.values(), key=lambda superblock: superblock.events)
    return freshest.role_of(found[disk].dev_number) < ROLE_FAULTY and not found[disk].is_recovering


def _superblock(disk: SimDisk) -> Superblock:
    content = bytes(disk.content[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES])
    return Superblock.decode(content, path=disk.name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the log of the nodes out of the way: what they say of faults is asked for."""
    logger = logging.getLogger("raidfs")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def words(e: BaseException) -> str:
    """Return an error, or all of a group, in one line."""
    if isinstance(e, BaseExceptionGroup):
        return "; ".join(words(part) for part in e.exceptions)
    return f"{type(e).__name__}: {e}"
