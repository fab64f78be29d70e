"""The schedules that hung md-cluster or let its nodes disagree, by their names in its history; each ends here.

Every test is run with several seeds, which decide all that the schedule leaves open. `test_without_its_fix` takes the
fix out and sees the schedule fail.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.protocol import Cluster, NotingMddev

from raidfs.cluster import channel as channel_module
from raidfs.cluster.channel import Channel, State
from raidfs.cluster.messages import Message, MessageType, Result
from raidfs.cluster.mutex import ReconfigMutex
from raidfs.cluster.receiver import Receiver
from raidfs.errors import LockCancelled, MessageNotAcknowledged, MessageRefused, RaidfsError
from raidfs.lock.api import Mode
from raidfs.lock.member import MemberLock

SEEDS = range(10)


def d0_update_meets_update(seed: int) -> None:
    """A announces, B's array thread has the mutex and waits for A's token, B's receiver needs the mutex."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mutex.trylock("array thread")
    first = a.start(a.update(1), "update")
    cluster.until(lambda: b.channel.recv_mutex.owner == "the receiver" and b.channel.message.mode is Mode.CR)
    cluster.settle(0.1)  # the receiver waits for the mutex

    async def rest_of_bs_update() -> None:
        await b.channel.metadata_update_start()
        await b.channel.metadata_update_cancel()  # looked again: A has done it
        b.mutex.unlock()

    cluster.finish(first, b.start(rest_of_bs_update(), "update"))
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]
    assert b.mddev.without_mutex == 1
    cluster.settle()
    a.check_restored()
    b.check_restored()


def d1_stop_meets_update(seed: int) -> None:
    """B leaves, holding the mutex, and waits for its receiver; the receiver waits for the mutex."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mutex.trylock("leaving")
    update = a.start(a.update(1), "update")
    cluster.until(lambda: b.channel.message.mode is Mode.CR)

    async def rest_of_leaving() -> None:
        await b.receiver.stop()
        await b.channel.lockspace.close()

    cluster.finish(b.start(rest_of_leaving(), "leave"), update)
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]


def d2_resync_thread_queues_first(seed: int) -> None:
    """B's resync task has SEND_LOCK and waits for A's token; B's array thread, with the mutex, waits for SEND_LOCK."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mutex.trylock("array thread")
    update = a.start(a.update(1), "update")
    cluster.until(lambda: a.channel.token.mode is Mode.EX)
    resyncing = Message(MessageType.RESYNCING_START, b.channel.slot)
    resync = b.start(b.channel.sendmsg(resyncing, False), "resync")
    cluster.until(lambda: State.SEND_LOCK in b.channel.state)

    async def rest_of_bs_update() -> None:
        await b.channel.metadata_update_start()
        await b.channel.metadata_update_finish(b.metadata_updated(2))
        b.mutex.unlock()

    cluster.finish(update, resync, b.start(rest_of_bs_update(), "update"))
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]
    assert sorted(a.mddev.applied) == [("METADATA_UPDATED", 2), ("RESYNCING_START", 1)]
    cluster.settle()
    b.check_restored()


def b1_remove_waits_for_send_lock(seed: int) -> None:
    """D2 for a sender that is no metadata update: with the mutex, in lock_comm."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mutex.trylock("remove")
    update = a.start(a.update(1), "update")
    cluster.until(lambda: a.channel.token.mode is Mode.EX)
    resync = b.start(b.channel.sendmsg(Message(MessageType.RESYNCING_START, 1), False), "resync")
    cluster.until(lambda: State.SEND_LOCK in b.channel.state)
    remove = b.start(b.channel.sendmsg(Message(MessageType.BITMAP_NEEDS_SYNC, 1), True), "remove")
    cluster.finish(update, resync, remove)
    b.mutex.unlock()
    cluster.settle()
    b.check_restored()


def b3_message_during_start(seed: int) -> None:
    """METADATA_UPDATED comes when there is no array yet: there is nothing to reload, and the mutex is not needed."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mddev.loaded = False
    b.mutex.trylock("start")
    cluster.finish(a.start(a.update(1), "update"))
    assert b.mddev.reloads == 0


