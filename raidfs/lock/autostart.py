"""``--lock``: from its value to a lock manager, with the lock server of ``auto`` started when there is none.

``auto`` is for the nodes of one host. All of them know the same abstract address, made of the array's UUID. Whoever
finds nobody there starts a server, as a process of its own that outlives its starter and ends with its last client.
Binding the address is the election: of any number of servers started at the same time one gets it, the others end
quietly, and every starter connects to the winner.

The time line: a starter connects (about 1 ms). Refused, it starts a server and reads the server's status pipe, which
tells "listening" or "lost the election" after some 100 ms; then it connects again, is accepted by the kernel at once
and greeted when the server has loaded its modules. A server that ends because it is idle resets connections that it
has not greeted; their owners begin again. After JOIN_S without success the starter gives up with the last reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import trio

import raidfs
from raidfs import errors
from raidfs.errors import LockAddressInUse, LockServerNotStarted, LockServerUnreachable
from raidfs.lock.address import LockAddress, auto_address, parse_address
from raidfs.lock.client import carried, connected, greet
from raidfs.lock.dlm import open_dlm
from raidfs.lock.link import Link
from raidfs.lock.member import MemberHub
from raidfs.runtime import Runtime

JOIN_S = 30.0

STATUS_BYTES_MAX = 64 * 1024

# -P: what lies in the current directory is not imported, least of all by root.
SERVER_COMMAND = (sys.executable, "-P", "-m", "raidfs", "lockd")


@contextlib.asynccontextmanager
async def open_manager(
    value: str,
    *,
    array_uuid: str,
    runtime: Runtime,
    trusted_uids: Collection[int] = (),
    server_command: Sequence[str] = SERVER_COMMAND,
    allow_unfenced: bool = False,
) -> AsyncIterator[MemberHub]:
    """Reach the lock manager that the ``--lock`` value names, for the length of the block.

    ``trusted_uids`` are users beside root and this one who may run the server, and whom a server that is started
    here serves: the owners of the images. ``allow_unfenced`` is for the DLM, see `raidfs.lock.dlm.open_dlm`. Raises
    BadLockAddress, LockManagerUnavailable, LockServerUnreachable, LockServerNotStarted, LockServerUntrusted,
    LockVersionMismatch.
    """
    if value == "dlm":
        async with open_dlm(runtime, allow_unfenced=allow_unfenced) as hub:
            yield hub
        return
    if value != "auto":
        async with connected(parse_address(value), runtime=runtime, trusted_uids=trusted_uids) as hub:
            yield hub
        return
    link = await join_or_start(auto_address(array_uuid), trusted_uids=trusted_uids, server_command=server_command)
    async with carried(link, runtime=runtime) as hub:
        yield hub


async def join_or_start(
    address: LockAddress, *, trusted_uids: Collection[int] = (), server_command: Sequence[str] = SERVER_COMMAND
) -> Link:
    """Return a greeted connection to the server at ``address``, which is started when nobody is there."""
    reason = f"no success within {JOIN_S:.0f} s"
    with trio.move_on_after(JOIN_S):
        while True:
            try:
                return await greet(address, trusted_uids=trusted_uids)
            except LockServerUnreachable as error:
                reason = error.reason
            await _start(address, trusted_uids, server_command)
    raise LockServerNotStarted(address=address, reason=reason)


# Starts a server and returns when it listens, or when another one was faster.
async def _start(address: LockAddress, trusted_uids: Collection[int], server_command: Sequence[str]) -> None:
    read_fd, write_fd = os.pipe()
    command = [*server_command, "--listen", str(address), "--exit-when-idle", "--detach", "--status-fd", str(write_fd)]
    for uid in sorted(trusted_uids):
        command += ["--allow-uid", str(uid)]
    async with trio.lowlevel.FdStream(read_fd) as status:
        try:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(write_fd,),
                start_new_session=True,
                env=_environment(),
            )
        except OSError as error:
            raise LockServerNotStarted(address=address, reason=f"{command[0]}: {error.strerror}") from None
        finally:
            os.close(write_fd)
        try:
            document = await _read_status(status)
        finally:
            # What we started is gone as soon as it has detached its server, or could not; it is not left a zombie.
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
    if document is None:
        raise LockServerNotStarted(address=address, reason=f"it ended with status {process.returncode}")
    if "error" in document:
        failure = errors.from_json(document)
        if not isinstance(failure, LockAddressInUse):
            raise LockServerNotStarted(address=address, reason=str(failure))


# The server runs the raidfs that runs here, also when that is a source tree and not installed.
def _environment() -> dict[str, str]:
    home = os.path.dirname(os.path.dirname(os.path.abspath(raidfs.__file__)))
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": home if not path else home + os.pathsep + path}


async def _read_status(status: trio.lowlevel.FdStream) -> dict[str, Any] | None:
    text = b""
    while len(text) < STATUS_BYTES_MAX:
        data = await status.receive_some(4096)
        if not data:
            break
        text += data
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
