"""``raidfs check``: compare all legs."""

from __future__ import annotations

import argparse

from raidfs.cli import sync_command

_DESCRIPTION = """
Compare all legs that are in sync, while all nodes go on reading and writing. Sectors that differ are counted and their
ranges kept for `raidfs status --detail` and `--json` of the node that was asked; nothing is written. What is due to be
resynced is resynced first. Refused while another sync runs, which is named.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    sync_command.make_parser(subparsers, "check", help="compare all legs", description=_DESCRIPTION)


def run(args: argparse.Namespace) -> int:
    """Ask the node."""
    return sync_command.run(args, "check")
