"""A simulated cluster: carries out a plan over the real node, and lets the checkers watch."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from random import Random

from raidfs._core import OpKind as DiskOpKind
from raidfs.cluster.messages import Message, MessageType
from raidfs.errors import (
    CannotFollow,
    LegInUseElsewhere,
    LockError,
    MessageNotAcknowledged,
    MessageRefused,
    MetadataLost,
    NodeFenced,
    NoSuperblock,
    RaidfsError,
    RuleBroken,
    SimulationFailed,
)
from raidfs.lock.machine import Event
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.resize_plan import Change
from raidfs.sim.checkers import (
    JUNK,
    ChannelChecker,
    DataChecker,
    LockChecker,
    MetadataChecker,
    RegisterChecker,
    SlotChecker,
    check_healed,
    check_legs,
    sector_bytes,
)
from raidfs.sim.disk_view import DiskView
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimHost, SimStorage
from raidfs.sim.layout import CHUNK_BYTES, DATA_OFFSET_BYTES, format_disks, sim_layout
from raidfs.sim.leg_checker import LegChecker
from raidfs.sim.locks import SimulatedLocks
from raidfs.sim.message_checker import MessageChecker
from raidfs.sim.plan import (
    CHUNKS,
    MANAGEMENT,
    OF_A_DISK,
    ROOM_CHUNKS,
    SECTORS,
    SECTORS_MAX,
    UPDATES,
    WRITES,
    Fault,
    FaultKind,
    Life,
    Op,
    OpKind,
    Plan,
)
from raidfs.sim.policies import PctPolicy, RandomPolicy
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.scopes import SimCancelScope
from raidfs.sim.size_checker import SizeChecker, check_one_size
from raidfs.sim.stepper import Group, Stepper, Task, Timer, waits_text
from raidfs.sim.sync_checker import SyncChecker
from raidfs.sim.trace import Trace
from raidfs.sim.view_checker import ViewChecker
from raidfs.units import SECTOR_BYTES

STALL_S = 300.0  # far beyond every timeout of the code and every pause of a plan
FENCE_S = 1.0  # from a death to the moment when nothing of the dead machine takes place any more
PCT_STEPS = 3000  # how long a schedule is expected to be
HEAL_S = 60.0
HEAL_LOOK_S = 0.5  # how often a user looks whether the array has healed
MESSAGE_DELAY_CHANCE = 0.2
MESSAGE_DELAY_S_MAX = 0.002
WINDOW_BYTES_MAX = SECTORS * SECTOR_BYTES  # windows grow when nobody is stalled by them
UNKNOWN_TYPE = 77  # of a message from the future


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a schedule: the rule that was broken first, or None, and what was counted."""

    failure: SimulationFailed | None
    steps: int
    digest: int
    counts: Counter[str]
    trace: Trace


class Run:
    """One life that is being lived."""

    def __init__(self, machine: int, number: int, life: Life, host: SimHost) -> None:
        self.machine = machine
        self.name = f"m{machine}.{number}"
        self.life = life
        self.host = host
        self.faults = list(life.faults)
        self.stop = False
        self.stop_scope: SimCancelScope | None = None  # of the users' tasks, while there are any
        self.lost = False  # its lock manager: requests fail
        self.rests: list[SimCancelScope] = []  # of the users that rest now
        self.joined = False
        self.died = False
        self.ended = False


