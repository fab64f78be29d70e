"""What is measured: each target is a file for fio, there as long as its block is entered."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from raidfs.control import client

_START_DEADLINE_S = 20.0
_ENABLE_URING = pathlib.Path("/sys/module/fuse/parameters/enable_uring")

TWO_NODES = "two-nodes-4k-qd32"
_WRITES = frozenset({"randwrite-4k-qd32", "randwrite-4k-2x32", "write-1m-qd8"})


class TargetMissing(Exception):
    """This machine does not have what the target needs; the text says what."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Files that are open to fio: ``file`` (two names with a colon are used in turns), ``second`` of another node.

    ``pids`` are the processes that serve it, whose CPU time and memory are told beside the figures. ``meanwhile`` is a
    command that is run again and again as long as it is measured.
    """

    file: str
    second: str = ""
    pids: tuple[int, ...] = ()
    files: int = 1
    meanwhile: tuple[str, ...] = ()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Run ``meanwhile`` over and over for the length of the block."""
        stop = threading.Event()

        def repeat() -> None:
            while not stop.is_set():
                if subprocess.run(self.meanwhile, capture_output=True, check=False).returncode:
                    stop.wait(0.1)

        if not self.meanwhile:
            yield
            return
        repeating = threading.Thread(target=repeat)
        repeating.start()
        try:
            yield
        finally:
            stop.set()
            repeating.join()


Opener = Callable[[pathlib.Path, int], AbstractContextManager[Target]]


