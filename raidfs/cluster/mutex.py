"""The two local mutexes of the channel, on the runtime's wait queues."""

from __future__ import annotations

from raidfs.runtime import Runtime, WaitQueue


class Mutex:
    """A mutex of tasks; whoever waits longest is not served first, as in md nobody relies on it."""

    def __init__(self, wqueue: WaitQueue, name: str) -> None:
        self.name = name
        self.owner: str | None = None
        self._wqueue = wqueue

    def trylock(self, owner: str) -> bool:
        """Take it if it is free."""
        if self.owner is not None:
            return False
        self.owner = owner
        return True

    async def lock(self, owner: str) -> None:
        """Wait for it and take it; ``owner`` says who, for whoever waits after us."""
        await self._wqueue.wait_event(lambda: self.trylock(owner), what=f"{self.name}, held by {self.owner}")

    def unlock(self) -> None:
        """Give it back and wake everybody who may want it."""
        assert self.owner is not None, f"{self.name} is not locked"
        self.owner = None
        self._wqueue.wake_up()


class ReconfigMutex(Mutex):
    """md's ``reconfig_mutex``: whoever changes what the array is made of holds it.

    Its wait queue is that of md's array thread (``mddev->thread->wqueue``): the receiver waits there for the mutex *or*
    for HOLDING_MUTEX_FOR_RECVD, so every release and every setting of that flag wakes the same queue. Forget either
    wake-up and a receiver sleeps on while its condition holds.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.wqueue = runtime.wait_queue()
        super().__init__(self.wqueue, "reconfig_mutex")
