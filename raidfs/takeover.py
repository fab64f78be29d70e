"""The slots of nodes that do not run: whoever finds bits there makes them its own, and heals their chunks.

A slot is idle when ``bitmap%04d`` is granted in PW at once; its owner would hold it. Everything here happens under the
token, so bits never change their slot while somebody else looks, and of several survivors the first to look takes all
(P5: exactly one of them). The order is

1. read the slot's bits and import them: the chunks are NEEDED here from now on;
2. make the own slot durable with them;
3. only then clear the other slot on all legs, durably (invariant 10).

A crash between 2 and 3 leaves the bits in both, which costs a resync; the other way round it would cost the data. The
bits are counted, so that a slot with nothing but chunk 0 is not taken for an empty one (W5).

Slots whose nodes run are doubted (`raidfs.array.doubt`) and those nodes watched: their death is noticed even if nothing
was ever heard of them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from raidfs.array.array import Array
from raidfs.cluster.channel import Channel
from raidfs.format.bitmap import SUPER_BYTES, count_dirty
from raidfs.remote_resync import RemoteResync

log = logging.getLogger(__name__)


class Takeover:
    """What a node knows of the slots of others; ``watch(slot)`` is called for each whose node runs.

    ``on_taken()`` is called when chunks were found that have to be healed here.
    """

    def __init__(
        self,
        array: Array,
        channel: Channel,
        remote: RemoteResync,
        watch: Callable[[int], None],
        on_taken: Callable[[], None],
    ) -> None:
        self.recovery_map: set[int] = set()  # slots that somebody has left with work to do, or has died in
        self._array = array
        self._channel = channel
        self._membership = channel.membership
        self._remote = remote
        self._watch = watch
        self._on_taken = on_taken
        self._gone: set[int] = set()  # slots whose nodes have died, until their bits are known
        self.on_bits_found: Callable[[], None] = lambda: None  # in one step with the import
        remote.on_orphan = self.suspect

    # ---- under the token -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def slots(self) -> AsyncIterator[list[int]]:
        """Look at all slots of others and import what idle ones hold; yields those to be cleared.

        They are held for the block, at whose end they are cleared: the own slot has to be durable by then. The caller
        has the token.
        """
        array = self._array
        async with contextlib.AsyncExitStack() as held:
            doubted = []
            found = {}
            for slot in range(array.layout.nodes):
                if slot == self._channel.slot:
                    continue
                idle = await held.enter_async_context(self._membership.idle_slot(slot))
                data = await array.read_slot(slot)
                if not idle:
                    self._watch(slot)
                if idle and not array.read_only:
                    if count_dirty(data[SUPER_BYTES:], array.layout.bits):
                        found[slot] = data
                else:
                    doubted.append(data)
            for slot, data in found.items():
                count = array.import_slot(data)
                log.info("slot %d, whose node does not run, has %d dirty chunks: taken over", slot, count)
            array.doubts.add(doubted)
            self._remote.bits_found()
            self.on_bits_found()
            yield sorted(found)
            if array.has_blocked_legs():
                log.warning("a leg has failed, so slots %s keep their bits until the next look", sorted(found))
                return  # it may lack our own bits, and it is not recorded yet that it does not count
            for slot, data in found.items():
                await array.clear_slot(slot, data)

    async def look(self) -> None:
        """Take the token, take over what is to be taken over."""
        await self._channel.lock_comm(mddev_locked=False)
        try:
            async with self.slots() as found:
                if found:
                    await self._array.sweep_under_token()
        finally:
            await self._channel.unlock_comm()
        if found:
            self._on_taken()

    async def review_doubts(self) -> None:
        """Trust chunks again whose bits no other slot has any more."""
        array = self._array
        if not array.doubts or array.only_one_in_sync():
            return
        await self._channel.lock_comm(mddev_locked=False)
        try:
            others = [slot for slot in range(array.layout.nodes) if slot != self._channel.slot]
            array.doubts.keep([await array.read_slot(slot) for slot in others])
        finally:
            await self._channel.unlock_comm()

    # ---- a node has gone -------------------------------------------------------------------------------------------

    def suspect(self, slot: int) -> None:
        """A node has gone, and what it was writing is not known yet: all nodes read the first leg until it is."""
        self._gone.add(slot)
        self._array.port.engine.read_first(True)

    def left_with_work(self, slot: int) -> None:
        """A node leaves with bits in its slot (BITMAP_NEEDS_SYNC); they are taken over when it has gone."""
        self.recovery_map.add(slot)

    async def peer_gone(self, slot: int) -> None:
        """Take over what a node has left that has gone, and end the sync that it may have been at.

        Its range stays suspended, and reads stay at the first leg, until its bits are known (B17).
        """
        self.suspect(slot)
        self.recovery_map.add(slot)
        await self.look()
        self._remote.gone(slot)
        self._gone.discard(slot)
        self.recovery_map.discard(slot)
        if not self._gone:
            self._array.port.engine.read_first(False)
        self._on_taken()
