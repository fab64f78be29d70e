from __future__ import annotations

import dataclasses

import pytest

from raidfs.cli import sync_text
from raidfs.control.schema import MismatchRange, SyncStatus

KIB = 1024

# The example of md(4) and of every /proc/mdstat in a bug report.
RECOVERY = SyncStatus("recover", "running", 235520 * KIB, 1046528 * KIB, 40000 * KIB, 20.3, 0, "host-a:1")
REMOTE = dataclasses.replace(RECOVERY, state="remote", slot=1, client="host-b:2")


def test_progress_is_mds_line_to_the_letter() -> None:
    assert sync_text.mdstat_line(RECOVERY) == (
        "[====>................]  recovery = 22.5% (235520/1046528) finish=0.3min speed=40000K/sec"
    )


def test_what_another_node_does_is_the_same_line_and_who_does_it() -> None:
    assert sync_text.mdstat_line(REMOTE) == f"{sync_text.mdstat_line(RECOVERY)} by slot 1 (host-b:2)"


@pytest.mark.parametrize(
    ("done_kib", "shown"),
    [
        (0, "[>....................]  recovery =  0.0% (0/1000)"),
        (49, "[>....................]  recovery =  4.9% (49/1000)"),
        (50, "[=>...................]  recovery =  5.0% (50/1000)"),
        (999, "[===================>.]  recovery = 99.9% (999/1000)"),
        (1000, "[====================>]  recovery =100.0% (1000/1000)"),
    ],
)
def test_the_bar_has_a_character_for_five_percent(done_kib: int, shown: str) -> None:
    sync = dataclasses.replace(RECOVERY, done_bytes=done_kib * KIB, total_bytes=1000 * KIB)
    assert str(sync_text.mdstat_line(sync)).startswith(shown + " finish=")


@pytest.mark.parametrize(
    ("action", "mdstat", "state", "label"),
    [
        ("resync", "resync", "resyncing", "Resync Status"),
        ("recover", "recovery", "recovering", "Rebuild Status"),
        ("check", "check", "checking", "Check Status"),
        ("repair", "resync", "resyncing", "Resync Status"),
    ],
)
def test_each_action_has_the_words_that_md_and_mdadm_have_for_it(
    action: str, mdstat: str, state: str, label: str
) -> None:
    sync = dataclasses.replace(RECOVERY, action=action)  # type: ignore[arg-type]
    assert f"  {mdstat} = 22.5% " in str(sync_text.mdstat_line(sync))
    assert sync_text.detail_state(sync) == state
    assert sync_text.detail_lines(sync) == [(label, "22% complete")]
    pending = dataclasses.replace(sync, state="pending")
    assert sync_text.mdstat_line(pending) == f"\t{mdstat}=PENDING"
    assert sync_text.detail_state(pending) == f"{state} (PENDING)"


def test_the_detail_names_the_node_that_works() -> None:
    assert sync_text.detail_state(REMOTE) == "recovering by slot 1 (host-b:2)"
    assert sync_text.detail_lines(REMOTE) == [("Rebuild Status", "22% complete by slot 1 (host-b:2)")]


def test_a_sync_that_was_stopped_is_told_as_such() -> None:
    frozen = SyncStatus("resync", "frozen")
    assert sync_text.mdstat_line(frozen) == "\tresync=FROZEN"
    assert sync_text.detail_state(frozen) == "resyncing (FROZEN)"


def test_a_sync_that_the_storage_made_fail_says_why() -> None:
    failed = SyncStatus("recover", "failed", failure="Input/output error")
    assert sync_text.mdstat_line(failed) == "\trecovery=FAILED (Input/output error)"
    assert sync_text.detail_state(failed) == "recovering (FAILED)"
    assert sync_text.detail_lines(failed) == [("Rebuild Failure", "Input/output error")]


def test_where_the_end_cannot_be_told_none_is() -> None:
    shown = sync_text.mdstat_line(dataclasses.replace(RECOVERY, finish_s=None, speed_bytes_s=0))
    assert shown == "[====>................]  recovery = 22.5% (235520/1046528) speed=0K/sec"


def test_without_a_sync_there_is_nothing_to_say() -> None:
    assert sync_text.mdstat_line(SyncStatus()) is None
    assert sync_text.detail_state(SyncStatus()) is None
    assert sync_text.detail_lines(SyncStatus()) == []


def test_the_first_ranges_that_differ_are_listed_and_the_others_counted() -> None:
    ranges = tuple(MismatchRange(number << 20, 4096) for number in range(10))
    lines = sync_text.detail_lines(SyncStatus(mismatch_sectors=80, mismatch_ranges=ranges))
    assert lines[0] == ("Mismatches", "80 sectors of 512 bytes in 10 ranges")
    assert lines[2] == ("", "4 KiB at byte 1048576")
    assert lines[-1] == ("", "2 more ranges, see --json")
    assert len(lines) == 10
