"""Mistakes made on purpose are found, and each rule of the checkers is seen to be broken."""

from __future__ import annotations

import pytest

from raidfs.sim.campaign import run_campaign
from raidfs.sim.checkers import RULES
from raidfs.sim.planted import PLANTED

# How many schedules may pass before a mistake is found; a number that has to grow says that the simulator has become
# blunter. Most are found in the first schedule, bits-forgotten after 29, failure-not-awaited after 41, flushed-early
# after 67, token-kept after 21, not-fenced after 155 (November 2026).
BUDGET = dict.fromkeys(PLANTED, 60) | {
    "bits-forgotten": 200,
    "failure-not-awaited": 400,
    "flushed-early": 700,
    "not-fenced": 700,
    "token-kept": 200,
}

# No single mistake breaks it before another rule: seen in test_checkers.py.
DIRECT = {"one-slot-owner"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_the_mistake_is_found(name: str) -> None:
    mistake = PLANTED[name]
    result = run_campaign(range(BUDGET[name]), plant=name, jobs=1)
    failure = result.first_failure
    assert failure is not None, f"{mistake.what} was not found in {result.schedules} schedules"
    print(f"{name}: found after {result.schedules} schedules by {failure.rule}")
    assert failure.rule in mistake.rules


def test_every_mistake_names_rules_that_exist_and_every_rule_has_its_mistake() -> None:
    named = {rule for mistake in PLANTED.values() for rule in mistake.rules}
    assert named | DIRECT == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(set(RULES) - DIRECT))
def test_each_rule_is_seen_broken(rule: str) -> None:
    for name, mistake in PLANTED.items():
        if rule in mistake.rules:
            for seed in range(BUDGET[name]):
                failure = run_campaign([seed], plant=name, jobs=1).first_failure
                if failure is not None and failure.rule == rule:
                    return
    pytest.fail(f"no mistake breaks {rule}")
