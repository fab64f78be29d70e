"""Mistakes made on purpose are found by the enumerator."""

from __future__ import annotations

import pytest

from raidfs.sim.crash.campaign import replay, run_campaign
from raidfs.sim.crash.planted import PLANTED
from raidfs.sim.crash.reopened import RULES
from raidfs.sim.crash.scenario import parse_scenario

STATES = 12_000  # in which a mistake has to be found; most are in the first 2,000


# Those of three steps are among ten thousand others, in no order: these scenarios are near enough.
NEAR = {
    "acknowledged-first": ("break,w0",),
    "bits-not-gathered": ("fail,b1,readd",),
    "recovered-on-paper": ("fail,w0,readd",),
    "chunk-0-is-nothing": ("b0", "b0,stop"),
    "takeover-clears-first": ("w0,die", "b1,bdie"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANTED)
def test_the_mistake_is_found(name: str) -> None:
    mistake = PLANTED[name]
    chosen = [parse_scenario(text) for text in NEAR.get(name, ())]
    if chosen:
        assert run_campaign(STATES, jobs=1, chosen=chosen).failures == []
    result = run_campaign(STATES, jobs=1, plant=name, chosen=chosen or None)
    assert result.failures, f"{mistake.what} was not found in {len(result.states)} states"
    failure = result.failures[0]
    print(f"{name}: found after {len(result.states)} states by {failure.rule}: {failure.scenario}")
    assert failure.rule in mistake.rules, failure
    if failure.recipe is not None:
        with mistake.patch():
            assert replay(failure.recipe)[3] == (failure.rule, failure.what)


def test_every_rule_of_a_mistake_is_one() -> None:
    assert {rule for mistake in PLANTED.values() for rule in mistake.rules} <= RULES.keys() | {"recording"}
