from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from support.mounted import eventually

from raidfs.mount.watcher import Watcher

pytestmark = pytest.mark.slow


@pytest.fixture
def called(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The arguments that a stand-in for fusermount3 was called with, when it was."""
    fake = tmp_path / "fusermount3"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called.new; mv {tmp_path}/called.new {tmp_path}/called\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "called"


def test_a_dismissed_watcher_touches_nothing_and_is_gone(called: pathlib.Path) -> None:
    watcher = Watcher("/srv/x")
    pid = watcher.pid
    watcher.dismiss()
    watcher.dismiss()
    assert watcher.pid is None
    assert not os.path.exists(f"/proc/{pid}")
    assert not called.exists()


def test_the_death_of_its_process_detaches_the_mount(called: pathlib.Path) -> None:
    script = (
        "import os; from raidfs.mount.watcher import Watcher; w = Watcher('/srv/with space'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    eventually(called.exists, "the watcher unmounts")
    assert called.read_text() == "-u -z -- /srv/with space\n"


@pytest.mark.parametrize("number", [1, 2, 15])
def test_it_outlives_signals_that_end_a_service(called: pathlib.Path, number: int) -> None:
    watcher = Watcher("/srv/x")
    assert watcher.pid is not None
    pid = watcher.pid
    eventually(lambda: "SigIgn:\t0000000000004007" in pathlib.Path(f"/proc/{pid}/status").read_text(), "it ignores")
    os.kill(pid, number)
    watcher.dismiss()
    assert not called.exists()
