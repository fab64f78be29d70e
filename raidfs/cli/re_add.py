"""``raidfs re-add``: take back a leg that was one before."""

from __future__ import annotations

import argparse
import os

from raidfs.cli import leg_command
from raidfs.control import client

_DESCRIPTION = """
Take back a leg that was failed or removed, on all nodes, as `mdadm --re-add` does: only what has been written since is
copied, as the bitmaps tell. A leg of which they cannot tell that is recovered as a whole.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = leg_command.make_parser(
        subparsers, "re-add", help="take back a leg that was failed or removed", description=_DESCRIPTION
    )
    leg_command.add_wait(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        node.call("re_add", timeout_s=None, path=os.path.abspath(args.image))
    leg_command.wait_if_told(args)
    return 0
