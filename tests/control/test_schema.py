from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from support.memory_node import sample_status

from raidfs.control.schema import MismatchRange, NodeStatus, SyncStatus, WaitStatus
from raidfs.errors import BadDocument


@pytest.fixture
def document() -> Any:
    waiting = dataclasses.replace(sample_status(), waits=(WaitStatus("receiver", "a message", 1.5),))
    return json.loads(json.dumps(waiting.to_json()))


def test_a_status_comes_back_from_json_as_it_was(document: Any) -> None:
    status = NodeStatus.from_json(document)
    assert status.waits == (WaitStatus("receiver", "a message", 1.5),)
    assert json.loads(json.dumps(status.to_json())) == document


def test_keys_that_a_newer_daemon_adds_are_ignored(document: Any) -> None:
    document["weather"] = document["array"]["weather"] = document["legs"][0]["weather"] = "fine"
    assert NodeStatus.from_json(document).legs[0].path == "/srv/a.img"


def test_a_word_that_this_version_does_not_know_is_kept(document: Any) -> None:
    document["legs"][1]["state"] = "resting"
    assert str(NodeStatus.from_json(document).legs[1].state) == "resting"


def test_whole_numbers_do_for_seconds(document: Any) -> None:
    document["waits"][0]["waited_s"] = 2
    assert NodeStatus.from_json(document).waits[0].waited_s == 2.0


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["array"], [], "status.array is not an object"),
        (["array", "events"], "17", "status.array.events is not a whole number"),
        (["array", "events"], True, "status.array.events is not a whole number"),
        (["array", "events"], 1.0, "status.array.events is not a whole number"),
        (["legs"], {}, "status.legs is not a list"),
        (["legs", 1, "path"], None, r"status.legs\[1\].path is not a text"),
        (["legs", 1, "state"], 1, r"status.legs\[1\].state is not a text"),
        (["node", "read_only"], 0, "status.node.read_only is not true or false"),
        (["node", "lost"], 1, "status.node.lost is not a text"),
        (["waits", 0, "waited_s"], "long", r"status.waits\[0\].waited_s is not a number"),
    ],
)
def test_what_does_not_fit_is_named(document: Any, path: list[Any], value: object, said: str) -> None:
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(BadDocument, match=said):
        NodeStatus.from_json(document)


def test_a_missing_key_is_named(document: Any) -> None:
    del document["bitmap"]["dirty"]
    with pytest.raises(BadDocument, match=r"status\.bitmap\.dirty is not a value"):
        NodeStatus.from_json(document)


def test_a_sync_with_its_mismatches_comes_back_from_json_as_it_was(document: Any) -> None:
    sync = SyncStatus("check", "remote", 10, 100, 5, 18.0, 2, "host-c:3", 9, (MismatchRange(0, 4096),))
    status = dataclasses.replace(NodeStatus.from_json(document), sync=sync)
    assert NodeStatus.from_json(json.loads(json.dumps(status.to_json()))) == status


def test_a_document_of_before_syncs_were_told_is_understood(document: Any) -> None:
    del document["sync"]
    assert NodeStatus.from_json(document).sync == SyncStatus()


def test_a_node_of_before_that_waits_for_a_resync_is_not_called_idle(document: Any) -> None:
    del document["sync"]
    document["array"]["sync"] = "pending"
    assert NodeStatus.from_json(document).sync == SyncStatus(action="resync", state="pending")


def test_legs_that_are_not_in_sync_do_not_count() -> None:
    status = sample_status()
    legs = (status.legs[0], dataclasses.replace(status.legs[1], state="faulty"))
    assert dataclasses.replace(status, legs=legs).in_sync_count() == 1
