"""The commands that ask for syncs and wait for them, against a node that says what the test wants."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys

import pytest
from support.scripted_node import ScriptedNode

from raidfs.cli.main import main
from raidfs.control.schema import MismatchRange, SyncStatus

MIB = 1 << 20
IDLE = SyncStatus()
DUE = SyncStatus("recover", "pending", 0, 64 * MIB)
HALF = SyncStatus("recover", "running", 32 * MIB, 64 * MIB, 8 * MIB, 4.0, 0, "host-a:1")
MORE = dataclasses.replace(HALF, state="remote", done_bytes=48 * MIB, finish_s=2.0, slot=1, client="host-b:2")
DIFFERING = SyncStatus(mismatch_sectors=9, mismatch_ranges=(MismatchRange(0, 4096), MismatchRange(MIB, 512)))


@pytest.mark.parametrize("action", ["resync", "check", "repair", "idle"])
def test_each_asks_for_its_action_and_says_nothing(
    node: ScriptedNode, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([action, "/mnt/x"]) == 0
    assert node.calls == [("sync_action", {"action": action})]
    assert capsys.readouterr() == ("", "")


def test_wait_returns_when_nothing_runs_or_is_due_and_says_nothing_in_a_pipe(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.syncs = [DUE, HALF, MORE, IDLE]
    assert main(["wait", "/mnt/x"]) == 0
    assert node.syncs == [IDLE]
    assert capsys.readouterr() == ("", "")


def test_wait_tells_a_program_whether_it_waited(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    for syncs, waited in (([IDLE], False), ([HALF, IDLE], True)):
        node.syncs = syncs
        assert main(["wait", "--json", "/mnt/x"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["schema"], document["waited"], document["sync"]["state"]) == (1, waited, "idle")


def test_what_is_due_on_another_node_of_the_array_is_waited_for_too(
    node: ScriptedNode, runtime_directory: pathlib.Path
) -> None:
    with ScriptedNode(runtime_directory, "/mnt/y") as other:
        other.syncs = [DUE, DUE, IDLE]
        assert main(["wait", "/mnt/x"]) == 0
        assert other.syncs == [IDLE]


def test_the_sync_of_another_array_is_not_waited_for(node: ScriptedNode, runtime_directory: pathlib.Path) -> None:
    with ScriptedNode(runtime_directory, "/mnt/y") as other:
        other.status = dataclasses.replace(
            other.status, array=dataclasses.replace(other.status.array, uuid="99999999:0:0:0")
        )
        other.syncs = [DUE]
        assert main(["wait", "/mnt/x"]) == 0


def test_a_word_of_a_newer_node_is_waited_for(node: ScriptedNode) -> None:
    node.syncs = [dataclasses.replace(DUE, state="resting"), IDLE]  # type: ignore[arg-type]
    assert main(["wait", "/mnt/x"]) == 0
    assert node.syncs == [IDLE]


def test_a_wait_that_would_never_end_fails_and_says_what_to_do(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.syncs = [dataclasses.replace(DUE, state="frozen")]
    assert main(["wait", "/mnt/x"]) == 1
    assert capsys.readouterr().err == (
        "raidfs: /mnt/x: the recover that is due was stopped; let it go on: raidfs resync /mnt/x\n"
    )
    node.syncs = [dataclasses.replace(DUE, state="failed", failure="Input/output error")]
    assert main(["wait", "/mnt/x"]) == 1
    assert capsys.readouterr().err == (
        "raidfs: /mnt/x: the recover that is due has failed: Input/output error; "
        "when that is mended: raidfs resync /mnt/x\n"
    )
    node.status = dataclasses.replace(node.status, node=dataclasses.replace(node.status.node, lost="evicted"))
    assert main(["wait", "/mnt/x"]) == 1
    assert "/mnt/x: evicted; unmount and mount again, or wait at another node" in capsys.readouterr().err


def test_idle_waits_until_nobody_works_any_more(node: ScriptedNode) -> None:
    node.syncs = [HALF, HALF, MORE, dataclasses.replace(DUE, state="frozen")]
    assert main(["idle", "--wait", "/mnt/x"]) == 0
    assert len(node.syncs) == 1


def test_a_check_that_found_nothing_is_silent_and_one_that_did_says_what_to_do(
    node: ScriptedNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.syncs = [HALF, HALF, IDLE]
    assert main(["check", "--wait", "/mnt/x"]) == 0
    assert capsys.readouterr() == ("", "")
    node.syncs = [HALF, HALF, DIFFERING]
    assert main(["check", "--wait", "/mnt/x"]) == 0
    assert capsys.readouterr() == (
        "the legs differed in 9 sectors of 512 bytes in 2 ranges; `raidfs repair` makes them equal\n",
        "",
    )
    assert main(["repair", "--wait", "/mnt/x"]) == 0
    assert capsys.readouterr().out.endswith("; they are equal now\n")


def test_a_check_that_was_stopped_is_no_success(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.syncs = [HALF, HALF, SyncStatus(last_action="check", last_interrupted=True)]
    assert main(["check", "--wait", "/mnt/x"]) == 1
    assert "/mnt/x: the check did not come to its end; " in capsys.readouterr().err


def test_the_json_of_a_check_has_every_range(node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.syncs = [HALF, DIFFERING]
    assert main(["check", "--wait", "--json", "/mnt/x"]) == 0
    sync = json.loads(capsys.readouterr().out)["sync"]
    assert sync["mismatch_sectors"] == 9
    assert sync["mismatch_ranges"][1] == {"start_bytes": MIB, "length_bytes": 512}


def test_a_node_that_is_unmounted_ends_the_wait(
    runtime_directory: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedNode(runtime_directory) as node:
        node.syncs = [HALF]
        monkeypatch.setattr("raidfs.cli.waiting.time.sleep", lambda seconds: node.stop())
        assert main(["wait", "/mnt/x"]) == 1
    assert "raidfs: /mnt/x: no node of yours is mounted there" in capsys.readouterr().err


def _on_a_terminal(words: list[str], *, interrupt_at: bytes | None = None) -> tuple[int, str, str]:
    # Runs raidfs with standard error on a terminal; returns code, standard output and what the terminal got.
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "raidfs", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what a shell runs behind its back
    )
    os.close(slave)
    said = b""
    while True:
        try:
            read = os.read(master, 65536)
        except OSError:  # EIO: the last process has closed the terminal
            break
        if not read:
            break
        said += read
        if interrupt_at is not None and interrupt_at in said:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(master)
    out, _ = process.communicate(timeout=30)
    return process.returncode, out.decode(), said.decode()


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_how_far_it_is_how_fast_and_who_works(node: ScriptedNode) -> None:
    node.syncs = [DUE, HALF, MORE, IDLE]
    code, out, shown = _on_a_terminal(["wait", "/mnt/x"])
    assert (code, out) == (0, "")
    places = [
        shown.index(text)
        for text in ("recovery pending", "recovery ", " 50%", "8.0 MiB/s, 0:04 left", "by slot 1 (host-b:2)", " 75%")
    ]
    assert places[0] <= places[1] < places[2]
    assert places[2:] == sorted(places[2:])


@pytest.mark.slow
def test_an_interrupted_wait_leaves_the_terminal_as_it_was(node: ScriptedNode) -> None:
    node.syncs = [HALF]
    code, _out, shown = _on_a_terminal(["wait", "/mnt/x"], interrupt_at=b" 50%")
    assert code == 130
    assert "Traceback" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    assert node.calls == []  # and the sync goes on


@pytest.mark.slow
def test_the_bar_and_the_facts_do_not_mix(node: ScriptedNode) -> None:
    node.syncs = [HALF, HALF, DIFFERING]
    code, out, shown = _on_a_terminal(["check", "--wait", "--json", "/mnt/x"])
    assert code == 0
    assert json.loads(out)["sync"]["mismatch_sectors"] == 9
    assert " 50%" in shown


@pytest.mark.slow
def test_nobody_but_the_bar_imports_rich(node: ScriptedNode) -> None:
    node.syncs = [HALF, IDLE]
    program = (
        "import sys\nfrom raidfs.cli.main import main\nmain(['wait', '/mnt/x'])\n"
        "print(sorted({'rich', 'trio', 'pyfuse3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
