"""``raidfs add``: give the array an image."""

from __future__ import annotations

import argparse
import os

from raidfs.cli import leg_command
from raidfs.control import client

_DESCRIPTION = """
Add an image on all nodes, as `mdadm --add` does. Each node has to see it: in a directory of the present legs, in /dev,
or where its `mount --search` says; one that does not is named, and nothing is added. Where a leg is missing the image
takes its place and is recovered while all nodes go on; else it becomes a spare. One that was a leg of this array is
taken back with what it has, as `raidfs re-add` does, if that is possible. What another image holds is overwritten,
after a question on a terminal or with --force.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = leg_command.make_parser(
        subparsers, "add", help="add an image, as a leg where one is missing", description=_DESCRIPTION
    )
    leg_command.add_force(parser)
    leg_command.add_wait(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        leg_command.add_image(node, os.path.abspath(args.image), spare=False, force=args.force)
    leg_command.wait_if_told(args)
    return 0
