"""Clients of the DLM on another machine, for the contract suite: ``dlm_peer_program.py HOST PORT [LOCKSPACE...]``.

It stays in the lock spaces that are named, of the cluster RAIDFS_LOCK_CLUSTER, so that no test has to make or end them.
The first line of a connection says what it is for: ``client`` makes it a client, in a process of its own that can be
killed; ``reap PID`` is answered when that process has ended. A client reads requests, one JSON document in a line, and
answers each when it is done: with a result, or an error. Blocking notices come in between.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

import trio

from raidfs.errors import RaidfsError
from raidfs.lock.api import Lock, Lockspace, Mode
from raidfs.lock.dlm import DlmManager, open_dlm
from raidfs.runtime import TrioRuntime


class Client:
    def __init__(self, stream: trio.SocketStream, manager: DlmManager, nursery: trio.Nursery) -> None:
        self._stream = stream
        self._manager = manager
        self._nursery = nursery
        self._spaces: list[Lockspace] = []
        self._locks: list[Lock] = []
        self._running: dict[int, trio.CancelScope] = {}
        self._outbox_send, self._outbox = trio.open_memory_channel[dict[str, Any]](1000)

    async def serve(self) -> None:
        self._nursery.start_soon(self._write)
        text = b""
        while data := await self._stream.receive_some():
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["op"] == "abort":
                    if request["number"] in self._running:
                        self._running[request["number"]].cancel()
                else:
                    scope = self._running[request["id"]] = trio.CancelScope()
                    self._nursery.start_soon(self._answer, scope, request)
        self._nursery.cancel_scope.cancel()

    async def _write(self) -> None:
        async for document in self._outbox:
            await self._stream.send_all(json.dumps(document).encode() + b"\n")

    async def _answer(self, scope: trio.CancelScope, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request["id"], "aborted": True}
        try:
            with scope:
                answer["result"] = await getattr(self, f"_{request['op']}")(**request["words"])
                answer["aborted"] = False
        except RaidfsError as error:
            answer |= {"aborted": False, **error.to_json()}
        if "lock" in request["words"]:
            lock = self._locks[request["words"]["lock"]]
            answer["lock"] = [int(lock.mode), lock.lvb.hex(), lock.lvb_valid]
        del self._running[request["id"]]
        self._outbox_send.send_nowait(answer)

    async def _open(self, name: str, cluster_name: str, client: str) -> int:
        self._spaces.append(await self._manager.open_lockspace(name, cluster_name=cluster_name, client=client))
        return len(self._spaces) - 1

    async def _create(self, space: int, resource: str, notices: bool) -> int:
        number = len(self._locks)

        def tell(mode: Mode) -> None:
            self._outbox_send.send_nowait({"told": number, "mode": int(mode)})

        lock = await self._spaces[space].lock(resource, on_blocking=tell if notices else None)
        number = len(self._locks)
        self._locks.append(lock)
        return number

    async def _convert(self, lock: int, mode: int, noqueue: bool, lvb: str) -> None:
        self._locks[lock].lvb = bytes.fromhex(lvb)
        await self._locks[lock].convert(Mode(mode), noqueue=noqueue)

    async def _cancel(self, lock: int) -> bool:
        return await self._locks[lock].cancel()

    async def _release(self, lock: int) -> None:
        await self._locks[lock].release()

    async def _query(self, space: int) -> list[Any]:
        return [
            [
                view.name,
                [
                    [lock.client, int(lock.granted), lock.requested and int(lock.requested), lock.waiting_s]
                    for lock in view.locks
                ],
                view.lvb.hex(),
                view.lvb_valid,
            ]
            for view in await self._spaces[space].query()
        ]

    async def _leave(self, space: int) -> None:
        await self._spaces[space].close()

    async def _end(self) -> None:
        await self._manager.close()

    async def _flush(self) -> None:
        await self._manager.flush()

    async def _pid(self) -> int:
        return os.getpid()

    async def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


async def serve_client(connection: socket.socket) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    async with open_dlm(TrioRuntime(), allow_unfenced=True) as manager, trio.open_nursery() as nursery:
        await Client(stream, manager, nursery).serve()


async def stay(names: list[str]) -> None:
    spaces: list[Lockspace] = []
    async with open_dlm(TrioRuntime(), allow_unfenced=True) as manager:
        for name in names:
            spaces.append(
                await manager.open_lockspace(name, cluster_name=os.environ["RAIDFS_LOCK_CLUSTER"], client="holder")
            )
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            print("ready", flush=True)
            await anext(aiter(signals))
        for space in spaces:
            await space.close()


def main(host: str, port: int, names: list[str]) -> None:
    if os.fork() == 0:
        trio.run(stay, names)
    listener = socket.create_server((host, port))
    while True:
        connection, _ = listener.accept()
        word, *rest = connection.makefile("rb", buffering=0).readline().split()
        if word == b"reap":
            os.waitpid(int(rest[0]), 0)
            connection.sendall(b"reaped\n")
        elif os.fork() == 0:
            listener.close()
            connection.setblocking(False)
            trio.run(serve_client, connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
