"""One script of two nodes, in which each single I/O goes wrong in turn, in each way: users never lose anything."""

from __future__ import annotations

import pytest

from raidfs.faults import Strike
from raidfs.sim.crash.layout import LAYOUT
from raidfs.sim.crash.nth import STRIKES, Nth, failure_of, sites
from raidfs.sim.crash.recording import Recording, record
from raidfs.sim.crash.reopened import reopen
from raidfs.sim.crash.scenario import parse_scenario
from raidfs.sim.crash.states import Cutter
from raidfs.sim.disks import DiskOp, SimDisk

SITES_MIN = 280


@pytest.mark.slow
@pytest.mark.parametrize("how", STRIKES)
def test_whichever_io_goes_wrong_nothing_is_lost_and_nobody_waits_for_ever(how: str) -> None:
    count = sites()
    assert count >= SITES_MIN
    assert [failure for nth in range(count) if (failure := failure_of(nth, how)) is not None] == []


def struck_at(script: str, place: str, strike: Strike) -> Recording:
    for nth in range(200):
        decide = Nth(nth, strike)
        recording = record(parse_scenario(script), decide)
        if decide.what.startswith(place):
            return recording
    raise AssertionError(f"no I/O is {place!r}")


def test_a_write_that_fails_on_one_leg_is_recorded_there_and_acknowledged() -> None:
    recording = struck_at("w0", "a0: write of 1024 bytes at 16384 of disk1", STRIKES["ENOSPC"])
    assert recording.problem is None
    outcome = reopen(recording.final)
    assert outcome.rule is None
    assert outcome.values[:2] == (1, 1)
    cut = next(Cutter(recording).cuts(only=len(recording.entries)))
    assert cut.wanted[0] == {1}


def test_a_last_leg_that_lies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that never took place on the only leg there is: what was acknowledged is not there."""
    monkeypatch.setitem(STRIKES, "lie", Strike(keep_bytes=0, is_silent=True))
    script = "fail,w0"
    found = [failure for nth in range(sites(script)) if (failure := failure_of(nth, "lie", script)) is not None]
    assert any("write of 1024 bytes at 16384 of disk1), lie: promised" in failure for failure in found), found


def test_an_error_that_a_user_must_not_see_is_found() -> None:
    def both_legs_at_once(disk: SimDisk, op: DiskOp) -> Strike | None:
        return STRIKES["EIO"] if op.data and op.offset >= LAYOUT.data_offset_bytes else None

    problem = record(parse_scenario("w0"), both_legs_at_once).problem
    assert problem is not None
    assert "a write failed although a leg was good" in problem
