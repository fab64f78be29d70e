from __future__ import annotations

import os
import pathlib

import pytest


@pytest.fixture
def runtime_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory of control sockets, empty and this test's own."""
    path = tmp_path / "raidfs"
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(path))
    path.mkdir(mode=0o700)
    os.chmod(path, 0o700)
    return path
