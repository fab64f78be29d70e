"""The lock machine: lock spaces, their members and resources; events in, actions out.

The machine is what a lock server *is*, without sockets, tasks or a clock: ``step(event, now)`` takes one event and
returns what is to be sent to whom, in order. The embedded server feeds it from its connections, the simulator from its
scheduler. The rules of a single resource are in `raidfs.lock.resource`.

Every event that carries a tag is answered exactly once with that tag, to the member that asked, unless that
member has died. Members and locks are numbers: the carrier (server, simulator) numbers the members, each member numbers
its own locks and tags. A conversion's answer may come with any later step.

An event that has no meaning (an unknown lock, a second conversion of a lock) raises LockProtocolError and changes
nothing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from raidfs.errors import LockProtocolError, WrongClusterName
from raidfs.lock import resource as rules
from raidfs.lock.api import NAME_BYTES_MAX, LockView, Mode, ResourceView
from raidfs.lock.events import (
    Action,
    Answer,
    Blocking,
    Cancel,
    Cancelled,
    Close,
    Convert,
    Deadlocked,
    Died,
    Done,
    Event,
    Failed,
    Granted,
    Open,
    Query,
    Refused,
    Release,
    Request,
)

# The events and actions are part of this module's face.
__all__ = [
    "LOCKS_PER_MEMBER_MAX",
    "Action",
    "Answer",
    "Blocking",
    "Cancel",
    "Cancelled",
    "Close",
    "Convert",
    "Deadlocked",
    "Died",
    "Done",
    "Event",
    "Failed",
    "Granted",
    "LockMachine",
    "MachineStatistics",
    "Open",
    "Query",
    "Refused",
    "Release",
    "Request",
    "check_name",
]

# A node holds some ten locks and two for each other slot; a member that makes more than this has gone wild.
LOCKS_PER_MEMBER_MAX = 4096


@dataclasses.dataclass(frozen=True)
class MachineStatistics:
    """How much the machine keeps: lock spaces, members, resources, and locks that wait."""

    lockspaces: int
    members: int
    resources: int
    waiting: int


class _LockEntry(NamedTuple):
    resource: str
    blocking: bool


class _Member:
    def __init__(self, space: _Space, client: str) -> None:
        self.space = space
        self.client = client
        self.locks: dict[int, _LockEntry] = {}


class _Space:
    def __init__(self, name: str, cluster_name: str) -> None:
        self.name = name
        self.cluster_name = cluster_name
        self.members: dict[int, _Member] = {}
        self.resources: dict[str, rules.ResourceState] = {}


class LockMachine:
    """All lock spaces of one lock manager.

    ``cluster_name`` fixes the cluster for every lock space; None lets the first member of each set it. A
    lock space ends with its last member, a resource with its last lock (and its value block with it, as in the DLM).
    """

    def __init__(self, cluster_name: str | None = None) -> None:
        self._cluster_name = cluster_name
        self._spaces: dict[str, _Space] = {}
        self._members: dict[int, _Member] = {}

    def step(self, event: Event, now: float) -> list[Action]:
        """Carry out one event at time ``now`` (seconds) and return what is to be sent, in order."""
        match event:
            case Convert():
                return self._convert(event, now)
            case Request():
                return self._request(event, now)
            case Cancel():
                return self._cancel(event)
            case Release():
                return self._release(event)
            case Query():
                return self._query(event, now)
            case Open():
                return self._open(event)
            case Close():
                return self._close(event)
            case Died():
                return self._died(event)

    def statistics(self) -> MachineStatistics:
        """Return how much is kept at the moment."""
        resources = [state for space in self._spaces.values() for state in space.resources.values()]
        return MachineStatistics(
            lockspaces=len(self._spaces),
            members=len(self._members),
            resources=len(resources),
            waiting=sum(len(state.converting) + len(state.waiting) for state in resources),
        )

    def _open(self, event: Open) -> list[Action]:
        check_name(event.name)
        if event.member in self._members:
            raise LockProtocolError(reason=f"member {event.member} has joined already")
        space = self._spaces.get(event.name)
        cluster_name = self._cluster_name
        if cluster_name is None:
            cluster_name = event.cluster_name if space is None else space.cluster_name
        if event.cluster_name != cluster_name:
            error = WrongClusterName(name=event.name, manager_cluster=cluster_name, own_cluster=event.cluster_name)
            return [Failed(event.member, event.tag, error)]
        if space is None:
            space = self._spaces[event.name] = _Space(event.name, cluster_name)
        self._members[event.member] = space.members[event.member] = _Member(space, event.client)
        return [Done(event.member, event.tag)]

    def _request(self, event: Request, now: float) -> list[Action]:
        member = self._member(event.member)
        check_name(event.resource)
        if event.lock in member.locks:
            raise LockProtocolError(reason=f"lock {event.lock} exists already")
        if event.expedite and event.mode is not Mode.NL:
            raise LockProtocolError(reason=f"EXPEDITE is for NL, not for {event.mode.name}")
        if len(member.locks) >= LOCKS_PER_MEMBER_MAX:
            raise LockProtocolError(reason=f"more than {LOCKS_PER_MEMBER_MAX} locks of one member")
        member.locks[event.lock] = _LockEntry(event.resource, event.blocking)
        state, notices = rules.request(
            member.space.resources.get(event.resource, rules.ResourceState()),
            (event.member, event.lock),
            event.tag,
            event.mode,
            noqueue=event.noqueue,
            expedite=event.expedite,
            now=now,
        )
        return self._keep(member.space, event.resource, state, notices)

    def _convert(self, event: Convert, now: float) -> list[Action]:
        member, entry, state = self._lock(event.member, event.lock)
        key = (event.member, event.lock)
        lock = rules.find(state, key)
        if lock is None or lock.requested is not None:
            raise LockProtocolError(reason=f"lock {event.lock} on {entry.resource} waits for another request")
        state, notices = rules.convert(state, key, event.tag, event.mode, lvb=event.lvb, noqueue=event.noqueue, now=now)
        return self._keep(member.space, entry.resource, state, notices)

    def _cancel(self, event: Cancel) -> list[Action]:
        member = self._member(event.member)
        done = Done(event.member, event.tag)
        entry = member.locks.get(event.lock)
        if entry is None:  # a new request that was refused while the cancel was on its way
            return [done]
        state = member.space.resources[entry.resource]
        state, notices = rules.cancel(state, (event.member, event.lock), event.request)
        return [*self._keep(member.space, entry.resource, state, notices), done]

    def _release(self, event: Release) -> list[Action]:
        member, entry, state = self._lock(event.member, event.lock)
        state, notices = rules.release(state, (event.member, event.lock))
        actions = self._keep(member.space, entry.resource, state, notices)
        member.locks.pop(event.lock, None)
        return [*actions, Done(event.member, event.tag)]

    def _query(self, event: Query, now: float) -> list[Action]:
        space = self._member(event.member).space
        views = tuple(
            ResourceView(
                name,
                tuple(_view(space, lock, now) for lock in rules.locks(state)),
                state.lvb,
                state.lvb_valid,
            )
            for name, state in sorted(space.resources.items())
        )
        return [Answer(event.member, event.tag, views)]

    def _close(self, event: Close) -> list[Action]:
        actions: list[Action] = []
        member = self._members.get(event.member)
        if member is None:
            return [Done(event.member, event.tag)]
        for number, entry in list(member.locks.items()):
            state, notices = rules.release(member.space.resources[entry.resource], (event.member, number))
            actions += self._keep(member.space, entry.resource, state, notices)
        self._forget(event.member)
        return [*actions, Done(event.member, event.tag)]

    def _died(self, event: Died) -> list[Action]:
        member = self._members.get(event.member)
        if member is None:  # it never joined, or it has left
            return []
        actions: list[Action] = []
        keys = {(event.member, number) for number in member.locks}
        for name in dict.fromkeys(entry.resource for entry in member.locks.values()):
            state, notices = rules.purge(member.space.resources[name], keys)
            actions += self._keep(member.space, name, state, notices)
        self._forget(event.member)
        return actions

    def _forget(self, number: int) -> None:
        space = self._members.pop(number).space
        del space.members[number]
        if not space.members:
            del self._spaces[space.name]

    def _member(self, number: int) -> _Member:
        member = self._members.get(number)
        if member is None:
            raise LockProtocolError(reason=f"member {number} has joined no lock space")
        return member

    def _lock(self, member_number: int, number: int) -> tuple[_Member, _LockEntry, rules.ResourceState]:
        member = self._member(member_number)
        entry = member.locks.get(number)
        if entry is None:
            raise LockProtocolError(reason=f"lock {number} does not exist")
        return member, entry, member.space.resources[entry.resource]

    # Keeps the next state of a resource and turns its notices into actions for members.
    def _keep(self, space: _Space, name: str, state: rules.ResourceState, notices: list[rules.Notice]) -> list[Action]:
        if state.granted or state.converting or state.waiting:
            space.resources[name] = state
        else:
            space.resources.pop(name, None)
        actions: list[Action] = []
        for notice in notices:
            member, lock = notice.key
            match notice:
                case rules.Granted():
                    actions.append(Granted(member, notice.tag, lock, notice.mode, notice.lvb, notice.lvb_valid))
                case rules.Blocking():
                    if space.members[member].locks[lock].blocking:
                        actions.append(Blocking(member, lock, notice.mode))
                case rules.Refused():
                    self._drop_unborn(space, name, notice.key)
                    actions.append(Refused(member, notice.tag, lock))
                case rules.Cancelled():
                    self._drop_unborn(space, name, notice.key)
                    actions.append(Cancelled(member, notice.tag, lock))
                case rules.Deadlocked():
                    actions.append(Deadlocked(member, notice.tag, lock))
        return actions

    # A new request that was refused or cancelled leaves no lock behind.
    def _drop_unborn(self, space: _Space, name: str, key: rules.LockKey) -> None:
        state = space.resources.get(name)
        if state is None or rules.find(state, key) is None:
            space.members[key[0]].locks.pop(key[1], None)


def _view(space: _Space, lock: rules.LockState, now: float) -> LockView:
    return LockView(
        client=space.members[lock.key[0]].client,
        granted=Mode.NL if lock.granted is None else lock.granted,
        requested=lock.requested,
        waiting_s=0.0 if lock.requested is None else now - lock.since,
    )


def check_name(name: str) -> None:
    """Raise LockProtocolError when ``name`` is too short or too long for a lock space or a resource."""
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise LockProtocolError(reason=f"a name of {len(name.encode())} bytes; 1 to {NAME_BYTES_MAX} are allowed")
