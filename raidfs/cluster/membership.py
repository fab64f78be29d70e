"""Who is a member: slots, who holds them, and the token that serialises joining and metadata.

A userspace lock space gives no slot numbers (fs/dlm calls recover_slot for kernel users only), so a node claims the
lowest free slot itself: ``alive%04d`` in EX, then ``bitmap%04d`` in PW, md's own sign that a node runs with that slot.
``alive`` is apart from ``bitmap`` because joiners probe the bitmaps with NOQUEUE and survivors will queue on ``alive``.
Every join happens under ``token`` EX, so two joins, or a join and a metadata update, never overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from raidfs.errors import LockRefused, LockspaceLost, NoFreeSlot, SlotOutOfRange, SlotTaken
from raidfs.lock.api import Lock, Lockspace, Mode
from raidfs.runtime import Runtime


def alive_name(slot: int) -> str:
    """Return the resource that the owner of a slot holds in EX as long as it lives."""
    return f"alive{slot:04d}"


def bitmap_name(slot: int) -> str:
    """Return md's resource of a slot's bitmap; its owner holds it in PW."""
    return f"bitmap{slot:04d}"


class Membership:
    """The locks by which a node is a member of an array's lock space."""

    def __init__(self, runtime: Runtime, lockspace: Lockspace, nodes: int) -> None:
        self._runtime = runtime
        self.lockspace = lockspace
        self.nodes = nodes
        self.slot: int | None = None
        self._locks: dict[str, Lock] = {}

    async def lock(self, resource: str, *, on_blocking: Callable[[Mode], None] | None = None) -> Lock:
        """Return this node's lock on a resource; it is created in NL once, with ``on_blocking``, and kept.

        Holding NL on everything is what lets a survivor hear that a value block has become invalid.
        """
        if resource not in self._locks:
            self._locks[resource] = await self.lockspace.lock(resource, on_blocking=on_blocking)
        return self._locks[resource]

    @contextlib.asynccontextmanager
    async def token(self) -> AsyncIterator[None]:
        """Hold ``token`` in EX for a block; waits for the node that has it.

        A block that fails keeps it: who cannot join leaves the lock space, and token and slot are free at once. Given
        back before, others would find a member that says nothing of itself.
        """
        token = await self.lock("token")
        await token.convert(Mode.EX)
        yield
        await self._give_back(token)

    async def claim_slot(self, wanted: int | None = None) -> int:
        """Claim ``wanted`` or the lowest free slot and its bitmap; to be called under the token.

        Raises SlotOutOfRange, SlotTaken, NoFreeSlot.
        """
        if wanted is not None and not 0 <= wanted < self.nodes:
            raise SlotOutOfRange(slot=wanted, nodes=self.nodes, last=self.nodes - 1)
        for slot in range(self.nodes) if wanted is None else (wanted,):
            alive = await self.lock(alive_name(slot))
            try:
                await alive.convert(Mode.EX, noqueue=True)
            except LockRefused:
                async with self.idle_slot(slot) as idle:
                    if not idle:
                        continue
                await alive.convert(
                    Mode.EX
                )  # its owner is gone; only survivors who just heard of that hold it, briefly
            bitmap = await self.lock(bitmap_name(slot))
            await bitmap.convert(Mode.PW)
            self.slot = slot
            return slot
        holders = await self.members()
        if wanted is not None:
            raise SlotTaken(slot=wanted, holder=holders.get(wanted, "another node"))
        raise NoFreeSlot(nodes=self.nodes, holders=", ".join(holders[slot] for slot in sorted(holders)))

    async def members(self) -> dict[int, str]:
        """Return the slots that are alive, with the names of their nodes."""
        found = {}
        for resource in await self.lockspace.query():
            if resource.name.startswith("alive"):
                for lock in resource.locks:
                    if lock.granted == Mode.EX:
                        found[int(resource.name[len("alive") :])] = lock.client
        return found

    @contextlib.asynccontextmanager
    async def idle_slot(self, slot: int) -> AsyncIterator[bool]:
        """Hold another slot's bitmap for a block if its node does not run; yields whether that is so."""
        bitmap = await self.lock(bitmap_name(slot))
        try:
            try:
                await bitmap.convert(Mode.PW, noqueue=True)
            except LockRefused:
                is_idle = False
            else:
                is_idle = True
            yield is_idle
        finally:
            await self._give_back(bitmap)

    async def _give_back(self, lock: Lock) -> None:
        """Convert to NL, also while being cancelled: a wait that was cancelled may have been granted just before."""
        if self.lockspace.lost is not None or lock.mode is Mode.NL:
            return
        with self._runtime.cancel_scope(shield=True), contextlib.suppress(LockspaceLost):
            await lock.convert(Mode.NL)

    async def wait_gone(self, slot: int) -> None:
        """Return when the owner of another slot has gone: left, or died and its locks were purged (section 2.4)."""
        alive = await self.lock(alive_name(slot))
        try:
            await alive.convert(Mode.PR)
        finally:
            await self._give_back(alive)

    async def alone(self) -> bool:
        """Tell whether no other slot is alive; the answer holds as long as the caller holds the token."""
        for slot in range(self.nodes):
            if slot == self.slot:
                continue
            alive = await self.lock(alive_name(slot))
            try:
                await alive.convert(Mode.EX, noqueue=True)
            except LockRefused:
                return False
            await alive.convert(Mode.NL)
        return True
