from __future__ import annotations

import dataclasses

import pytest
from support.memory_node import sample_status

from raidfs.cli import status, status_text
from raidfs.control.schema import LegStatus, MismatchRange, NodeStatus, SyncStatus, WaitStatus

FAULTY = LegStatus("/srv/c.img", 2, None, "faulty", True, 0, 0)


@pytest.fixture
def healthy() -> NodeStatus:
    sample = sample_status()
    place = dataclasses.replace(sample.node, mountpoint="/mnt/node0", pid=42, host="host-a", plane="pyfuse3")
    return dataclasses.replace(sample, node=place)


def _with_leg(healthy: NodeStatus, **changes: object) -> NodeStatus:
    legs = (healthy.legs[0], dataclasses.replace(healthy.legs[1], **changes))  # type: ignore[arg-type]
    return dataclasses.replace(healthy, legs=legs)


def _with_sync(healthy: NodeStatus, state: str, **changes: object) -> NodeStatus:
    sync = SyncStatus("resync", state, 16 << 20, 64 << 20, 1 << 20, 48.0, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(healthy, sync=sync)


def _lost(healthy: NodeStatus) -> NodeStatus:
    return dataclasses.replace(healthy, node=dataclasses.replace(healthy.node, lost="the lock server ended"))


def test_a_healthy_array_reads_as_in_proc_mdstat(healthy: NodeStatus) -> None:
    assert status_text.mdstat(healthy) == (
        "md0 : active raid1 b.img[1] a.img[0]\n"
        "      65536 blocks super 1.2 [2/2] [UU]\n"
        "      bitmap: 0/1 pages [0KB], 65536KB chunk\n"
        "      node: slot 0 of 4 at /mnt/node0, pid 42\n"
        "      members: 0 (host-a:1), 1 (host-b:2)\n"
    )


def test_a_faulty_leg_is_marked_and_its_position_is_empty(healthy: NodeStatus) -> None:
    text = status_text.mdstat(_with_leg(healthy, state="faulty", role=None))
    assert text.startswith("md0 : active raid1 b.img[1](F) a.img[0]\n      65536 blocks super 1.2 [2/1] [U_]\n")


def test_a_missing_leg_has_no_name(healthy: NodeStatus) -> None:
    text = status_text.mdstat(_with_leg(healthy, state="missing", number=None, path=""))
    assert text.startswith("md0 : active raid1 a.img[0]\n      65536 blocks super 1.2 [2/1] [U_]\n")


def test_a_first_leg_that_is_gone_leaves_the_first_position_empty(healthy: NodeStatus) -> None:
    legs = (dataclasses.replace(healthy.legs[0], state="missing", number=None), healthy.legs[1])
    assert "[2/1] [_U]" in status_text.mdstat(dataclasses.replace(healthy, legs=legs))


def test_a_spare_is_marked_and_counts_for_nothing(healthy: NodeStatus) -> None:
    spare = LegStatus("/srv/c.img", 2, None, "spare", True, 0, 0)
    text = status_text.mdstat(dataclasses.replace(healthy, legs=(*healthy.legs, spare)))
    assert text.startswith(
        "md0 : active raid1 c.img[2](S) b.img[1] a.img[0]\n      65536 blocks super 1.2 [2/2] [UU]\n"
    )


@pytest.mark.parametrize("word", ["pending", "frozen"])
def test_a_resync_that_does_not_run_has_mds_word(healthy: NodeStatus, word: str) -> None:
    assert status_text.mdstat(_with_sync(healthy, word)).splitlines()[2] == f"      \tresync={word.upper()}"


def test_a_resync_that_another_node_does_is_shown_as_far_as_it_is(healthy: NodeStatus) -> None:
    text = status_text.mdstat(_with_sync(healthy, "remote", slot=1, client="host-b:2"))
    assert text.splitlines()[2] == (
        "      [=====>...............]  resync = 25.0% (16384/65536) finish=0.8min speed=1024K/sec by slot 1 (host-b:2)"
    )


def test_what_a_check_has_found_is_told(healthy: NodeStatus) -> None:
    found = dataclasses.replace(
        healthy, sync=SyncStatus(mismatch_sectors=8, mismatch_ranges=(MismatchRange(4096, 4096),))
    )
    assert "\n      mismatches: 8 sectors of 512 bytes in 1 range\n" in status_text.mdstat(found)
    assert (
        "Consistency Policy : bitmap\n\n"
        "        Mismatches : 8 sectors of 512 bytes in 1 range\n"
        "                   : 4 KiB at byte 4096\n\n"
        "              Name : md0\n"
    ) in status_text.detail(found)


def test_a_read_only_node_says_so_where_md_does(healthy: NodeStatus) -> None:
    place = dataclasses.replace(healthy.node, read_only=True)
    assert status_text.mdstat(dataclasses.replace(healthy, node=place)).startswith("md0 : active (read-only) raid1 ")


def test_a_lost_membership_is_the_last_word(healthy: NodeStatus) -> None:
    assert status_text.mdstat(_lost(healthy)).splitlines()[-1] == (
        "      LOST: the lock server ended; every request gets EIO until it is unmounted and mounted again"
    )


def test_the_detail_has_mdadms_lines(healthy: NodeStatus) -> None:
    text = status_text.detail(healthy)
    assert text.startswith("/mnt/node0/md0:\n           Version : 1.2\n")
    for line in (
        "        Raid Level : raid1",
        "        Array Size : 65536 (64 MiB)",
        "     Intent Bitmap : Internal(Clustered)",
        "             State : clean",
        "Consistency Policy : bitmap",
        "      Cluster Name : testing",
        "              UUID : 00000000:11111111:22222222:33333333",
        "         1            1                   0/0   active sync      /srv/b.img",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda healthy: healthy, "clean"),
        (lambda healthy: _with_leg(healthy, state="faulty"), "clean, degraded"),
        (lambda healthy: dataclasses.replace(healthy, legs=()), "clean, FAILED"),
        (lambda healthy: _with_sync(healthy, "pending"), "clean, resyncing (PENDING)"),
        (lambda healthy: _with_sync(_with_leg(healthy, state="recovering"), "running"), "clean, degraded, resyncing"),
        (lambda healthy: _with_sync(healthy, "frozen"), "clean, resyncing (FROZEN)"),
        (lambda healthy: _with_sync(healthy, "remote", slot=1), "clean, resyncing by slot 1"),
    ],
)
def test_the_state_is_told_in_mdadms_words(healthy: NodeStatus, change: object, state: str) -> None:
    assert f"             State : {state}\n" in status_text.detail(change(healthy))  # type: ignore[operator]