def b4_message_before_the_bitmap_is_loaded(seed: int) -> None:
    """A message announced before ALREADY_IN_CLUSTER waits, and is handled when the node is ready."""
    cluster = Cluster(seed, "A")
    a, b = cluster["A"], cluster.member("B")
    cluster.finish(b.start(b.join(receive=False), "join"))
    update = a.start(a.update(1), "update")
    cluster.until(lambda: State.PENDING_RECV_EVENT in b.channel.state)
    assert not b.mddev.applied
    b.receiver.already_in_cluster()
    cluster.finish(update)
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]


def b10_two_local_senders(seed: int) -> None:
    """Two tasks of one node send at once; messages do not mix and all arrive."""
    cluster = Cluster(seed, "ABC")
    a, b, c = (cluster[name] for name in "ABC")
    sends = [a.start(a.channel.sendmsg(Message(MessageType.CHANGE_CAPACITY, 0, high=n), False), "s") for n in range(4)]
    sends += [b.start(b.update(n), "update") for n in (10, 11)]
    cluster.finish(*sends)
    assert sorted(n for kind, n in c.mddev.applied if kind == "CHANGE_CAPACITY") == [0, 1, 2, 3]
    assert sorted(n for kind, n in c.mddev.applied if kind == "METADATA_UPDATED") == [10, 11]
    cluster.settle()
    for member in (a, b, c):
        member.check_restored()


def b11_join_in_the_middle_of_a_broadcast(seed: int) -> None:
    """A node joins while messages fly: it sees whole messages or none, and everybody goes on."""
    cluster = Cluster(seed, "AB")
    a, b = cluster["A"], cluster["B"]
    c = cluster.member("C")
    updates = [a.start(a.update(n), "update") for n in range(3)]
    join = c.start(c.join(), "join")
    cluster.finish(*updates, join)
    assert sorted(n for _, n in b.mddev.applied) == [0, 1, 2]
    cluster.finish(b.start(b.update(9), "update"))
    assert c.mddev.applied[-1] == ("METADATA_UPDATED", 9)
    cluster.settle()
    c.check_restored()


def b13_three_receivers_convert_message(seed: int) -> None:
    """Several receivers convert ``message`` at once; with EX instead of PR they would wait for each other."""
    cluster = Cluster(seed, "ABCD")
    members = [cluster[name] for name in "ABCD"]
    cluster.finish(*(member.start(member.update(n), "update") for n, member in enumerate(members)))
    for n, member in enumerate(members):
        assert sorted(events for _, events in member.mddev.applied) == [m for m in range(4) if m != n]


def w1_failed_token_leaves_the_send_lock_free(seed: int) -> None:
    """A wait for the token that is given up restores SEND_LOCK and the flag; the next sender goes on."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    token = a.start(a.channel.token.convert(Mode.EX), "hold the token")
    cluster.finish(token)
    b.mutex.trylock("array thread")
    update = b.start(b.channel.metadata_update_start(), "update")
    cluster.until(lambda: State.HOLDING_MUTEX_FOR_RECVD in b.channel.state and State.SEND_LOCK in b.channel.state)
    cluster.finish(b.start(b.channel.token.cancel(), "cancel"))
    cluster.until(lambda: update.done)
    assert isinstance(update.error, LockCancelled)
    b.mutex.unlock()
    b.check_restored()
    cluster.finish(a.start(a.channel.token.convert(Mode.NL), "give the token back"))
    cluster.finish(b.start(b.update(1), "update"))
    assert a.mddev.applied == [("METADATA_UPDATED", 1)]


def w3_w4_a_receiver_that_stands_still(seed: int) -> None:
    """Nobody moves for long: the sender gives up, names the node, restores everything; later all goes on."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mddev.hold()
    update = a.start(a.update(1), "update")
    cluster.until(lambda: update.done)
    assert isinstance(update.error, MessageNotAcknowledged)
    assert "acknowledged by B and" in str(update.error)
    a.check_restored()
    b.mddev.let_go()
    cluster.finish(a.start(a.update(2), "update"))
    assert b.mddev.applied[-1] == ("METADATA_UPDATED", 2)
    cluster.settle()
    b.check_restored()


