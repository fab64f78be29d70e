"""``raidfs status``: what /proc/mdstat and ``mdadm --detail`` tell, of this machine's nodes."""

from __future__ import annotations

import argparse
import json
import sys

from raidfs.cli import status_text
from raidfs.control import client
from raidfs.control.schema import SCHEMA_VERSION, NodeStatus
from raidfs.errors import RaidfsError

TEST_FINE = 0
TEST_DEGRADED = 1
TEST_UNUSABLE = 2
TEST_CANNOT_TELL = 4

_DESCRIPTION = """
Show the node at MOUNTPOINT, or all of your nodes on this machine: the array in the words of /proc/mdstat, the
node's slot, and who else is there.
"""

_EPILOG = """
--test exits as `mdadm --detail --test`: 0 all legs in sync, 1 degraded or a leg is faulty, 2 unusable, 4 cannot tell;
of several nodes the worst counts. --json prints one document; its keys stay, new ones may come.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "status",
        help="show arrays and nodes of this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="one node only")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--detail", action="store_true", help="in the words of mdadm --detail")
    form.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--test", action="store_true", help="tell by the exit code whether all is well")


def run(args: argparse.Namespace) -> int:
    """Ask the nodes and show their answers."""
    failures: list[RaidfsError] = []
    found = _ask(args.mountpoint, failures)
    for failure in failures:
        print(f"raidfs: {failure}", file=sys.stderr)
    if args.json:
        print(json.dumps({"schema": SCHEMA_VERSION, "nodes": [status.to_json() for status in found]}, indent=2))
    elif found:
        form = status_text.detail if args.detail else status_text.mdstat
        print("\n".join(map(form, found)), end="")
    elif not failures:
        print("no node of yours is mounted on this machine")
    if args.test:
        return verdict(found, failures)
    return failures[0].exit_code if failures else 0


def _ask(mountpoint: str | None, failures: list[RaidfsError]) -> list[NodeStatus]:
    if mountpoint is None:
        return [answer for node in client.find_all(failures.append) for answer in _status(node, failures)]
    try:
        with client.find(mountpoint) as node:
            return _status(node, failures)
    except RaidfsError as error:
        failures.append(error)
        return []


def _status(node: client.Client, failures: list[RaidfsError]) -> list[NodeStatus]:
    # One status or none: a node that leaves while it is asked takes nobody else's answer away.
    try:
        return [node.status()]
    except RaidfsError as error:
        failures.append(error)
        return []


def verdict(found: list[NodeStatus], failures: list[RaidfsError]) -> int:
    """Return the exit code of ``--test``; see the constants above."""
    if failures or not found:
        return TEST_CANNOT_TELL
    return max(map(_health, found))


def _health(status: NodeStatus) -> int:
    if status.node.lost is not None or status.in_sync_count() == 0:
        return TEST_UNUSABLE
    # mdadm's 1 is "at least one failed device", also when a spare has taken its place already.
    whole = status.in_sync_count() >= status.array.raid_disks and all(leg.state != "faulty" for leg in status.legs)
    return TEST_FINE if whole else TEST_DEGRADED