def test_the_detail_tells_errors_buffering_waits_and_loss(healthy: NodeStatus) -> None:
    told = dataclasses.replace(
        _lost(_with_leg(healthy, direct=False, read_errors=3, write_errors=1)),
        waits=(WaitStatus("receiver", "a message", 1.25),),
    )
    text = status_text.detail(told)
    assert "         1            1                   3/1   active sync      /srv/b.img (buffered)\n" in text
    assert "              Lost : the lock server ended\n" in text
    assert text.endswith("      receiver waits for a message, 1.2 s\n")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda healthy: healthy, 0),
        (lambda healthy: _with_sync(healthy, "pending"), 0),
        (lambda healthy: _with_leg(healthy, state="faulty"), 1),
        (lambda healthy: _with_leg(healthy, state="missing"), 1),
        (lambda healthy: _with_leg(healthy, state="recovering"), 1),
        (lambda healthy: dataclasses.replace(healthy, legs=(*healthy.legs, FAULTY)), 1),
        (lambda healthy: _with_leg(_with_leg(healthy, state="faulty"), state="spare", role=None), 1),
        (lambda healthy: dataclasses.replace(healthy, legs=()), 2),
        (_lost, 2),
    ],
)
def test_the_exit_code_of_a_test_is_mdadms(healthy: NodeStatus, change: object, code: int) -> None:
    assert status.verdict([change(healthy)], []) == code  # type: ignore[operator]


def test_of_several_nodes_the_worst_counts_and_no_answer_is_the_worst(healthy: NodeStatus) -> None:
    degraded = _with_leg(healthy, state="faulty")
    assert status.verdict([healthy, degraded, healthy], []) == 1
    assert status.verdict([], []) == 4