class Cluster:
    """All machines, disks and locks of one plan."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.trace = Trace(keep=keep_trace)
        rng = Random(f"schedule {plan.schedule_seed}")
        policy = PctPolicy(rng, depth=plan.pct_depth, steps=PCT_STEPS) if plan.pct_depth else RandomPolicy(rng)
        self.stepper = Stepper(policy, rng)
        self.world = self.stepper.group("world")
        self.runtime = SimRuntime(self.stepper, self.world)
        self.failure: SimulationFailed | None = None
        self.layout = sim_layout(CHUNKS)
        self._rng = rng
        self._runs: list[Run] = []
        self._promises = 0
        self._healed = False  # the last nodes had the time to heal the array
        self._changed = self.runtime.wait_queue()
        self.storage = self._make_storage()
        self.locks = SimulatedLocks(self.runtime, delay_s=self._message_delay_s)
        self.metadata = MetadataChecker(self.storage.disks, self.report)
        self.view = DiskView(self.layout, self.metadata.superblocks)
        self.slots = SlotChecker(self.report)
        self.channels = ChannelChecker(self.report)
        self.register = RegisterChecker(SECTORS, self.report, sectors_max=SECTORS_MAX if plan.resizes else 0)
        self.lock_checker = LockChecker(self.locks._machine, self.report, self._count_message)
        self.locks._machine = self.lock_checker  # type: ignore[assignment]
        self.syncs = SyncChecker(self.view, self.storage.disks, self.lock_checker, self.report, self._count_copied)
        self.legs = LegChecker(self.view, self.storage.disks, self.syncs.syncs, self.report)
        self.data = DataChecker(self.layout, self.metadata, self.syncs.is_copy, self.report)
        self.messages = MessageChecker(self.lock_checker, self.report, self._count_published)
        self.messages.on_window = self._window_valued
        self.views = ViewChecker(
            self.stepper,
            self.metadata,
            self.channels.serving_nodes,
            self.report,
            counts_events=not (plan.gives_up or plan.has_disk_errors),
        )
        self.sizes = SizeChecker(self.view, self.channels.serving_nodes, self.report)
        for disk in self.storage.disks:
            disk.watchers.append(self.lock_checker.landed)
            disk.watchers.append(self.messages.landed)
            disk.watchers.append(self.views.landed)
            disk.watchers.append(self._leg_landed)

    def run(self) -> Outcome:
        """Carry the plan out and return what came of it."""
        stepper = self.stepper
        stepper.spawn(self.world, self.locks.run(), name="lock manager")
        main = stepper.spawn(self.world, self._main(), name="supervisor", on_end=self._supervised)
        with self._logs():
            try:
                stepper.run(until=lambda: main not in self.world.tasks)
            except SimulationFailed as e:
                self.failure = self.failure or e
            stepper.dispose()
        return Outcome(self.failure, stepper.steps, stepper.digest, self.trace.counts, self.trace)

    def report(self, rule: str, what: str) -> None:
        """A rule was broken; the first one counts, and the schedule ends."""
        if self.failure is None and not self.stepper.disposed:
            self.failure = RuleBroken(check=rule, what=what)
            self.note("checker", "BROKEN", rule, what)
            self.stepper.stop()

    def note(self, where: str, kind: str, *facts: object) -> None:
        """Write an event into the trace."""
        self.trace.event(self.stepper.now, where, kind, *facts)

    # ---- making ----------------------------------------------------------------------------------------------------

    def _make_storage(self) -> SimStorage:
        plan = self.plan
        disks = [
            SimDisk(f"disk{n}", self.layout.end_bytes, self.stepper, self.world, self._rng, self.trace)
            for n in range(plan.disks)
        ]
        for number, disk in enumerate(disks if plan.resizes else ()):
            self._give_room(number, disk)
        format_disks(disks[: plan.legs + plan.spares], self.layout, legs=plan.legs, clean=plan.clean)
        for number, disk in enumerate(disks):
            disk.fail_write = frozenset(nth for leg, nth in plan.fail_writes if leg == number)
            disk.fail_read = frozenset(nth for leg, nth in plan.fail_reads if leg == number)
            disk.on_read_error = self._read_failed
        return SimStorage(disks)

    def _give_room(self, number: int, disk: SimDisk) -> None:
        plan = self.plan
        if number == plan.short_disk:
            return
        disk.size_max_bytes += ROOM_CHUNKS * CHUNK_BYTES
        if not plan.extend:
            disk.extend(disk.size_max_bytes)
            if not plan.assume_clean:
                disk.put(self.layout.end_bytes, sector_bytes(JUNK + number) * (SECTORS_MAX - SECTORS))

    def _message_delay_s(self) -> float:
        return self._rng.random() * MESSAGE_DELAY_S_MAX if self._rng.random() < MESSAGE_DELAY_CHANCE else 0.0

    def _count_message(self, event: Event) -> None:
        if self.trace.keep:
            self.note("locks", "message", self.lock_checker.words(event))
        else:
            self.trace.counts["message"] += 1

    def _count_published(self, client: str, message: Message) -> None:
        self.syncs.published(client, message)
        self.note(client, "published", message.type_name, f"number {message.sequence}")

    def _window_valued(self, name: str, slot: int, low: int, high: int) -> None:
        if any(run.name == name and run.host.slot == slot for run in self._runs):  # and not a slot that it looks after
            self.syncs.valued(name, low, high)

    def _count_copied(self, name: str, length: int) -> None:
        self.trace.counts["copied"] += 1
        self.trace.counts["copied-bytes"] += length

    def _leg_landed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        before = len(self.legs.in_sync)
        self.legs.landed(disk, owner, offset, length)
        if len(self.legs.in_sync) < before:
            self.register.upset()

    def _read_failed(self, disk: SimDisk, offset: int, length: int) -> None:
        others = [other for other in self.view.in_sync() if other is not disk]
        for at in range(max(offset, DATA_OFFSET_BYTES), offset + length, SECTOR_BYTES):
            if any(other.content[at : at + SECTOR_BYTES] != disk.content[at : at + SECTOR_BYTES] for other in others):
                self.register.read_from_another((at - DATA_OFFSET_BYTES) // SECTOR_BYTES)

    def _on_op(self, host: SimHost, disk: SimDisk, kind: DiskOpKind, offset: int, data: bytes | None) -> None:
        self.data.on_op(host, disk, kind, offset, data)
        self.syncs.on_op(host, disk, kind, offset, data)

    # ---- driving ---------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        plan = self.plan
        if plan.power_loss_s is not None:
            self.stepper.later(self.world, "power loss", plan.power_loss_s, self._lose_power)
        async with self.runtime.open_nursery() as nursery:
            for machine, lives in enumerate(plan.machines):
                nursery.start_soon(self._live, machine, lives, name=f"machine {machine}")
        self._check_legs()
        await self._heal()
        await self.runtime.sleep(2 * FENCE_S, what="the last messages")
        self._check_legs()
        if self._healed and not self.plan.has_disk_errors:
            check_healed(self.view, self.report)
            check_one_size(self.view, self.report)
        statistics = self.locks.statistics()
        if statistics.members or statistics.resources:
            self.report("locks-left", str(statistics))

    async def _heal(self) -> None:
        """Let the array heal, and read all of it: from the start, when a healer has died (the power was lost)."""
        read = Op(OpKind.READ, 0, SECTORS_MAX if self.plan.resizes else SECTORS)
        life = Life(0.0, ((Op(OpKind.HEAL), read, read),))
        is_over = False
        while not is_over:
            self._healed = False
            first = len(self._runs)
            async with self.runtime.open_nursery() as nursery:
                for machine in range(self.plan.healers):
                    before = sum(run.machine == machine for run in self._runs)
                    nursery.start_soon(self._live, machine, (life,), before, name=f"healer {machine}")
            is_over = not any(run.died for run in self._runs[first:])

    def _check_legs(self) -> None:
        check_legs(self.view, self.register, self.report)

    def _supervised(self, task: Task, e: BaseException | None) -> None:
        if e is not None:
            raise e

    async def _live(self, machine: int, lives: tuple[Life, ...], first: int = 0) -> None:
        for number, life in enumerate(lives, start=first):
            await self.runtime.sleep(life.start_after_s, what="the time to start")
            run = self._start(machine, number, life)
            await self._changed.wait_event(lambda run=run: run.ended, what=f"the end of {run.name}")  # type: ignore[misc]

    def _start(self, machine: int, number: int, life: Life) -> Run:
        group = self.stepper.group(f"m{machine}.{number}")
        host = SimHost(group.name, self.stepper, group, self.storage, self.locks, on_op=self._on_op)
        if life.missing_leg is not None:
            host.hidden.add(self.storage.disks[life.missing_leg].name)
        run = Run(machine, number, life, host)
        self._runs.append(run)
        group.on_trip = lambda: self._strike(run)
        self._set_trip(run)
        self.note(run.name, "start")
        self.stepper.spawn(group, self._node(run), name="node", on_end=lambda task, e: self._node_ended(run, e))
        return run

    def _set_trip(self, run: Run) -> None:
        if run.faults:
            run.host.group.trip_at = max(run.faults[0].at_step, run.host.group.steps)

    def _strike(self, run: Run) -> None:
        fault = run.faults.pop(0)
        self._set_trip(run)
        match fault.kind:
            case FaultKind.CRASH:
                self._crash(run)
            case FaultKind.STOP:
                self.note(run.name, "stop-request")
                run.stop = True
                if run.stop_scope is not None:
                    run.stop_scope.cancel()
            case FaultKind.LOSE_LOCKS:
                self._lose_locks(run)
            case FaultKind.PAUSE:
                self._pause(run, fault)

    def _lose_locks(self, run: Run) -> None:
        self.note(run.name, "locks-lost")
        self.views.disturbed()
        run.lost = True
        self._ends(run)
        for scope in run.rests:
            scope.cancel()
        self.slots.left(run.name)
        run.host.lose_locks("the simulation took it away")

    def _pause(self, run: Run, fault: Fault) -> None:
        group = run.host.group
        self.note(run.name, "pause", fault.seconds)
        self.views.disturbed(fault.seconds)
        self.stepper.pause(group)

        def resume() -> None:
            self.note(run.name, "resume")
            self.stepper.resume(group)

        self.stepper.at(self.stepper.now + fault.seconds, resume)

    def _crash(self, run: Run) -> None:
        self.note(run.name, "crash", f"at its step {run.host.group.steps}")
        self.views.disturbed()
        run.died = True
        self.stepper.crash(run.host.group)
        self._ends(run)
        run.host.sever()

        def fence() -> None:
            self._fence(run)

        self.stepper.at(self.stepper.now + self._rng.uniform(0.1, 1.0) * FENCE_S, fence)

    def _fence(self, run: Run) -> None:
        if not run.ended:
            self.note(run.name, "fenced")
            run.host.fence()
            self._end(run)

    def _lose_power(self) -> None:
        alive = [run for run in self._runs if not run.ended]
        for run in alive:
            if not run.host.group.dead:
                self.note(run.name, "crash", "with its power")
                run.died = True
                self.stepper.crash(run.host.group)
                self._ends(run)
        for disk in self.storage.disks:
            disk.lose_power()
        self.register.power_loss()
        for run in alive:
            self._fence(run)

    def _ends(self, run: Run) -> None:
        """A run serves no more: it dies, or begins to leave."""
        self.channels.left(run.name)
        if run.host.slot is not None:
            self.register.ends(run.name, run.host.slot, [other.name for other in self._runs if other.joined])

    def _end(self, run: Run) -> None:
        self.views.disturbed()
        self.slots.left(run.name)
        self.channels.left(run.name)
        self.syncs.left(run.name)
        self.register.over(run.name)
        run.ended = True
        self._changed.wake_up()

    # ---- one node --------------------------------------------------------------------------------------------------

    async def _node(self, run: Run) -> None:
        runtime = SimRuntime(self.stepper, run.host.group)
        options = NodeOptions(
            images=self._images(run),
            client_name=run.name,
            lock="simulated",
            run=True,
            sync_window_bytes=(self.plan.window_sectors * SECTOR_BYTES, WINDOW_BYTES_MAX),
        )
        joining = self._expect(run, "to join")
        async with open_node(runtime, options, run.host) as node:
            joining.cancel()
            slot = node.membership.slot
            assert slot is not None
            run.host.slot = slot
            run.joined = True
            self._listen(run, node)
            if not run.lost:
                self.slots.joined(slot, run.name)
                self.channels.serves(run.name, node)
            self.note(run.name, "joined", f"slot {slot}")
            async with runtime.open_nursery() as nursery:
                run.stop_scope = nursery.cancel_scope
                if run.stop:
                    nursery.cancel_scope.cancel()
                for ops in run.life.workers:
                    nursery.start_soon(self._work, run, runtime, node, ops, name="user")
            run.stop_scope = None
            self.slots.left(run.name)
            self.channels.look()
            self._ends(run)
            self.note(run.name, "leaving")
            leaving = self._expect(run, "to leave")
        leaving.cancel()

    def _listen(self, run: Run, node: Node) -> None:
        """Have the checker of reads told when the node begins to handle the end of another."""
        peer_gone = node.mddev.peer_gone

        async def handled(slot: int) -> None:
            self.register.knows(run.name, slot)
            await peer_gone(slot)

        node.mddev.peer_gone = handled  # type: ignore[method-assign]
        self.sizes.watch(run.name, node)
        for other in self._runs:
            if other.host.slot is not None and other.host.group.dead and not other.ended:
                self.register.ends(other.name, other.host.slot, [run.name])

    def _images(self, run: Run) -> tuple[str, ...]:
        """Return the disks that a machine gives to its node: those it sees that are legs of the array now.

        A disk that was removed is not, once another one has its number.
        """
        superblocks = self.metadata.superblocks
        latest: dict[int, int] = {}
        for own in superblocks.values():
            latest[own.dev_number] = max(latest.get(own.dev_number, 0), own.events)
        return tuple(
            disk.name
            for number, disk in enumerate(self.storage.disks)
            if number != run.life.missing_leg
            and disk in superblocks
            and superblocks[disk].events == latest[superblocks[disk].dev_number]
        )

    def _node_ended(self, run: Run, e: BaseException | None) -> None:
        if e is None:
            self.note(run.name, "left")
        else:
            self.note(run.name, "failed", *_errors(e))
            if not (_is_expected(e) and (self.plan.has_disk_errors or run.lost or self._may_be_refused(run, e))):
                self.report("node-error", f"{run.name}: " + "".join(traceback.format_exception(e)))
        # Whatever it left half done is over with its process.
        self.stepper.crash(run.host.group)
        run.host.fence()
        self._end(run)

    def _may_be_refused(self, run: Run, e: BaseException) -> bool:
        """Tell whether a node may fail to join: it does not see a leg, or legs were changed after it had looked."""
        if run.life.missing_leg is None and not self.plan.manages_legs:
            return False
        return not run.joined and all(isinstance(leaf, LegInUseElsewhere | NoSuperblock) for leaf in _leaves(e))

    async def _work(self, run: Run, runtime: SimRuntime, node: Node, ops: tuple[Op, ...]) -> None:
        for op in ops:
            if op.kind == OpKind.REST:
                # Who has lost the lock manager keeps its locks until it ends, so it is not left standing there.
                with runtime.cancel_scope() as scope:
                    run.rests.append(scope)
                    if not run.lost:
                        await runtime.sleep(op.rest_s, what="a rest of the user")
                run.rests.remove(scope)
                continue
            expected = self._expect(run, op.kind.value)
            try:
                deadline = None if op.give_up_s is None else runtime.now() + op.give_up_s
                with runtime.cancel_scope(deadline=deadline) as scope:
                    await self._request(run, node, op)
                if scope.cancelled_caught:
                    self.note(run.name, "given-up", op.kind.value)
            except (OSError, RaidfsError) as e:
                self.note(run.name, "error", op.kind.value, op.sector, op.sectors, e)
                if not (
                    self.plan.has_disk_errors
                    or run.lost
                    or (op.kind in MANAGEMENT and _is_refusal(e))
                    or (isinstance(e, MessageRefused) and op.kind == OpKind.UNKNOWN)
                    or self._is_behind_the_end(op, e)
                    or (run.life.missing_leg is not None and node.lost is not None)  # it came to be a leg of the array
                ):
                    self.report("node-error", f"{run.name}: {op.kind.value} returned {e}")
            finally:
                expected.cancel()

    def _is_behind_the_end(self, op: Op, e: BaseException) -> bool:
        is_there = op.sector + op.sectors > self.plan.sectors_min
        return op.kind in WRITES and is_there and isinstance(e, OSError) and e.errno == errno.ENOSPC

    async def _request(self, run: Run, node: Node, op: Op) -> None:
        volume = node.volume
        offset = op.sector * SECTOR_BYTES
        if op.kind == OpKind.READ:
            start = self.register.begin_read()
            data = await volume.read(offset, op.sectors * SECTOR_BYTES)
            self.note(run.name, "read", op.sector, op.sectors)
            self.register.end_read(start, op.sector, data, run.name)
        elif op.kind in UPDATES:
            sending = self.messages.begin(run.name, self.channels.serving())
            await self._update(run, node, op)
            if not run.lost:
                self.messages.end(sending, self.channels.serving(), is_known=op.kind != OpKind.UNKNOWN)
        elif op.kind == OpKind.BUSY:
            await node.mddev.reconfig_mutex.lock("other work")
            try:
                await node.runtime.sleep(op.rest_s, what="other work under reconfig_mutex")
            finally:
                node.mddev.reconfig_mutex.unlock()
        elif op.kind in MANAGEMENT:
            await self._manage(run, node, op)
        elif op.kind == OpKind.HEAL:
            await self._wait_healed(run, node)
        elif op.kind == OpKind.FLUSH:
            flushed = self.register.begin_flush(run.machine)
            await volume.flush()
            self.note(run.name, "flushed")
            self.register.end_flush(flushed)
            self._promised()
        else:
            durable = op.kind == OpKind.WRITE_DURABLE
            written, data = self.register.begin_write(run.machine, op.sector, op.sectors, run.name)
            self.note(run.name, "write", op.sector, op.sectors, f"value {written[0].value}")
            taken = await volume.write(offset, data, durable=durable)
            self.note(run.name, "written", op.sector, op.sectors, f"value {written[0].value}")
            self.register.end_write(written[: taken // SECTOR_BYTES], durable=durable)
            if durable:
                self._promised()

    async def _manage(self, run: Run, node: Node, op: Op) -> None:
        path = self.storage.disks[op.leg % self.plan.disks].name
        match op.kind:
            case OpKind.FAIL:
                await node.fail(path)
            case OpKind.REMOVE:
                await node.remove(path)
            case OpKind.ADD | OpKind.ADD_SPARE:
                await node.add(path, spare=op.kind == OpKind.ADD_SPARE, force=False)
            case OpKind.RE_ADD:
                await node.re_add(path)
            case OpKind.RESIZE:
                self.register.resizes(op.sectors)
                plan = self.plan
                await node.grow(Change(op.sectors, extend=plan.extend, assume_clean=plan.assume_clean, force=True))
                self.note(run.name, "resized", op.sectors)
            case OpKind.RAID_DEVICES:
                await node.set_raid_devices(op.count)
            case _:
                await node.sync_action(op.kind.value)
        self.note(run.name, "leg-failed" if op.kind == OpKind.FAIL else op.kind.value, path, op.count)
        if op.kind is OpKind.FAIL:
            self.register.upset()  # until now some node may have read the leg
        if op.kind in OF_A_DISK:
            self._updated(run)

    async def _wait_healed(self, run: Run, node: Node) -> None:
        until = node.runtime.now() + HEAL_S
        while not run.lost and not _is_healed(node):
            if self.plan.has_disk_errors and node.runtime.now() > until:
                return  # after a flush that failed a node never again says that something is durable
            await node.runtime.sleep(HEAL_LOOK_S, what="the array to heal")
        self.note(run.name, "healed")
        self._healed = True

    async def _update(self, run: Run, node: Node, op: Op) -> None:
        slot = node.membership.slot
        assert slot is not None
        if op.kind == OpKind.TOUCH:
            await node.mddev.touch()
            self.note(run.name, "touched", f"events {node.array.superblock.events}")
            self._updated(run)
        elif op.kind == OpKind.ANNOUNCE_LOCKED:
            await node.mddev.reconfig_mutex.lock("announce")
            try:
                if op.rest_s:
                    await node.runtime.sleep(op.rest_s, what="work before a message, under reconfig_mutex")
                await node.channel.sendmsg(Message(MessageType.BITMAP_NEEDS_SYNC, slot), True)
            finally:
                node.mddev.reconfig_mutex.unlock()
            self.note(run.name, "announced", "with the mutex")
        else:
            # Nothing changes by it: the size as it is, or that the node will leave work behind.
            harmless = MessageType.BITMAP_NEEDS_SYNC if self.plan.resizes else MessageType.CHANGE_CAPACITY
            kind = harmless if op.kind == OpKind.ANNOUNCE else UNKNOWN_TYPE
            size_sectors = node.array.layout.size_sectors  # as it is, so nothing changes
            await node.channel.sendmsg(Message(kind, slot, high=size_sectors), False)
            self.note(run.name, "announced", f"type {kind}")

    def _updated(self, run: Run) -> None:
        if not run.lost:
            self.channels.updated(run.name)

    # A node has said that something is durable.
    def _promised(self) -> None:
        self._promises += 1
        if self._promises == self.plan.power_loss_after:
            self.stepper.soon(self.world, "power loss", self._lose_power)

    # Something that must come to an end, unless its machine dies before.
    def _expect(self, run: Run, what: str) -> Timer:
        def stalled() -> None:
            if not run.host.group.dead:
                waits = waits_text(self.stepper.all_waits())
                self.report("stall", f"{run.name} waits {STALL_S:.0f} s for {what}; who waits for what:\n{waits}")

        return self.stepper.at(self.stepper.now + STALL_S, stalled)

    @contextlib.contextmanager
    def _logs(self) -> Iterator[None]:
        """Keep the nodes' log out of the way, or put it into the trace."""
        logger = logging.getLogger("raidfs")
        handler = _TraceHandler(self)
        propagate, level = logger.propagate, logger.level
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.INFO if self.trace.keep else logging.CRITICAL)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)


