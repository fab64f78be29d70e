"""``raidfs repair``: compare all legs and make them equal."""

from __future__ import annotations

import argparse

from raidfs.cli import sync_command

_DESCRIPTION = """
As `raidfs check`; where legs differ, what the first leg has is written to the others, as md does. Safe while all nodes
go on reading and writing.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    sync_command.make_parser(
        subparsers, "repair", help="compare all legs and make them equal", description=_DESCRIPTION
    )


def run(args: argparse.Namespace) -> int:
    """Ask the node."""
    return sync_command.run(args, "repair")
