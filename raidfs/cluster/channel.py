"""The send channel of a node: token, message, ack (md-cluster.c: lock_comm, __sendmsg, metadata_update_*).

A sender goes through these steps; the numbers stand beside the code::

     1  holding reconfig_mutex: set HOLDING_MUTEX_FOR_RECVD, wake the array's wait queue
     2  take SEND_LOCK                         waits for other senders of this node
     3  token   NL -> EX                       waits for other nodes' sends
     4  clear HOLDING_MUTEX_FOR_RECVD
     5  lock recv_mutex                        waits for the own receiver's previous message
     6  is the message still needed? (metadata updates look again)
     7  message NL -> EX                       waits for slow receivers of the previous message
     8  fill the value; message EX -> CW       publishes
     9  ack     CR -> EX                       granted when all receivers have dropped to NL: the acknowledgement
    10  ack     EX -> CR
    11  message CW -> NL
    12  (further messages under the same token repeat 7 to 11)
    13  unlock recv_mutex; token EX -> NL; clear SEND_LOCK; wake local senders

Why this does not deadlock is told in docs/channel.md, together with the lines that no await may part. In short: a
receiver never waits for something whose holder waits for the token, unless that holder has announced itself with
HOLDING_MUTEX_FOR_RECVD; the flag is set before the wait for SEND_LOCK (D2, B1), because whoever has SEND_LOCK may wait
for the token of the very node that waits for our receiver.

Every error path restores SEND_LOCK, the flag, recv_mutex and the lock modes (W1, invariant 9). A conversion that is
given up is cancelled and drained by the lock itself (W3).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable
from typing import TypeVar

from raidfs.cluster.membership import Membership, alive_name, bitmap_name
from raidfs.cluster.messages import PROTOCOL_VERSION, Message, Result, SlotValue, result_text
from raidfs.cluster.mutex import Mutex, ReconfigMutex
from raidfs.cluster.timing import GONE_LOOK_S, GONE_S, NO_PROGRESS_S, PROGRESS_LOOK_S
from raidfs.errors import (
    LockCancelled,
    LockError,
    LockspaceLost,
    MessageNotAcknowledged,
    MessageRefused,
    ProtocolMismatch,
)
from raidfs.lock.api import Lock, Mode
from raidfs.runtime import Runtime

T = TypeVar("T")

log = logging.getLogger(__name__)

# After a value block was lost the next sequence number is far from any that somebody may have seen meanwhile.
_SEQUENCE_GAP = 1 << 16


class State(enum.Enum):
    """The flags of a node (``MD_CLUSTER_*`` in md-cluster.c)."""

    SEND_LOCK = "a local task owns the send channel"
    SEND_LOCKED_ALREADY = "the channel is kept open on purpose; the next metadata update adopts it"
    ALREADY_IN_CLUSTER = "bitmap and engine are ready: messages may be processed"
    PENDING_RECV_EVENT = "a message was announced before that"
    HOLDING_MUTEX_FOR_RECVD = "the holder of reconfig_mutex does nothing but wait for the token"


class Channel:
    """The locks and flags by which a node sends; its receiver shares them."""

    def __init__(self, runtime: Runtime, membership: Membership, reconfig_mutex: ReconfigMutex, slot: int) -> None:
        self.runtime = runtime
        self.membership = membership
        self.lockspace = membership.lockspace
        self.reconfig_mutex = reconfig_mutex
        self.slot = slot
        self.state: set[State] = set()
        self.wait = runtime.wait_queue()  # local senders (md: cinfo->wait)
        self.recv_mutex = Mutex(runtime.wait_queue(), "recv_mutex")
        self.sequence_seen = 0
        self.messages_sent = 0
        self.token: Lock
        self.message: Lock
        self.ack: Lock
        self.no_new_dev: Lock
        self._value = SlotValue()
        self._publishing = Mutex(runtime.wait_queue(), "the own slot's value")

    # ---- the flags -------------------------------------------------------------------------------------------------

    def _test_and_set(self, flag: State) -> bool:
        """Set a flag; return whether it was set already (test_and_set_bit)."""
        was = flag in self.state
        self.state.add(flag)
        return was

    def _test_and_clear(self, flag: State) -> bool:
        was = flag in self.state
        self.state.discard(flag)
        return was

    def set_holding_mutex(self) -> bool:
        """Announce that the holder of reconfig_mutex only waits (rules 1 and 4); return whether it was announced."""
        was = self._test_and_set(State.HOLDING_MUTEX_FOR_RECVD)
        self.reconfig_mutex.wqueue.wake_up()
        return was

    # ---- the send lock ---------------------------------------------------------------------------------------------

    async def lock_token(self) -> None:
        """Steps 3 and 5: recv_mutex is taken only when the token was obtained."""
        try:
            await self.token.convert(Mode.EX)
            self.membership.token_granted()
            await self.recv_mutex.lock("a sender")
        except BaseException:
            await self._down(self.token, Mode.NL)  # a wait that is cancelled may have been granted just before
            raise

    async def lock_comm(self, mddev_locked: bool) -> None:
        """Steps 1 to 5; ``mddev_locked`` says that the caller holds reconfig_mutex (rule 6)."""
        announced = mddev_locked and not self.set_holding_mutex()
        try:
            await self.wait.wait_event(lambda: not self._test_and_set(State.SEND_LOCK), what="SEND_LOCK of this node")
            await self._token_or_give_up()
        finally:
            if announced:
                self.state.discard(State.HOLDING_MUTEX_FOR_RECVD)

    async def unlock_comm(self) -> None:
        """Step 13; the token goes back before another local sender may ask for it."""
        self.recv_mutex.unlock()
        await self._down(self.token, Mode.NL)
        self._unlock_send()

    async def _token_or_give_up(self) -> None:
        try:
            await self.lock_token()
        except BaseException:
            self._unlock_send()  # W1
            raise

    def _unlock_send(self) -> None:
        self.state.discard(State.SEND_LOCK)
        self.wait.wake_up()

    async def _down(self, lock: Lock, mode: Mode) -> None:
        """Convert down, which is granted at once, even while our own task is being cancelled."""
        if lock.mode is mode:
            return
        with self.runtime.cancel_scope(shield=True):
            try:
                await lock.convert(mode)
            except LockspaceLost:
                log.debug("%s stays as it is: the lock space is lost", lock.resource)

    # ---- sending ---------------------------------------------------------------------------------------------------

    async def sendmsg(self, message: Message, mddev_locked: bool) -> None:
        """Send one message; returns when every other node has applied it.

        Raises MessageRefused when one of them has not, MessageNotAcknowledged when one does not answer.
        """
        await self.lock_comm(mddev_locked)
        try:
            await self.send_locked(message)
        finally:
            await self.unlock_comm()

    async def send_locked(self, message: Message) -> None:
        """Steps 7 to 11, and the results of all receivers; the caller has the token and recv_mutex."""
        try:
            await self._exclusive(self.message, message)
            numbered = self._numbered(message)
            self.message.lvb = numbered.encode()
            await self.message.convert(Mode.CW)
            await self._acknowledged(numbered)
        finally:
            await self._down(self.message, Mode.NL)

    def _numbered(self, message: Message) -> Message:
        """Give the message the number after the last one that was sent in this lock space."""
        last = Message.decode(self.message.lvb) if self.message.lvb_valid else None
        if last is None:
            number = self.sequence_seen + (_SEQUENCE_GAP if not self.message.lvb_valid else 1)
        else:
            number = max(last.sequence, self.sequence_seen) + 1
        self.sequence_seen = number & 0xFFFFFFFF
        self.messages_sent += 1
        return Message(message.type, self.slot, self.sequence_seen, message.low, message.high, message.raid_slot)

    async def _acknowledged(self, message: Message) -> None:
        try:
            await self._exclusive(self.ack, message)
            await self._check_results(message)
        finally:
            await self._down(self.ack, Mode.CR)

    async def _exclusive(self, lock: Lock, message: Message) -> None:
        """Get ``message`` or ``ack`` in EX (steps 7, 9) while somebody makes progress; see `raidfs.cluster.timing`.

        Receivers hold ``message`` that are not done with the message before; ``ack`` who has not acknowledged this one.
        """
        error: LockError | None = None
        async with self.runtime.open_nursery() as nursery:
            nursery.start_soon(self._watch_progress, lock, name="message progress")
            try:
                await lock.convert(Mode.EX)
            except LockError as e:
                error = e
            nursery.cancel_scope.cancel()
        if isinstance(error, LockCancelled):
            silent = ", ".join(await self._silent(lock)) or "a node"
            raise MessageNotAcknowledged(message=message.type_name, nodes=silent, seconds=round(NO_PROGRESS_S))
        if error is not None:
            raise error

    async def _watch_progress(self, lock: Lock) -> None:
        """Cancel the wait for a lock when for NO_PROGRESS_S no node has given way."""
        fewest: int | None = None
        progress = self.runtime.now()
        while self.runtime.now() - progress < NO_PROGRESS_S:
            await self.runtime.sleep(PROGRESS_LOOK_S, what="the next look who has not acknowledged")
            silent = len(await self._silent(lock))
            if fewest is None or silent < fewest or self.lockspace.stalled:
                fewest, progress = silent, self.runtime.now()
        await lock.cancel()

    async def _silent(self, lock: Lock) -> list[str]:
        """Return the other nodes that hold a lock still."""
        resources = {resource.name: resource.locks for resource in await self.lockspace.query()}
        own = {lock.client for lock in resources.get(alive_name(self.slot), ()) if lock.granted is Mode.EX}
        return [
            one.client
            for one in resources.get(lock.resource, ())
            if one.granted is not Mode.NL and one.client not in own
        ]

    async def _check_results(self, message: Message) -> None:
        """Read what every other member has made of the message; all of them have dropped ``ack``."""
        refusals = []
        silent = False
        for slot, value in await self.values():
            if value is None or value.sequence != message.sequence:
                silent = True
                refusals.append((slot, "it did not say what it made of it"))
            elif value.result != Result.APPLIED:
                refusals.append((slot, result_text(value.result)))
        refusals = await self._still_members(refusals, silent=silent)
        if refusals:
            names = await self.membership.members()
            reasons = (f"{names.get(slot, 'a node')} (slot {slot}): {reason}" for slot, reason in refusals)
            raise MessageRefused(message=message.type_name, refusals="; ".join(reasons))

    async def values(self) -> list[tuple[int, SlotValue | None]]:
        """Return what every other member publishes of itself, by slot; all are asked at once, under the token."""
        slots = await self.membership.live_slots()
        found: dict[int, SlotValue | LockError | None] = {}

        async def read(slot: int) -> None:
            try:
                found[slot] = await self._read_value(slot)
            except LockError as e:
                found[slot] = e

        async with self.runtime.open_nursery() as nursery:
            for slot in slots:
                nursery.start_soon(read, slot, name=f"value of slot {slot}")
        values = []
        for slot in slots:
            value = found[slot]
            if isinstance(value, LockError):
                raise value
            values.append((slot, value))
        return values

    async def _still_members(self, found: list[tuple[int, T]], *, silent: bool) -> list[tuple[int, T]]:
        """Leave out who has gone since: its value went with its lock.

        Who was ``silent`` is given GONE_S to be found dead.
        """
        end = self.runtime.now() + GONE_S
        while found := [entry for entry in found if await self.membership.runs(entry[0])]:
            if not silent or self.runtime.now() >= end:
                break
            await self.runtime.sleep(GONE_LOOK_S, what="a node that has said nothing to be gone")
        return found

    async def _read_value(self, slot: int) -> SlotValue | None:
        # CR stays: it stands in nobody's way (the owner and whoever probes the slot want PW), and CR -> CR reads again.
        bitmap = await self.membership.lock(bitmap_name(slot))
        await bitmap.convert(Mode.CR)
        return SlotValue.decode(bitmap.lvb) if bitmap.lvb_valid else None

    # ---- what this node publishes of itself ------------------------------------------------------------------------

    async def publish(self, **changes: int) -> None:
        """Change the value of the own slot and publish it (PW -> PW writes the value block)."""
        await self._publishing.lock("a publication")
        try:
            self._value = dataclasses.replace(self._value, generation=self._value.generation + 1, **changes)
            bitmap = await self.membership.lock(bitmap_name(self.slot))
            bitmap.lvb = self._value.encode()
            await bitmap.convert(Mode.PW)
        finally:
            self._publishing.unlock()

    # ---- metadata updates ------------------------------------------------------------------------------------------

    async def metadata_update_start(self) -> None:
        """Get the token for a superblock update; the caller holds reconfig_mutex and then looks again at its reason.

        A channel that was left open on purpose is adopted.
        """
        if self.set_holding_mutex():
            log.warning("HOLDING_MUTEX_FOR_RECVD was set already")
        adopted = False

        def free_or_handed_over() -> bool:
            nonlocal adopted
            if not self._test_and_set(State.SEND_LOCK):
                return True
            adopted = self._test_and_clear(State.SEND_LOCKED_ALREADY)
            return adopted

        try:
            await self.wait.wait_event(free_or_handed_over, what="SEND_LOCK of this node")
            if not adopted:
                await self._token_or_give_up()
        finally:
            self.state.discard(State.HOLDING_MUTEX_FOR_RECVD)

    async def metadata_update_finish(self, message: Message) -> None:
        """Announce the update under the token that `metadata_update_start` got, and give it back."""
        try:
            await self.send_locked(message)
        finally:
            await self.metadata_update_cancel()

    async def metadata_update_cancel(self) -> None:
        """Give the token back without a message: somebody else has done it, or it failed."""
        self.state.discard(State.SEND_LOCKED_ALREADY)
        await self.unlock_comm()

    # ---- joining ---------------------------------------------------------------------------------------------------

    async def create_locks(self, on_ack_blocking: Callable[[Mode], None]) -> None:
        """Create ``message``, ``token``, ``no-new-dev`` in NL (md: join)."""
        self.token = await self.membership.lock("token")
        self.message = await self.membership.lock("message")
        self.no_new_dev = await self.membership.lock("no-new-dev")
        self.ack = await self.membership.lock("ack", on_blocking=on_ack_blocking)

    async def become_receiver(self) -> None:
        """Take ``ack`` and ``no-new-dev`` in CR; under the token, so that no message is under way (B11)."""
        await self.message.convert(Mode.CR)  # nobody writes it: we have the token
        last = Message.decode(self.message.lvb) if self.message.lvb_valid else None
        self.sequence_seen = last.sequence if last is not None else 0  # what was sent before is not for us
        await self._down(self.message, Mode.NL)
        await self.ack.convert(Mode.CR)
        await self.no_new_dev.convert(Mode.CR)
        await self.publish()

    async def check_protocols(self) -> None:
        """Raise ProtocolMismatch when a member speaks another version; under the token, before becoming a receiver."""
        others = [
            (slot, value.protocol if value is not None else "unknown")
            for slot, value in await self.values()
            if value is None or value.protocol != PROTOCOL_VERSION
        ]
        silent = any(theirs == "unknown" for _, theirs in others)
        for slot, theirs in await self._still_members(others, silent=silent):
            names = await self.membership.members()
            node = names.get(slot, f"the node of slot {slot}")
            raise ProtocolMismatch(node=node, theirs=theirs, ours=PROTOCOL_VERSION)

    def statistics(self) -> dict[str, object]:
        """Return flags, lock modes and counts, for `raidfs explain` and checkers."""
        locks = (self.token, self.message, self.ack, self.no_new_dev)
        return {
            "flags": sorted(flag.name for flag in self.state),
            "modes": {lock.resource: lock.mode.name for lock in locks},
            "recv_mutex": self.recv_mutex.owner,
            "reconfig_mutex": self.reconfig_mutex.owner,
            "sequence": self.sequence_seen,
            "sent": self.messages_sent,
        }
