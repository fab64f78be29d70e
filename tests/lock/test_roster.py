"""What members of a lock space on the DLM tell each other is put together to one view."""

from __future__ import annotations

import json

from raidfs.lock.api import LockView, Mode
from raidfs.lock.roster import HeldLock, _from_json, _to_json, merged

VALUE = b"value".ljust(32, b"\0")


def held(resource: str, client: str, granted: Mode, requested: Mode | None = None, waiting_s: float = 0.0) -> HeldLock:
    lvb = VALUE if granted > Mode.NL else bytes(32)
    return HeldLock(resource, LockView(client, granted, requested, waiting_s), lvb, lvb_valid=True)


def test_resources_are_sorted_and_waiters_stand_behind_holders_the_eldest_first() -> None:
    views = merged(
        [
            held("token", "late", Mode.NL, Mode.EX, 1.0),
            held("token", "early", Mode.NL, Mode.EX, 2.0),
            held("token", "holder", Mode.EX),
            held("ack", "holder", Mode.CR),
        ]
    )
    assert [view.name for view in views] == ["ack", "token"]
    assert [lock.client for lock in views[1].locks] == ["holder", "early", "late"]


def test_the_value_block_is_the_strongest_holders() -> None:
    (view,) = merged([held("r", "a", Mode.NL), held("r", "b", Mode.PW)])
    assert view.lvb == VALUE
    (view,) = merged([held("r", "a", Mode.NL)])
    assert view.lvb == bytes(32)


def test_a_lock_comes_back_from_the_wire_as_it_was() -> None:
    for lock in (held("r", "a", Mode.PW), held("r", "b", Mode.NL, Mode.EX, 1.5)):
        assert _from_json(json.loads(json.dumps(_to_json(lock)))) == lock
