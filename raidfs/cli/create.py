"""``raidfs create``: make a new array of files or block devices."""

from __future__ import annotations

import argparse
import json
import os
import socket
import time

from raidfs.array.create import CreatedArray, create_array
from raidfs.array.request import ArrayRequest
from raidfs.format.geometry import CHUNK_BYTES_DEFAULT, NODES_DEFAULT, NODES_MAX
from raidfs.format.superblock import uuid_text
from raidfs.units import format_size, parse_size

_EPILOG = """\
example: two sparse images for an array of 1 GiB that two hosts or more can use
  raidfs create --size 1G /srv/a/leg0.img /srv/b/leg1.img

The array is written exactly as `mdadm --create --bitmap=clustered` would write it. Without --assume-clean its legs
are made equal when it is used for the first time. Nothing is overwritten without --force. Sizes take K, M, G, T.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``raidfs``."""
    parser = subparsers.add_parser(
        "create",
        help="make a new array of files or block devices",
        description="Make a new clustered RAID1 array of backing images: files or block devices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMG", help="a leg of the array; two or more")
    parser.add_argument("--name", default="md0", help="name of the array and of its file (default: %(default)s)")
    parser.add_argument(
        "--size",
        default="max",
        help="size of the array, or max: all that the smallest image has (default); images that are missing are "
        "then made as sparse files",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=NODES_DEFAULT,
        metavar="N",
        help=f"how many nodes can use the array at once: 2 to {NODES_MAX} (default: %(default)s)",
    )
    parser.add_argument(
        "--cluster-name",
        default="raidfs",
        metavar="NAME",
        help="name of the cluster that may use it; with --lock dlm it is corosync's (default: %(default)s)",
    )
    parser.add_argument(
        "--bitmap-chunk",
        metavar="SIZE",
        help="what one bit of the write-intent bitmap stands for: a power of two "
        f"(default: {format_size(CHUNK_BYTES_DEFAULT)})",
    )
    parser.add_argument(
        "--assume-clean",
        action="store_true",
        help="the images are equal already (new sparse files are): no first resync; what they hold is kept",
    )
    parser.add_argument("--spare", action="append", default=[], metavar="IMG", help="a spare; can be repeated")
    parser.add_argument("--force", action="store_true", help="overwrite images that hold something")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Create the array and tell what was made."""
    request = ArrayRequest(
        images=tuple(args.images),
        spares=tuple(args.spare),
        name=args.name,
        homehost=socket.gethostname(),
        cluster_name=args.cluster_name,
        nodes=args.nodes,
        size_bytes=None if args.size == "max" else parse_size(args.size),
        chunk_bytes=None if args.bitmap_chunk is None else parse_size(args.bitmap_chunk),
        assume_clean=args.assume_clean,
        force=args.force,
    )
    created = create_array(
        request,
        set_uuid=os.urandom(16),
        device_uuids=[os.urandom(16) for _ in request.paths],
        now_s=int(time.time()),
    )
    print(json.dumps(created.to_json(), indent=2) if args.json else _text(created))
    return 0


def _text(created: CreatedArray) -> str:
    layout = created.layout
    lines = []
    for image in created.images:
        place = "spare" if image.role is None else f"leg {image.role}"
        made = ", made" if image.was_made else ""
        lines.append(f"{image.path}: {place}, {format_size(image.size_bytes)}{made}")
    size, chunk = format_size(layout.size_bytes), format_size(layout.chunk_bytes)
    lines.append(
        f"array {created.name}: {size}, {layout.nodes} nodes, cluster {created.cluster_name}, bitmap chunk {chunk}"
    )
    lines.append(f"uuid {uuid_text(created.set_uuid)}")
    return "\n".join(lines)
