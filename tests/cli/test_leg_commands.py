"""The commands that change legs, against a node that says what the test wants."""

from __future__ import annotations

import os
import pathlib
import pty
import subprocess
import sys

import pytest
from support.scripted_node import ScriptedNode

from raidfs.cli.main import main
from raidfs.control.schema import SyncStatus
from raidfs.errors import ImageHoldsData, MessageRefused
from raidfs.resize_plan import Change

HELD = ImageHoldsData(path="/srv/c.img", found="an ext4 file system")


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        (["remove", "/mnt/x", "b.img"], [("remove", {"path": "b.img"})]),
        (["add", "/mnt/x", "c.img"], [("add", {"path": "c.img", "spare": False, "force": False})]),
        (["add", "--force", "/mnt/x", "c.img"], [("add", {"path": "c.img", "spare": False, "force": True})]),
        (["add-spare", "/mnt/x", "c.img"], [("add", {"path": "c.img", "spare": True, "force": False})]),
        (["re-add", "/mnt/x", "b.img"], [("re_add", {"path": "b.img"})]),
        (["grow", "/mnt/x", "--raid-devices", "3"], [("grow", Change(raid_disks=3).to_json())]),
        (
            ["grow", "/mnt/x", "--raid-devices", "3", "--add", "c.img"],
            [("add", {"path": "c.img", "spare": True, "force": False}), ("grow", Change(raid_disks=3).to_json())],
        ),
    ],
)
def test_each_asks_for_what_it_says_and_is_silent(
    node: ScriptedNode,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    calls: list[tuple[str, dict[str, object]]],
) -> None:
    monkeypatch.chdir(tmp_path)  # a node has another working directory, so paths have to be whole
    assert main(words) == 0
    whole = [
        (method, {key: str(tmp_path / value) if key == "path" else value for key, value in params.items()})  # type: ignore[operator]
        for method, params in calls
    ]
    assert node.calls == whole
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "words",
    [
        ["add", "--wait", "/mnt/x", "c"],
        ["re-add", "--wait", "/mnt/x", "c"],
        ["grow", "--wait", "/mnt/x", "--raid-devices", "3"],
    ],
)
def test_with_wait_the_recovery_is_over_when_the_command_returns(node: ScriptedNode, words: list[str]) -> None:
    node.syncs = [SyncStatus("recover", "pending", 0, 9), SyncStatus("recover", "running", 5, 9), SyncStatus()]
    assert main(words) == 0
    assert node.syncs == [SyncStatus()]


def test_the_node_that_refuses_is_named(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.failures["add"] = [MessageRefused(message="NEWDISK", refusals="slot 1 (host-b:2): it does not see the image")]
    assert main(["add", "/mnt/x", "c.img"]) == 1
    assert capsys.readouterr().err == (
        "raidfs: not all nodes followed NEWDISK: slot 1 (host-b:2): it does not see the image\n"
    )


def test_without_a_terminal_an_image_that_holds_something_is_refused(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.failures["add"] = [HELD]
    assert main(["add", "/mnt/x", "/srv/c.img"]) == 1
    assert "/srv/c.img already holds an ext4 file system; give --force" in capsys.readouterr().err
    assert len(node.calls) == 1


def test_when_growing_is_refused_the_image_that_was_brought_along_is_taken_out_again(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = MessageRefused(message="METADATA_UPDATED", refusals="slot 1: no")
    node.failures["grow"] = [refused, refused]
    words = ["grow", "/mnt/x", "--raid-devices", "3", "--add", "/srv/c.img"]
    assert main(words) == 1
    assert node.calls[-1] == ("remove", {"path": "/srv/c.img"})
    node.failures["remove"] = [MessageRefused(message="REMOVE", refusals="slot 1: no")]
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "raidfs: /srv/c.img stays a spare: not all nodes followed REMOVE: slot 1: no\n"
        "raidfs: not all nodes followed METADATA_UPDATED: slot 1: no\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "code", "forced"), [("overwrite", 0, [False, True]), ("yes", 1, [False])])
def test_on_a_terminal_a_word_has_to_be_typed_before_anything_is_overwritten(
    node: ScriptedNode, typed: str, code: int, forced: list[bool]
) -> None:
    node.failures["add"] = [HELD]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "raidfs", "add", "/mnt/x", "/srv/c.img"], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    said = b""
    while b"to go on: " not in said:
        said += os.read(master, 65536)
    assert b"/srv/c.img holds an ext4 file system. All of it will be lost." in said
    os.write(master, typed.encode() + b"\n")
    assert process.wait(30) == code
    os.close(master)
    assert [params["force"] for _, params in node.calls] == forced
