"""The contract suite's harness for the real DLM, from two machines.

It runs where corosync and dlm_controld run, with RAIDFS_LOCK_PEER=HOST:PORT naming `dlm_peer_program.py` on another
machine of the cluster, and RAIDFS_LOCK_CLUSTER the cluster. Every second client is one of the other machine.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from raidfs import errors
from raidfs.lock import dlm_setup
from raidfs.lock.api import Lock, LockManager, Lockspace, LockView, Mode, ResourceView
from raidfs.lock.dlm import DlmManager, open_dlm
from raidfs.lock.resource import NO_LVB
from raidfs.runtime import TrioRuntime

PEER = os.environ.get("RAIDFS_LOCK_PEER", "")
CLUSTER = os.environ.get("RAIDFS_LOCK_CLUSTER", "tests")

LIMITS = {
    "tell again after a cancel": "the DLM does not tell again of a request that was cancelled and made anew",
    "not valid before it was written": "the DLM flags only a value block that somebody has written",
    "lose": "corosync would have to be killed: tests/dlm does that",
}


async def _connect(word: str) -> trio.SocketStream:
    host, _, port = PEER.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(word.encode() + b"\n")
    return stream


# A client that opens a lock space asks corosync and dlm_controld every time; a hundred tests need not.
dlm_setup.check_setup = functools.cache(dlm_setup.check_setup)


class RemoteManager:
    """A client on the other machine."""

    def __init__(self, nursery: trio.Nursery, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._answered = trio.lowlevel.ParkingLot()
        self.notices: dict[int, Callable[[Mode], None]] = {}
        self._sending = trio.Lock()
        self._ended = False
        nursery.start_soon(self._read)

    async def _read(self) -> None:
        text = b""
        async with self._stream:
            while data := await self._stream.receive_some():
                *lines, text = (text + data).split(b"\n")
                for line in lines:
                    document = json.loads(line)
                    if "told" in document:
                        self.notices[document["told"]](Mode(document["mode"]))
                    else:
                        self._answers[document["id"]] = document
                self._answered.unpark_all()
        self._ended = True
        self._answered.unpark_all()

    async def _send(self, document: dict[str, Any]) -> None:
        with trio.CancelScope(shield=True):
            async with self._sending:
                if not self._ended:
                    await self._stream.send_all(json.dumps(document).encode() + b"\n")

    async def ask(self, op: str, *, of: RemoteLock | None = None, **words: object) -> Any:
        self._asked += 1
        number = self._asked
        await self._send({"id": number, "op": op, "words": words})
        try:
            await self._wait(number)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._send({"op": "abort", "number": number})
                await self._wait(number)
            self._take(number, of)
            raise
        answer = self._take(number, of)
        if "error" in answer:
            raise errors.from_json(answer)
        return answer["result"]

    async def _wait(self, number: int) -> None:
        while number not in self._answers and not self._ended:
            await self._answered.park()

    def _take(self, number: int, of: RemoteLock | None) -> dict[str, Any]:
        answer = self._answers.pop(number, {"result": None})
        if of is not None and "lock" in answer:
            mode, lvb, of.lvb_valid = answer["lock"]
            of.mode, of.lvb = Mode(mode), bytes.fromhex(lvb)
        return answer

    async def open_lockspace(self, name: str, *, cluster_name: str, client: str) -> Lockspace:
        number = await self.ask("open", name=name, cluster_name=cluster_name, client=client)
        return RemoteLockspace(self, number, name)

    async def close(self) -> None:
        await self.ask("end")

    async def flush(self) -> None:
        await self.ask("flush")

    async def kill(self) -> None:
        pid = await self.ask("pid")
        await self._send({"id": 0, "op": "die", "words": {}})
        async with await _connect(f"reap {pid}") as reaping:
            assert await reaping.receive_some() == b"reaped\n"


class RemoteLockspace:
    lost: str | None = None
    stalled = False
    lifelines = ()

    def __init__(self, manager: RemoteManager, number: int, name: str) -> None:
        self.name = name
        self._manager = manager
        self._number = number

    async def lock(self, resource: str, *, on_blocking: Callable[[Mode], None] | None = None) -> Lock:
        ask = self._manager.ask
        number = await ask("create", space=self._number, resource=resource, notices=on_blocking is not None)
        if on_blocking is not None:
            self._manager.notices[number] = on_blocking
        return RemoteLock(self._manager, number, resource)

    async def query(self) -> list[ResourceView]:
        return [
            ResourceView(
                name,
                tuple(
                    LockView(client, Mode(granted), None if asked is None else Mode(asked), waiting_s)
                    for client, granted, asked, waiting_s in locks
                ),
                bytes.fromhex(lvb),
                valid,
            )
            for name, locks, lvb, valid in await self._manager.ask("query", space=self._number)
        ]

    async def wait_lost(self) -> str:
        await trio.sleep_forever()
        raise AssertionError

    def leave_soon(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self._manager.ask("leave", space=self._number)


class RemoteLock:
    def __init__(self, manager: RemoteManager, number: int, resource: str) -> None:
        self.resource = resource
        self.mode = Mode.NL
        self.lvb = NO_LVB
        self.lvb_valid = True
        self._manager = manager
        self._number = number

    async def convert(self, mode: Mode, *, noqueue: bool = False) -> None:
        lvb = self.lvb.hex()
        await self._manager.ask("convert", of=self, lock=self._number, mode=int(mode), noqueue=noqueue, lvb=lvb)

    async def cancel(self) -> bool:
        return bool(await self._manager.ask("cancel", lock=self._number))

    async def release(self) -> None:
        await self._manager.ask("release", of=self, lock=self._number)


class DlmHarness:
    def __init__(self, nursery: trio.Nursery, space: str) -> None:
        self.limits = LIMITS
        self._nursery = nursery
        self._space = space
        self._managers: list[DlmManager | RemoteManager] = []
        self._probes: list[Lock] = []

    async def manager(self) -> LockManager:
        manager: DlmManager | RemoteManager
        if len(self._managers) % 2:
            manager = RemoteManager(self._nursery, await _connect("client"))
        else:
            manager = await self._nursery.start(self._keep_open)
        self._managers.append(manager)
        return manager

    async def _keep_open(self, task_status: trio.TaskStatus[DlmManager]) -> None:
        async with open_dlm(TrioRuntime(), allow_unfenced=True) as manager:
            task_status.started(manager)
            await trio.sleep_forever()

    async def doomed(self) -> RemoteDoomed:
        manager = RemoteManager(self._nursery, await _connect("client"))
        self._managers.append(manager)
        space = await manager.open_lockspace(self._space, cluster_name=CLUSTER, client="doomed")
        return RemoteDoomed(self, manager, space, self._nursery)

    def forget(self, manager: RemoteManager) -> None:
        self._managers.remove(manager)

    async def settle(self) -> None:
        # What each client has asked has gone into the kernel; the machines' messages to each other keep their order,
        # so a round trip from each of them, over a lock of which the other keeps the books, has all that came before.
        await trio.testing.wait_all_tasks_blocked(0.01)
        for manager in self._managers:
            await manager.flush()
        if not self._probes:
            await self._make_probes()
        for _ in range(2):
            for probe in self._probes:
                await probe.convert(Mode.CR)
                await probe.convert(Mode.NL)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for manager in self._managers:
            await manager.flush()
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def _make_probes(self) -> None:
        here = await (await self._nursery.start(self._keep_open)).open_lockspace(
            "probe", cluster_name=CLUSTER, client="probe"
        )
        manager = RemoteManager(self._nursery, await _connect("client"))
        there = await manager.open_lockspace("probe", cluster_name=CLUSTER, client="probe")
        await there.lock("there")  # who asks first keeps the books
        await here.lock("here")
        self._probes = [await here.lock("there"), await there.lock("here")]

    async def lose(self) -> None:
        raise AssertionError(self.limits["lose"])


class RemoteDoomed:
    def __init__(self, harness: DlmHarness, manager: RemoteManager, space: Lockspace, nursery: trio.Nursery) -> None:
        self._harness = harness
        self._manager = manager
        self._space = space
        self._nursery = nursery
        self._locks: dict[str, Lock] = {}

    async def _lock(self, resource: str) -> Lock:
        if resource not in self._locks:
            self._locks[resource] = await self._space.lock(resource)
        return self._locks[resource]

    async def convert(self, resource: str, mode: Mode, lvb: bytes | None = None) -> None:
        lock = await self._lock(resource)
        if lvb is not None:
            lock.lvb = lvb
        await lock.convert(mode)

    async def start(self, resource: str, mode: Mode) -> None:
        self._nursery.start_soon((await self._lock(resource)).convert, mode)
        await self._harness.settle()

    async def kill(self) -> None:
        self._harness.forget(self._manager)
        await self._manager.kill()
        await self._harness.settle()
