"""What all tests of nodes need: an array's images and a lock server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from support.arrays import make_array
from support.nodes import CHUNK, Images, answers


@pytest.fixture
def images(tmp_path: Path) -> Images:
    created = make_array(tmp_path, chunk_bytes=CHUNK, assume_clean=True)
    return Images(tuple(image.path for image in created.images))


@pytest.fixture
def fresh(tmp_path: Path) -> Images:
    created = make_array(tmp_path, chunk_bytes=CHUNK)
    return Images(tuple(image.path for image in created.images))


@pytest.fixture
async def lockd(tmp_path: Path) -> AsyncIterator[str]:
    """A lock server of this test's own; gives the value for --lock."""
    address = f"unix:{tmp_path}/lock"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "raidfs", "lockd", "--listen", address],
    )
    with trio.fail_after(20):
        while not answers(f"{tmp_path}/lock"):  # its path is there before it listens
            await trio.sleep(0.01)
    (tmp_path / "lock.pid").write_text(str(process.pid))
    yield address
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