class _TraceHandler(logging.Handler):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        task = self._cluster.stepper.current
        if task is not None and self._cluster.trace.keep:
            self._cluster.note(task.group.name, "log", record.getMessage())


def _leaves(e: BaseException) -> list[BaseException]:
    if isinstance(e, BaseExceptionGroup):
        return [leaf for part in e.exceptions for leaf in _leaves(part)]
    return [e]


def _errors(e: BaseException) -> list[str]:
    return [f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(e)]


# A node that has refused says why; these say that something has gone wrong between nodes or inside one.
_NO_REFUSALS = (MessageNotAcknowledged, NodeFenced, CannotFollow, MetadataLost, LockError)


def _is_refusal(e: BaseException) -> bool:
    return isinstance(e, RaidfsError) and not isinstance(e, _NO_REFUSALS)


def _is_healed(node: Node) -> bool:
    return node.sync_status().state == "idle" and not (node.resize.unfinished or node.array.is_between_sizes)


def _is_expected(e: BaseException) -> bool:
    return all(isinstance(leaf, RaidfsError | OSError) for leaf in _leaves(e))


def simulate(plan: Plan, *, keep_trace: bool = False) -> Outcome:
    """Carry a plan out and return what came of it."""
    return Cluster(plan, keep_trace=keep_trace).run()
