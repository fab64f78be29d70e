"""``raidfs explain``: who waits for what, on which node, since when, and what to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from raidfs.control import client
from raidfs.control.explanation import SCHEMA_VERSION, NodeExplanation, conclude, lines
from raidfs.errors import EXIT_FAILED, RaidfsError

_DESCRIPTION = """
Show the waits of the nodes of this machine and of the lock manager that they share: which task waits for which
lock, message, mutex or range, since when, and behind whom. A circle of waits is named as a deadlock. A node that
does not answer is named too. With MOUNTPOINT only that node's array is shown.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "explain",
        help="tell who waits for what, and why",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="a node of the array")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Ask every node of this machine and print what follows from the answers."""
    failures: list[RaidfsError] = []
    nodes: list[NodeExplanation] = []
    wanted: str | None = None
    if args.mountpoint is not None:
        with client.find(args.mountpoint) as node:
            wanted = node.hello.uuid
    for node in client.find_all(failures.append):
        try:
            nodes.append(NodeExplanation.from_json(node.call("explain")))
        except RaidfsError as error:
            failures.append(error)
    arrays: dict[str, list[NodeExplanation]] = {}
    for one in nodes:
        if wanted is None or one.uuid == wanted:
            arrays.setdefault(one.uuid, []).append(one)
    if args.json:
        print(json.dumps(_document(arrays), indent=2))
    else:
        for found in arrays.values():
            print("\n".join(lines(found)))
    for failure in failures:
        print(f"raidfs: {failure}", file=sys.stderr)
    return EXIT_FAILED if failures else 0


def _document(arrays: dict[str, list[NodeExplanation]]) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "arrays": [
            {
                "uuid": uuid,
                "nodes": [dataclasses.asdict(node) for node in nodes],
                "conclusion": dataclasses.asdict(conclude(nodes)),
            }
            for uuid, nodes in arrays.items()
        ],
    }
