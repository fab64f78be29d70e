"""What is measured: each target is a file for fio, there as long as its block is entered."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

_START_DEADLINE_S = 20.0


class TargetMissing(Exception):
    """This machine does not have what the target needs; the text says what."""


@contextlib.contextmanager
def raw(directory: pathlib.Path, size_bytes: int) -> Iterator[pathlib.Path]:
    """Give one leg as it is: the limit of the medium, without any mirror."""
    leg = directory / "raw.img"
    _sparse(leg, size_bytes)
    yield leg


@contextlib.contextmanager
def raidfs(directory: pathlib.Path, size_bytes: int) -> Iterator[pathlib.Path]:
    """Give one node of an array of two legs, mounted as a user mounts it."""
    place = directory / "raidfs"
    place.mkdir()
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    images = [str(place / "a.img"), str(place / "b.img")]
    _run(sys.executable, "-m", "raidfs", "create", "--assume-clean", "--size", str(size_bytes), *images)
    _run(sys.executable, "-m", "raidfs", "mount", *images, str(mountpoint))
    try:
        yield mountpoint / "md0"
    finally:
        _run(sys.executable, "-m", "raidfs", "umount", str(mountpoint))


@contextlib.contextmanager
def qemu(directory: pathlib.Path, size_bytes: int) -> Iterator[pathlib.Path]:
    """Give qemu-storage-daemon's mirror of two legs (quorum, reads from the first), exported through FUSE."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        raise TargetMissing("qemu-storage-daemon is not installed")
    place = directory / "qemu"
    place.mkdir()
    export = place / "export"
    export.touch()
    legs = []
    for name in ("a", "b"):
        _sparse(place / f"{name}.img", size_bytes)
        legs += [
            "--blockdev",
            f"driver=file,node-name={name},filename={place / name}.img,cache.direct=on,aio=io_uring,discard=unmap",
        ]
    quorum = "driver=quorum,node-name=mirror,vote-threshold=2,read-pattern=fifo,children.0=a,children.1=b"
    fuse = f"type=fuse,id=export,node-name=mirror,mountpoint={export},writable=on"
    process = subprocess.Popen(
        [program, *legs, "--blockdev", quorum, "--export", fuse], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for_size(export, size_bytes, process)
        yield export
    finally:
        process.terminate()
        process.communicate()


TARGETS: dict[str, Callable[[pathlib.Path, int], AbstractContextManager[pathlib.Path]]] = {
    "raw": raw,
    "qemu": qemu,
    "raidfs": raidfs,
}

TITLES = {
    "raw": "raw file, one leg, no FUSE",
    "qemu": "qemu-storage-daemon, quorum of 2, FUSE export",
    "raidfs": "raidfs, 2 legs, pyfuse3 plane",
}


def _sparse(path: pathlib.Path, size_bytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait_for_size(export: pathlib.Path, size_bytes: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while export.stat().st_size != size_bytes:
        if process.poll() is not None:
            assert process.stderr is not None
            raise TargetMissing(f"qemu-storage-daemon: {process.stderr.read().decode().strip()}")
        if time.monotonic() > deadline:
            raise TargetMissing("qemu-storage-daemon did not export anything")
        time.sleep(0.05)
