"""The receive task of a node, and the story of the commit that this project grew from.

*md-cluster: use sync way to handle METADATA_UPDATED msg* (Linux 4.12, 0ba959774e93). Before it, a receiver of
METADATA_UPDATED only set a flag and acknowledged; the array thread reloaded the superblock some time later. The sender
knew that everybody had *heard*, not that everybody had *followed*, which is no ground to resize an array on. Since then
the receive thread reloads the superblock itself and acknowledges afterwards.

The reload needs ``reconfig_mutex``, and that is where it could deadlock: the local holder of the mutex may be waiting
for the token, which the remote sender keeps until we acknowledge::

    receiver -> reconfig_mutex -> its holder -> token -> remote sender -> our ack -> receiver

The way out, Neil Brown's: a holder that does nothing but wait for the token says so (HOLDING_MUTEX_FOR_RECVD). While it
waits nobody else can take the mutex and it changes nothing itself, so the receiver may reload *without* the mutex.
The holder looks again at its reason when it has the token, since the reload may have done its work already.

So `Receiver.process_metadata_updated` waits on the array's wait queue for

    reconfig_mutex obtained   *or*   HOLDING_MUTEX_FOR_RECVD set

and both events wake that queue: every unlock of the mutex (`ReconfigMutex`), every setting of the flag
(`Channel.set_holding_mutex`). The flag is set before the wait for SEND_LOCK and not only before the token (D2, B1), and
it is set, and stays so, before the receive task is stopped (D1).

One message goes through these steps; the numbers stand beside the code::

    1  lock recv_mutex
    2  message NL -> CR, copy the value
    3  process it, synchronously; publish the result in the value of the own slot
    4  ack     CR -> NL        the acknowledgement
    5  message CR -> PR        waits until the sender has left CW
    6  ack     NL -> CR        waits until the sender has left EX
    7  message PR -> NL
    8  unlock recv_mutex

Nothing is acknowledged silently that was not applied: a node that cannot follow publishes a numbered reason before
step 4 and the sender reads it. (The kernel has no way to say no but silence, which costs the sender a time-out.)
"""

from __future__ import annotations

import logging
from typing import Protocol

from raidfs.cluster.channel import Channel, State
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.errors import LockspaceLost, RaidfsError
from raidfs.lock.api import Mode

log = logging.getLogger(__name__)


class Mddev(Protocol):
    """The array as messages change it; named after md's structure."""

    def is_loaded(self) -> bool:
        """Whether there is an array to reload (B3: during start there is none yet)."""

    async def reload_sb(self, raid_slot: int | None, events: int) -> Result:
        """Read the superblock again and apply every difference (md_reload_sb).

        ``raid_slot`` is the device number of a good leg, None when nobody named one; ``events`` what it must have.
        """

    def heard_of(self, slot: int) -> None:
        """A node has sent a message: if it was not known, somebody has to notice when it goes."""

    def barrier_passed(self) -> None:
        """The sender has every node's acknowledgement: what had to wait for all of them may go on."""

    async def remote_resync(self, slot: int, low: int, high: int, code: int) -> Result:
        """Suspend the range [low, high) sectors that another node resyncs; 0, 0 ends it (process_suspend_info).

        ``code`` says what is done there.
        """

    def remote_resync_started(self, slot: int) -> Result:
        """Another node has begun to resync (RESYNCING_START)."""

    async def new_disk(self, slot: int, device_uuid: bytes, number: int) -> Result:
        """Another node adds an image, or takes one back: find and open it, or say why not (NEWDISK, RE_ADD)."""

    async def remove_disk(self, device_uuid: bytes, number: int) -> Result:
        """Let go of a leg, faulty or a spare (REMOVE); with the UUID of an image only of what NEWDISK has opened."""

    def bitmap_needs_sync(self, slot: int) -> Result:
        """A node has left with an unfinished resync: its slot has to be taken over (BITMAP_NEEDS_SYNC)."""

    def sync_action(self, *, frozen: bool) -> Result:
        """A user has stopped all syncs, or lets them go on (SYNC_ACTION)."""

    async def bitmap_resize(self, chunk_bytes: int, size_sectors: int) -> Result:
        """Take another chunk for the bitmap of an array of that size (BITMAP_RESIZE)."""

    async def change_capacity(self, size_sectors: int) -> Result:
        """All nodes can hold the new size: publish it (CHANGE_CAPACITY)."""


