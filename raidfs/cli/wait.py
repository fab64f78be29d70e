"""``raidfs wait``: return when no sync runs or is due."""

from __future__ import annotations

import argparse
import json

from raidfs.cli import sync_command
from raidfs.cli.waiting import wait_until_idle

_DESCRIPTION = """
Return when no sync runs or is due anywhere in the cluster. On a terminal a bar shows how far it is and who works.
"""

_EPILOG = """
Exit status 0 when all is quiet, also when there was nothing to wait for (`mdadm --wait` has 1 for that; `--json` tells
it). 1 when it would never be quiet: the node has lost its membership, what is due was stopped with `raidfs idle`, or
the storage has made it fail again and again.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "wait",
        help="return when no sync runs or is due",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Wait."""
    ended = wait_until_idle(args.mountpoint)
    if args.json:
        print(json.dumps({**sync_command.document(ended.status.sync), "waited": ended.waited}, indent=2))
    return 0
