"""Slots: held for a while, and given back whatever happens meanwhile."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from raidfs.cluster.membership import Membership, bitmap_name
from raidfs.lock.api import Mode
from raidfs.runtime import TrioRuntime
from raidfs.sim.locks import SimulatedLocks

DELAY_S = 2.0  # of each message, to the lock manager and back


async def test_an_idle_slot_that_was_granted_just_before_its_wait_was_cancelled_is_given_back(
    autojump_clock: MockClock,
) -> None:
    runtime = TrioRuntime()
    locks = SimulatedLocks(runtime, delay_s=lambda: DELAY_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(locks.run)
        one, other = [
            Membership(runtime, await locks.connect().hub.open_lockspace("a", cluster_name="c", client=name), 4)
            for name in ("one", "other")
        ]
        async with one.idle_slot(0) as idle:
            assert idle
        for cancelled_after_s in (1.0, 3.0, 5.0):  # on its way there, on its way back, while it is held
            with trio.move_on_after(cancelled_after_s):
                async with one.idle_slot(0):
                    await trio.sleep_forever()
            bitmap = await other.lock(bitmap_name(0))
            with trio.fail_after(60):
                await bitmap.convert(Mode.PW)
            await bitmap.convert(Mode.NL)
        nursery.cancel_scope.cancel()
