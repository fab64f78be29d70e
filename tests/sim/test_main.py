"""``python -m raidfs.sim``: what it prints, and its exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raidfs.sim.__main__ import main


def test_a_clean_campaign_prints_its_counts_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "5", "--seed", "1", "--jobs", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("5 schedules, ")
    assert "requests to the lock manager" in text
    assert text.endswith("0 failures\n")


def test_a_failure_is_told_with_its_rule_how_to_see_it_again_and_made_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "5", "--jobs", "1", "--plant", "not-made-active", "--nodes", "3"]) == 1
    text = capsys.readouterr().out
    assert "FAILED seed 1000000: resync-offset: " in text
    assert "again: python -m raidfs.sim --replay 1000000 --nodes 3 --plant not-made-active" in text
    small = text.partition("making it smaller")[2]
    assert small.count("user:") == 1
    assert "BROKEN resync-offset" in small


def test_a_replay_is_the_same_every_time_and_prints_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--replay", "7"]) == 0
    first = capsys.readouterr().out
    assert main(["--replay", "7"]) == 0
    assert capsys.readouterr().out == first
    assert " joined slot 0" in first
    assert "no rule was broken" in first


@pytest.mark.slow
def test_a_replay_in_another_process_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--replay", "8"])
    command = [sys.executable, "-m", "raidfs.sim", "--replay", "8"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == capsys.readouterr().out


def test_an_unknown_mistake_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--plant", "nonsense"])
    assert caught.value.code == 2
