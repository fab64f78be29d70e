"""``raidfs grow``: change the shape of a running array."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from raidfs.cli import leg_command
from raidfs.control import client
from raidfs.errors import BadArguments, RaidfsError, ShrinkLosesData, from_json
from raidfs.resize_plan import Change
from raidfs.units import SECTOR_BYTES, format_size, parse_size

_WORD = "shrink"

_DESCRIPTION = """
Change a running array while all nodes use it: its size, the chunk of its bitmap, the number of its legs. All nodes
follow, or none does: if one cannot, all go back, and the command names it and its reason.

--size: larger, all legs need room (--extend makes images longer that are files); the new space is resynced afterwards,
unless --assume-clean says that it is the same on all legs. Smaller, what lies behind the new end is lost: you are asked
for a word, or say --force. File systems are not resized: grow them afterwards, shrink them before.

--raid-devices: more, and spares take the new positions and are recovered; --add brings one along. Fewer: legs have to
be failed and removed first, from the last position on.

Refused while a sync runs on any node: `raidfs wait` first. --dry-run only tells what would be done and found.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "grow",
        help="change size, bitmap chunk or number of legs of a running array",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("--size", metavar="SIZE", help="the new size (like 10G), or max: what all legs have room for")
    parser.add_argument(
        "--extend", action="store_true", help="make images longer that are files, and reserve the space"
    )
    parser.add_argument("--sparse", action="store_true", help="with --extend: do not reserve the space")
    parser.add_argument("--assume-clean", action="store_true", help="the new space is the same on all legs already")
    parser.add_argument("--bitmap-chunk", metavar="SIZE", help="how much of the array one bit stands for")
    parser.add_argument("--raid-devices", type=int, metavar="N", help="how many legs the array shall have")
    parser.add_argument("--add", metavar="IMG", help="with --raid-devices: add this image first, as `raidfs add` does")
    parser.add_argument("--dry-run", action="store_true", help="only tell each step and what stands against it")
    parser.add_argument(
        "--force", action="store_true", help="give up what lies behind a smaller size, overwrite an image that is added"
    )
    leg_command.add_wait(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the node, and wait until all nodes have followed."""
    change = _change(args)
    with client.find(args.mountpoint) as node:
        if args.dry_run:
            return _dry_run(node, change)
        image = None if args.add is None else os.path.abspath(args.add)
        if image is not None:
            leg_command.add_image(node, image, spare=True, force=args.force)
        try:
            _grow(node, change)
        except RaidfsError:
            if image is not None:
                _take_back(node, image)
            raise
        if args.size is not None:
            print(f"the array has {_shown(node.status().array.size_bytes)} now")
        if args.bitmap_chunk is not None:
            bitmap = node.status().bitmap
            print(f"the bitmap has {bitmap.bits} chunks of {format_size(bitmap.chunk_bytes)} now")
    leg_command.wait_if_told(args)
    return 0


def _change(args: argparse.Namespace) -> Change:
    problem = None
    if args.size is None and args.raid_devices is None and args.bitmap_chunk is None:
        problem = "give --size, --bitmap-chunk or --raid-devices"
    elif args.add is not None and args.raid_devices is None:
        problem = "--add goes with --raid-devices; `raidfs add` adds an image without"
    elif args.add is not None and args.dry_run:
        problem = "--add writes to the image, so it does not go with --dry-run"
    elif (args.extend or args.assume_clean) and args.size is None:
        problem = "--extend and --assume-clean go with --size"
    elif args.sparse and not args.extend:
        problem = "--sparse goes with --extend"
    if problem is not None:
        raise BadArguments(problem=problem, program="raidfs grow")
    maximum = args.size == "max"
    return Change(
        size_sectors=None if args.size is None or maximum else parse_size(args.size) // SECTOR_BYTES,
        maximum=maximum,
        chunk_bytes=None if args.bitmap_chunk is None else parse_size(args.bitmap_chunk),
        raid_disks=args.raid_devices,
        extend=args.extend,
        sparse=args.sparse,
        assume_clean=args.assume_clean,
        force=args.force,
    )


def _grow(node: client.Client, change: Change) -> None:
    try:
        _ask(node, "grow", change)
    except ShrinkLosesData as lost:
        if not _agreed(lost):
            raise
        _ask(node, "grow", change.forced())


def _ask(node: client.Client, method: str, change: Change) -> Any:
    return node.call(method, timeout_s=None, **change.to_json())


def _agreed(lost: ShrinkLosesData) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(str(lost).partition(";")[0] + ".", file=sys.stderr)
    print(f'Type "{_WORD}" to go on: ', end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == _WORD


def _dry_run(node: client.Client, change: Change) -> int:
    answer = _ask(node, "check_grow", change)
    for name, found in answer["steps"]:
        print(f"{name}: {found}")
    if answer["failure"] is None:
        print("nothing stands against it here; the other nodes answer when they are asked to follow")
        return 0
    raise from_json(answer["failure"])


def _shown(size_bytes: int) -> str:
    return f"{size_bytes} bytes ({format_size(size_bytes)})"


def _take_back(node: client.Client, image: str) -> None:
    # All or nothing; why it was refused is the error that counts.
    try:
        node.call("remove", timeout_s=None, path=image)
    except RaidfsError as error:
        print(f"raidfs: {image} stays a spare: {error}", file=sys.stderr)
