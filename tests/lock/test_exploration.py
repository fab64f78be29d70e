"""Every state of small cases is visited; and every check is seen to find the mistake that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lock.exploration import explore

from raidfs.lock import modes, resource
from raidfs.lock.api import Mode
from raidfs.lock.modes import LvbMove
from raidfs.lock.resource import LockState, Notice, Outcome, ResourceState

NL, CR, CW, PR, PW, EX = Mode


def test_two_clients_in_all_modes_never_break_a_rule() -> None:
    figures = explore(2)
    assert figures.states > 100
    assert min(figures.granted, figures.refused, figures.deadlocked, figures.cancelled, figures.told) > 0


@pytest.mark.slow
def test_three_clients_in_all_modes_never_break_a_rule(record_property: Callable[[str, object], None]) -> None:
    figures = explore(3)
    record_property("figures", str(figures))
    assert figures.states > 2000


@pytest.mark.slow
def test_four_clients_in_the_modes_of_messages_never_break_a_rule() -> None:
    assert explore(4, (NL, CR, CW, PR, EX)).states > 5000


# ---- planted mistakes: the right text is in raidfs/lock/resource.py ------------------------------------------


def _incompatible_modes_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [list(row) for row in modes._COMPATIBLE]
    table[CW][PR] = table[PR][CW] = True
    monkeypatch.setattr(modes, "_COMPATIBLE", table)


def _lvb_table(held: Mode, asked: Mode, move: LvbMove) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        table = [list(row) for row in modes._LVB_MOVES]
        table[held][asked] = move
        monkeypatch.setattr(modes, "_LVB_MOVES", table)

    return plant


def _any_conversion_that_fits_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resource._serve

    def serve(state: ResourceState, notices: list[Notice]) -> Outcome:
        for lock in state.converting:
            if resource._fits(state, lock.key, resource._asked(lock)):
                state, granted = resource._grant(state, lock, None)
                notices += granted
        return right(state, notices)

    monkeypatch.setattr(resource, "_serve", serve)


def _new_requests_are_served_past_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resource._serve

    def serve(state: ResourceState, notices: list[Notice]) -> Outcome:
        if state.waiting and resource._fits(state, state.waiting[0].key, resource._asked(state.waiting[0])):
            state, granted = resource._grant(state, state.waiting[0], None)
            notices += granted
        return right(state, notices)

    monkeypatch.setattr(resource, "_serve", serve)


def _nobody_is_served(function: str) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        right: Any = getattr(resource, function)
        serve = resource._serve

        def lazy(*args: Any, **options: Any) -> Outcome:
            monkeypatch.setattr(resource, "_serve", resource._tell)
            try:
                outcome: Outcome = right(*args, **options)
            finally:
                monkeypatch.setattr(resource, "_serve", serve)
            return outcome

        monkeypatch.setattr(resource, function, lazy)

    return plant


def _holders_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "_tell", lambda state, notices: (state, notices))


def _holders_are_told_at_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resource._tell

    def tell(state: ResourceState, notices: list[Notice]) -> Outcome:
        return right(state._replace(granted=tuple(lock._replace(told=NL) for lock in state.granted)), notices)

    monkeypatch.setattr(resource, "_tell", tell)


def _circles_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(
        state: ResourceState,
        key: resource.LockKey,
        tag: int,
        mode: Mode,
        *,
        lvb: bytes | None = None,
        noqueue: bool = False,
    ) -> Outcome:
        after, notices = right(state, key, tag, mode, lvb=lvb, noqueue=noqueue)
        if any(isinstance(notice, resource.Deadlocked) for notice in notices):
            lock = resource._granted(state, key)._replace(requested=mode, tag=tag)
            queues = state._replace(granted=resource._without(state.granted, key), converting=(*state.converting, lock))
            return resource._tell(queues, [])
        return after, notices

    right = resource.convert
    monkeypatch.setattr(resource, "convert", convert)


def _without_notices(function: str, kind: type) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        right: Any = getattr(resource, function)

        def silent(*args: Any, **options: Any) -> Outcome:
            state, notices = right(*args, **options)
            return state, [notice for notice in notices if not isinstance(notice, kind)]

        monkeypatch.setattr(resource, function, silent)

    return plant


def _a_dead_writer_leaves_the_value_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "LVB_WRITER", EX)


def _the_dead_keep_their_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resource.purge

    def purge(state: ResourceState, keys: Any) -> Outcome:
        after, notices = right(state, keys)
        return after._replace(converting=state.converting), notices

    monkeypatch.setattr(resource, "purge", purge)


def _a_cancelled_conversion_loses_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    right = resource.cancel

    def cancel(state: ResourceState, key: resource.LockKey, tag: int) -> Outcome:
        after, notices = right(state, key, tag)
        return resource._remove(after, (key,)), notices

    monkeypatch.setattr(resource, "cancel", cancel)


def _grants_give_the_strongest_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(lock: LockState) -> Mode:
        return EX if lock.requested is PW else right(lock)

    right = resource._asked
    monkeypatch.setattr(resource, "_asked", asked)


PLANTED = {
    "incompatible modes go together": (_incompatible_modes_go_together, "waits is due, not Granted"),
    "PW to EX writes the value block": (_lvb_table(PW, EX, LvbMove.WRITE), "AssertionError"),
    "PW to PW reads the value block": (_lvb_table(PW, PW, LvbMove.READ), "value block"),
    "EX to CW publishes nothing": (_lvb_table(EX, CW, LvbMove.NOTHING), "value block"),
    "any conversion that fits is served": (_any_conversion_that_fits_is_served, "not served from its head"),
    "new requests go past conversions": (_new_requests_are_served_past_conversions, "before a conversion"),
    "nobody is served after a conversion down": (_nobody_is_served("convert"), "could be granted and waits"),
    "nobody is served after a cancel": (_nobody_is_served("cancel"), "could be granted and waits"),
    "nobody is served after a release": (_nobody_is_served("release"), "could be granted and waits"),
    "nobody is served after a death": (_nobody_is_served("purge"), "could be granted and waits"),
    "holders are not told": (_holders_are_not_told, "blocker is not told"),
    "holders are told at every event": (_holders_are_told_at_every_event, "bystander is"),
    "circles are not seen": (_circles_are_not_seen, "Deadlocked is due"),
    "a released waiter is not answered": (_without_notices("release", resource.Cancelled), "request is lost"),
    "a refusal is not told": (_without_notices("request", resource.Refused), "request is lost"),
    "a dead writer leaves the value valid": (_a_dead_writer_leaves_the_value_valid, "value block"),
    "the dead keep their place in the queue": (_the_dead_keep_their_place_in_the_queue, "still waits is answered"),
    "a cancelled conversion loses the lock": (_a_cancelled_conversion_loses_the_lock, "Assertion"),
    "grants give the strongest mode": (_grants_give_the_strongest_mode, "did not ask for"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, words = PLANTED[mistake]
    plant(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        explore(3)
    assert words in str(caught.value)
