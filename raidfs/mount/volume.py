"""What the mount needs from a node, and nothing more: the interface between the FUSE side and the array.

`raidfs.node` implements it over the engine; the tests of the mount implement it over a bytearray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from raidfs._backend_threads import ThreadBackend
from raidfs._core import Engine
from raidfs.control.schema import NodeStatus
from raidfs.errors import RaidfsError
from raidfs.resize_plan import Change

CapacityHook = Callable[[int], Awaitable[None]]


class BlockVolume(Protocol):
    """The array as one range of bytes. Any alignment is allowed; the engine orders overlapping writes.

    Every method raises OSError with the errno that the caller of the system call shall see: EIO when no leg is
    left or the node has lost its membership, EROFS on a read-only node, ENOSPC for writes at or beyond the end.
    """

    name: str
    block_size_bytes: int

    @property
    def size_bytes(self) -> int:
        """How much can be read and written now: the array's capacity, which a resize changes."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at ``offset``; fewer than ``length`` only at the end of the volume."""

    async def write(self, offset: int, data: bytes, *, durable: bool) -> int:
        """Write and return the number of bytes taken, which is less than given only at the end of the volume.

        With ``durable`` the bytes are on stable storage of all good legs when it returns (O_DSYNC).
        """

    async def flush(self) -> None:
        """Return when everything written before is on stable storage of all good legs (fdatasync of each)."""


class ServedNode(Protocol):
    """A node that has joined its array, as the daemon sees it."""

    @property
    def volume(self) -> BlockVolume:
        """The bytes of the array."""

    @property
    def uuid(self) -> str:
        """The array's UUID, printed as mdadm does (``xxxxxxxx:xxxxxxxx:xxxxxxxx:xxxxxxxx``)."""

    @property
    def engine(self) -> Engine | None:
        """The array's engine, for the native plane; None when there is nothing but `volume`."""

    def tell_capacity(self, hook: CapacityHook) -> None:
        """Have ``hook(size_bytes)`` awaited whenever ``volume.size_bytes`` has changed, before that is acknowledged."""

    @property
    def lifelines(self) -> Sequence[int]:
        """Descriptors by whose end others learn that this process is dead; who writes to legs must not outlive them."""

    def leg_threads(self) -> ThreadBackend | None:
        """Return the pool with the legs' descriptors; None when the native plane must leave leg operations alone."""

    def status(self) -> NodeStatus:
        """Return everything that ``raidfs status`` tells, of this moment, without waiting.

        The daemon replaces what a node cannot know of its place: mountpoint, pid, host, since_s and plane.
        """

    async def refresh(self) -> None:
        """Bring what `status` tells of other nodes up to date."""

    async def fail(self, path: str) -> None:
        """Make the leg with that image faulty on all nodes (``raidfs fail``)."""

    async def sync_action(self, action: str) -> None:
        """Begin or end a sync: ``resync``, ``check``, ``repair`` or ``idle`` (md: sync_action).

        Returns when it has been asked for and not when it is over; ``idle`` when nothing runs any more.
        """

    async def remove(self, path: str) -> None:
        """Take the leg with that image, faulty or a spare, out of the array on all nodes (``raidfs remove``)."""

    async def add(self, path: str, *, spare: bool, force: bool) -> None:
        """Add an image to the array on all nodes (``raidfs add``); with ``spare`` it stays one (``add-spare``).

        ``force`` overwrites what the image holds.
        """

    async def re_add(self, path: str) -> None:
        """Take the leg with that image back, which was a member before, on all nodes (``raidfs re-add``)."""

    async def grow(self, change: Change) -> None:
        """Change the array's size, its number of legs or the chunk of its bitmap, on all nodes (``raidfs grow``)."""

    async def check_grow(self, change: Change) -> tuple[list[tuple[str, str]], RaidfsError | None]:
        """Return the steps of that with what was found, and what stands against it (``raidfs grow --dry-run``)."""

    async def touch(self) -> None:
        """Do one metadata update that changes nothing but the event count, on all nodes; for tests and measuring."""

    async def explain(self) -> dict[str, Any]:
        """Return the document of ``raidfs explain``: who waits for what."""

    async def suspend_range(self, lo_bytes: int, hi_bytes: int) -> None:
        """Park new writes into ``[lo_bytes, hi_bytes)`` until the range is lifted (md's suspend_lo, suspend_hi).

        Returns when no older write into the range is in flight. Reads go on. ``0, 0`` lifts the range.
        """
