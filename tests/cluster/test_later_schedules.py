"""Bugs and weak spots of md-cluster whose code does not exist here yet: each waits for the work that brings it.

The tests are strict expected failures. When the named part appears they fail in another way, and the schedule has to be
written.
"""

from __future__ import annotations

import importlib

import pytest

LEGS = "tests.cluster.test_leg_schedules"
RESIZE = "raidfs.array.resize"

LATER = [
    ("B2: the number of legs changes while another node resyncs", RESIZE),
    ("B5: NEWDISK is not confirmed in time", LEGS),
    ("B6: a spare is in sync without having been copied", LEGS),
    ("B7: re-add while recovering", LEGS),
    ("B18: a leg is dropped while the legs are walked", LEGS),
    ("W6: the wait for NEWDISK depends on the clock rate", LEGS),
    ("W7: a failed add is not announced", LEGS),
    ("W8: a resize that is taken back announces the new size", RESIZE),
    ("W10: bits of other slots are read without a lock at re-add", LEGS),
    ("W13: a new leg has only its own slots", LEGS),
]


@pytest.mark.parametrize(("schedule", "module"), LATER)
@pytest.mark.xfail(strict=True, raises=ModuleNotFoundError, reason="the code of this schedule is not there yet")
def test_schedule_of_later_work(schedule: str, module: str) -> None:
    importlib.import_module(module)
    pytest.fail(f"write the schedule now: {schedule}")
