"""What machines boot from: a root image of Debian packages, and an image with raidfs of this tree.

The first one is the work of ``lab/build-root`` and is kept in the user's cache for all trees; the second of
``lab/build-raidfs``, kept in ``build/lab`` of the tree. Both do nothing when nothing has changed.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence

from lab.machine import PROGRAM
from lab.shape import LabError, cache_directory

HERE = pathlib.Path(__file__).resolve().parent

# What the host needs, and the Debian package that has it.
_NEEDS = {PROGRAM: "qemu-system-x86", "mkfs.ext4": "e2fsprogs", "cpio": "cpio"}

_EXIT_NOT_HERE = 75  # of the build programs: this machine cannot, which is no fault of the tree (EX_TEMPFAIL)

Teller = Callable[[str], None]


class NotHere(LabError):
    """This machine cannot run a lab: a package cannot be had, or a right is missing."""


@dataclasses.dataclass(frozen=True)
class Images:
    """``boot`` is a directory with ``vmlinuz``, ``initrd.gz`` and ``root.ext4``; ``raidfs`` an ext4 image."""

    boot: pathlib.Path
    raidfs: pathlib.Path


def ready(tell: Teller = lambda text: None) -> Images:
    """Return the images of this tree, after making what is missing; NotHere when this machine cannot make them."""
    _install_programs(tell)
    boot = _build("build-root", [str(cache_directory())], tell)
    raidfs = _build("build-raidfs", [boot], tell)
    return Images(pathlib.Path(boot), pathlib.Path(raidfs))


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian keeps mkfs, away from normal users


def _install_programs(tell: Teller) -> None:
    missing = [package for program, package in _NEEDS.items() if shutil.which(program, path=_search_path()) is None]
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise NotHere(f"missing: {names}; this is no Debian, so install them yourself")
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise NotHere(f"missing: {names}; install them as root: apt-get install {names}")
        prefix = ["sudo", "-n"]
    tell(f"installing {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [*prefix, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
    update = [*prefix, "apt-get", "update", "-qq"]
    said = ""
    # The lists of packages may be fresh enough; if not, get them and try again.
    for command in (install, update, install):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
        )
        said = done.stderr
        if done.returncode == 0 and command is install:
            return
    raise NotHere(f"apt-get could not install {names}: {said.strip() or 'it does not say why'}")


def _build(program: str, arguments: Sequence[str], tell: Teller) -> str:
    """Run one of the build programs, pass on what it says on standard error, and return the path that it prints."""
    with subprocess.Popen(
        [HERE / program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": _search_path()},
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        said = ""
        for line in process.stderr:
            said = line.strip()
            tell(said)
        path = process.stdout.read().strip()
    if process.returncode == _EXIT_NOT_HERE:
        raise NotHere(said)
    if process.returncode != 0:
        raise LabError(f"{program} failed ({process.returncode}): {said}")
    return path