class Receiver:
    """The receive task; ``run`` it in the node's nursery."""

    def __init__(self, channel: Channel, mddev: Mddev) -> None:
        self.channel = channel
        self.messages_applied = 0
        self._mddev = mddev
        self._announced = False
        self._stopping = False
        self._running = False
        self._wqueue = channel.runtime.wait_queue()

    # ---- when to look ----------------------------------------------------------------------------------------------

    def ack_bast(self, mode: Mode) -> None:
        """The lock manager says that our ``ack`` stands in a sender's way (md: ack_bast)."""
        if mode is not Mode.EX:
            return
        if State.ALREADY_IN_CLUSTER in self.channel.state:
            self._announced = True
            self._wqueue.wake_up()
        else:
            self.channel.state.add(State.PENDING_RECV_EVENT)

    def already_in_cluster(self) -> None:
        """Bitmap and engine are ready; replay what was announced before (B4)."""
        state = self.channel.state
        state.add(State.ALREADY_IN_CLUSTER)
        if State.PENDING_RECV_EVENT in state:
            state.discard(State.PENDING_RECV_EVENT)
            self._announced = True
            self._wqueue.wake_up()

    async def run(self) -> None:
        """Receive messages until `stop`; a lock space that is lost ends it too."""
        self._running = True
        try:
            while True:
                await self._wqueue.wait_event(lambda: self._announced or self._stopping, what="a message")
                if self._stopping:
                    return
                self._announced = False
                await self.recv_daemon()
        except LockspaceLost as e:
            log.debug("the receiver ends: %s", e)
        finally:
            self._running = False
            self._wqueue.wake_up()

    async def stop(self) -> None:
        """Let the receiver finish the message that it is at, and end it; the caller holds reconfig_mutex.

        The flag is set first and stays set (rule 5): a stop request does not end the receiver's wait for the mutex,
        which the caller holds (D1).
        """
        self.channel.set_holding_mutex()
        self._stopping = True
        self._wqueue.wake_up()
        await self._wqueue.wait_event(lambda: not self._running, what="the receiver to finish its message")

    # ---- one message -----------------------------------------------------------------------------------------------

    async def recv_daemon(self) -> None:
        """Receive one message: the steps of the module's docstring (md: recv_daemon)."""
        channel = self.channel
        await channel.recv_mutex.lock("the receiver")  # 1
        try:
            await channel.message.convert(Mode.CR)  # 2
            value = channel.message.lvb if channel.message.lvb_valid else None
            await self.process_recvd_msg(value)  # 3
            await channel.ack.convert(Mode.NL)  # 4
            await channel.message.convert(Mode.PR)  # 5
            self._mddev.barrier_passed()
            await channel.ack.convert(Mode.CR)  # 6
            await channel.message.convert(Mode.NL)  # 7
        finally:
            channel.recv_mutex.unlock()  # 8

    async def process_recvd_msg(self, value: bytes | None) -> None:
        """Apply the message in ``value`` and publish the result; None stands for a value lost with its writer."""
        message = Message.decode(value) if value is not None else None
        if message is None or message.sequence == self.channel.sequence_seen:
            # Lost, never written, or seen already: there may still be metadata behind it, and reading it is harmless.
            await self._reload(raid_slot=None, events=0)
            return
        self._mddev.heard_of(message.slot)
        if message.slot == self.channel.slot:
            log.warning("a message of our own slot %d: %s", message.slot, message.type_name)
        try:
            result = await self._apply(message)
        except LockspaceLost:
            raise
        except (RaidfsError, OSError):
            log.exception("%s from slot %d failed", message.type_name, message.slot)
            result = Result.FAILED
        self.channel.sequence_seen = message.sequence
        self.messages_applied += result is Result.APPLIED
        if result is not Result.APPLIED:
            log.error("%s from slot %d was not applied: %s", message.type_name, message.slot, result.text)
        await self.channel.publish(sequence=message.sequence, result=result)

    async def _apply(self, message: Message) -> Result:
        mddev = self._mddev
        match message.type:
            case MessageType.METADATA_UPDATED:
                return await self.process_metadata_updated(message)
            case MessageType.RESYNCING:
                return await mddev.remote_resync(message.slot, message.low, message.high, message.raid_slot)
            case MessageType.RESYNCING_START:
                return mddev.remote_resync_started(message.slot)
            case MessageType.BITMAP_NEEDS_SYNC:
                return mddev.bitmap_needs_sync(message.slot)
            case MessageType.SYNC_ACTION:
                return mddev.sync_action(frozen=message.low == 0)
            case MessageType.CHANGE_CAPACITY:
                return await mddev.change_capacity(message.high)
            case MessageType.NEWDISK | MessageType.RE_ADD:
                return await mddev.new_disk(message.slot, message.device_uuid, message.raid_slot)
            case MessageType.REMOVE:
                return await mddev.remove_disk(message.device_uuid, message.raid_slot)
            case MessageType.BITMAP_RESIZE:
                return await mddev.bitmap_resize(message.low, message.high)
        return Result.UNKNOWN_TYPE

    async def process_metadata_updated(self, message: Message) -> Result:
        """Reload the superblock before acknowledging: the seed (md: process_metadata_update)."""
        if self.channel.no_new_dev.mode is not Mode.CR:
            await self.channel.no_new_dev.convert(Mode.CR)
        return await self._reload(message.raid_slot, message.low)

    async def _reload(self, raid_slot: int | None, events: int) -> Result:
        if not self._mddev.is_loaded():
            return Result.APPLIED  # B3: the array is being started and will read the superblock later
        mutex = self.channel.reconfig_mutex
        got_lock = False

        def locked_or_announced() -> bool:
            nonlocal got_lock
            got_lock = mutex.trylock("the receiver")
            return got_lock or State.HOLDING_MUTEX_FOR_RECVD in self.channel.state

        await mutex.wqueue.wait_event(locked_or_announced, what=f"reconfig_mutex (held by {mutex.owner}) or its holder")
        try:
            return await self._mddev.reload_sb(raid_slot, events)
        finally:
            if got_lock:
                mutex.unlock()
