"""Every state that a few clients can bring one lock resource into, and what must hold in and between them.

The checks are written a second time here, from what the DLM promises, and read the package's state only through its
public fields. `explore` returns the figures, or raises AssertionError with the shortest path to the violation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from raidfs.lock import resource as rules
from raidfs.lock.api import Mode
from raidfs.lock.resource import LockState, ResourceState

NL, CR, CW, PR, PW, EX = Mode

COMPATIBLE = {
    NL: {NL, CR, CW, PR, PW, EX},
    CR: {NL, CR, CW, PR, PW},
    CW: {NL, CR, CW},
    PR: {NL, CR, PR},
    PW: {NL, CR},
    EX: {NL},
}
WRITTEN = b"w" * 32


class Event(NamedTuple):
    """What one client does: request, convert, cancel, release or die."""

    verb: str
    client: int
    mode: Mode = NL
    noqueue: bool = False
    expedite: bool = False

    def __str__(self) -> str:
        flags = " NOQUEUE" * self.noqueue + " EXPEDITE" * self.expedite
        return f"{self.client} {self.verb} {self.mode.name}{flags}"


@dataclasses.dataclass(frozen=True)
class Figures:
    """How much was visited."""

    states: int
    steps: int
    granted: int
    refused: int
    deadlocked: int
    cancelled: int
    told: int


def key(client: int) -> rules.LockKey:
    return (client, 1)


def events(state: ResourceState, clients: int, modes: Sequence[Mode]) -> Iterator[Event]:
    """Yield all that the clients may do; each has one lock at most."""
    for client in range(clients):
        lock = rules.find(state, key(client))
        if lock is None:
            yield Event("request", client, NL, expedite=True)
            for mode, noqueue in itertools.product(modes, (False, True)):
                yield Event("request", client, mode, noqueue)
            # Clients are interchangeable: one without a lock is like the next one without.
            break
    for lock in rules.locks(state):
        client = lock.key[0]
        if lock.requested is None:
            for mode, noqueue in itertools.product(modes, (False, True)):
                yield Event("convert", client, mode, noqueue)
        else:
            yield Event("cancel", client)
        yield Event("release", client)
        yield Event("die", client)


def carry_out(state: ResourceState, event: Event) -> rules.Outcome:
    """Apply one event by the package's rules; the tag of a request is its client's number."""
    match event.verb:
        case "request":
            return rules.request(
                state, key(event.client), event.client, event.mode, noqueue=event.noqueue, expedite=event.expedite
            )
        case "convert":
            return rules.convert(state, key(event.client), event.client, event.mode, lvb=WRITTEN, noqueue=event.noqueue)
        case "cancel":
            return rules.cancel(state, key(event.client), event.client)
        case "release":
            return rules.release(state, key(event.client))
        case _:
            return rules.purge(state, (key(event.client),))


def canonical(state: ResourceState) -> ResourceState:
    """Return the state with its clients renamed in the order of their appearance, and the value block blanked."""
    granted = sorted(state.granted, key=lambda lock: (lock.granted, lock.told))
    names = {lock.key: key(number) for number, lock in enumerate((*granted, *state.converting, *state.waiting))}

    def renamed(queue: Sequence[LockState]) -> tuple[LockState, ...]:
        return tuple(
            lock._replace(key=names[lock.key], tag=names[lock.key][0] if lock.requested is not None else 0)
            for lock in queue
        )

    return ResourceState(
        renamed(granted), renamed(state.converting), renamed(state.waiting), rules.NO_LVB, state.lvb_valid
    )


def explore(clients: int, modes: Sequence[Mode] = tuple(Mode)) -> Figures:
    """Visit every state reachable by ``clients`` clients in ``modes``, breadth first, and check every step."""
    start = ResourceState()
    came: dict[ResourceState, tuple[ResourceState, Event] | None] = {start: None}
    ahead = deque([start])
    counts = dict.fromkeys(("Granted", "Refused", "Deadlocked", "Cancelled", "Blocking"), 0)
    steps = 0
    while ahead:
        state = ahead.popleft()
        for event in events(state, clients, modes):
            try:
                after, notices = carry_out(state, event)
                check_step(state, event, after, notices)
                check_state(after)
            except Exception as error:
                raise AssertionError(f"{error!r} after {_path(came, state)}, {event}\nfrom {state}") from error
            steps += 1
            for notice in notices:
                counts[type(notice).__name__] += 1
            after = canonical(after)
            if after not in came:
                came[after] = (state, event)
                ahead.append(after)
    return Figures(len(came), steps, *counts.values())


def check_state(state: ResourceState) -> None:
    """Check what must hold in every state at rest."""
    for lock in state.granted:
        assert lock.granted is not None, "a granted lock has a mode"
        assert lock.requested is None, "a granted lock waits for nothing"
    assert all(lock.granted is not None and lock.requested is not None for lock in state.converting)
    assert all(lock.granted is None and lock.requested is not None for lock in state.waiting)
    keys = [lock.key for lock in rules.locks(state)]
    assert len(keys) == len(set(keys)), "a lock is in one queue"

    for one, other in itertools.combinations((*state.granted, *state.converting), 2):
        assert other.granted in COMPATIBLE[_held(one)], "incompatible modes are held together"

    if state.converting:
        assert not fits(state, state.converting[0]), "the first conversion could be granted and waits"
    elif state.waiting:
        assert not fits(state, state.waiting[0]), "the first new request could be granted and waits"
    for earlier, later in itertools.combinations(state.converting, 2):
        assert earlier.requested in COMPATIBLE[_held(later)], "an earlier conversion waits for a later one"

    for lock in state.granted:
        assert lock.told == blocked(state, lock), "a holder knows the strongest mode in whose way it stands"


def check_step(before: ResourceState, event: Event, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    """Check what must hold between a state and the next."""
    _check_answers(before, event, after, notices)
    _check_modes(before, event, after, notices)
    _check_order(before, event, after, notices)
    _check_verdict(before, event, notices)
    _check_blocking(before, after, notices)
    _check_lvb(before, event, after, notices)
    if event.verb in ("die", "release"):
        assert rules.find(after, key(event.client)) is None, "a lock that is gone leaves no trace"


def fits(state: ResourceState, lock: LockState) -> bool:
    """Tell whether what ``lock`` asks for goes with what all others hold."""
    return all(
        other.granted is None or other.granted in COMPATIBLE[_asked(lock)]
        for other in rules.locks(state)
        if other.key != lock.key
    )


def blocked(state: ResourceState, lock: LockState) -> Mode:
    """Return the strongest mode that waits and does not go with what ``lock`` holds, or NL."""
    modes = [_asked(waiter) for waiter in (*state.converting, *state.waiting)]
    return max((mode for mode in modes if mode not in COMPATIBLE[_held(lock)]), default=NL)


# Every request is answered exactly once, by a request's answer or by the death of its owner.
def _check_answers(before: ResourceState, event: Event, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    asked = {lock.key for lock in (*before.converting, *before.waiting)}
    if event.verb in ("request", "convert"):
        asked.add(key(event.client))
    if event.verb == "die":
        asked.discard(key(event.client))
    answered = [notice.key for notice in notices if not isinstance(notice, rules.Blocking)]
    assert len(answered) == len(set(answered)), "a request is answered twice"
    waiting = {lock.key for lock in (*after.converting, *after.waiting)}
    assert not waiting & set(answered), "a request that still waits is answered"
    assert waiting | set(answered) == asked, "a request is lost, or an answer is of none"
    for notice in notices:
        if not isinstance(notice, rules.Blocking):
            assert notice.tag == notice.key[0], "an answer carries the tag of another request"


# Modes change by grants only, and to the mode that was asked for.
def _check_modes(before: ResourceState, event: Event, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    grants = {notice.key: notice.mode for notice in notices if isinstance(notice, rules.Granted)}
    for lock in rules.locks(after):
        was = rules.find(before, lock.key)
        if lock.key in grants:
            wanted = event.mode if lock.key == key(event.client) and event.verb in ("request", "convert") else None
            if wanted is None:
                assert was is not None, "a grant to nobody"
                wanted = was.requested
            assert lock.granted is wanted is grants[lock.key], "a lock got a mode that it did not ask for"
        else:
            assert lock.granted is (was.granted if was is not None else None), "a mode changed without a grant"


# Queues are served from their heads, conversions before new requests.
def _check_order(before: ResourceState, event: Event, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    grants = [notice.key for notice in notices if isinstance(notice, rules.Granted)]
    own = key(event.client)
    for queue_before, queue_after in ((before.converting, after.converting), (before.waiting, after.waiting)):
        queued = [lock.key for lock in queue_before if lock.key != own]
        served = [lock_key for lock_key in grants if lock_key in queued]
        assert queued[: len(served)] == served, "a queue is not served from its head"
        rest = queued[len(served) :]
        assert [lock.key for lock in queue_after][: len(rest)] == rest, "a queue changed its order"
    from_waiting = [lock_key for lock_key in grants if any(lock.key == lock_key for lock in before.waiting)]
    if from_waiting:
        assert not after.converting, "a new request was served before a conversion"
        converting = {lock.key for lock in before.converting}
        positions = [grants.index(lock_key) for lock_key in grants if lock_key in converting]
        assert max(positions, default=-1) < grants.index(from_waiting[0]), "a conversion came after a new request"


# What a request or a conversion is answered at once follows from the state that it meets.
def _check_verdict(before: ResourceState, event: Event, notices: Sequence[rules.Notice]) -> None:
    if event.verb not in ("request", "convert"):
        return
    own = key(event.client)
    was = rules.find(before, own)
    asking = LockState(own, None if was is None else was.granted, event.mode)
    verdict = next(
        (type(notice).__name__ for notice in notices if notice.key == own and not isinstance(notice, rules.Blocking)),
        "waits",
    )
    if event.verb == "request":
        at_once = event.expedite or (fits(before, asking) and not before.converting and not before.waiting)
        closes_circle = False
    else:
        at_once = fits(before, asking)
        closes_circle = any(lock.requested not in COMPATIBLE[_held(asking)] for lock in before.converting)
    if at_once:
        expected = "Granted"
    elif event.noqueue:
        expected = "Refused"
    else:
        expected = "Deadlocked" if closes_circle else "waits"
    assert verdict == expected, f"{expected} is due, not {verdict}"
    if expected != "Granted" and was is not None and was.granted is not None:
        goes_down = COMPATIBLE[event.mode] >= COMPATIBLE[was.granted]
        assert not goes_down, "a conversion down was not granted at once"


# A holder is told of a rise of what it blocks, no more and no less.
def _check_blocking(before: ResourceState, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    granted_now = {notice.key for notice in notices if isinstance(notice, rules.Granted)}
    told = [notice for notice in notices if isinstance(notice, rules.Blocking)]
    assert len({notice.key for notice in told}) == len(told), "a holder is told twice"
    expected = set()
    for lock in after.granted:
        was = rules.find(before, lock.key)
        knew = NL if was is None or lock.key in granted_now else was.told
        if blocked(after, lock) > knew:
            expected.add((lock.key, blocked(after, lock)))
    assert {(notice.key, notice.mode) for notice in told} == expected, "a blocker is not told, or a bystander is"


# The value block by the DLM's words: up from below PW reads, leaving PW or EX writes, but for PW to EX.
def _check_lvb(before: ResourceState, event: Event, after: ResourceState, notices: Sequence[rules.Notice]) -> None:
    lvb, valid = before.lvb, before.lvb_valid
    dead = rules.find(before, key(event.client)) if event.verb == "die" else None
    if dead is not None and dead.granted in (PW, EX):
        valid = False
    for notice in notices:
        if not isinstance(notice, rules.Granted):
            continue
        was = rules.find(before, notice.key)
        held = None if was is None else was.granted
        writes = held is EX or (held is PW and notice.mode is not EX)
        reads = not writes and (held is None or notice.mode >= held)
        if writes:
            lvb, valid = WRITTEN, True
        assert notice.lvb == (lvb if reads else None), "the value block went the wrong way"
        assert notice.lvb_valid == valid, "the validity of the value block is told wrongly"
    assert (after.lvb, after.lvb_valid) == (lvb, valid), "the value block of the resource is wrong"


def _held(lock: LockState) -> Mode:
    assert lock.granted is not None
    return lock.granted


def _asked(lock: LockState) -> Mode:
    assert lock.requested is not None
    return lock.requested


def _path(came: dict[ResourceState, tuple[ResourceState, Event] | None], state: ResourceState) -> str:
    path = []
    while (step := came[state]) is not None:
        state, event = step
        path.append(str(event))
    return ", ".join(reversed(path)) or "the start"
