from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import BinaryIO

import pytest

from raidfs import errors
from raidfs.mount import launch
from raidfs.mount.options import MountOptions
from raidfs.node_options import NodeOptions

OPTIONS = MountOptions(
    mountpoint="/srv/x",
    node=NodeOptions(
        images=("/srv/a.img", "/srv/b.img"),
        client_name="host:1",
        lock="unix:/run/l",
        run=True,
        read_only=True,
        slot=3,
        cluster_name="testing",
        buffered=True,
    ),
    plane="pyfuse3",
)


def test_the_daemon_is_given_every_option() -> None:
    assert OPTIONS.arguments() == [
        "--lock", "unix:/run/l", "--plane", "pyfuse3", "--run", "--read-only", "--buffered", "--slot", "3",
        "--cluster-name", "testing", "--", "/srv/a.img", "/srv/b.img", "/srv/x",
    ]  # fmt: skip


def test_options_that_were_not_given_are_not_passed_on() -> None:
    plain = MountOptions(mountpoint="/srv/x", node=NodeOptions(images=("/srv/a.img",), client_name="host:1"))
    assert plain.arguments() == ["--lock", "auto", "--plane", "native", "--", "/srv/a.img", "/srv/x"]


class TestStatusPipe:
    def test_a_node_says_one_thing_and_closes_the_pipe(self) -> None:
        reading, writing = os.pipe()
        pipe = launch.StatusPipe(writing)
        pipe.ready()
        assert not pipe.failed(errors.MountBusy(path="/srv/x"))
        with open(reading) as said:
            assert [json.loads(line) for line in said] == [{"ready": True}]

    def test_an_error_comes_through_whole(self) -> None:
        reading, writing = os.pipe()
        assert launch.StatusPipe(writing).failed(errors.MountpointTaken(path="/srv/x", source="tmpfs"))
        with open(reading) as said:
            error = errors.from_json(json.loads(said.readline())["failure"])
        assert isinstance(error, errors.MountpointTaken)
        assert error.source == "tmpfs"

    def test_nobody_left_to_hear_is_no_error(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        assert not launch.StatusPipe(writing).failed(errors.MountBusy(path="/srv/x"))

    def test_children_of_the_node_do_not_hold_it_open(self) -> None:
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        launch.StatusPipe(writing)
        assert not os.get_inheritable(writing)
        os.close(reading)
        os.close(writing)


class TestLaunch:
    """Programs that play the daemon."""

    @pytest.fixture
    def log(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
        monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(tmp_path / "raidfs"))
        return tmp_path / "raidfs"

    def _daemon(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        # In place of the interpreter: $7 is the descriptor of the status pipe.
        program = tmp_path / "python"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    def test_ready_is_all_there_is_to_wait_for(
        self, log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._daemon(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/words; echo \'{{"ready": true}}\' >&$7')
        launch.launch(OPTIONS)
        words = (tmp_path / "words").read_text()
        assert words.startswith("-P -m raidfs mount --foreground --status-fd ")
        assert words.endswith(" ".join(OPTIONS.arguments()) + "\n")

    def test_the_nodes_own_error_is_raised_here(
        self, log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failure = json.dumps({"failure": errors.ImageNotFound(path="/srv/a.img").to_json()})
        self._daemon(tmp_path, monkeypatch, f"echo '{failure}' >&$7; exit 1")
        with pytest.raises(errors.ImageNotFound, match=r"/srv/a\.img"):
            launch.launch(OPTIONS)

    @pytest.mark.parametrize(("script", "how"), [("exit 3", "exit code 3"), ("kill -9 $$", "killed by SIGKILL")])
    def test_a_silent_death_names_the_log(
        self, log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, script: str, how: str
    ) -> None:
        self._daemon(tmp_path, monkeypatch, f"echo traceback >&2; {script}")
        with pytest.raises(errors.DaemonDied, match=how) as caught:
            launch.launch(OPTIONS)
        assert pathlib.Path(caught.value.log).read_text() == "traceback\n"
        assert os.stat(caught.value.log).st_mode & 0o777 == 0o600

    def test_half_a_line_is_a_death_too(
        self, log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._daemon(tmp_path, monkeypatch, "printf '{\"ready\"' >&$7; exit 1")
        with pytest.raises(errors.DaemonDied):
            launch.launch(OPTIONS)

    def test_an_interrupt_stops_the_node_that_is_starting_and_waits_for_its_end(
        self, log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = tmp_path / "ended"
        wait = f"mkfifo {tmp_path}/never; read -t 60 <> {tmp_path}/never"
        self._daemon(tmp_path, monkeypatch, f"trap 'touch {ended}; exit 1' TERM; echo >&$7; {wait}")

        def interrupted(status: BinaryIO) -> None:
            status.readline()
            raise KeyboardInterrupt

        monkeypatch.setattr(launch, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch.launch(OPTIONS)
        assert ended.exists()
