from __future__ import annotations

import os
import pathlib

import pytest


@pytest.fixture
def runtime_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory of control sockets, empty and this test's own; the system's is out of reach."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("raidfs.control.paths.SYSTEM_DIRECTORY", str(tmp_path / "system"))
    path = tmp_path / "raidfs"
    path.mkdir(mode=0o700)
    os.chmod(path, 0o700)
    return path
