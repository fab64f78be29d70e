"""Looking for images of an array that nobody has named, read-only.

mdadm finds devices by asking udev for ``UUID_SUB``; images that are files are in no such list. So raidfs looks where
the images of an array use to be: in the directories of the legs it has, in ``/dev``, and where the user says
(``mount --search``). Directories are not descended into.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator

from raidfs.array.head import read_superblock_area
from raidfs.array.images import open_image
from raidfs.errors import RaidfsError
from raidfs.format.superblock import Superblock

DEVICES = "/dev"
ENTRIES_MAX = 4096  # of one directory that are looked at


@dataclasses.dataclass(frozen=True)
class Found:
    """An image of the array, and its superblock."""

    path: str
    superblock: Superblock


def find_images(set_uuid: bytes, directories: Iterable[str]) -> list[Found]:
    """Return the images of an array in some directories, one name for each; what cannot be read is passed over.

    In ``/dev`` only block devices are looked at, elsewhere regular files too.
    """
    found: list[Found] = []
    seen: set[tuple[str, int, int]] = set()
    for directory in dict.fromkeys(os.path.realpath(directory) for directory in directories):
        for path in _entries(directory):
            with contextlib.suppress(RaidfsError, OSError), open_image(path) as image:
                if image.identity in seen:
                    continue
                superblock = Superblock.decode(read_superblock_area(image), path=path)
                if superblock.set_uuid == set_uuid:
                    seen.add(image.identity)
                    found.append(Found(path, superblock))
    return found


def places(legs: Iterable[str], search: Iterable[str]) -> list[str]:
    """Return the directories to look in: those of the legs, ``/dev``, and the user's."""
    return [*(os.path.dirname(os.path.realpath(path)) for path in legs), DEVICES, *search]


def _entries(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries):
                if count >= ENTRIES_MAX:
                    return
                with contextlib.suppress(OSError):
                    mode = entry.stat().st_mode
                    if stat.S_ISBLK(mode) or (stat.S_ISREG(mode) and directory != DEVICES):
                        yield entry.path
    except OSError:
        return
