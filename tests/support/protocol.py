"""Channels and receivers of a few members on the stepper, with an array that only notes what it was told.

A test says which tasks run and up to which point (`Cluster.until`); what is left open is decided by the seed. When
nothing can move any more the stepper raises NothingCanRun with everybody's waits: a deadlock.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, ClassVar

from raidfs.cluster.channel import Channel, State
from raidfs.cluster.membership import Membership
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.cluster.mutex import ReconfigMutex
from raidfs.cluster.receiver import Receiver
from raidfs.lock.api import Mode
from raidfs.sim.locks import SimulatedClient, SimulatedLocks
from raidfs.sim.policies import RandomPolicy
from raidfs.sim.runtime import SimRuntime
from raidfs.sim.stepper import Stepper

NODES = 4


class NotingMddev:
    """An array without legs: ``applied`` lists the messages that changed it; ``gate`` lets a test hold a reload."""

    def __init__(self, runtime: SimRuntime, mutex: ReconfigMutex) -> None:
        self.applied: list[tuple[str, int]] = []
        self.reloads = 0
        self.without_mutex = 0
        self.loaded = True
        self.answer = Result.APPLIED
        self.open = True
        self._mutex = mutex
        self._gate = runtime.wait_queue()

    def is_loaded(self) -> bool:
        return self.loaded

    async def reload_sb(self, raid_slot: int | None, events: int) -> Result:
        self.without_mutex += self._mutex.owner != "the receiver"
        await self._gate.wait_event(lambda: self.open, what="the gate of the test")
        self.reloads += 1
        self.applied.append(("METADATA_UPDATED", events))
        return self.answer

    def hold(self) -> None:
        self.open = False

    def let_go(self) -> None:
        self.open = True
        self._gate.wake_up()

    def heard_of(self, slot: int) -> None:
        pass

    def barrier_passed(self) -> None:
        pass

    async def remote_resync(self, slot: int, low: int, high: int, code: int) -> Result:
        self.applied.append(("RESYNCING", low))
        return self.answer

    def remote_resync_started(self, slot: int) -> Result:
        self.applied.append(("RESYNCING_START", slot))
        return self.answer

    async def new_disk(self, slot: int, device_uuid: bytes, number: int) -> Result:
        self.applied.append(("NEWDISK", number))
        return self.answer

    async def remove_disk(self, device_uuid: bytes, number: int) -> Result:
        self.applied.append(("REMOVE", number))
        return self.answer

    def bitmap_needs_sync(self, slot: int) -> Result:
        self.applied.append(("BITMAP_NEEDS_SYNC", slot))
        return self.answer

    def sync_action(self, *, frozen: bool) -> Result:
        self.applied.append(("SYNC_ACTION", int(frozen)))
        return self.answer

    async def bitmap_resize(self, chunk_bytes: int, size_sectors: int) -> Result:
        self.applied.append(("BITMAP_RESIZE", chunk_bytes))
        return self.answer

    async def change_capacity(self, size_sectors: int) -> Result:
        self.applied.append(("CHANGE_CAPACITY", size_sectors))
        return self.answer


class Member:
    """One node's side of the protocol."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.group = cluster.stepper.group(name)
        self.runtime = SimRuntime(cluster.stepper, self.group)
        self.client: SimulatedClient = cluster.locks.connect()
        self.mutex = ReconfigMutex(self.runtime)
        self.mddev = NotingMddev(self.runtime, self.mutex)
        self.channel: Channel
        self.receiver: Receiver
        self.joined = False

    async def join(self, *, receive: bool = True) -> None:
        lockspace = await self.client.hub.open_lockspace("array", cluster_name="c", client=self.name)
        membership = Membership(self.runtime, lockspace, NODES)
        async with membership.token():
            slot = await membership.claim_slot()
            self.channel = Channel(self.runtime, membership, self.mutex, slot)
            self.receiver = Receiver(self.channel, self.mddev)
            await self.channel.create_locks(self.receiver.ack_bast)
            await self.channel.become_receiver()
            self.start(self.receiver.run(), "receiver")
            if receive:
                self.receiver.already_in_cluster()
        self.joined = True

    def start(self, coro: Coroutine[Any, Any, Any], name: str) -> Outcome:
        outcome = Outcome()
        self.cluster.started.append(coro)

        async def run() -> None:
            try:
                outcome.value = await coro
            except Exception as e:
                outcome.error = e
            outcome.done = True

        self.cluster.stepper.spawn(self.group, run(), name=f"{self.name}: {name}")
        return outcome

    def metadata_updated(self, events: int) -> Message:
        return Message(MessageType.METADATA_UPDATED, self.channel.slot, low=events)

    async def update(self, events: int) -> None:
        """What the array thread does: the mutex, the token, the message."""
        await self.mutex.lock("array thread")
        try:
            await self.channel.metadata_update_start()
            await self.channel.metadata_update_finish(self.metadata_updated(events))
        finally:
            self.mutex.unlock()

    async def leave(self) -> None:
        await self.mutex.lock("leaving")
        await self.receiver.stop()
        await self.channel.lockspace.close()

    def die(self) -> None:
        """Be dead: locks are severed first, then the frames are abandoned."""
        self.client.kill()
        self.cluster.stepper.crash(self.group)

    def check_restored(self) -> None:
        """Flags, mutexes and lock modes are as they are when nothing goes on (invariant 9)."""
        channel = self.channel
        assert channel.state <= {State.ALREADY_IN_CLUSTER}, channel.state
        assert channel.recv_mutex.owner is None
        assert self.mutex.owner is None
        modes = [lock.mode for lock in (channel.token, channel.message, channel.ack, channel.no_new_dev)]
        assert modes == [Mode.NL, Mode.NL, Mode.CR, Mode.CR], modes