def refusal_is_told_with_its_reason(seed: int) -> None:
    """A node that cannot follow says so: no silence, no false acknowledgement."""
    cluster = Cluster(seed, "ABC")
    a, b, c = (cluster[name] for name in "ABC")
    b.mddev.answer = Result.SIZE
    update = a.start(a.update(1), "update")
    cluster.until(lambda: update.done)
    assert isinstance(update.error, MessageRefused)
    assert "B (slot 1): it cannot follow the change of size" in str(update.error)
    assert "C" not in str(update.error).replace("CHANGE", "")
    assert c.mddev.reloads == 1
    unknown = a.start(a.channel.sendmsg(Message(77, 0), False), "a type from the future")
    cluster.until(lambda: unknown.done)
    assert isinstance(unknown.error, MessageRefused)
    assert "type 77" in str(unknown.error)
    a.check_restored()


def the_mutex_is_busy_with_something_else(seed: int) -> None:
    """B's mutex is held by somebody who wants no token: the receiver goes on when it is given back."""
    cluster = Cluster(seed)
    a, b = cluster["A"], cluster["B"]
    b.mutex.trylock("a long job")
    update = a.start(a.update(1), "update")
    cluster.until(lambda: b.channel.message.mode is Mode.CR)
    cluster.settle(0.5)
    assert not b.mddev.applied
    b.mutex.unlock()
    cluster.finish(update)
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]
    assert b.mddev.without_mutex == 0


def the_acknowledgement_comes_after_the_reload(seed: int) -> None:
    """As long as one receiver has not applied the message, the sender has no acknowledgement."""
    cluster = Cluster(seed, "ABC")
    a, b, c = (cluster[name] for name in "ABC")
    b.mddev.hold()
    update = a.start(a.update(1), "update")
    cluster.until(lambda: bool(c.mddev.applied))
    cluster.settle(2)
    assert not update.done
    b.mddev.let_go()
    cluster.finish(update)
    assert b.mddev.applied == [("METADATA_UPDATED", 1)]


Schedule = Callable[[int], None]

SCHEDULES: list[Schedule] = [
    d0_update_meets_update,
    d1_stop_meets_update,
    d2_resync_thread_queues_first,
    b1_remove_waits_for_send_lock,
    b3_message_during_start,
    b4_message_before_the_bitmap_is_loaded,
    b10_two_local_senders,
    b11_join_in_the_middle_of_a_broadcast,
    b13_three_receivers_convert_message,
    w1_failed_token_leaves_the_send_lock_free,
    w3_w4_a_receiver_that_stands_still,
    refusal_is_told_with_its_reason,
    the_mutex_is_busy_with_something_else,
    the_acknowledgement_comes_after_the_reload,
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_schedule_ends_well(schedule: Schedule, seed: int) -> None:
    schedule(seed)


# ---- without their fixes -------------------------------------------------------------------------------------------


def flag_set_after_the_wait_for_send_lock(patch: pytest.MonkeyPatch) -> None:
    async def lock_comm(self: Channel, mddev_locked: bool) -> None:
        await self.wait.wait_event(lambda: not self._test_and_set(State.SEND_LOCK), what="SEND_LOCK")
        if mddev_locked:
            self.set_holding_mutex()
        await self.lock_token()
        if mddev_locked:
            self.state.discard(State.HOLDING_MUTEX_FOR_RECVD)

    patch.setattr(Channel, "lock_comm", lock_comm)
    patch.setattr(Channel, "metadata_update_start", lambda self: self.lock_comm(True))


def flag_never_set(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Channel, "set_holding_mutex", lambda self: False)


def flag_set_without_waking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Channel, "set_holding_mutex", lambda self: self._test_and_set(State.HOLDING_MUTEX_FOR_RECVD))


