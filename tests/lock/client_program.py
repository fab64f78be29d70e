"""A client of the embedded lock server in a process of its own, to be killed by the tests.

Reads commands from standard input, one in a line, and answers each with one line:

    convert RESOURCE MODE HEX|-    hold RESOURCE in MODE (value block set before the conversion)  -> MODE
    start RESOURCE MODE            ask for MODE and go on without waiting                         -> started
"""

from __future__ import annotations

import sys

import trio
import trio.testing

from raidfs.lock.address import parse_address
from raidfs.lock.api import Lock, Mode
from raidfs.lock.client import connected
from raidfs.runtime import TrioRuntime


async def main(address: str, space_name: str, cluster_name: str) -> None:
    locks: dict[str, Lock] = {}
    async with (
        connected(parse_address(address), runtime=TrioRuntime()) as manager,
        trio.open_nursery() as nursery,
    ):
        space = await manager.open_lockspace(space_name, cluster_name=cluster_name, client="doomed")
        print("joined", flush=True)
        async for line in trio.wrap_file(sys.stdin):
            command, resource, mode, *rest = line.split()
            if resource not in locks:
                locks[resource] = await space.lock(resource)
            if command == "start":
                nursery.start_soon(locks[resource].convert, Mode[mode])
                await trio.testing.wait_all_tasks_blocked()
                await space.query()  # a round trip: the server has carried out what came before
                print("started", flush=True)
            else:
                if rest[0] != "-":
                    locks[resource].lvb = bytes.fromhex(rest[0])
                await locks[resource].convert(Mode[mode])
                print(locks[resource].mode.name, flush=True)


if __name__ == "__main__":
    _, ADDRESS, SPACE_NAME, CLUSTER_NAME = sys.argv
    trio.run(main, ADDRESS, SPACE_NAME, CLUSTER_NAME)
