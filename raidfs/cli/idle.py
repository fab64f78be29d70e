"""``raidfs idle``: stop whatever sync runs."""

from __future__ import annotations

import argparse

from raidfs.cli import sync_command

_DESCRIPTION = """
Stop the sync that runs, whatever it is and on whatever node. A resync or recovery stays stopped on all nodes, shown as
frozen, until `raidfs resync` or until the node is mounted again; it then goes on where it was. A check or repair is
over.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    sync_command.make_parser(subparsers, "idle", help="stop the sync that runs", description=_DESCRIPTION)


def run(args: argparse.Namespace) -> int:
    """Ask the node."""
    return sync_command.run(args, "idle")
