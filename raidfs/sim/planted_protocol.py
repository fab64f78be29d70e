"""Mistakes in the protocol of metadata updates: those that md-cluster had, and those that it was careful to avoid.

The names in brackets (D1, B13, W1 ...) are those of the schedules in ``tests/cluster/test_schedules.py``, where each
is made to happen step by step; here the simulator has to come upon it.

One is not here: a receiver that handles messages before its node is ready (B4). A node becomes a receiver, and ready,
under one and the same tenure of the token, so in a whole cluster nobody can send in between; only the unit test, which
parts the two, can reach it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import patch

from raidfs.array import metadata as metadata_module
from raidfs.array.metadata import Metadata
from raidfs.cluster.channel import Channel, State
from raidfs.cluster.messages import Message, Result
from raidfs.cluster.mutex import Mutex, ReconfigMutex
from raidfs.cluster.receiver import Receiver
from raidfs.format.superblock import Superblock
from raidfs.lock.api import Mode
from raidfs.lock.member import MemberLock
from raidfs.mddev import Mddev
from raidfs.resize import Resize
from raidfs.runtime import Runtime
from raidfs.sim.planting import Mistakes
from raidfs.sim.runtime import SimRuntime

PROTOCOL = Mistakes()
plant = PROTOCOL.plant

# Where nodes wait for each other it is a sender that says so, whose patience is NO_PROGRESS_S; if the superblock is
# written by then, the nodes have been seen to disagree.
_HANGS = ("stall", "node-error", "same-view")


# ---- the receiver --------------------------------------------------------------------------------------------------


@plant("reload-later", "applied-before-acked")
def _reload_later() -> Iterator[None]:
    """METADATA_UPDATED is acknowledged and the array thread reads the superblock later, as before Linux 4.12."""

    async def wrong(receiver: Receiver, message: Message) -> Result:
        runtime = cast(SimRuntime, receiver.channel.runtime)
        reload = receiver._reload(message.raid_slot, message.low)
        runtime._stepper.spawn(runtime._group, reload, name="array thread", on_end=lambda task, e: None)
        return Result.APPLIED

    with patch.object(Receiver, "process_metadata_updated", wrong):
        yield


@plant("acked-early", "applied-before-acked", "refusals-told")
def _acked_early() -> Iterator[None]:
    """A message is acknowledged before it is processed: step 4 before step 3."""
    process_recvd_msg = Receiver.process_recvd_msg

    async def wrong(receiver: Receiver, value: bytes | None) -> None:
        message = Message.decode(value) if value is not None else None
        if message is not None:
            await receiver.channel.publish(sequence=message.sequence, result=Result.APPLIED)
            await receiver.channel.ack.convert(Mode.NL)
        await process_recvd_msg(receiver, value)

    with patch.object(Receiver, "process_recvd_msg", wrong):
        yield


@plant("unknown-acked", "refusals-told")
def _unknown_acked() -> Iterator[None]:
    """A message that the receiver cannot apply is acknowledged all the same, and nobody is told."""
    apply = Receiver._apply

    async def wrong(receiver: Receiver, message: Message) -> Result:
        await apply(receiver, message)
        return Result.APPLIED

    with patch.object(Receiver, "_apply", wrong):
        yield


@plant("receivers-exclusive", "channel-restored", *_HANGS)
def _receivers_exclusive() -> Iterator[None]:
    """Receivers convert ``message`` to EX instead of PR, and so wait for each other (B13)."""
    convert = MemberLock.convert

    async def wrong(lock: MemberLock, mode: Mode, *, noqueue: bool = False) -> None:
        mode = Mode.EX if lock.resource == "message" and mode is Mode.PR else mode
        await convert(lock, mode, noqueue=noqueue)

    with patch.object(MemberLock, "convert", wrong):
        yield


@plant("not-announced-at-stop", *_HANGS)
def _not_announced_at_stop() -> Iterator[None]:
    """The receiver is stopped, with the mutex held, without HOLDING_MUTEX_FOR_RECVD (D1)."""

    async def wrong(receiver: Receiver) -> None:
        receiver._stopping = True
        receiver._wqueue.wake_up()
        await receiver._wqueue.wait_event(lambda: not receiver._running, what="the receiver to finish its message")

    with patch.object(Receiver, "stop", wrong):
        yield


# ---- reconfig_mutex and its flag -----------------------------------------------------------------------------------


@plant("never-announced", *_HANGS)
def _never_announced() -> Iterator[None]:
    """Who holds the mutex and waits for the token does not say so (D0, D1)."""
    with patch.object(Channel, "set_holding_mutex", lambda channel: False):
        yield


@plant("announced-late", *_HANGS)
def _announced_late() -> Iterator[None]:
    """HOLDING_MUTEX_FOR_RECVD is set after the wait for SEND_LOCK (D2, B1)."""

    async def lock_comm(channel: Channel, mddev_locked: bool) -> None:
        await channel.wait.wait_event(lambda: not channel._test_and_set(State.SEND_LOCK), what="SEND_LOCK")
        announced = mddev_locked and not channel.set_holding_mutex()
        try:
            await channel._token_or_give_up()
        finally:
            if announced:
                channel.state.discard(State.HOLDING_MUTEX_FOR_RECVD)

    async def metadata_update_start(channel: Channel) -> None:
        await lock_comm(channel, True)

    with (
        patch.object(Channel, "lock_comm", lock_comm),
        patch.object(Channel, "metadata_update_start", metadata_update_start),
    ):
        yield


@plant("announced-silently", *_HANGS)
def _announced_silently() -> Iterator[None]:
    """HOLDING_MUTEX_FOR_RECVD is set, and the receiver that waits for it is not woken."""

    def wrong(channel: Channel) -> bool:
        return channel._test_and_set(State.HOLDING_MUTEX_FOR_RECVD)

    with patch.object(Channel, "set_holding_mutex", wrong):
        yield


@plant("mutex-silent", *_HANGS)
def _mutex_silent() -> Iterator[None]:
    """Who releases reconfig_mutex wakes those who want to lock it, and not the receiver on the array's wait queue."""

    def wrong(mutex: ReconfigMutex, runtime: Runtime) -> None:
        mutex.wqueue = runtime.wait_queue()
        Mutex.__init__(mutex, runtime.wait_queue(), "reconfig_mutex")

    with patch.object(ReconfigMutex, "__init__", wrong):
        yield


