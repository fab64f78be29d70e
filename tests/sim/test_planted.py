"""Mistakes made on purpose are found, and each rule of the checkers is seen to be broken."""

from __future__ import annotations

import pytest

from raidfs.sim.campaign import run_campaign
from raidfs.sim.checkers import RULES
from raidfs.sim.planted import PLANTED

# How many schedules may pass before a mistake is found: some ten times what it took when this was written, which
# stands beside it. A number that has to grow says that the simulator has become blunter.
BUDGET = dict.fromkeys(PLANTED, 50) | {
    "failure-not-awaited": 400,
    "flushed-early": 1200,
}


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
    assert named == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_rule_is_seen_broken(rule: str) -> None:
    for name, mistake in PLANTED.items():
        if rule in mistake.rules:
            result = run_campaign(range(BUDGET[name]), plant=name, jobs=1, failures_max=5)
            if any(failure.rule == rule for failure in result.failures):
                return
    pytest.fail(f"no mistake breaks {rule}")
