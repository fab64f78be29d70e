from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import pytest
from support.fuse_uring import OverUring
from support.mounted import Array, Backend, Memory, Node


@pytest.fixture(autouse=True)
def _fuse_is_there() -> None:
    if not os.path.exists("/dev/fuse") or shutil.which("fusermount3") is None:
        pytest.skip("no /dev/fuse or no fusermount3 here")


@pytest.fixture
def short_path() -> Iterator[pathlib.Path]:
    # pytest's tmp_path is too long for the address of a socket.
    with tempfile.TemporaryDirectory(prefix="raidfs-") as path:
        yield pathlib.Path(path).resolve()


@pytest.fixture(autouse=True)
def _own_runtime_directory(short_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run = short_path / "run"
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(run))
    monkeypatch.delenv("RAIDFS_LOG", raising=False)
    yield
    for log in run.glob("*.log"):
        assert log.read_text() == "", "a node had something to say"


@pytest.fixture
def directories(short_path: pathlib.Path) -> list[pathlib.Path]:
    found = [short_path / "n0", short_path / "n1"]
    for directory in found:
        directory.mkdir()
    return found


@pytest.fixture
def logs(short_path: pathlib.Path) -> Iterator[Callable[[], str]]:
    """What the nodes have logged, which is then forgotten: tests in which something fails expect to read of it."""
    run = short_path / "run"

    def read() -> str:
        return "".join(path.read_text() for path in run.glob("*.log"))

    yield read
    for path in run.glob("*.log"):
        path.write_text("")


@pytest.fixture
def memory() -> Iterator[Memory]:
    backend = Memory()
    yield backend
    backend.close()


@pytest.fixture
def array(short_path: pathlib.Path) -> Iterator[Array]:
    backend = Array(short_path)
    yield backend
    backend.close()


@pytest.fixture
def pyfuse3_array(short_path: pathlib.Path) -> Iterator[Array]:
    backend = Array(short_path, "--plane", "pyfuse3")
    yield backend
    backend.close()


@pytest.fixture
def fuse_uring_array(short_path: pathlib.Path) -> Iterator[Array]:
    backend = OverUring(short_path)
    yield backend
    backend.close()


@pytest.fixture(params=["memory", "array"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def node(backend: Backend, directories: list[pathlib.Path]) -> Node:
    return backend.mount(directories[0])


Opener = Callable[[int], int]


@pytest.fixture
def opened(node: Node) -> Iterator[Opener]:
    # Opens the block file; everything is closed before the node is unmounted.
    descriptors = []

    def open_(flags: int) -> int:
        descriptors.append(os.open(node.file, flags))
        return descriptors[-1]

    yield open_
    for descriptor in descriptors:
        os.close(descriptor)