# ---- the sender ----------------------------------------------------------------------------------------------------


@plant("token-kept", "channel-restored", *_HANGS)
def _token_kept() -> Iterator[None]:
    """A token that is granted while its wait is being cancelled is not given back."""

    async def wrong(channel: Channel) -> None:
        await channel.token.convert(Mode.EX)
        await channel.recv_mutex.lock("a sender")

    with patch.object(Channel, "lock_token", wrong):
        yield


@plant("send-lock-leaked", *_HANGS)
def _send_lock_leaked() -> Iterator[None]:
    """A wait for the token that fails leaves SEND_LOCK behind (W1)."""
    with patch.object(Channel, "_token_or_give_up", Channel.lock_token):
        yield


@plant("not-drained", "lock-protocol", "channel-restored", *_HANGS)
def _not_drained() -> Iterator[None]:
    """A conversion that is given up is neither cancelled nor drained: it is granted later, to nobody (W3)."""

    async def wrong(lock: MemberLock, *conversion: Any) -> None:
        return

    with patch.object(MemberLock, "_take_back", wrong):
        yield


@plant("recv-mutex-ignored", "applied-before-acked", "channel-restored", *_HANGS)
def _recv_mutex_ignored() -> Iterator[None]:
    """A sender does not wait until its own receiver has finished the message before (B10)."""

    async def lock_token(channel: Channel) -> None:
        try:
            await channel.token.convert(Mode.EX)
        except BaseException:
            await channel._down(channel.token, Mode.NL)
            raise

    async def unlock_comm(channel: Channel) -> None:
        await channel._down(channel.token, Mode.NL)
        channel._unlock_send()

    with patch.object(Channel, "lock_token", lock_token), patch.object(Channel, "unlock_comm", unlock_comm):
        yield


