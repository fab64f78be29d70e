"""Who is a member: slots, who holds them, and the token that serialises joining and metadata.

A userspace lock space gives no slot numbers (fs/dlm calls recover_slot for kernel users only), so a node claims the
lowest free slot itself: ``alive%04d`` in EX, then ``bitmap%04d`` in PW, md's own sign that a node runs with that slot.
``alive`` is apart from ``bitmap`` because joiners probe the bitmaps with NOQUEUE and survivors will queue on ``alive``.
Every join happens under ``token`` EX, so two joins, or a join and a metadata update, never overlap.

Who runs is a matter of locks: a slot is alive while its ``alive`` is held in EX. A request that waits for it tells so
without asking, and otherwise one with NOQUEUE finds out. The value of ``token`` counts joins, so that who takes the
token looks for new nodes only if there are any. Names of nodes are the lock manager's to tell (`members`), and nothing
is decided by them: on the DLM they come from whoever answers.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable

from raidfs.errors import LockRefused, LockspaceLost, NoFreeSlot, SlotOutOfRange, SlotTaken
from raidfs.lock.api import Lock, Lockspace, Mode
from raidfs.runtime import Runtime

_JOINS = struct.Struct("<Q24x")

# After the count was lost it goes on far from any that somebody may have seen meanwhile.
_JOINS_GAP = 1 << 32


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
        self._watches: dict[int, Lock] = {}  # beside those in _locks, which probe
        self._watched: set[int] = set()  # slots whose end a request waits for
        self._joins_seen: int | None = None
        self._live: set[int] = set()  # slots that were alive when that was the count

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
        self.token_granted()
        yield
        await self._give_back(token)

    def token_granted(self) -> None:
        """Whoever has got the token calls this: a count of joins that was lost with a node does not come back."""
        token = self._locks["token"]
        if not token.lvb_valid:
            token.lvb = _JOINS.pack(max(self._joins(), self._joins_seen or 0) + _JOINS_GAP & (1 << 64) - 1)

    def _joins(self) -> int:
        (count,) = _JOINS.unpack(self._locks["token"].lvb)
        return int(count)

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
            self._locks["token"].lvb = _JOINS.pack(self._joins() + 1 & (1 << 64) - 1)
            return slot
        holders = await self.members()
        if wanted is not None:
            raise SlotTaken(slot=wanted, holder=holders.get(wanted, "another node"))
        raise NoFreeSlot(nodes=self.nodes, holders=", ".join(holders[slot] for slot in sorted(holders)))

    async def members(self) -> dict[int, str]:
        """Return slots and the names of their nodes, as far as the lock manager knows them: for people."""
        found = {}
        for resource in await self.lockspace.query():
            if resource.name.startswith("alive"):
                for lock in resource.locks:
                    if lock.granted == Mode.EX:
                        found[int(resource.name[len("alive") :])] = lock.client
        return found

    async def live_slots(self) -> list[int]:
        """Return the other slots whose nodes run; to be called under the token, so nobody joins meanwhile.

        Asks nobody about slots that are watched, nor about idle ones if no node has joined since the last call.
        """
        joins = self._joins()
        live = set()
        for slot in range(self.nodes):
            if slot == self.slot:
                continue
            may_run = joins != self._joins_seen or slot in self._live
            if slot in self._watched or (may_run and await self.runs(slot)):
                live.add(slot)
        self._joins_seen, self._live = joins, live
        return sorted(live)

    async def runs(self, slot: int) -> bool:
        """Ask whether the node of another slot runs; to be called under the token."""
        alive = await self.lock(alive_name(slot))
        try:
            await alive.convert(Mode.PR, noqueue=True)
        except LockRefused:
            return True
        finally:
            await self._give_back(alive)
        return False

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
        if slot not in self._watches:
            self._watches[slot] = await self.lockspace.lock(alive_name(slot))
        watch = self._watches[slot]
        self._watched.add(slot)
        try:
            await watch.convert(Mode.PR)
        finally:
            self._watched.discard(slot)
            await self._give_back(watch)

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