def mutex_released_without_waking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReconfigMutex, "unlock", lambda self: setattr(self, "owner", None))


def acknowledged_before_applied(patch: pytest.MonkeyPatch) -> None:
    async def process(self: Receiver, message: Message) -> Result:
        self.channel.runtime._stepper.spawn(  # type: ignore[attr-defined]
            self.channel.runtime._group,  # type: ignore[attr-defined]
            self._reload(message.raid_slot, message.low),
            name="reload later",
        )
        return Result.APPLIED

    patch.setattr(Receiver, "process_metadata_updated", process)


def messages_handled_before_the_node_is_ready(patch: pytest.MonkeyPatch) -> None:
    def ack_bast(self: Receiver, mode: Mode) -> None:
        self._announced = True
        self._wqueue.wake_up()

    patch.setattr(Receiver, "ack_bast", ack_bast)


def reload_without_an_array(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NotingMddev, "is_loaded", lambda self: True)


def receivers_convert_to_ex(patch: pytest.MonkeyPatch) -> None:
    real = MemberLock.convert

    async def convert(self: MemberLock, mode: Mode, *, noqueue: bool = False) -> None:
        await real(self, Mode.EX if self.resource == "message" and mode is Mode.PR else mode, noqueue=noqueue)

    patch.setattr(MemberLock, "convert", convert)


def send_lock_leaked_on_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Channel, "_token_or_give_up", Channel.lock_token)


def recv_mutex_not_taken_by_senders(patch: pytest.MonkeyPatch) -> None:
    async def lock_comm(self: Channel, mddev_locked: bool) -> None:
        await self.token.convert(Mode.EX)
        self.recv_mutex.owner = "a sender"

    patch.setattr(Channel, "lock_comm", lock_comm)


def results_not_read(patch: pytest.MonkeyPatch) -> None:
    async def check_results(self: Channel, message: Message) -> None:
        return

    patch.setattr(Channel, "_check_results", check_results)


def no_end_of_the_wait_for_ack(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(channel_module, "NO_PROGRESS_S", 1e9)


WITHOUT: list[tuple[Callable[[pytest.MonkeyPatch], None], Schedule]] = [
    (flag_never_set, d0_update_meets_update),
    (flag_set_without_waking, d0_update_meets_update),
    (flag_never_set, d1_stop_meets_update),
    (flag_set_after_the_wait_for_send_lock, d2_resync_thread_queues_first),
    (flag_set_after_the_wait_for_send_lock, b1_remove_waits_for_send_lock),
    (reload_without_an_array, b3_message_during_start),
    (messages_handled_before_the_node_is_ready, b4_message_before_the_bitmap_is_loaded),
    (recv_mutex_not_taken_by_senders, b10_two_local_senders),
    (receivers_convert_to_ex, b13_three_receivers_convert_message),
    (send_lock_leaked_on_errors, w1_failed_token_leaves_the_send_lock_free),
    (no_end_of_the_wait_for_ack, w3_w4_a_receiver_that_stands_still),
    (results_not_read, refusal_is_told_with_its_reason),
    (mutex_released_without_waking, the_mutex_is_busy_with_something_else),
    (acknowledged_before_applied, the_acknowledgement_comes_after_the_reload),
]


@pytest.mark.parametrize(("without", "schedule"), WITHOUT, ids=lambda value: value.__name__)
def test_without_its_fix_the_schedule_fails(
    without: Callable[[pytest.MonkeyPatch], None], schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)
    for seed in SEEDS:
        try:
            schedule(seed)
        except (AssertionError, RaidfsError):
            return
    pytest.fail("no seed made the schedule fail")
