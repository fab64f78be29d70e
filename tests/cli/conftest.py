from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest
from support.scripted_node import ScriptedNode

from raidfs.cli import waiting


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The directory of control sockets, empty, this test's own, and short enough for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="raidfs-") as path:
        monkeypatch.setenv("RAIDFS_RUNTIME_DIR", path)
        os.chmod(path, 0o700)
        yield pathlib.Path(path)


@pytest.fixture
def node(runtime_directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedNode]:
    """A node at /mnt/x, which is asked as fast as it answers."""
    monkeypatch.setattr(waiting, "_ASK_EVERY_S", 0.0)
    with ScriptedNode(runtime_directory) as found:
        yield found
