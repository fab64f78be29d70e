"""Nodes whose requests come through io_uring, on kernels where that can be switched on for the length of a mount."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

import pytest
from support.mounted import Array, Node

PARAMETER = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
_LOCK = pathlib.Path("/tmp/raidfs-test-enable-uring.lock")


@contextlib.contextmanager
def switched(value: str) -> Iterator[None]:
    """Have the kernel's parameter at ``value`` in the block, and as it was before afterwards; skips where it cannot.

    A mount keeps what it was given, so the block is as short as the mount. One process at a time does this.
    """
    if not os.access(PARAMETER, os.W_OK):
        pytest.skip("FUSE over io_uring cannot be switched here")
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = PARAMETER.read_text().strip()
        try:
            PARAMETER.write_text(value)
            yield
        finally:
            PARAMETER.write_text(before)


class OverUring(Array):
    """An `Array` all of whose nodes have FUSE over io_uring."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory, "--fuse-uring")

    def mount(self, directory: pathlib.Path, *options: str) -> Node:
        with switched("Y"):
            return super().mount(directory, *options)
