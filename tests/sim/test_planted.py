"""Mistakes made on purpose are found, and each rule of the checkers is seen to be broken."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from raidfs.cluster.channel import State
from raidfs.cluster.receiver import Receiver
from raidfs.lock.api import Mode
from raidfs.sim.campaign import Failure, Result, run_campaign
from raidfs.sim.checkers import RULES
from raidfs.sim.cluster import simulate
from raidfs.sim.plan import Fault, FaultKind, Life, Op, OpKind, Plan
from raidfs.sim.planted import PLANTED
from raidfs.sim.planted_protocol import PROTOCOL
from raidfs.sim.planted_resize import RESIZE

# How many schedules may pass before a mistake is found; a number that has to grow says that the simulator has become
# blunter. Most are found in the first ten schedules, announced-silently after 43, bits-forgotten after 20,
# failure-not-awaited after 41, flushed-early after 226, mutex-silent after 127, not-fenced after 20, send-lock-leaked
# after 20; in other campaigns not-announced-at-stop took up to 218 and not-fenced 355 (November 2026).
BUDGET = dict.fromkeys(PLANTED, 60) | {
    "announced-late": 200,
    "announced-silently": 300,
    "bits-forgotten": 200,
    "failure-not-awaited": 400,
    "flushed-early": 700,
    "mutex-silent": 400,
    "not-announced-at-stop": 1000,
    "not-drained": 200,
    "not-fenced": 700,
    "part-of-a-chunk": 300,
    "checkpoint-not-flushed": 700,
    "gathered-before-others-write": 1000,
    "send-lock-leaked": 300,
    "token-kept": 200,
}

# No single mistake breaks it before another rule, which is seen in test_checkers.py; or only in plans of its own.
DIRECT = {"one-slot-owner", "same-view"}

# Seen broken in test_leg_checker.py; here other rules of the same mistakes come first. So with legs-equal, which looks
# at legs when nobody runs: bit-before-data has seen a bit that was never there, cleared-when-equal one that went early.
OF_SYNCS = {"one-syncer", "read-atomic", "slots-on-leg", "window-quiet", "in-sync-copied", "legs-equal", "healed"}

# A death in the middle of an update beside a node that then idles: one schedule in some hundreds. It has its own plans.
RARE = {"death-ignored"}

# Found in plans in which users resize: test_planted_resize.py, which also sees these rules broken.
OF_RESIZES = {"served-beyond", "one-size"}

# These need things that seldom come together: they have plans of their own in test_planted_sync.py.
OWN_PLANS = {
    "candidate-kept",
    "chunk-0-is-nothing",
    "half-recovered-is-complete",
    "own-bits-gathered-only",
    "slots-not-copied",
    "takeover-balances-reads",
    "window-not-drained",
}

# A stall in which not even a timer is left to end it.
STALLS = {"NothingCanRun": "stall"}


@functools.cache
def found(name: str) -> Result:
    return run_campaign(range(BUDGET[name]), plant=name, jobs=1)


def rule_of(failure: Failure) -> str:
    return STALLS.get(failure.rule, failure.rule)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTED.keys() - RARE - OWN_PLANS - RESIZE.keys()))
def test_the_mistake_is_found(name: str) -> None:
    mistake = PLANTED[name]
    failure = found(name).first_failure
    assert failure is not None, f"{mistake.what} was not found in {found(name).schedules} schedules"
    print(f"{name}: found after {found(name).schedules} schedules by {failure.rule}")
    assert rule_of(failure) in mistake.rules, failure.text


@pytest.mark.slow
def test_at_least_twelve_mistakes_of_the_protocol_are_found() -> None:
    assert len([name for name in PROTOCOL.keys() - RARE if found(name).first_failure is not None]) >= 12


@pytest.mark.slow
def test_no_message_is_announced_to_a_node_that_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a receiver that does not wait for its node is no mistake that a whole cluster could show (B4)."""
    announced = Counter[bool]()
    ack_bast = Receiver.ack_bast

    def watched(receiver: Receiver, mode: Mode) -> None:
        announced[State.ALREADY_IN_CLUSTER in receiver.channel.state] += 1
        ack_bast(receiver, mode)

    monkeypatch.setattr(Receiver, "ack_bast", watched)
    assert run_campaign(range(60), jobs=1).failures == ()
    assert announced[True] > 100
    assert announced[False] == 0


def test_every_mistake_names_rules_that_exist_and_every_rule_has_its_mistake() -> None:
    named = {rule for mistake in PLANTED.values() for rule in mistake.rules}
    assert named | DIRECT | OF_SYNCS == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(set(RULES) - DIRECT - OF_SYNCS - OF_RESIZES))
def test_each_rule_is_seen_broken(rule: str) -> None:
    for name, mistake in PLANTED.items():
        if rule in mistake.rules:
            first = found(name).first_failure
            if first is not None and rule_of(first) == rule:
                return
    for name, mistake in PLANTED.items():
        if rule in mistake.rules:
            for seed in range(BUDGET[name]):
                failure = run_campaign([seed], plant=name, jobs=1).first_failure
                if failure is not None and rule_of(failure) == rule:
                    return
    pytest.fail(f"no mistake breaks {rule}")


def death_after(rest_s: float) -> list[Plan]:
    """Return plans in which one machine dies at some step of its metadata updates, and another one idles beside it."""
    touches = (Op(OpKind.REST, rest_s=rest_s), *(Op(OpKind.TOUCH),) * 6)
    idle = Life(0.0, ((Op(OpKind.REST, rest_s=rest_s + 12.0),),))
    return [
        Plan(str(step), ((Life(0.0, (touches,), (Fault(FaultKind.CRASH, step),)),), (idle,)))
        for step in range(110, 310, 4)
    ]


def broken_rules(plans: list[Plan]) -> set[str]:
    failures = [simulate(plan).failure for plan in plans]
    return {failure.rule for failure in failures if failure is not None}


@pytest.mark.slow
def test_a_death_in_the_middle_of_an_update_is_looked_into_and_it_shows_when_it_is_not() -> None:
    plans = death_after(3.0)
    assert broken_rules(plans) == set()
    with PLANTED["death-ignored"].patch():
        assert broken_rules(plans) == {"same-view"}


@pytest.mark.slow
def test_the_death_of_a_node_that_has_just_joined_is_looked_into() -> None:
    assert broken_rules(death_after(0.0)) == set()
