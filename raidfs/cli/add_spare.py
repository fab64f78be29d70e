"""``raidfs add-spare``: give the array a spare."""

from __future__ import annotations

import argparse
import os

from raidfs.cli import leg_command
from raidfs.control import client

_DESCRIPTION = """
As `raidfs add`, but what the image held as a leg of this array is not used: it becomes a spare and, where a leg is
missing, is recovered from the beginning.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = leg_command.make_parser(subparsers, "add-spare", help="add an image as a spare", description=_DESCRIPTION)
    leg_command.add_force(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        leg_command.add_image(node, os.path.abspath(args.image), spare=True, force=args.force)
    return 0
