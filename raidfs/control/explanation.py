"""Who waits for what, on whom, since when: the documents of ``raidfs explain`` and what is concluded from them.

Each node tells its own tasks' waits and the lock manager's queues. From several nodes' documents `conclude` makes the
wait-for graph of the cluster; a circle in it is a deadlock, and the node that everybody ends at is the one to look at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TaskWait:
    """A task of a node that waits."""

    task: str
    what: str
    waited_s: float


@dataclasses.dataclass(frozen=True)
class LockWait:
    """A lock request that waits: ``client`` has ``granted``, wants ``requested``, and is ``behind`` these clients."""

    resource: str
    client: str
    granted: str
    requested: str
    waited_s: float
    behind: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NodeExplanation:
    """One node's document; ``parked`` counts its data requests by what they wait for.

    ``sync`` tells of a sync that is due and does not run, in words.
    """

    client: str
    slot: int
    array: str
    uuid: str
    lost: str | None
    waits: tuple[TaskWait, ...]
    locks: tuple[LockWait, ...]
    flags: tuple[str, ...]
    reconfig_mutex: str | None
    recv_mutex: str | None
    parked: dict[str, int]
    sync: str | None = None

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> NodeExplanation:
        """Return the value of a document; unknown keys are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in document.items() if key in known}
        values["waits"] = tuple(TaskWait(**wait) for wait in document["waits"])
        values["locks"] = tuple(LockWait(**{**wait, "behind": tuple(wait["behind"])}) for wait in document["locks"])
        values["flags"] = tuple(document["flags"])
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """The graph of one array: its lock waits, a circle of clients if there is one, and whom everybody waits for."""

    locks: tuple[LockWait, ...]
    circle: tuple[str, ...]
    roots: tuple[str, ...]


def conclude(nodes: Sequence[NodeExplanation]) -> Conclusion:
    """Make the wait-for graph of one array out of what its nodes say."""
    locks: dict[tuple[str, str, str], LockWait] = {}
    for node in nodes:
        for wait in node.locks:
            locks[wait.resource, wait.client, wait.requested] = wait
    edges: dict[str, list[str]] = {}
    for wait in locks.values():
        edges.setdefault(wait.client, []).extend(wait.behind)
    ordered = tuple(sorted(locks.values(), key=lambda wait: -wait.waited_s))
    waited_for = {client for behind in edges.values() for client in behind}
    return Conclusion(ordered, _circle(edges), tuple(sorted(waited_for - set(edges))))


def _circle(edges: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the clients of one circle in the order in which they wait, or nothing."""
    for start in sorted(edges):
        path = [start]
        seen = {start}
        if _walk(edges, start, path, seen):
            return tuple(path)
    return ()


def _walk(edges: dict[str, list[str]], start: str, path: list[str], seen: set[str]) -> bool:
    for following in edges.get(path[-1], []):
        if following == start:
            return True
        if following not in seen:
            seen.add(following)
            path.append(following)
            if _walk(edges, start, path, seen):
                return True
            path.pop()
    return False


def lines(nodes: Iterable[NodeExplanation]) -> list[str]:
    """Return the text of ``raidfs explain`` for the nodes of one array."""
    nodes = sorted(nodes, key=lambda node: node.slot)
    conclusion = conclude(nodes)
    text = [f"{nodes[0].array} ({nodes[0].uuid})"]
    for node in nodes:
        text += _node_lines(node)
    if conclusion.locks:
        text.append("  locks:")
    for wait in conclusion.locks:
        behind = ", ".join(wait.behind) or "nobody: it is about to be granted"
        text.append(
            f"    {wait.resource}: {wait.client} wants {wait.requested} (has {wait.granted}) "
            f"for {wait.waited_s:.1f} s, behind {behind}"
        )
    if conclusion.circle:
        text.append(f"  DEADLOCK: {' -> '.join((*conclusion.circle, conclusion.circle[0]))}")
        text.append("  what to do: end one of these nodes (kill its process); the others go on")
    elif conclusion.roots:
        text.append(f"  everybody waits for: {', '.join(conclusion.roots)}; look at what it waits for above")
    if len(text) == 1 + len(nodes):
        text.append("  nobody waits for anything")
    return text


def _node_lines(node: NodeExplanation) -> list[str]:
    text = [f"  {node.client} (slot {node.slot})" + (f": {node.lost}" if node.lost else "")]
    for wait in sorted(node.waits, key=lambda wait: -wait.waited_s):
        text.append(f"    {wait.task} waits for {wait.what} for {wait.waited_s:.1f} s")
    for mutex, owner in (("reconfig_mutex", node.reconfig_mutex), ("recv_mutex", node.recv_mutex)):
        if owner is not None:
            text.append(f"    {mutex} is held by: {owner}")
    flags = [flag for flag in node.flags if flag != "ALREADY_IN_CLUSTER"]
    if flags:
        text.append(f"    flags: {', '.join(flags)}")
    if node.sync is not None:
        text.append(f"    {node.sync}")
    if node.parked:
        parked = ", ".join(f"{count} {stage}" for stage, count in sorted(node.parked.items()))
        text.append(f"    data requests: {parked}")
    return text
