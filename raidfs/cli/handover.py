"""``raidfs handover``: whether an array can go from raidfs to Linux's md, or back, now."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raidfs.errors import BadArguments, HandoverUnsafe
from raidfs.units import format_size

if TYPE_CHECKING:
    from raidfs.handover import Handover

_EPILOG = """\
examples:
  raidfs handover --check /dev/sdb /dev/sdc    after the last `raidfs umount`, before `mdadm --assemble`
  raidfs handover --check /dev/sdb /dev/sdc    after `mdadm --stop` on every machine, before `raidfs mount`

Nothing is written. Other machines are seen when corosync runs here for the array's cluster; otherwise only this one is:
stop the array on the others first. Dirty chunks do not stand against it: whoever starts the array next resyncs them;
Linux's md does so at its first write, or `mdadm --readwrite`.
Exit status 1: something stands against it, and is named.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``raidfs``."""
    parser = subparsers.add_parser(
        "handover",
        help="tell whether Linux's md can take the array over now, or raidfs from it",
        description="Tell whether an array can be used by Linux's md-cluster now that raidfs has used it, or the other "
        "way round; or what stands against it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar="IMG", help="the legs of the array, all of them, and its spares")
    parser.add_argument("--check", action="store_true", help="look and tell; there is nothing that has to be converted")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell what was found; HandoverUnsafe when something stands against it."""
    from raidfs.handover import check_handover

    if not args.check:
        raise BadArguments(problem="give --check", program="raidfs handover")
    found = check_handover(args.images)
    if args.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print("\n".join(_lines(found)))
    if not found.is_safe:
        count = len(found.against)
        raise HandoverUnsafe(reasons=f"{count} reason{'s' * (count > 1)}")
    return 0


def _lines(found: Handover) -> Iterator[str]:
    if found.assembly is not None:
        superblock = found.assembly.superblock
        yield f"array {superblock.name}, cluster {found.assembly.cluster_name}, uuid {superblock.set_uuid_text}"
    for slot in found.dirty_slots:
        of = f"{slot.dirty} of {slot.bits} chunks of {format_size(slot.chunk_bytes)}"
        yield f"slot {slot.slot}: {of} are dirty, and are resynced by whoever starts the array next"
    for error in found.against:
        yield f"against it: {error}"
    if found.is_safe and found.cluster_seen:
        yield "safe: no machine of the cluster uses the array"
    elif found.is_safe:
        yield "safe, as far as this machine sees; stop the array on all others first"