class Outcome:
    """What became of a task."""

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None


class Cluster:
    """Members ``A``, ``B`` ... that have joined, on one stepper; `dispose_all` is for the end of a test."""

    made: ClassVar[list[Cluster]] = []

    @classmethod
    def dispose_all(cls) -> None:
        """Throw the frames away of all clusters made so far, running none of them."""
        for cluster in cls.made:
            cluster.stepper.dispose()
            for coro in cluster.started:
                if inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
                    coro.close()
        cls.made.clear()

    def __init__(self, seed: int, names: str = "AB") -> None:
        self.made.append(self)
        self.started: list[Coroutine[Any, Any, Any]] = []
        rng = Random(seed)
        self.stepper = Stepper(RandomPolicy(rng), rng, steps_max=200_000)
        service = self.stepper.group("locks")
        self.locks = SimulatedLocks(SimRuntime(self.stepper, service))
        self.stepper.spawn(service, self.locks.run(), name="locks")
        self.members: list[Member] = []
        for name in names:
            self.join(name)

    def member(self, name: str) -> Member:
        self.members.append(Member(self, name))
        return self.members[-1]

    def join(self, name: str) -> Member:
        member = self.member(name)
        outcome = member.start(member.join(), "join")
        self.until(lambda: outcome.done)
        assert outcome.error is None, outcome.error
        return member

    def __getitem__(self, name: str) -> Member:
        return next(member for member in reversed(self.members) if member.name == name)

    def until(self, condition: Callable[[], bool]) -> None:
        self.stepper.run(condition)

    def finish(self, *outcomes: Outcome) -> None:
        """Let these tasks end, all of them without an error."""
        self.until(lambda: all(outcome.done for outcome in outcomes))
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error

    def settle(self, seconds: float = 5.0) -> None:
        """Let everything go on for a while."""
        end = self.stepper.now + seconds
        self.stepper.at(end, lambda: None)
        self.until(lambda: self.stepper.now >= end)
