"""``raidfs umount``: stop a node cleanly."""

from __future__ import annotations

import argparse

from raidfs.control import client
from raidfs.control.paths import canonical_mountpoint
from raidfs.errors import NoNode

_DESCRIPTION = """
Unmount, then leave the array cleanly: answer what is in flight, write the bitmap, mark the array clean, give up
all locks. Returns when that is done. While anything below MOUNTPOINT is open nothing happens and the command
fails. A mount point whose node has died is cleaned up.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "umount",
        help="stop a node cleanly",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where the node is mounted")


def run(args: argparse.Namespace) -> int:
    """Tell the node, and wait until it has left."""
    try:
        with client.find(args.mountpoint) as node:
            node.call("umount", timeout_s=None)
    except NoNode:
        from raidfs.mount import mountpoint

        path = canonical_mountpoint(args.mountpoint)
        if not mountpoint.is_dead(path):
            raise
        mountpoint.unmount(path)
    return 0
