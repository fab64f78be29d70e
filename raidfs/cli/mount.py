"""``raidfs mount``: be a node of an array."""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING

from raidfs.control.paths import canonical_mountpoint
from raidfs.errors import FaultOfNoLeg, RaidfsError
from raidfs.faults import Fault, parse_fault
from raidfs.mount.options import PLANES, MountOptions
from raidfs.node_options import NodeOptions

if TYPE_CHECKING:
    from raidfs.mount.launch import StatusPipe

_DESCRIPTION = """
Open an array over its images, join its cluster as a node, and mount a directory that holds the array as one block
file, MOUNTPOINT/<name>. Returns when the file is usable. All nodes may read and write at once; what one has written
the others read, with no page cache in between.

The file cannot be truncated, renamed or removed. Use O_DSYNC or fsync where it matters, as on a disk.
"""

_EPILOG = """
examples:
  raidfs mount /srv/a.img /srv/b.img /mnt/node0
  raidfs mount --run /srv/a.img /mnt/node0          start although the other image is missing
  raidfs mount --foreground a.img b.img /mnt/node0  stay, log to the terminal; Ctrl-C unmounts

faults: --fault KIND[,KEY=VALUE]...
  error            the I/O is not done and ends with an error
  delay            the I/O is done after some time
  torn             only the beginning of a write reaches the image, and it ends with an error
  short            only the beginning is read or written, and that is what the leg says
  lost-flush       a flush is acknowledged and not done, a durable write done without its flush
  misdirect        a write goes beside its place
  gone             from now on all I/O of the leg ends with an error
which I/O (without any: all, of every leg):
  leg=IMG          this leg: an image, its last name, or a position (0, 1 ...)
  on=KIND+KIND     read, write, flush
  at=FIRST-LAST    that touches these bytes of the image: 8K-64K, 1M-
  nth=N            from the N-th on that matches, by itself only that one; each leg counts for itself
  count=N          so many of them, or all
what happens:
  errno=NAME       the error (EIO; gone: ENODEV; torn also takes none: acknowledged all the same)
  seconds=S        how long a delay is (1)
  keep=N           how many pieces of 512 bytes are done of what is torn or short (1)
  by=SIZE          how far beside its place (4K)
  raidfs mount --fault error,leg=b.img,on=write,nth=5,errno=ENOSPC --fault delay,on=flush,seconds=0.2 ...
The node's log tells what was struck.

The log of a node without --foreground is in $XDG_RUNTIME_DIR/raidfs, else /run/raidfs (RAIDFS_RUNTIME_DIR names
another directory). RAIDFS_LOG=info or debug in the environment makes it say more.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "mount",
        help="join an array and mount it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", metavar="IMG", nargs="+", help="backing image, a file or a block device; any order")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    parser.add_argument(
        "--lock",
        metavar="MANAGER",
        default="auto",
        help="the lock manager that all nodes share: auto (nodes of this host only; started when needed), "
        "unix:PATH (a server of this host), or dlm (Linux's DLM with corosync: several hosts) (default: auto)",
    )
    parser.add_argument(
        "--allow-unfenced",
        action="store_true",
        help="with --lock dlm: mount although the cluster does not stop nodes that are cut off or stuck; "
        "writes of such a node can then overwrite those of others",
    )
    parser.add_argument("--run", action="store_true", help="start the array even if legs are missing (degraded)")
    parser.add_argument("--read-only", action="store_true", help="refuse writes")
    parser.add_argument("--slot", type=int, metavar="N", help="take this slot and no other (default: the first free)")
    parser.add_argument("--cluster-name", metavar="NAME", help="refuse an array of another cluster")
    parser.add_argument(
        "--buffered",
        action="store_true",
        help="open images through the page cache; only if no other host uses them at the same time",
    )
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="DIR",
        help="look here too for images that other nodes add, or that are not named; may be given more than once "
        "(always looked in: the directories of the images that are named, and /dev)",
    )
    parser.add_argument(
        "--sync-speed-min",
        type=_count,
        metavar="KIB",
        default=1000,
        help="what a sync of this node does at least, in KiB/s; above it, it gives way to users (default: %(default)s)",
    )
    parser.add_argument(
        "--sync-speed-max",
        type=_count,
        metavar="KIB",
        default=0,
        help="what a sync of this node does at most, in KiB/s; 0 is no limit (default: %(default)s)",
    )
    parser.add_argument(
        "--sync-stall-ms",
        type=_count,
        metavar="MS",
        default=50,
        help="how long a sync of this node may hold a write up, on any node (default: %(default)s)",
    )
    parser.add_argument("--foreground", action="store_true", help="be the node in this process; SIGTERM unmounts")
    parser.add_argument("--plane", choices=PLANES, default=PLANES[0], help="who serves data (default: %(default)s)")
    parser.add_argument(
        "--fuse-uring",
        action="store_true",
        help="take requests through io_uring instead of /dev/fuse where the kernel offers that "
        "(/sys/module/fuse/parameters/enable_uring): better for many small requests, worse for large ones",
    )
    parser.add_argument(
        "--fault",
        metavar="SPEC",
        action="append",
        default=[],
        help="let I/O of the legs go wrong on purpose; can be repeated, see below",
    )
    # The pipe to the process that started this one, see raidfs.mount.launch.
    parser.add_argument("--status-fd", type=int, help=argparse.SUPPRESS)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Start the node, or be it."""
    options = MountOptions(
        mountpoint=canonical_mountpoint(args.mountpoint),
        node=NodeOptions(
            images=tuple(map(os.path.abspath, args.images)),
            client_name=f"{socket.gethostname()}:{os.getpid()}",
            lock=args.lock,
            run=args.run,
            read_only=args.read_only,
            slot=args.slot,
            cluster_name=args.cluster_name,
            buffered=args.buffered,
            search=tuple(map(os.path.abspath, args.search)),
            allow_unfenced=args.allow_unfenced,
            sync_speed_min=args.sync_speed_min,
            sync_speed_max=args.sync_speed_max,
            sync_stall_ms=args.sync_stall_ms,
            faults=_faults(args.fault, args.images),
        ),
        plane=args.plane,
        fuse_uring=args.fuse_uring,
    )
    if not args.foreground:
        from raidfs.mount.launch import launch

        launch(options)
        return 0
    if args.status_fd is None:
        _be_the_node(options, None)
        return 0
    from raidfs.mount.launch import StatusPipe

    pipe = StatusPipe(args.status_fd)
    try:
        _be_the_node(options, pipe)
    except RaidfsError as error:
        if not pipe.failed(error):
            raise  # into the log: the command that started the node has returned long ago
        return error.exit_code
    return 0


def _faults(texts: list[str], images: list[str]) -> tuple[Fault, ...]:
    real = {os.path.realpath(path) for path in images}
    names = {os.path.basename(path) for path in real}
    faults = []
    for text in texts:
        fault = parse_fault(text)
        if fault.leg is not None and "/" in fault.leg:
            # The node knows the real names, and runs in another directory.
            leg = os.path.realpath(fault.leg)
            fault = parse_fault(text.replace(f"leg={fault.leg}", f"leg={leg}"))
        if fault.leg is not None and not fault.leg.isdecimal() and fault.leg not in real | names:
            raise FaultOfNoLeg(text=fault.text, leg=fault.leg, images=", ".join(images))
        faults.append(fault)
    return tuple(faults)


def _be_the_node(options: MountOptions, pipe: StatusPipe | None) -> None:
    # trio and pyfuse3 are imported here and nowhere else in the command line.
    from raidfs.mount import daemon, logs
    from raidfs.node import open_node

    logs.set_up()
    if pipe is None:
        daemon.run_daemon(options, open_node, on_ready=lambda: None)
    else:
        os.chdir("/")  # a daemon keeps nobody from unmounting where it was started
        daemon.run_daemon(options, open_node, on_ready=pipe.ready)
