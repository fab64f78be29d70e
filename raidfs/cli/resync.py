"""``raidfs resync``: let syncs go on that were stopped."""

from __future__ import annotations

import argparse

from raidfs.cli import sync_command

_DESCRIPTION = """
Let what is due go on: resync and recovery begin by themselves, until `raidfs idle` stops them on all nodes. This
undoes it, on all nodes.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    sync_command.make_parser(
        subparsers, "resync", help="let a stopped resync or recovery go on", description=_DESCRIPTION
    )


def run(args: argparse.Namespace) -> int:
    """Ask the node."""
    return sync_command.run(args, "resync")
