"""``raidfs grow``, against a node that says what the test wants."""

from __future__ import annotations

import pytest
from support.scripted_node import ScriptedNode

from raidfs.cli.main import main
from raidfs.errors import NoRoomOnLeg, ResizeRefused, ShrinkLosesData
from raidfs.resize_plan import Change
from raidfs.units import GIB, MIB, SECTOR_BYTES

LOSES = ShrinkLosesData(size_bytes=MIB, what=", and the ext4 file system needs 2097152")
GROWN = "the array has {} now\n"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--size", "2G"], Change(2 * GIB // SECTOR_BYTES)),
        (["--size", "max"], Change(maximum=True)),
        (["--size", "2G", "--extend", "--sparse"], Change(2 * GIB // SECTOR_BYTES, extend=True, sparse=True)),
        (["--size", "1M", "--force"], Change(MIB // SECTOR_BYTES, force=True)),
        (["--size", "2G", "--assume-clean"], Change(2 * GIB // SECTOR_BYTES, assume_clean=True)),
        (["--bitmap-chunk", "16M"], Change(chunk_bytes=16 * MIB)),
    ],
)
def test_it_asks_for_what_it_says_and_tells_what_there_is_then(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str], words: list[str], change: Change
) -> None:
    assert main(["grow", "/mnt/x", *words]) == 0
    assert node.calls == [("grow", change.to_json())]
    out = capsys.readouterr().out
    assert out.startswith("the array has " if "--size" in words else "the bitmap has ")
    assert out.endswith(" now\n")


def test_who_cannot_follow_is_named(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.failures["grow"] = [ResizeRefused(reason="b (slot 1): a leg is too small there")]
    assert main(["grow", "/mnt/x", "--size", "2G"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "raidfs: the array has its old size again: b (slot 1): a leg is too small there\n"


def test_nobody_is_asked_where_nobody_can_answer(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.failures["grow"] = [LOSES]
    assert main(["grow", "/mnt/x", "--size", "1M"]) == 1
    assert "the ext4 file system needs 2097152 would be lost" not in capsys.readouterr().err
    assert len(node.calls) == 1


def test_a_dry_run_tells_each_step_and_what_stands_against_it(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.results["check_grow"] = {"steps": [["room on every leg", "every leg has it"]], "failure": None}
    assert main(["grow", "/mnt/x", "--size", "2G", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("room on every leg: every leg has it\n")
    failure = NoRoomOnLeg(path="b.img", have_bytes=1, need_bytes=2)
    node.results["check_grow"] = {"steps": [], "failure": failure.to_json()}
    assert main(["grow", "/mnt/x", "--size", "2G", "--dry-run"]) == 1
    assert capsys.readouterr().err == f"raidfs: {failure}\n"
    assert [method for method, _ in node.calls] == ["check_grow", "check_grow"]
