"""The rules of one lock resource, as pure functions over an immutable state.

Each function takes a `ResourceState` and returns the next one together with what has to be told to whom. There
is no I/O and no clock here; the state can be hashed and compared, so that the tests visit every state that a few
clients can reach.

The rules are those of the kernel's DLM without its optional flags (``fs/dlm/lock.c``; function names below
are of that file, as of Linux 6.1):

* A conversion is granted *in place*, at once, when the mode is compatible with what all others hold, even when
  other conversions wait (``_can_be_granted``: ``now && conv && !QUECVT``). A conversion down is always so.
* Otherwise it waits at the end of the convert queue, which is served strictly from its head
  (``first_in_list(lkb, &r->res_convertqueue)``). A lock that waits there still holds the mode that it had.
* A new request is granted only if nobody waits and it is compatible with all; the wait queue is served from its
  head and only while no conversion waits. EXPEDITE, for NL only, goes past both queues.
* A conversion that would wait although the mode its own lock holds stands in the way of a conversion queued earlier is
  answered "deadlock" and changes nothing (``conversion_deadlock_detect``, EDEADLK in ``do_convert``).
  Hence the head of the convert queue never waits for a lock behind it.
* NOQUEUE never waits; what is not granted at once is refused (EAGAIN), and that goes before "deadlock".
* A holder that stands in the way of a waiter is told the strongest such mode (``lock_requires_bast``).
  A lock that waits for a conversion is told afterwards, whichever way that ends
  (``send_blocking_asts`` visits the grant queue only).

Where we differ, and why:

* The DLM forgets that it told a holder (``lkb_highbast``) only when that holder is granted something. We forget
  also when the request that was told of has gone, so that a request cancelled and made again is told
  again. More is told than by the DLM, never less. Code that must work with both re-arms itself by a
  conversion to the mode that it has.
* After a node's death the DLM may grant queued conversions out of order, since a new master does not know the order
  (``RSB_RECOVER_GRANT``). We always know it and keep it.
* A value block that nobody has written reads as 32 zero bytes; the DLM leaves the caller's buffer as it was.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from raidfs.lock.api import LVB_BYTES, Mode
from raidfs.lock.modes import LVB_WRITER, LvbMove, compatible, lvb_move

NO_LVB = bytes(LVB_BYTES)

LockKey = tuple[int, int]  # the member's number and the lock's number, which the member chose


class LockState(NamedTuple):
    """One lock on a resource: what it has, and what it waits for."""

    key: LockKey
    granted: Mode | None  # None: a new request that waits and holds nothing
    requested: Mode | None = None  # None: waits for nothing
    tag: int = 0  # of the request that waits
    since: float = 0.0  # when that request came, in seconds of the owner's clock
    told: Mode = Mode.NL  # the strongest mode in whose way it stands and that it was told of; NL: of none


class ResourceState(NamedTuple):
    """One resource: its three queues and its value block."""

    granted: tuple[LockState, ...] = ()
    converting: tuple[LockState, ...] = ()
    waiting: tuple[LockState, ...] = ()
    lvb: bytes = NO_LVB
    lvb_valid: bool = True


class Granted(NamedTuple):
    """The request ``tag`` of a lock is granted; ``lvb`` is the value read, or None if the mode change reads none."""

    key: LockKey
    tag: int
    mode: Mode
    lvb: bytes | None
    lvb_valid: bool


class Refused(NamedTuple):
    """A NOQUEUE request was not granted; the lock is as it was before."""

    key: LockKey
    tag: int


class Deadlocked(NamedTuple):
    """A conversion would have closed a circle; the lock is as it was before."""

    key: LockKey
    tag: int


class Cancelled(NamedTuple):
    """A waiting request was taken back; the lock is as it was before."""

    key: LockKey
    tag: int


class Blocking(NamedTuple):
    """A lock, as it is held, stands in the way of a request for ``mode``."""

    key: LockKey
    mode: Mode


Notice = Granted | Refused | Deadlocked | Cancelled | Blocking
Outcome = tuple[ResourceState, list[Notice]]


def find(state: ResourceState, key: LockKey) -> LockState | None:
    """Return the lock ``key``, in whichever queue it is."""
    for queue in (state.granted, state.converting, state.waiting):
        for lock in queue:
            if lock.key == key:
                return lock
    return None


def locks(state: ResourceState) -> tuple[LockState, ...]:
    """Return all locks: granted ones first, then conversions and new requests in the order of their queues."""
    return state.granted + state.converting + state.waiting


def request(
    state: ResourceState,
    key: LockKey,
    tag: int,
    mode: Mode,
    *,
    noqueue: bool = False,
    expedite: bool = False,
    now: float = 0.0,
) -> Outcome:
    """Ask for a new lock in ``mode``. After `Refused` there is no such lock."""
    lock = LockState(key, None, mode, tag, now)
    at_once = (expedite and mode is Mode.NL) or (not state.converting and not state.waiting and _fits(state, key, mode))
    if at_once:
        return _tell(*_grant(state, lock, None))
    if noqueue:
        return state, [Refused(key, tag)]
    return _tell(state._replace(waiting=(*state.waiting, lock)), [])


def convert(
    state: ResourceState,
    key: LockKey,
    tag: int,
    mode: Mode,
    *,
    lvb: bytes | None = None,
    noqueue: bool = False,
    now: float = 0.0,
) -> Outcome:
    """Ask for another mode of a granted lock; ``lvb`` is the caller's buffer, for modes that write the value block."""
    lock = _granted(state, key)
    assert lock.granted is not None
    if _fits(state, key, mode):
        return _serve(*_grant(state, lock._replace(requested=mode, tag=tag), lvb))
    # Leaving PW or EX is always a conversion down or a standstill, hence never waits, hence no buffer is ever queued.
    assert lvb_move(lock.granted, mode) is not LvbMove.WRITE
    if noqueue:
        return state, [Refused(key, tag)]
    if any(not compatible(lock.granted, _asked(earlier)) for earlier in state.converting):
        return state, [Deadlocked(key, tag)]
    waiter = lock._replace(requested=mode, tag=tag, since=now)
    return _tell(
        state._replace(granted=_without(state.granted, key), converting=(*state.converting, waiter)),
        [],
    )


