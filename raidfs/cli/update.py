"""``raidfs update``: change what a stopped array says of its cluster."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from raidfs.errors import BadArguments
from raidfs.format.geometry import NODES_MAX

if TYPE_CHECKING:
    from raidfs.array.update import Update

_EPILOG = """\
example: room for 8 nodes instead of 4
  raidfs update --nodes 8 /srv/a/leg0.img /srv/b/leg1.img

The array must not be mounted anywhere: this host's nodes are noticed and refused, those of other hosts are not. Bits
of the bitmap are kept; those of slots that go are added to slot 0. When it is cut off the array can be mounted all the
same, and the same command finishes it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``raidfs``."""
    parser = subparsers.add_parser(
        "update",
        help="change the number of nodes or the cluster name of a stopped array",
        description="Change how many nodes can use an array at once, or which cluster it belongs to, while it is "
        "stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar="IMG", help="the legs of the array, all of them, and its spares")
    parser.add_argument("--nodes", type=int, metavar="N", help=f"how many nodes can use it at once: 2 to {NODES_MAX}")
    parser.add_argument("--cluster-name", metavar="NAME", help="name of the cluster that may use it")
    parser.add_argument(
        "--run",
        dest="degraded",
        action="store_true",
        help="even if legs are missing or out of date: they have to be added again then",
    )
    parser.add_argument("--dry-run", action="store_true", help="tell the steps, write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Change the array, or tell how it would be changed."""
    from raidfs.array.update import UpdateRequest, update_array

    if args.nodes is None and args.cluster_name is None:
        raise BadArguments(problem="give --nodes or --cluster-name", program="raidfs update")
    request = UpdateRequest(tuple(args.images), args.nodes, args.cluster_name, args.degraded)
    update = update_array(request, now_s=int(time.time()), dry_run=args.dry_run)
    if args.json:
        print(json.dumps({**update.to_json(), "dry_run": args.dry_run}, indent=2))
    else:
        print("\n".join(_lines(update, args.dry_run)))
    return 0


def _lines(update: Update, dry_run: bool) -> list[str]:
    lines = [f"{path}: not used, and left as it is" for path in update.left_out]
    if dry_run:
        for number, step in enumerate(update.steps, 1):
            images = len({write.path for write in step.writes})
            lines.append(f"step {number}: {step.what} ({len(step.writes)} writes to {images} images)")
    wanted = f"{update.nodes} nodes, cluster {update.cluster_name}"
    before = f"{update.old_nodes} nodes, cluster {update.old_cluster_name}"
    if not update.steps:
        return [*lines, f"array {update.array_name} has {wanted}: nothing to do"]
    would = f"would have {wanted}; it has {before}" if dry_run else f"has {wanted}; it had {before}"
    return [*lines, f"array {update.array_name} {would}"]
