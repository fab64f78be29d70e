from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _programs_are_there() -> None:
    if not os.path.exists("/dev/fuse") or shutil.which("fusermount3") is None:
        pytest.skip("no /dev/fuse or no fusermount3 here")


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    # pytest's tmp_path is too long for the address of a socket.
    with tempfile.TemporaryDirectory(prefix="raidfs-") as path:
        monkeypatch.setenv("RAIDFS_RUNTIME_DIR", f"{path}/run")
        monkeypatch.delenv("RAIDFS_LOG", raising=False)
        yield pathlib.Path(path).resolve()
