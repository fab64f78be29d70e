"""What the enumerator and the failing I/Os have found, kept for ever."""

from __future__ import annotations

import dataclasses

import pytest

from raidfs.sim.crash.campaign import run_campaign
from raidfs.sim.crash.nth import STRIKES, Nth, failure_of
from raidfs.sim.crash.recording import record
from raidfs.sim.crash.scenario import parse_scenario
from raidfs.sim.crash.survivor import broken_by_survivor, deaths


@pytest.mark.parametrize("text", ["fail,w0,readd", "fail,b1,readd"])
def test_a_leg_that_is_back_is_in_sync_only_with_what_it_has_missed(text: str) -> None:
    """The sync task gave spares positions, and gathered no bits when there were none: the leg was called in sync."""
    assert run_campaign(1000, jobs=1, chosen=[parse_scenario(text)]).failures == []


@pytest.mark.slow
def test_a_leg_whose_own_superblock_a_dead_node_has_not_written_is_not_called_in_sync_by_the_next_one() -> None:
    """It had its position on the other leg; the survivor wrote what the leg had said of itself before: in sync."""
    scenario = parse_scenario("fail,die,readd/slow0")
    found = [(str(death), record(dataclasses.replace(scenario, death=death))) for death in deaths(record(scenario))]
    assert len(found) > 100
    assert [(death, broken) for death, one in found if (broken := one.problem or broken_by_survivor(one))] == []


def test_a_flush_that_fails_at_the_end_of_a_recovery_ends() -> None:
    """It was waited for under reconfig_mutex, which the record of the failure waited for."""
    script = "bfail,w0,breadd,sync,w0"
    struck = 0
    for nth in range(200):
        decide = Nth(nth, STRIKES["EIO"])
        record(parse_scenario(script), decide)
        if "flush of 0 bytes at 0 of disk1" in decide.what:
            struck += 1
            assert failure_of(nth, "EIO", script) is None
        if not decide.what:
            break
    assert struck > 0
