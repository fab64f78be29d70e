"""``raidfs remove``: take a leg out of the array."""

from __future__ import annotations

import argparse
import os

from raidfs.cli import leg_command
from raidfs.control import client

_DESCRIPTION = """
Take a leg that is faulty, or a spare, out of the array on all nodes, as `mdadm --remove` does; they have closed its
image when the command returns. A leg in use has to be failed first: `raidfs fail`.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    leg_command.make_parser(
        subparsers, "remove", help="take a faulty leg or a spare out of the array", description=_DESCRIPTION
    )


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        node.call("remove", timeout_s=None, path=os.path.abspath(args.image))
    return 0
