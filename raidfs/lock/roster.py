"""Who holds what in a lock space on the DLM: its members tell each other.

The DLM shows the locks of others only where a resource is mastered. So `Lockspace.query` sends a message to
the lock space's group of processes, and each answers with its own locks. Who does not answer within ANSWER_S is
told of with its last known locks. These answers are for people, and for whoever wants to see progress; nothing is
decided by them: the locks decide.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from typing import Any, Protocol

import trio

from raidfs.lock.api import LockView, Mode, ResourceView
from raidfs.lock.corosync import Process
from raidfs.lock.line import Line
from raidfs.lock.resource import NO_LVB

ANSWER_S = 1.0  # some thousand times what a message takes when all is well


@dataclasses.dataclass(frozen=True)
class HeldLock:
    """One lock of a member, as the member tells of it."""

    resource: str
    view: LockView
    lvb: bytes
    lvb_valid: bool


class Place(Protocol):
    """A member of the lock space in this process."""

    def held(self) -> list[HeldLock]:
        """Return its locks."""

    def lost(self, reason: str) -> None:
        """The lock space is lost."""


class Roster:
    """This process's part in the group of a lock space, for all of its members here; see `enter`."""

    def __init__(self, lockspace: str, controld_pid: int) -> None:
        self.places: list[Place] = []
        self._own: Process | None = None
        self._asked = 0
        self._asks: dict[str, _Ask] = {}
        self._members: set[Process] = set()
        self._known: dict[Process, list[HeldLock]] = {}
        self._line = Line(
            f"raidfs/{lockspace}",
            controld_pid,
            on_message=self._message,
            on_members=self._now_members,
            on_joined=self._joined,
            on_lost=self._lost,
        )

    async def query(self) -> list[ResourceView]:
        """Return who holds and who waits, as far as members answer."""
        self._asked += 1
        key = f"{os.getpid()}.{id(self)}.{self._asked}"
        ask = self._asks[key] = _Ask(self._members)
        try:
            self._send({"ask": key})
            with trio.move_on_after(ANSWER_S):
                await ask.answered.wait()
        finally:
            del self._asks[key]
        locks = [lock for place in self.places for lock in place.held()]
        for process, held in self._known.items():
            if process != self._own:
                locks += held
        return merged(locks)

    def close(self) -> None:
        """Leave the group."""
        self._line.close()

    def _send(self, document: dict[str, Any]) -> None:
        self._line.send(json.dumps(document, separators=(",", ":")).encode())

    # ---- what the line tells ---------------------------------------------------------------------------------------

    def _joined(self, own: Process) -> None:
        self._own = own

    def _message(self, sender: Process, data: bytes) -> None:
        # What cannot be read comes from another version; it costs an answer.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            document = json.loads(data)
            if "ask" in document:
                held = [lock for place in self.places for lock in place.held()]
                self._send({"tell": document["ask"], "locks": [_to_json(lock) for lock in held]})
                return
            self._known[sender] = [_from_json(entry) for entry in document["locks"]]
            ask = self._asks.get(document["tell"])
            if ask is not None:
                ask.heard(sender)

    def _now_members(self, members: set[Process]) -> None:
        self._members = members
        for process in self._known.keys() - members:
            del self._known[process]
        for ask in self._asks.values():
            ask.only(members)

    def _lost(self, reason: str) -> None:
        for place in list(self.places):
            place.lost(reason)


class _Ask:
    """A question to the members, until all have answered."""

    def __init__(self, members: set[Process]) -> None:
        self.answered = trio.Event()
        self._silent = set(members)  # nobody at all before the group is joined

    def heard(self, sender: Process) -> None:
        self._silent.discard(sender)
        self._look()

    def only(self, members: set[Process]) -> None:
        self._silent &= members
        self._look()

    def _look(self) -> None:
        if not self._silent:
            self.answered.set()


# Every member of a lock space in this process shares one, since corosync takes a process into a group only once.
_rosters: dict[str, Roster] = {}


def enter(lockspace: str, controld_pid: int, place: Place) -> Roster:
    """Let a member of a lock space in; to be called on the event loop."""
    if lockspace not in _rosters:
        _rosters[lockspace] = Roster(lockspace, controld_pid)
    roster = _rosters[lockspace]
    roster.places.append(place)
    return roster


def leave(lockspace: str, place: Place) -> None:
    """Take a member out; a second call does nothing."""
    roster = _rosters.get(lockspace)
    if roster is None or place not in roster.places:
        return
    roster.places.remove(place)
    if not roster.places:
        del _rosters[lockspace]
        roster.close()


def merged(locks: Iterable[HeldLock]) -> list[ResourceView]:
    """Return one view of each resource, sorted by name: its granted locks, then its waiters, the eldest first.

    The value block is that of the lock with the strongest mode, which has read or written it last.
    """
    resources: dict[str, list[HeldLock]] = {}
    for lock in locks:
        resources.setdefault(lock.resource, []).append(lock)
    views = []
    for name in sorted(resources):
        found = resources[name]
        strongest = max(found, key=lambda lock: lock.view.granted)
        known = strongest.view.granted > Mode.NL
        found.sort(key=lambda lock: (lock.view.requested is not None, -lock.view.waiting_s, lock.view.client))
        views.append(
            ResourceView(
                name,
                tuple(lock.view for lock in found),
                strongest.lvb if known else NO_LVB,
                strongest.lvb_valid if known else True,
            )
        )
    return views


def _to_json(lock: HeldLock) -> list[object]:
    view = lock.view
    requested = None if view.requested is None else int(view.requested)
    lvb = lock.lvb.hex()
    return [lock.resource, view.client, int(view.granted), requested, view.waiting_s, lvb, lock.lvb_valid]


def _from_json(entry: list[Any]) -> HeldLock:
    resource, client, granted, requested, waiting_s, lvb, lvb_valid = entry
    wanted = None if requested is None else Mode(requested)
    view = LockView(str(client), Mode(granted), wanted, float(waiting_s))
    return HeldLock(str(resource), view, bytes.fromhex(lvb), bool(lvb_valid))
