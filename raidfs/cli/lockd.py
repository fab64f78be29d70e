"""``raidfs lockd``: the embedded lock server as a process of its own.

The address is bound before the heavy modules are loaded, so that a server that is not needed is gone at once, and one
that is needed can be connected to at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator

from raidfs.errors import RaidfsError
from raidfs.lock.address import parse_address
from raidfs.lock.listen import bound_listener


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``raidfs``."""
    parser = subparsers.add_parser(
        "lockd",
        help="run the lock server that the nodes of one host share",
        description="Run the lock server that the nodes of one host share. With --lock auto the first mount starts "
        "it by itself; start it by hand to fix its address or its cluster, and mount with --lock unix:PATH. "
        "It runs in the foreground until SIGTERM or SIGINT; its nodes then lose their membership.",
    )
    parser.add_argument(
        "--listen",
        required=True,
        metavar="unix:PATH|abstract:NAME",
        help="where to listen; a socket that nobody answers at is replaced",
    )
    parser.add_argument("--cluster-name", metavar="NAME", help="serve only arrays of this cluster")
    parser.add_argument("--exit-when-idle", action="store_true", help="end when the last node has left")
    parser.add_argument(
        "--allow-uid",
        type=int,
        action="append",
        default=[],
        metavar="UID",
        help="serve this user too, beside root and the user who runs the server; may be repeated",
    )
    parser.add_argument("--detach", action="store_true", help="go on in the background once it listens")
    parser.add_argument("--status-fd", type=int, metavar="FD", help="tell on this descriptor, in JSON, how it began")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal or idleness ends it; return the exit code."""
    status_fd: int | None = args.status_fd
    try:
        address = parse_address(args.listen)
        with bound_listener(address, everybody=bool(args.allow_uid)) as listener:
            if args.detach and not _detach():
                os._exit(0)  # the starter; the socket and everything else is the child's now
            _tell(status_fd, {"status": "listening", "address": str(address), "pid": os.getpid()})
            status_fd = None
            _serve(listener, args)
    except RaidfsError as error:
        if status_fd is None:
            raise
        _tell(status_fd, error.to_json())
        return error.exit_code
    return 0


# Goes on as a child that no terminal and no parent will end; returns whether this is that child. One thread runs here.
def _detach() -> bool:
    if os.fork() != 0:
        return False
    os.setsid()
    os.chdir("/")
    null_fd = os.open(os.devnull, os.O_RDWR)
    for standard_fd in (0, 1, 2):
        os.dup2(null_fd, standard_fd)
    os.close(null_fd)
    return True


def _tell(status_fd: int | None, document: dict[str, object]) -> None:
    if status_fd is None:
        return
    with contextlib.suppress(BrokenPipeError):  # the starter has gone; others may want the server all the same
        os.write(status_fd, json.dumps(document).encode() + b"\n")
    os.close(status_fd)


def _serve(listener: socket.socket, args: argparse.Namespace) -> None:
    import trio

    from raidfs.lock.server import LockServer

    server = LockServer(cluster_name=args.cluster_name, allow_uids=args.allow_uid)

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop_at_signal, signals)
                await server.serve(listener, exit_when_idle=args.exit_when_idle)
                nursery.cancel_scope.cancel()

    async def stop_at_signal(signals: AsyncIterator[int]) -> None:
        async for number in signals:
            server.stop(signal.Signals(number).name)

    trio.run(main)
