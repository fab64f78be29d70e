"""What a node knows about who waits for what: its part of ``raidfs explain`` (P8)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from raidfs.control.explanation import LockWait, NodeExplanation, TaskWait
from raidfs.control.schema import SyncStatus
from raidfs.lock.api import Mode, ResourceView
from raidfs.lock.modes import compatible

if TYPE_CHECKING:
    from raidfs.node import Node

# What the tasks of a healthy node wait for when there is nothing to do.
IDLE = frozenset(
    {
        "a message",
        "a leg to fail",
        "the next sweep of the bitmap",
        "the next look at others' bitmaps",
        "something to sync",
        "the next look at the members",
        "the next look who has not acknowledged",
    }
)


async def node_explanation(node: Node) -> NodeExplanation:
    """Return this node's waits, its channel, and who waits for which lock in the whole cluster."""
    now = node.runtime.now()
    resources = await node.membership.lockspace.query() if node.lost is None else []
    waits = [
        TaskWait(wait.task, wait.what, max(0.0, now - wait.since))
        for wait in node.runtime.waits()
        if wait.what not in IDLE and not wait.what.endswith(": being lost") and not _watches(wait.what)
    ]
    if node.lost is None and node.membership.lockspace.stalled:
        waits.append(TaskWait("the lock manager", "a recovery, or fencing, to be done before it grants anything", 0.0))
    assert node.membership.slot is not None
    return NodeExplanation(
        client=node.options.client_name,
        slot=node.membership.slot,
        array=node.volume.name,
        uuid=node.uuid,
        lost=node.lost,
        waits=tuple(waits),
        locks=tuple(wait for resource in resources for wait in lock_waits(resource)),
        flags=tuple(sorted(flag.name for flag in node.channel.state)),
        reconfig_mutex=node.mddev.reconfig_mutex.owner,
        recv_mutex=node.channel.recv_mutex.owner,
        parked=dict(node.array.port.engine.statistics()["waiting"]),
        sync=sync_that_waits(node.sync_status()),
    )


def sync_that_waits(sync: SyncStatus) -> str | None:
    """Return what is said of a sync that is due and does not run, and None of any other."""
    word = "recovery" if sync.action == "recover" else sync.action
    if sync.state == "frozen":
        return f"a {word} is due and was stopped with `raidfs idle`; `raidfs resync` lets it go on"
    if sync.state == "failed":
        return f"a {word} is due and has failed: {sync.failure}; `raidfs resync` tries it again"
    return f"a {word} is due and has not begun" if sync.state == "pending" else None


def _watches(what: str) -> bool:
    # The request whose grant tells that a member has gone: it is meant to wait.
    return what.startswith("lock alive") and what.endswith("NL to PR")


def lock_waits(resource: ResourceView) -> list[LockWait]:
    """Return the requests that wait on a resource, each with the clients that it waits for.

    Those are the holders of incompatible modes, and the requests before it in the queue that are incompatible.
    """
    waits = []
    waiting_before: list[tuple[str, Mode]] = []
    for lock in resource.locks:
        if lock.requested is None:
            continue
        holders = [
            other.client
            for other in resource.locks
            if other is not lock and not compatible(other.granted, lock.requested)
        ]
        queued = [client for client, mode in waiting_before if not compatible(mode, lock.requested)]
        waiting_before.append((lock.client, lock.requested))
        if resource.name.startswith("alive") and lock.requested is Mode.PR:
            continue
        waits.append(
            LockWait(
                resource=resource.name,
                client=lock.client,
                granted=lock.granted.name,
                requested=lock.requested.name,
                waited_s=lock.waiting_s,
                behind=tuple(dict.fromkeys([*holders, *queued])),
            )
        )
    return waits


def to_json(explanation: NodeExplanation) -> dict[str, object]:
    """Return the document for the control socket."""
    return dataclasses.asdict(explanation)
