"""What ``resync``, ``check``, ``repair`` and ``idle`` have in common: ask the node, wait if told to, say what is."""

from __future__ import annotations

import argparse
import dataclasses
import json

from raidfs.cli import sync_text
from raidfs.cli.waiting import wait_until_idle
from raidfs.control import client
from raidfs.control.schema import SCHEMA_VERSION, SyncStatus
from raidfs.errors import SyncBrokenOff


def make_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], action: str, *, help: str, description: str
) -> None:
    """Add the command's parser, with MOUNTPOINT, ``--wait`` and ``--json``."""
    parser = subparsers.add_parser(
        action,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where any node of the array is mounted")
    parser.add_argument("--wait", action="store_true", help="return when it is over; on a terminal a bar shows it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace, action: str) -> int:
    """Ask for ``action``; with ``--wait``, return when no sync runs or is due any more."""
    with client.find(args.mountpoint) as node:
        node.call("sync_action", timeout_s=None, action=action)
        sync = node.status().sync
    if args.wait:
        sync = wait_until_idle(args.mountpoint, frozen_is_idle=action == "idle").status.sync
        if sync.last_interrupted and sync.last_action == action:
            raise SyncBrokenOff(path=args.mountpoint, action=action)
    if args.json:
        print(json.dumps(document(sync), indent=2))
    elif args.wait and sync.mismatch_sectors and action in ("check", "repair"):
        print(verdict(sync, action))
    return 0


def document(sync: SyncStatus) -> dict[str, object]:
    """Return what ``--json`` prints."""
    return {"schema": SCHEMA_VERSION, "sync": dataclasses.asdict(sync)}


def verdict(sync: SyncStatus, action: str) -> str:
    """Return what a check or repair has found, and what to do about it."""
    found = f"the legs differed in {sync_text.mismatches(sync)}"
    return f"{found}; they are equal now" if action == "repair" else f"{found}; `raidfs repair` makes them equal"
