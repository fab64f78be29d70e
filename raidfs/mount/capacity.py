"""The size of the block file that the kernel knows, after the array's capacity has changed.

The kernel asks for a file's size when somebody looks at the file's attributes, and keeps it: without that an
asynchronous read of new space returns 0 bytes (fs/fuse/file.c, fuse_direct_IO), and a loop device over the file does
not find any. So it is told that what it knows is not valid, and is made to ask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from raidfs.mount import wire
from raidfs.mount.operations import BLOCK_FILE_INODE

log = logging.getLogger(__name__)

# A kernel that does not answer must not keep the cluster waiting: whoever changes the capacity waits for all nodes.
TOLD_WITHIN_S = 3.0


class KernelSize:
    """Tells the kernel of a new size of ``path``, the block file as it is mounted.

    ``notify`` sends a message to ``/dev/fuse``; ``asked`` says how often the kernel has asked for the file's attributes
    so far. It asks in a thread of its own, since the answer comes from this one.
    """

    def __init__(self, path: str, notify: Callable[[bytes], None], asked: Callable[[], int]) -> None:
        self._path = path
        self._notify = notify
        self._asked = asked
        self._thread = trio.CapacityLimiter(1)  # one that got no answer is left behind, and must not become many

    async def tell(self, size_bytes: int) -> None:
        """Return when the kernel knows the size, or after a few seconds and a line in the log."""
        with trio.move_on_after(TOLD_WITHIN_S) as patience:
            try:
                await self._ask_until_known()
            except FileNotFoundError:
                log.debug("%s is not mounted, nobody has to be told of its size", self._path)
            except OSError as e:
                log.warning("%s: the kernel could not be told of the size of %d bytes: %s", self._path, size_bytes, e)
        if patience.cancelled_caught:
            log.warning("%s: the kernel does not take notice of the size of %d bytes", self._path, size_bytes)

    async def _ask_until_known(self) -> None:
        # What was asked for while a write ended is thrown away (fuse_change_attributes looks at the inode's
        # attr_version). When the kernel answers without asking us it has kept what we said last.
        self._notify(wire.invalidation(BLOCK_FILE_INODE))
        asked = -1
        while asked != self._asked():
            asked = self._asked()
            await trio.to_thread.run_sync(os.stat, self._path, abandon_on_cancel=True, limiter=self._thread)
