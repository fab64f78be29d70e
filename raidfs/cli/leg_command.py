"""What the commands that change legs have in common: their arguments, a last question, and the wait afterwards."""

from __future__ import annotations

import argparse
import sys

from raidfs.cli.waiting import wait_until_idle
from raidfs.control import client
from raidfs.errors import ImageHoldsData

_WORD = "overwrite"


def make_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], command: str, *, help: str, description: str
) -> argparse.ArgumentParser:
    """Return the command's parser with MOUNTPOINT and IMG."""
    parser = subparsers.add_parser(
        command,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("image", metavar="IMG", help="the image, a file or a block device")
    return parser


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add ``--force``, which a script gives in place of the typed word."""
    parser.add_argument("--force", action="store_true", help="overwrite an image that holds something")


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Add ``--wait``."""
    parser.add_argument("--wait", action="store_true", help="return when no sync runs or is due any more")


def wait_if_told(args: argparse.Namespace) -> None:
    """Wait for the recovery that a change of legs has begun, if ``--wait`` was given."""
    if args.wait:
        wait_until_idle(args.mountpoint)


def add_image(node: client.Client, path: str, *, spare: bool, force: bool) -> None:
    """Add an image; on a terminal, ask for a typed word before what it holds is overwritten.

    Raises ImageHoldsData when nobody can be asked, or when the answer is another one; nothing was written then.
    """
    try:
        node.call("add", timeout_s=None, path=path, spare=spare, force=force)
    except ImageHoldsData as held:
        if not _agreed(held):
            raise
        node.call("add", timeout_s=None, path=path, spare=spare, force=True)


def _agreed(held: ImageHoldsData) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{held.path} holds {held.found}. All of it will be lost.", file=sys.stderr)
    print(f'Type "{_WORD}" to go on: ', end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == _WORD
