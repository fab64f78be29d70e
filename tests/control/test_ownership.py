from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from raidfs.control import ownership, paths


@pytest.fixture
def files(runtime_directory: pathlib.Path) -> paths.NodePaths:
    return paths.node_paths(str(runtime_directory), "/mnt/x")


def test_a_mount_point_has_one_owner(files: paths.NodePaths) -> None:
    owned = ownership.acquire(files)
    assert owned is not None
    assert ownership.acquire(files) is None
    assert not ownership.remove_if_stale(files)
    owned.close()
    owned.close()
    again = ownership.acquire(files)
    assert again is not None
    again.close()


def test_nothing_is_left_in_the_directory(files: paths.NodePaths, runtime_directory: pathlib.Path) -> None:
    owned = ownership.acquire(files)
    assert owned is not None
    pathlib.Path(files.socket).touch()
    owned.close()
    assert os.listdir(runtime_directory) == []


@pytest.mark.slow
def test_what_a_killed_owner_left_is_stale(files: paths.NodePaths, runtime_directory: pathlib.Path) -> None:
    script = (
        "import os, sys; from raidfs.control import ownership, paths; "
        "files = paths.paths_of_socket(sys.argv[1]); held = ownership.acquire(files); "
        "open(files.socket, 'w').close(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, files.socket], check=False)
    assert len(os.listdir(runtime_directory)) == 2
    assert ownership.remove_if_stale(files)
    assert os.listdir(runtime_directory) == []


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_worth_nothing(
    files: paths.NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between open and flock the former owner removes the file: what we lock then is a file that nobody else will find.
    opened = []
    real_open = os.open

    def open_and_lose(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        opened.append(fd)
        if len(opened) == 1:
            os.unlink(path)
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    owned = ownership.acquire(files)
    assert owned is not None
    assert len(opened) == 2
    assert os.path.exists(files.lock)
    owned.close()
