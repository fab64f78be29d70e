"""Waiting for the end of syncs: what ``raidfs wait`` and every ``--wait`` do."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from raidfs.cli.progress import progress
from raidfs.control import client
from raidfs.control.schema import NodeStatus
from raidfs.errors import RaidfsError, WaitAtLostNode, WaitForFailed, WaitForStopped

# How often nodes are asked: a bar that moves five times a second is smooth, and an answer costs a node a millisecond.
_ASK_EVERY_S = 0.2

# Of several nodes' answers that one is shown which knows most. A word of a newer node stands for something that is due.
_TELLING = {"running": 0, "remote": 1, "frozen": 3, "failed": 3, "idle": 4}


@dataclasses.dataclass(frozen=True)
class Waited:
    """How a wait ended: the node's last status, and whether there was anything to wait for."""

    status: NodeStatus
    waited: bool


def wait_until_idle(mountpoint: str, *, frozen_is_idle: bool = False) -> Waited:
    """Return when no sync runs or is due on any node of the array that can be asked.

    These are the node at ``mountpoint``, which tells what runs on others, and the array's other nodes of this user on
    this machine, which know what is due there. Raises WaitForStopped when what is due has been stopped by the user,
    WaitForFailed when it was tried in vain, and WaitAtLostNode when the node is no member any more.
    """
    waited = False
    with progress() as shown:
        while True:
            status = _own(mountpoint)
            if status.node.lost is not None:
                raise WaitAtLostNode(path=mountpoint, reason=status.node.lost)
            everybody = [status, *_others(status)]
            most = min((one.sync for one in everybody), key=lambda sync: _TELLING.get(sync.state, 2))
            if most.state == "frozen" and not frozen_is_idle:
                raise WaitForStopped(path=mountpoint, action=most.action)
            if most.state == "failed":
                raise WaitForFailed(path=mountpoint, action=most.action, reason=most.failure)
            if most.state in ("idle", "frozen"):
                return Waited(status, waited)
            waited = True
            shown.show(most)
            time.sleep(_ASK_EVERY_S)


def _own(mountpoint: str) -> NodeStatus:
    with client.find(mountpoint) as node:
        return node.status()


def _others(own: NodeStatus) -> list[NodeStatus]:
    # A node that leaves, or does not answer, has nothing that could be waited for.
    found = []
    for node in client.find_all(lambda error: None):
        if node.hello.mountpoint != own.node.mountpoint:
            with contextlib.suppress(RaidfsError):
                found.append(node.status())
    return [status for status in found if status.array.uuid == own.array.uuid and status.node.lost is None]
