"""``resync`` in EX: of all tasks on all nodes one at a time syncs the array or changes its size.

The lock of the cluster keeps nodes apart and a mutex the tasks of this node, which share that lock.
"""

from __future__ import annotations

from raidfs.cluster.channel import Channel
from raidfs.cluster.mutex import Mutex
from raidfs.errors import LockRefused, SyncElsewhere
from raidfs.lock.api import Mode


class ResyncLock:
    """The right to sync or to resize; ``waiting`` tells that a task of this node waits for other nodes."""

    def __init__(self, channel: Channel) -> None:
        self.waiting = False
        self._channel = channel
        self._mutex = Mutex(channel.runtime.wait_queue(), "resync")

    @property
    def held(self) -> bool:
        """Whether a task of this node has it, or waits for it."""
        return self._mutex.owner is not None

    async def lock(self, owner: str) -> None:
        """Wait for it; ``owner`` says what for."""
        await self._mutex.lock(owner)
        try:
            resync = await self._channel.membership.lock("resync")
            self.waiting = True
            await resync.convert(Mode.EX)
        except BaseException:
            await self.unlock()
            raise
        finally:
            self.waiting = False

    async def trylock(self, owner: str) -> None:
        """Take it, or raise SyncElsewhere, which names who has it."""
        if not self._mutex.trylock(owner):
            raise SyncElsewhere(holder=await self.holder() or "this node")
        try:
            resync = await self._channel.membership.lock("resync")
            await resync.convert(Mode.EX, noqueue=True)
        except LockRefused:
            self._mutex.unlock()
            raise SyncElsewhere(holder=await self.holder() or "another node") from None
        except BaseException:
            await self.unlock()
            raise

    async def close(self) -> None:
        """The node leaves: wait for the task that has it; nobody gets it any more."""
        await self._mutex.lock("leaving")

    async def unlock(self, *, keep: bool = False) -> None:
        """Give it back; ``keep`` leaves it to this node until that leaves the lock space."""
        try:
            resync = await self._channel.membership.lock("resync")
            if not keep and self._channel.lockspace.lost is None and resync.mode is not Mode.NL:
                with self._channel.runtime.cancel_scope(shield=True):
                    await resync.convert(Mode.NL)
        finally:
            self._mutex.unlock()

    async def holder(self) -> str | None:
        """Return the name of the node that has it."""
        for resource in await self._channel.lockspace.query():
            if resource.name == "resync":
                return next((lock.client for lock in resource.locks if lock.granted is Mode.EX), None)
        return None
