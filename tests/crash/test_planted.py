"""Mistakes made on purpose are found by the enumerator."""

from __future__ import annotations

import pytest

from raidfs.sim.crash.campaign import replay, run_campaign
from raidfs.sim.crash.planted import PLANTED
from raidfs.sim.crash.reopened import RULES

STATES = 12_000  # in which a mistake has to be found; most are in the first 2,000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANTED)
def test_the_mistake_is_found(name: str) -> None:
    mistake = PLANTED[name]
    result = run_campaign(STATES, plant=name)
    assert result.failures, f"{mistake.what} was not found in {len(result.states)} states"
    failure = result.failures[0]
    print(f"{name}: found after {len(result.states)} states by {failure.rule}: {failure.scenario}")
    assert failure.rule in mistake.rules, failure
    if failure.recipe is not None:
        with mistake.patch():
            assert replay(failure.recipe)[3] == (failure.rule, failure.what)


def test_every_rule_of_a_mistake_is_one() -> None:
    assert {rule for mistake in PLANTED.values() for rule in mistake.rules} <= RULES.keys() | {"recording"}
