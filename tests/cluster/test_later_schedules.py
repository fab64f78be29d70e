"""Bugs and weak spots of md-cluster whose code does not exist here yet: each waits for the work that brings it.

The tests are strict expected failures. When the named part appears they fail in another way, and the schedule has to be
written.
"""

from __future__ import annotations

import importlib

import pytest

RESIZE = "raidfs.array.resize"

LATER = [
    ("W8: a resize that is taken back announces the new size", RESIZE),
]


@pytest.mark.parametrize(("schedule", "module"), LATER)
@pytest.mark.xfail(strict=True, raises=ModuleNotFoundError, reason="the code of this schedule is not there yet")
def test_schedule_of_later_work(schedule: str, module: str) -> None:
    importlib.import_module(module)
    pytest.fail(f"write the schedule now: {schedule}")
