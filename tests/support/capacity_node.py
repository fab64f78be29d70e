"""A node of a real array whose capacity its standard input says, one number of bytes in each line.

python -m support.capacity_node MOUNTPOINT PLANE IMG...
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator

import trio

from raidfs.mount import daemon, logs
from raidfs.mount.options import PLANES, MountOptions
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.runtime import Runtime
from raidfs.units import SECTOR_BYTES


async def _obey(node: Node) -> None:
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        await node.array.set_capacity(int(line) // SECTOR_BYTES)
        print(line, end="", flush=True)


@contextlib.asynccontextmanager
async def _obeying(runtime: Runtime, options: NodeOptions) -> AsyncIterator[Node]:
    async with open_node(runtime, options) as node, trio.open_nursery() as nursery:
        nursery.start_soon(_obey, node)
        yield node
        nursery.cancel_scope.cancel()


def main() -> None:
    directory, plane, *images = sys.argv[1:]
    logs.set_up()
    options = MountOptions(
        mountpoint=os.path.abspath(directory),
        node=NodeOptions(images=tuple(images), client_name="test"),
        plane=PLANES[PLANES.index(plane)],
    )
    daemon.run_daemon(options, _obeying, on_ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
