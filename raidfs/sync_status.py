"""What a node tells of syncs: its own, that of another node, or what is due."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from raidfs.array.resync import Progress, SyncAction
from raidfs.control.schema import MismatchRange, SyncStatus

if TYPE_CHECKING:
    from raidfs.control import schema
    from raidfs.node import Node

_WORDS: dict[SyncAction, schema.SyncAction] = {
    SyncAction.RESYNC: "resync",
    SyncAction.RECOVER: "recover",
    SyncAction.CHECK: "check",
    SyncAction.REPAIR: "repair",
}


def sync_status(node: Node) -> SyncStatus:
    """Return what is synced, by whom and how far, or what is due."""
    sync, remote = node.sync, node.mddev.remote
    if sync.current is not None:
        return _going_on(node, "running", sync.current.action, sync.current.progress)
    if remote.slot is not None:
        return _going_on(node, "remote", remote.action, remote.progress, slot=remote.slot)
    due = sync.due_action()
    if due is None:
        return _found(node, SyncStatus())
    state: schema.SyncState = "frozen" if sync.frozen else "failed" if sync.has_failed() else "pending"
    return _found(
        node, SyncStatus(action=_WORDS[due], state=state, total_bytes=node.array.size_bytes, failure=sync.failure)
    )


def _going_on(
    node: Node, state: schema.SyncState, action: SyncAction, progress: Progress, *, slot: int | None = None
) -> SyncStatus:
    now = node.runtime.now()
    finish_s = progress.finish_s(now)
    return _found(
        node,
        SyncStatus(
            action=_WORDS[action],
            state=state,
            done_bytes=progress.position_bytes,
            total_bytes=progress.total_bytes,
            speed_bytes_s=round(progress.speed_bytes_s(now)),
            finish_s=None if finish_s is None else round(finish_s, 1),
            slot=slot,
            client=None if slot is None else node.members.get(slot),
        ),
    )


def _found(node: Node, status: SyncStatus) -> SyncStatus:
    """Add what this node did last, and what its last check has found."""
    sectors, ranges, _ = node.array.port.engine.mismatches()
    last = node.sync.last
    return dataclasses.replace(
        status,
        mismatch_sectors=sectors,
        mismatch_ranges=tuple(MismatchRange(start, length) for start, length in ranges),
        last_action="idle" if last is None else _WORDS[last[0]],
        last_interrupted=last is not None and not last[1],
    )
