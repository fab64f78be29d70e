"""Making the image files that are missing, and taking them away again when what follows fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from raidfs.errors import ImageAccess

MODE = 0o600  # an image holds all that is in its array


@contextlib.contextmanager
def made_files(paths: Sequence[str], length_bytes: int) -> Iterator[list[str]]:
    """Make sparse files of this length; they are removed again when the block fails.

    Gives the paths. Raises ImageAccess; a file that is there already is such a failure, and stays.
    """
    made: list[str] = []
    try:
        for path in paths:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
                made.append(path)
                try:
                    os.ftruncate(fd, length_bytes)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                _sync_directory(os.path.dirname(path) or ".")
            except OSError as e:
                raise ImageAccess(path=path, doing="make it", reason=os.strerror(e.errno or 0)) from None
        yield made
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.unlink(path)
        raise


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
