"""Mistakes to make on purpose, so that the simulator can show that it finds them.

Production code knows nothing of them: each is a patch that is there for the length of a block. ``rules`` are
the rules of `raidfs.sim.checkers` that it may break; which one is seen first depends on the schedule.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import patch

from raidfs._core import OpKind
from raidfs.array.array import Array
from raidfs.array.port import EnginePort
from raidfs.cluster.membership import Membership
from raidfs.format.bitmap import SUPER_BYTES, BitmapSuperblock
from raidfs.format.superblock import Superblock
from raidfs.lock import machine as lock_machine
from raidfs.lock.api import Mode
from raidfs.lock.machine import LockMachine
from raidfs.lock.modes import compatible
from raidfs.node import Node
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimBackend
from raidfs.sim.planted_protocol import PROTOCOL
from raidfs.sim.planted_resize import RESIZE
from raidfs.sim.planted_sync import SYNC
from raidfs.sim.planting import Mistakes

PLANTED = Mistakes()
plant = PLANTED.plant


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


@plant("not-made-active", "resync-offset")
def _not_made_active() -> Iterator[None]:
    """A node writes without making resync_offset = 0 durable."""

    async def wrong(array: Array) -> None:
        return

    with patch.object(Array, "make_active", wrong):
        yield


@plant("failure-not-awaited", "stall", "slots-on-leg")
def _failure_not_awaited() -> Iterator[None]:
    """The task that records failed legs is not woken."""
    on_event = Array._on_event

    def wrong(array: Array, *event: Any) -> None:
        with patch.object(array.failures, "wake_up", lambda: None):
            on_event(array, *event)

    with patch.object(Array, "_on_event", wrong):
        yield


# ---- the bitmap ----------------------------------------------------------------------------------------------------


@plant("bits-believed", "bit-before-data", "legs-equal", "cleared-when-equal")
def _bits_believed() -> Iterator[None]:
    """The bitmap is loaded as if every bit were on the disk, and not written before it is used."""

    async def wrong(array: Array) -> None:
        return

    is_stale = property(lambda bitmap: True)
    with patch.object(BitmapSuperblock, "is_stale", is_stale), patch.object(Array, "activate", wrong):
        yield


@plant("bits-forgotten", "legs-equal", "bit-before-data", "cleared-when-equal")
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


@plant("leg-skipped", "register", "legs-acknowledged", "legs-equal", "cleared-when-equal", "read-atomic")
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


@plant("flushed-early", "register", "legs-acknowledged", "recovery-offset")
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


@plant("dead-keep-locks", "stall", "node-error", "locks-left")
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


@plant("joins-overlap", "superblock-under-token", "node-error", "stall", "events-grow", "applied-before-acked")
def _joins_overlap() -> Iterator[None]:
    """A node joins without the token."""

    @contextlib.asynccontextmanager
    async def wrong(membership: Membership) -> AsyncIterator[None]:
        await membership.lock("token")
        yield

    with patch.object(Membership, "token", wrong):
        yield


# ---- a node --------------------------------------------------------------------------------------------------------


@plant("refresh-fails", "node-error")
def _refresh_fails() -> Iterator[None]:
    """A node stumbles over a mistake of its own when it has joined."""

    async def wrong(node: Node) -> None:
        raise AttributeError("members")

    with patch.object(Node, "refresh", wrong):
        yield


PLANTED.update(PROTOCOL)
PLANTED.update(SYNC)
PLANTED.update(RESIZE)
