"""Mistakes to make on purpose, so that the simulator can show that it finds them.

Production code knows nothing of them: each is a patch that is there for the length of a block. ``rules`` are
the rules of `raidfs.sim.checkers` that it may break; which one is seen first depends on the schedule.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from raidfs._core import OpKind
from raidfs.array import metadata as metadata_module
from raidfs.array.array import Array
from raidfs.array.port import EnginePort
from raidfs.cluster.channel import Channel
from raidfs.cluster.membership import Membership
from raidfs.cluster.messages import Message, Result
from raidfs.cluster.mutex import Mutex
from raidfs.cluster.receiver import Receiver
from raidfs.format.bitmap import SUPER_BYTES, BitmapSuperblock
from raidfs.format.superblock import Superblock
from raidfs.lock import machine as lock_machine
from raidfs.lock.api import Mode
from raidfs.lock.machine import LockMachine
from raidfs.lock.member import MemberLock
from raidfs.lock.modes import compatible
from raidfs.node import Node
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimBackend


@dataclasses.dataclass(frozen=True)
class Planted:
    """One mistake: what it is, which rules it may break, and the block in which it is made."""

    what: str
    rules: frozenset[str]
    patch: Callable[[], AbstractContextManager[None]]


PLANTED: dict[str, Planted] = {}

Patch = Callable[[], Iterator[None]]


def plant(name: str, *rules: str) -> Callable[[Patch], Patch]:
    """Register a generator function as a mistake; its docstring says what the mistake is."""

    def register(fn: Patch) -> Patch:
        PLANTED[name] = Planted((fn.__doc__ or "").strip(), frozenset(rules), contextlib.contextmanager(fn))
        return fn

    return register


# ---- metadata ------------------------------------------------------------------------------------------------------


@plant("checksum-of-before", "superblock-decodable", "node-error")
def _checksum_of_before() -> Iterator[None]:
    """The superblock is changed after its checksum was computed."""
    encode = Superblock.encode

    def wrong(superblock: Superblock) -> bytes:
        data = bytearray(encode(superblock))
        data[200] ^= superblock.events & 1  # events, the low byte
        return bytes(data)

    with patch.object(Superblock, "encode", wrong):
        yield


@plant("events-kept", "events-grow", "node-error", "applied-before-acked")
def _events_kept() -> Iterator[None]:
    """The event count is that of before the change."""
    for_leg = metadata_module.for_leg

    def wrong(array: Superblock, leg: Superblock) -> Superblock:
        return dataclasses.replace(for_leg(array, leg), events=leg.events)

    with patch.object(metadata_module, "for_leg", wrong):
        yield


@plant("not-made-active", "resync-offset")
def _not_made_active() -> Iterator[None]:
    """A node writes without making resync_offset = 0 durable."""

    async def wrong(array: Array) -> None:
        return

    with patch.object(Array, "make_active", wrong):
        yield


@plant("failure-not-awaited", "stall")
def _failure_not_awaited() -> Iterator[None]:
    """The task that records failed legs is not woken."""
    on_event = Array._on_event

    def wrong(array: Array, *event: Any) -> None:
        with patch.object(array.failures, "wake_up", lambda: None):
            on_event(array, *event)

    with patch.object(Array, "_on_event", wrong):
        yield


# ---- the bitmap ----------------------------------------------------------------------------------------------------


@plant("bits-believed", "bit-before-data", "legs-equal")
def _bits_believed() -> Iterator[None]:
    """The bitmap is loaded as if every bit were on the disk, and not written before it is used."""

    async def wrong(array: Array) -> None:
        return

    is_stale = property(lambda bitmap: True)
    with patch.object(BitmapSuperblock, "is_stale", is_stale), patch.object(Array, "activate", wrong):
        yield


@plant("bits-forgotten", "legs-equal", "bit-before-data")
def _bits_forgotten() -> Iterator[None]:
    """A node begins with an empty bitmap, whatever its slot says."""
    read_slot = Array.read_slot

    async def wrong(array: Array, slot: int) -> bytes:
        data = await read_slot(array, slot)
        return data[:SUPER_BYTES] + bytes(len(data) - SUPER_BYTES)

    with patch.object(Array, "read_slot", wrong):
        yield


@plant("bits-cached", "bit-before-data")
def _bits_cached() -> Iterator[None]:
    """Bitmap pages are written without being made durable."""
    submit = SimBackend._submit

    def wrong(
        backend: SimBackend, op_id: int, kind: OpKind, disk: SimDisk, offset: int, length: int, data: bytes | None
    ) -> None:
        submit(backend, op_id, OpKind.WRITE if kind == OpKind.WRITE_DURABLE else kind, disk, offset, length, data)

    with patch.object(SimBackend, "_submit", wrong):
        yield


# ---- requests ------------------------------------------------------------------------------------------------------


@plant("written-early", "register", "legs-acknowledged")
def _written_early() -> Iterator[None]:
    """A write returns when it has been asked for."""

    async def wrong(port: EnginePort, offset: int, data: bytes, *, durable: bool = False) -> int:
        port.engine.submit_write(offset, data, durable=durable)
        return len(data)

    with patch.object(EnginePort, "write", wrong):
        yield


@plant("leg-skipped", "register", "legs-acknowledged", "legs-equal")
def _leg_skipped() -> Iterator[None]:
    """Writes to the second leg are acknowledged and not carried out."""
    submit = SimBackend._submit

    def wrong(
        backend: SimBackend, op_id: int, kind: OpKind, disk: SimDisk, offset: int, length: int, data: bytes | None
    ) -> None:
        if kind == OpKind.WRITE and disk.name == "disk1":
            backend._completed.append((op_id, length, None))
            backend._queue.wake_up()
        else:
            submit(backend, op_id, kind, disk, offset, length, data)

    with patch.object(SimBackend, "_submit", wrong):
        yield


@plant("flushed-early", "register", "legs-acknowledged")
def _flushed_early() -> Iterator[None]:
    """A flush returns when it has been asked for."""

    async def wrong(port: EnginePort) -> None:
        port.engine.submit_flush()

    with patch.object(EnginePort, "flush", wrong):
        yield


@plant("read-shifted", "sector-whole", "register")
def _read_shifted() -> Iterator[None]:
    """The second half of what is read comes from elsewhere."""
    read = EnginePort.read

    async def wrong(port: EnginePort, offset: int, length: int) -> bytes:
        data = await read(port, offset, length)
        return data[: len(data) // 2 - 8] + data[: len(data) - len(data) // 2 + 8]

    with patch.object(EnginePort, "read", wrong):
        yield


# ---- locks and membership ------------------------------------------------------------------------------------------


@plant("two-exclusive", "lock-modes", "one-slot-owner")
def _two_exclusive() -> Iterator[None]:
    """The lock manager grants EX beside EX."""

    def wrong(one: Mode, other: Mode) -> bool:
        return (one is Mode.EX and other is Mode.EX) or compatible(one, other)

    with patch("raidfs.lock.resource.compatible", wrong):
        yield


@plant("slot-not-claimed", "one-slot-owner", "stall", "node-error", "bit-before-data")
def _slot_not_claimed() -> Iterator[None]:
    """A node takes the first slot without asking whether it is free."""

    async def wrong(membership: Membership, wanted: int | None = None) -> int:
        membership.slot = 0
        return 0

    with patch.object(Membership, "claim_slot", wrong):
        yield


@plant("dead-keep-locks", "stall", "node-error")
def _dead_keep_locks() -> Iterator[None]:
    """The lock manager does not purge the locks of clients that died."""
    with patch.object(LockMachine, "_died", lambda machine, event: []):
        yield


@plant("members-kept", "locks-left")
def _members_kept() -> Iterator[None]:
    """The lock manager does not forget who has left."""

    def wrong(machine: LockMachine, number: int) -> None:
        machine._members[number].locks.clear()

    with patch.object(LockMachine, "_forget", wrong):
        yield


@plant("left-with-locks", "stall", "node-error")
def _left_with_locks() -> Iterator[None]:
    """The lock manager forgets to release what a client holds that leaves in good order."""

    def wrong(machine: LockMachine, event: lock_machine.Close) -> list[lock_machine.Action]:
        return [lock_machine.Done(event.member, event.tag)]

    with patch.object(LockMachine, "_close", wrong), patch.object(LockMachine, "_died", lambda machine, event: []):
        yield


@plant("not-fenced", "write-of-a-stranger", "node-error", "events-grow", "register", "legs-equal")
def _not_fenced() -> Iterator[None]:
    """The locks of a dead machine are freed before its last writes have ended."""
    with patch.object(SimDisk, "fence", lambda disk, owner: None):
        yield


@plant("joins-overlap", "lock-modes", "one-slot-owner", "stall", "node-error", "applied-before-acked", "events-grow")
def _joins_overlap() -> Iterator[None]:
    """A node joins without the token."""

    @contextlib.asynccontextmanager
    async def wrong(membership: Membership) -> AsyncIterator[None]:
        await membership.lock("token")
        yield

    with patch.object(Membership, "token", wrong):
        yield


# ---- the channel ---------------------------------------------------------------------------------------------------


@plant("reload-later", "applied-before-acked")
def _reload_later() -> Iterator[None]:
    """METADATA_UPDATED is acknowledged before the superblock was read again, as before Linux 4.12."""

    async def wrong(receiver: Receiver, raid_slot: int | None, events: int) -> Result:
        return Result.APPLIED

    with patch.object(Receiver, "_reload", wrong):
        yield


@plant("token-kept", "channel-restored", "stall", "node-error")
def _token_kept() -> Iterator[None]:
    """A token that is granted while its wait is being cancelled is not given back."""

    async def wrong(channel: Channel) -> None:
        await channel.token.convert(Mode.EX)
        await channel.recv_mutex.lock("a sender")

    with patch.object(Channel, "lock_token", wrong):
        yield


@plant("no-barrier", "applied-before-acked")
def _no_barrier() -> Iterator[None]:
    """A metadata update returns when it is on the disks, and is never announced."""

    async def wrong(channel: Channel, message: Message) -> None:
        await channel.metadata_update_cancel()

    with patch.object(Channel, "metadata_update_finish", wrong):
        yield


@plant("message-shared", "lock-modes", "node-error", "stall", "applied-before-acked", "channel-restored")
def _message_shared() -> Iterator[None]:
    """A sender publishes without having waited for those who still read the last message."""
    convert = MemberLock.convert

    async def wrong(lock: MemberLock, mode: Mode, *, noqueue: bool = False) -> None:
        mode = Mode.CW if lock.resource == "message" and mode is Mode.EX else mode
        await convert(lock, mode, noqueue=noqueue)

    with patch.object(MemberLock, "convert", wrong):
        yield


@plant("never-announced", "stall", "node-error")
def _never_announced() -> Iterator[None]:
    """Who holds the mutex and waits for the token does not say so (D1, D2)."""
    with patch.object(Channel, "set_holding_mutex", lambda channel: False):
        yield


@plant("mutex-silent", "stall", "node-error")
def _mutex_silent() -> Iterator[None]:
    """Who releases reconfig_mutex wakes nobody."""

    def wrong(mutex: Mutex) -> None:
        mutex.owner = None

    with patch.object(Mutex, "unlock", wrong):
        yield


@plant("refresh-fails", "node-error")
def _refresh_fails() -> Iterator[None]:
    """A node stumbles over a mistake of its own when it has joined."""

    async def wrong(node: Node) -> None:
        raise AttributeError("members")

    with patch.object(Node, "refresh", wrong):
        yield
