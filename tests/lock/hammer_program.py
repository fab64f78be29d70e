"""A client that converts as fast as it can and checks what locks are for; runs until its standard input ends.

Under EX of ``counter`` it adds 1 to a number in a file and publishes it in the value block; whoever reads a valid
value block finds the number of the file in it. ``r0`` and ``r1`` are converted at random, with waits that are given up.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Awaitable, Callable

import trio
import trio.lowlevel

from raidfs.errors import LockDeadlock, LockRefused, LockspaceLost
from raidfs.lock.address import parse_address
from raidfs.lock.api import Lock, Mode
from raidfs.lock.client import connected
from raidfs.runtime import TrioRuntime


async def count(lock: Lock, counter_fd: int) -> None:
    while True:
        await lock.convert(Mode.EX)
        number = int.from_bytes(os.pread(counter_fd, 8, 0), "little")
        if lock.lvb_valid and int.from_bytes(lock.lvb[:8], "little") != number:
            raise SystemExit(f"the value block says {lock.lvb[:8].hex()}, the file {number}")
        # Leaving in good order does not write the value block, so it must not come between the file and the block.
        with trio.CancelScope(shield=True):
            os.pwrite(counter_fd, (number + 1).to_bytes(8, "little"), 0)
            await trio.lowlevel.checkpoint()
            if int.from_bytes(os.pread(counter_fd, 8, 0), "little") != number + 1:
                raise SystemExit("somebody else counts under our EX")
            lock.lvb = (number + 1).to_bytes(32, "little")
            await lock.convert(Mode.NL)


async def wander(lock: Lock, generator: random.Random) -> None:
    while True:
        mode = generator.choice(list(Mode))
        try:
            with trio.move_on_after(generator.choice([0.0, 0.001, 0.02])):
                await lock.convert(mode, noqueue=generator.random() < 0.2)
        except (LockRefused, LockDeadlock):
            await lock.convert(Mode.NL)


async def main(address: str, counter_path: str, seed: str) -> None:
    generator = random.Random(seed)
    counter_fd = os.open(counter_path, os.O_RDWR)
    async with (
        connected(parse_address(address), runtime=TrioRuntime()) as manager,
        trio.open_nursery() as nursery,
    ):
        space = await manager.open_lockspace("hammer", cluster_name="tests", client=f"hammer {seed}")

        # A task may come round to its next conversion after this client has left; another loss is told at the end.
        async def until_left(fn: Callable[..., Awaitable[None]], *args: object) -> None:
            with contextlib.suppress(LockspaceLost):
                await fn(*args)

        async def count_to_the_end(lock: Lock) -> None:
            try:
                await count(lock, counter_fd)
            finally:
                counting_ended.set()

        counting_ended = trio.Event()
        nursery.start_soon(until_left, count_to_the_end, await space.lock("counter"))
        for name in ("r0", "r1"):
            nursery.start_soon(until_left, wander, await space.lock(name), generator)
        print("joined", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        if space.lost is not None:
            raise SystemExit(space.lost)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await counting_ended.wait()
            await space.close()


if __name__ == "__main__":
    _, ADDRESS, COUNTER_PATH, SEED = sys.argv
    trio.run(main, ADDRESS, COUNTER_PATH, SEED)