@contextlib.contextmanager
def raw(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give one leg as it is: the limit of the medium, without any mirror."""
    leg = directory / "raw.img"
    _sparse(leg, size_bytes)
    yield Target(str(leg))


@contextlib.contextmanager
def raw_both(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give two legs in turns: half of what this reaches is the limit of a mirror's writes."""
    legs = [directory / "both-a.img", directory / "both-b.img"]
    for leg in legs:
        _sparse(leg, size_bytes)
    yield Target(":".join(map(str, legs)), files=2)


@contextlib.contextmanager
def _raidfs(
    directory: pathlib.Path,
    size_bytes: int,
    plane: str,
    *,
    nodes: int = 1,
    legs: int = 2,
    name: str = "plain",
    fuse_uring: bool = False,
) -> Iterator[Target]:
    place = directory / f"raidfs-{plane}-{nodes}-{legs}-{name}"
    mountpoints = [place / f"mnt{number}" for number in range(nodes)]
    for mountpoint in mountpoints:
        mountpoint.mkdir(parents=True)
    images = [str(place / name) for name in ("a.img", "b.img")]
    _run(sys.executable, "-m", "raidfs", "create", "--assume-clean", "--size", str(size_bytes), *images)
    options = ["--plane", plane] + (["--fuse-uring"] if fuse_uring else []) + (["--run"] if legs < len(images) else [])
    with contextlib.ExitStack() as mounted:
        pids = []
        for mountpoint in mountpoints:
            _run(sys.executable, "-m", "raidfs", "mount", *options, *images[:legs], str(mountpoint))
            mounted.callback(_run, sys.executable, "-m", "raidfs", "umount", str(mountpoint))
            with client.find(str(mountpoint)) as node:
                pids.append(node.hello.pid)
        files = [str(mountpoint / "md0") for mountpoint in mountpoints]
        yield Target(files[0], files[1] if nodes > 1 else "", tuple(pids))


def native(directory: pathlib.Path, size_bytes: int) -> AbstractContextManager[Target]:
    """Give one node of an array of two legs, mounted as a user mounts it where the kernel is as it comes."""
    return _raidfs(directory, size_bytes, "native")


@contextlib.contextmanager
def native_uring(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give the same with FUSE over io_uring."""
    with contextlib.ExitStack() as stack:
        with _fuse_uring():
            target = stack.enter_context(_raidfs(directory, size_bytes, "native", name="uring", fuse_uring=True))
        yield target


@contextlib.contextmanager
def _fuse_uring() -> Iterator[None]:
    """Let the kernel offer FUSE over io_uring in the block; a mount keeps what it got."""
    if not os.access(_ENABLE_URING, os.W_OK):
        raise TargetMissing("the kernel has no FUSE over io_uring, or it cannot be switched on by us")
    before = _ENABLE_URING.read_text()
    try:
        _ENABLE_URING.write_text("Y")
        yield
    finally:
        _ENABLE_URING.write_text(before)


def portable(directory: pathlib.Path, size_bytes: int) -> AbstractContextManager[Target]:
    """Give the same with the portable plane."""
    return _raidfs(directory, size_bytes, "pyfuse3")


def degraded(directory: pathlib.Path, size_bytes: int) -> AbstractContextManager[Target]:
    """Give a node of an array that has lost one of its two legs."""
    return _raidfs(directory, size_bytes, "native", legs=1)


@contextlib.contextmanager
def checked(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give a node whose array is compared leg by leg all the time (``raidfs check``), as a resync would read it."""
    with _raidfs(directory, size_bytes, "native", name="checked") as target:
        mountpoint = str(pathlib.Path(target.file).parent)
        command = (sys.executable, "-m", "raidfs", "check", mountpoint, "--wait")
        yield dataclasses.replace(target, meanwhile=command)


def two_nodes(directory: pathlib.Path, size_bytes: int) -> AbstractContextManager[Target]:
    """Give two nodes of one array."""
    return _raidfs(directory, size_bytes, "native", nodes=2)


@contextlib.contextmanager
def null(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give a file on our plane that is only copied from and to memory: the limit of FUSE."""
    with _null(directory, size_bytes) as target:
        yield target


@contextlib.contextmanager
def null_uring(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
    """Give the same with FUSE over io_uring."""
    with contextlib.ExitStack() as stack:
        with _fuse_uring():
            target = stack.enter_context(_null(directory, size_bytes, "on"))
        yield target


@contextlib.contextmanager
def _null(directory: pathlib.Path, size_bytes: int, *words: str) -> Iterator[Target]:
    if directory.resolve().parent != pathlib.Path("/dev/shm"):
        raise TargetMissing("there is nothing but memory behind it, it is measured beside legs in memory")
    mountpoint = directory / "-".join(("null", *words))
    mountpoint.mkdir()
    command = [sys.executable, "-m", "benchmarks.null_server", str(mountpoint), str(size_bytes), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise TargetMissing("the null server did not start")
        yield Target(str(mountpoint / "null"), pids=(process.pid,))
    finally:
        _run("fusermount3", "-u", str(mountpoint))
        process.communicate()


@contextlib.contextmanager
def qemu(directory: pathlib.Path, size_bytes: int) -> Iterator[Target]:
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
        yield Target(str(export), pids=(process.pid,))
    finally:
        process.terminate()
        process.communicate()


TARGETS: dict[str, Opener] = {
    "raw": raw,
    "raw-both": raw_both,
    "null": null,
    "null-uring": null_uring,
    "qemu": qemu,
    "raidfs": native,
    "raidfs-uring": native_uring,
    "raidfs-pyfuse3": portable,
    "raidfs-degraded": degraded,
    "raidfs-checked": checked,
    "raidfs-two-nodes": two_nodes,
}

TITLES = {
    "raw": "raw file, one leg, no FUSE",
    "raw-both": "raw files, both legs in turns",
    "null": "null FUSE server: copies to memory only",
    "null-uring": "null FUSE server, over io_uring",
    "qemu": "qemu-storage-daemon, quorum of 2, FUSE export",
    "raidfs": "raidfs, 2 legs",
    "raidfs-uring": "raidfs, 2 legs, FUSE over io_uring",
    "raidfs-pyfuse3": "raidfs, 2 legs, pyfuse3 plane",
    "raidfs-degraded": "raidfs, degraded",
    "raidfs-checked": "raidfs, during a check",
    "raidfs-two-nodes": "raidfs, two nodes at once",
}


def measures(target: str, row: str) -> bool:
    """Tell whether a row means something for a target."""
    if row == TWO_NODES:
        return target == "raidfs-two-nodes"
    if target == "raidfs-two-nodes":
        return False
    return target != "raw-both" or row in _WRITES


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
