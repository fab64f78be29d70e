"""``raidfs fail``: make a leg faulty on all nodes."""

from __future__ import annotations

import argparse
import os

from raidfs.control import client

_DESCRIPTION = """
Make a leg faulty, as `mdadm --fail` does: it is recorded in the superblocks of the other legs and every node leaves
the leg out; when the command returns all of them have. The last leg in sync is never failed. A node that cannot
follow is named with its reason.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "fail",
        help="make a leg faulty on all nodes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("image", metavar="IMG", help="the leg's image")


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        node.call("fail", timeout_s=None, image=os.path.abspath(args.image))
    return 0
