"""``raidfs grow``: change the shape of a running array."""

from __future__ import annotations

import argparse
import os
import sys

from raidfs.cli import leg_command
from raidfs.control import client
from raidfs.errors import RaidfsError

_DESCRIPTION = """
Change how many legs the array shall have, while all nodes use it. More: spares take the new positions and are
recovered; --add brings one along. Fewer: legs have to be failed and removed first, from the last position on. Refused
while a sync runs on any node: `raidfs wait` first.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "grow",
        help="change the number of legs of a running array",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("--raid-devices", type=int, required=True, metavar="N", help="how many legs it shall have")
    parser.add_argument("--add", metavar="IMG", help="add this image first, as `raidfs add` does")
    leg_command.add_force(parser)
    leg_command.add_wait(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    with client.find(args.mountpoint) as node:
        image = None if args.add is None else os.path.abspath(args.add)
        if image is not None:
            leg_command.add_image(node, image, spare=True, force=args.force)
        try:
            node.call("raid_devices", timeout_s=None, count=args.raid_devices)
        except RaidfsError:
            if image is not None:
                _take_back(node, image)
            raise
    leg_command.wait_if_told(args)
    return 0


def _take_back(node: client.Client, image: str) -> None:
    # All or nothing; why it was refused is the error that counts.
    try:
        node.call("remove", timeout_s=None, path=image)
    except RaidfsError as error:
        print(f"raidfs: {image} stays a spare: {error}", file=sys.stderr)
