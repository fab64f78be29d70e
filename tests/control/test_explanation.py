"""What is concluded from the nodes' documents."""

from __future__ import annotations

import dataclasses

from raidfs.control.explanation import LockWait, NodeExplanation, TaskWait, conclude, lines


def lock(resource: str, client: str, *behind: str, waited_s: float = 1.0) -> LockWait:
    return LockWait(resource, client, "NL", "EX", waited_s, behind)


def node(client: str, slot: int, *locks: LockWait, waits: tuple[TaskWait, ...] = ()) -> NodeExplanation:
    return NodeExplanation(client, slot, "md0", "u", None, waits, locks, ("ALREADY_IN_CLUSTER",), None, None, {})


def test_a_circle_is_a_deadlock_and_named_in_the_order_of_waiting() -> None:
    a, b, c = lock("token", "a", "b"), lock("ack", "b", "c"), lock("message", "c", "a")
    conclusion = conclude([node("a", 0, a, b), node("b", 1, b, c)])
    assert conclusion.circle == ("a", "b", "c")
    assert "  DEADLOCK: a -> b -> c -> a" in lines([node("a", 0, a, b), node("b", 1, b, c)])


def test_who_waits_for_nobody_and_is_waited_for_is_the_one_to_look_at() -> None:
    conclusion = conclude([node("a", 0, lock("token", "a", "b"), lock("ack", "b", "c"))])
    assert conclusion.circle == ()
    assert conclusion.roots == ("c",)


def test_the_same_wait_told_by_two_nodes_is_one() -> None:
    wait = lock("token", "a", "b")
    assert conclude([node("a", 0, wait), node("b", 1, dataclasses.replace(wait, waited_s=1.1))]).locks[0].client == "a"
    assert len(conclude([node("a", 0, wait), node("b", 1, wait)]).locks) == 1


def test_the_longest_wait_comes_first() -> None:
    waits = conclude([node("a", 0, lock("ack", "a", "b"), lock("token", "c", "a", waited_s=9))]).locks
    assert [wait.resource for wait in waits] == ["token", "ack"]


def test_a_document_comes_back_and_unknown_keys_are_ignored() -> None:
    value = node("a", 0, lock("ack", "a", "b"), waits=(TaskWait("receiver", "a mutex", 2.0),))
    document = dataclasses.asdict(value)
    document["of a newer version"] = 1
    assert NodeExplanation.from_json(document) == value


def test_the_text_says_what_waits_for_what_and_for_how_long() -> None:
    text = lines([node("a", 0, lock("ack", "a", "b", waited_s=12.34), waits=(TaskWait("receiver", "a mutex", 2.0),))])
    assert text == [
        "md0 (u)",
        "  a (slot 0)",
        "    receiver waits for a mutex for 2.0 s",
        "  locks:",
        "    ack: a wants EX (has NL) for 12.3 s, behind b",
        "  everybody waits for: b; look at what it waits for above",
    ]


def test_a_sync_that_waits_is_told_and_a_node_of_before_has_none() -> None:
    told = dataclasses.replace(node("a", 0), sync="a recovery is due and has not begun")
    assert lines([told]) == ["md0 (u)", "  a (slot 0)", "    a recovery is due and has not begun"]
    document = dataclasses.asdict(told)
    assert NodeExplanation.from_json(document) == told
    del document["sync"]
    assert NodeExplanation.from_json(document).sync is None
