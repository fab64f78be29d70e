"""Lock managers for the contract suite, each behind the same small harness.

A further manager (the Linux DLM) joins the suite by a harness of its own in `HARNESSES`; what it cannot do it says in
``limits``, and the tests that ask for it are skipped with that reason.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest
import trio
import trio.testing
from lock.dlm_harness import DlmHarness

from raidfs.lock.address import LockAddress
from raidfs.lock.api import Lock, LockManager, Lockspace, Mode
from raidfs.lock.client import connected
from raidfs.lock.listen import bound_listener
from raidfs.lock.server import LockServer
from raidfs.runtime import TrioRuntime
from raidfs.sim.locks import SimulatedClient, SimulatedLocks

CLUSTER = os.environ.get("RAIDFS_LOCK_CLUSTER", "tests")
SPACE = "6f1c9a52-33aa-4c5e-9d0f-1f2b3c4d5e6f"
_ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


class Doomed(Protocol):
    """A client that can be killed, with the little that it does before."""

    async def convert(self, resource: str, mode: Mode, lvb: bytes | None = None) -> None:
        """Hold ``resource`` in ``mode``, with ``lvb`` set before the conversion."""

    async def start(self, resource: str, mode: Mode) -> None:
        """Ask for ``mode`` and do not wait for it; the manager knows of it on return."""

    async def kill(self) -> None:
        """Die without a word; the manager knows it on return."""


class Harness(Protocol):
    """What the contract suite needs of a lock manager."""

    limits: dict[str, str]  # what it cannot do, and why

    async def manager(self) -> LockManager:
        """Return another client of the manager."""

    async def doomed(self) -> Doomed:
        """Return a client in `SPACE` that can be killed."""

    async def settle(self) -> None:
        """Return when all that was asked has been carried out and told."""

    async def lose(self) -> None:
        """Let the manager vanish."""


class SimulatedHarness:
    limits: dict[str, str]

    def __init__(self, nursery: trio.Nursery) -> None:
        self.limits = {}
        self._locks = SimulatedLocks(TrioRuntime())
        self._nursery = nursery
        nursery.start_soon(self._locks.run)

    async def manager(self) -> LockManager:
        return self._locks.connect().hub

    async def doomed(self) -> Doomed:
        client = self._locks.connect()
        space = await client.hub.open_lockspace(SPACE, cluster_name=CLUSTER, client="doomed")
        return _SimulatedDoomed(self, client, space, self._nursery)

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def lose(self) -> None:
        self._locks.lose("the test took it away")


class _SimulatedDoomed:
    def __init__(
        self, harness: SimulatedHarness, client: SimulatedClient, space: Lockspace, nursery: trio.Nursery
    ) -> None:
        self._harness = harness
        self._client = client
        self._space = space
        self._nursery = nursery
        self._locks: dict[str, Lock] = {}
        self._scope = trio.CancelScope()

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
        lock = await self._lock(resource)

        async def wait() -> None:
            with self._scope:
                await lock.convert(mode)

        self._nursery.start_soon(wait)
        await self._harness.settle()

    async def kill(self) -> None:
        self._client.kill()
        self._client.hub.lost = "killed"  # so that the frames of the dead can be cleared away
        self._scope.cancel()
        await self._harness.settle()


class EmbeddedHarness:
    limits: dict[str, str]

    def __init__(self, nursery: trio.Nursery, stack: contextlib.AsyncExitStack) -> None:
        self.limits = {}
        self.address = LockAddress(f"raidfs-test/{os.getpid()}/{next(_numbers)}", abstract=True)
        self.server = LockServer()
        self._nursery = nursery
        self._stack = stack
        self._probe: Lockspace | None = None
        self._served = trio.CancelScope()
        nursery.start_soon(self._serve, stack.enter_context(bound_listener(self.address)))

    async def _serve(self, listener: socket.socket) -> None:
        with self._served:
            await self.server.serve(listener)

    async def manager(self) -> LockManager:
        manager: LockManager = await self._nursery.start(self._keep_connected)
        return manager

    async def _keep_connected(self, task_status: trio.TaskStatus[LockManager]) -> None:
        async with connected(self.address, runtime=TrioRuntime()) as manager:
            task_status.started(manager)
            await trio.sleep_forever()

    async def doomed(self) -> Doomed:
        process = await trio.lowlevel.open_process(
            [sys.executable, Path(__file__).with_name("client_program.py"), str(self.address), SPACE, CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        doomed = _ProcessDoomed(self, process)
        self._stack.push_async_callback(doomed.kill)
        assert await doomed.answer() == "joined"
        return doomed

    async def settle(self) -> None:
        # A round trip through the server on every connection: answers keep their order on each of them.
        if self._probe is None:
            manager = await self.manager()
            self._probe = await manager.open_lockspace("probe", cluster_name=CLUSTER, client="probe")
        await trio.testing.wait_all_tasks_blocked(0.001)
        await self._probe.query()
        await trio.testing.wait_all_tasks_blocked(0.001)

    async def lose(self) -> None:
        self._served.cancel()
        await trio.testing.wait_all_tasks_blocked(0.001)


class _ProcessDoomed:
    def __init__(self, harness: EmbeddedHarness, process: trio.Process) -> None:
        self._harness = harness
        self._process = process
        self._text = b""

    async def answer(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._text:
            data = await self._process.stdout.receive_some()
            assert data, "the client program has ended"
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(command.encode() + b"\n")
        return await self.answer()

    async def convert(self, resource: str, mode: Mode, lvb: bytes | None = None) -> None:
        answer = await self._ask(f"convert {resource} {mode.name} {'-' if lvb is None else lvb.hex()}")
        assert answer == mode.name

    async def start(self, resource: str, mode: Mode) -> None:
        assert await self._ask(f"start {resource} {mode.name}") == "started"

    async def kill(self) -> None:
        if self._process.returncode is not None:
            return
        clients = self._harness.server.statistics().clients
        self._process.send_signal(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self._process.wait()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            await self._process.stdin.aclose()
            await self._process.stdout.aclose()
            while clients and self._harness.server.statistics().clients == clients:
                await trio.sleep(0.001)


# The DLM is there on machines of a cluster only, and two of them are needed: see dlm_harness.py.
HARNESSES = ("dlm",) if os.environ.get("RAIDFS_LOCK") == "dlm" else ("simulated", "embedded")


@pytest.fixture(params=HARNESSES)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    async with contextlib.AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        if request.param == "simulated":
            yield SimulatedHarness(nursery)
        elif request.param == "dlm":
            yield DlmHarness(nursery, SPACE)
        else:
            inner = await stack.enter_async_context(contextlib.AsyncExitStack())
            yield EmbeddedHarness(nursery, inner)


@pytest.fixture
def able(harness: Harness) -> Callable[[str], None]:
    """Return a function that skips the test when the manager says it cannot do something."""

    def check(ability: str) -> None:
        if ability in harness.limits:
            pytest.skip(harness.limits[ability])

    return check