def cancel(state: ResourceState, key: LockKey, tag: int) -> Outcome:
    """Take back the waiting request ``tag``; nothing happens when it does not wait (any more).

    A new request vanishes with its lock; a conversion leaves the lock in the mode that it had.
    """
    lock = find(state, key)
    if lock is None or lock.requested is None or lock.tag != tag:
        return state, []
    if lock.granted is None:
        state = state._replace(waiting=_without(state.waiting, key))
    else:
        back = lock._replace(requested=None, tag=0, since=0.0)
        state = state._replace(granted=(*state.granted, back), converting=_without(state.converting, key))
    return _serve(state, [Cancelled(key, tag)])


def release(state: ResourceState, key: LockKey) -> Outcome:
    """Remove a lock whatever it holds or waits for (FORCEUNLOCK); a waiting request is answered `Cancelled`.

    The value block stays as it is, and valid: the owner went in good order.
    """
    lock = find(state, key)
    notices: list[Notice] = []
    if lock is not None and lock.requested is not None:
        notices.append(Cancelled(key, lock.tag))
    return _serve(_remove(state, (key,)), notices)


def purge(state: ResourceState, keys: Container[LockKey]) -> Outcome:
    """Remove the locks of a client that died; nobody answers its requests.

    If one of them was held in PW or EX the value block is not valid until it is written again.
    """
    dead_writer = any(
        lock.key in keys and lock.granted is not None and lock.granted >= LVB_WRITER for lock in locks(state)
    )
    state = _remove(state, keys)
    return _serve(state._replace(lvb_valid=False) if dead_writer else state, [])


def _asked(lock: LockState) -> Mode:
    assert lock.requested is not None, "only waiting locks are in the queues"
    return lock.requested


def _granted(state: ResourceState, key: LockKey) -> LockState:
    for lock in state.granted:
        if lock.key == key:
            return lock
    raise KeyError(key)


def _without(queue: tuple[LockState, ...], key: LockKey) -> tuple[LockState, ...]:
    return tuple(lock for lock in queue if lock.key != key)


def _remove(state: ResourceState, keys: Container[LockKey]) -> ResourceState:
    return state._replace(
        granted=tuple(lock for lock in state.granted if lock.key not in keys),
        converting=tuple(lock for lock in state.converting if lock.key not in keys),
        waiting=tuple(lock for lock in state.waiting if lock.key not in keys),
    )


# Compatible with everything that others hold; those that wait for a conversion still hold their old mode.
def _fits(state: ResourceState, key: LockKey, mode: Mode) -> bool:
    for queue in (state.granted, state.converting):
        for lock in queue:
            if lock.key != key and lock.granted is not None and not compatible(lock.granted, mode):
                return False
    return True


# Moves the lock to the granted ones, with the value block going the way that the modes demand (set_lvb_lock).
def _grant(state: ResourceState, lock: LockState, lvb: bytes | None) -> tuple[ResourceState, list[Notice]]:
    mode = _asked(lock)
    move = lvb_move(lock.granted, mode)
    if move is LvbMove.WRITE and lvb is not None:
        state = state._replace(lvb=lvb, lvb_valid=True)
    holder = LockState(lock.key, mode)
    state = _remove(state, (lock.key,))
    notice = Granted(lock.key, lock.tag, mode, state.lvb if move is LvbMove.READ else None, state.lvb_valid)
    return state._replace(granted=(*state.granted, holder)), [notice]


# Grants all that can be granted now, then tells holders whom they block (grant_pending_locks).
def _serve(state: ResourceState, notices: list[Notice]) -> Outcome:
    while state.converting and _fits(state, state.converting[0].key, _asked(state.converting[0])):
        state, granted = _grant(state, state.converting[0], None)
        notices += granted
    while not state.converting and state.waiting and _fits(state, state.waiting[0].key, _asked(state.waiting[0])):
        state, granted = _grant(state, state.waiting[0], None)
        notices += granted
    return _tell(state, notices)


def _tell(state: ResourceState, notices: list[Notice]) -> Outcome:
    waiters = state.converting + state.waiting
    if not waiters and not any(lock.told for lock in state.granted):
        return state, notices
    told = []
    for lock in state.granted:
        assert lock.granted is not None
        blocked = [_asked(waiter) for waiter in waiters if not compatible(lock.granted, _asked(waiter))]
        strongest = max(blocked, default=Mode.NL)
        if strongest > lock.told:
            notices.append(Blocking(lock.key, strongest))
        told.append(lock if strongest == lock.told else lock._replace(told=strongest))
    return state._replace(granted=tuple(told)), notices
