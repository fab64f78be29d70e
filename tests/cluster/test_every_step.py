"""Every step of sender and receiver, crossed with: this node dies, the other dies, one of them stops, a node joins.

Whatever happens at whatever step: nobody waits for ever, the next update reaches everybody who is left, and flags,
mutexes and lock modes are as they are when nothing goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.protocol import Cluster, Member, Outcome

from raidfs.errors import LockError, MessageError

STEPS = range(40)


def dies(cluster: Cluster, member: Member) -> Outcome | None:
    member.die()
    return None


def stops(cluster: Cluster, member: Member) -> Outcome:
    return member.start(member.leave(), "leave")


def another_joins(cluster: Cluster, member: Member) -> Outcome:
    joiner = cluster.member("D")
    return joiner.start(joiner.join(), "join")


def another_updates(cluster: Cluster, member: Member) -> Outcome:
    return member.start(member.update(5), "update")


EVENTS: list[Callable[[Cluster, Member], Outcome | None]] = [dies, stops, another_joins, another_updates]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("whose", ["sender", "receiver"])
@pytest.mark.parametrize("step", STEPS)
def test_at_every_step(step: int, whose: str, event: Callable[[Cluster, Member], Outcome | None]) -> None:
    cluster = Cluster(step, "ABC")
    sender, receiver, third = (cluster[name] for name in "ABC")
    hit = sender if whose == "sender" else receiver
    start = hit.group.steps
    update = sender.start(sender.update(1), "update")
    cluster.until(lambda: hit.group.steps >= start + step or update.done)
    happened = event(cluster, hit)
    waited_for = [happened] if happened is not None else []
    if event is not dies or hit is receiver:
        waited_for.append(update)
    cluster.until(lambda: all(outcome.done for outcome in waited_for))
    for outcome in waited_for:
        assert outcome.error is None or isinstance(outcome.error, LockError | MessageError), outcome.error
    cluster.finish(third.start(third.update(9), "update"))
    cluster.settle()
    gone = {hit.name} if event in (dies, stops) else set()
    for member in cluster.members:
        if member.name not in gone:
            member.check_restored()
            if member is not third:
                assert member.mddev.applied[-1] == ("METADATA_UPDATED", 9)
    if event is not dies and hit is not receiver:
        assert update.error is None
        assert ("METADATA_UPDATED", 1) in third.mddev.applied