@plant("message-shared", "lock-modes", "applied-before-acked", "channel-restored", *_HANGS)
def _message_shared() -> Iterator[None]:
    """A sender publishes without having waited for those who still read the last message."""
    convert = MemberLock.convert

    async def wrong(lock: MemberLock, mode: Mode, *, noqueue: bool = False) -> None:
        mode = Mode.CW if lock.resource == "message" and mode is Mode.EX else mode
        await convert(lock, mode, noqueue=noqueue)

    with patch.object(MemberLock, "convert", wrong):
        yield


@plant("refusals-ignored", "refusals-told")
def _refusals_ignored() -> Iterator[None]:
    """The sender takes the acknowledgement for a success and reads nobody's result."""

    async def wrong(channel: Channel, message: Message) -> None:
        return

    with patch.object(Channel, "_check_results", wrong):
        yield


# ---- the transaction -----------------------------------------------------------------------------------------------


@plant("no-barrier", "applied-before-acked")
def _no_barrier() -> Iterator[None]:
    """A metadata update returns when it is on the disks, and is never announced."""

    async def wrong(channel: Channel, message: Message) -> None:
        await channel.metadata_update_cancel()

    with patch.object(Channel, "metadata_update_finish", wrong):
        yield


@plant("death-ignored", "same-view")
def _death_ignored() -> Iterator[None]:
    """Nobody looks at the superblocks when a node has died that may have announced a change to some, or to none."""

    async def wrong(mddev: Mddev, slot: int) -> None:
        return

    async def no_look(resize: Resize) -> None:
        return  # it would read the superblock too

    with patch.object(Mddev, "peer_gone", wrong), patch.object(Resize, "look", no_look):
        yield


@plant("not-looked-again", "events-grow", "applied-before-acked", "node-error")
def _not_looked_again() -> Iterator[None]:
    """An update changes the superblock that it knew before it waited for the token; others have changed it since."""
    update_sb = Mddev.update_sb
    update = Metadata.update
    known: dict[Metadata, Superblock] = {}

    async def before(mddev: Mddev, *args: Any, **kwargs: Any) -> bool:
        known[mddev.array.metadata] = mddev.array.metadata.superblock  # reconfig_mutex: one update at a time
        return await update_sb(mddev, *args, **kwargs)

    async def after(metadata: Metadata, *args: Any, **kwargs: Any) -> tuple[Superblock, bool]:
        superblock = known.pop(metadata, None)
        if superblock is None:  # while it joins
            return await update(metadata, *args, **kwargs)
        with patch.object(metadata, "_freshest", lambda found, problems: superblock):
            return await update(metadata, *args, **kwargs)

    with patch.object(Mddev, "update_sb", before), patch.object(Metadata, "update", after):
        yield


@plant("token-after-superblock", "superblock-under-token", "events-grow")
def _token_after_superblock() -> Iterator[None]:
    """The superblock is written first, and the token taken for the message only."""

    async def start(channel: Channel) -> None:
        await channel.wait.wait_event(lambda: not channel._test_and_set(State.SEND_LOCK), what="SEND_LOCK")

    async def finish(channel: Channel, message: Message) -> None:
        channel.set_holding_mutex()
        try:
            await channel._token_or_give_up()
        finally:
            channel.state.discard(State.HOLDING_MUTEX_FOR_RECVD)
        try:
            await channel.send_locked(message)
        finally:
            await channel.unlock_comm()

    async def cancel(channel: Channel) -> None:
        channel._unlock_send()

    with (
        patch.object(Channel, "metadata_update_start", start),
        patch.object(Channel, "metadata_update_finish", finish),
        patch.object(Channel, "metadata_update_cancel", cancel),
    ):
        yield


@plant("events-kept", "events-grow", "applied-before-acked", "node-error")
def _events_kept() -> Iterator[None]:
    """The event count is that of before the change: off by one."""
    for_leg = metadata_module.for_leg

    def wrong(array: Superblock, leg: Superblock) -> Superblock:
        return dataclasses.replace(for_leg(array, leg), events=leg.events)

    with patch.object(metadata_module, "for_leg", wrong):
        yield
