"""A control socket of a node that says what a test wants: the real server, with statuses and failures to order."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
from types import TracebackType
from typing import Any

import trio
from support.memory_node import sample_status

from raidfs.control import ownership, paths, server
from raidfs.control.protocol import Hello
from raidfs.control.schema import NodeStatus, SyncStatus
from raidfs.errors import RaidfsError


class ScriptedNode:
    """Serves while it is entered. ``syncs`` are told one status each, the last for ever; ``calls`` is what was asked.

    ``failures`` are raised, one each, by the method of that name; ``results`` are what it answers, if not null.
    """

    def __init__(self, runtime_directory: pathlib.Path, mountpoint: str = "/mnt/x") -> None:
        self.status: NodeStatus = dataclasses.replace(
            sample_status(), node=dataclasses.replace(sample_status().node, mountpoint=mountpoint)
        )
        self.syncs: list[SyncStatus] = [SyncStatus()]
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failures: dict[str, list[RaidfsError]] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self._files = paths.node_paths(str(runtime_directory), mountpoint)
        self._hello = Hello(mountpoint, "md0", self.status.array.uuid, os.getpid(), "0.1.0")
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._ready = threading.Event()
        self._end = trio.Event()
        self._token: trio.lowlevel.TrioToken

    def __enter__(self) -> ScriptedNode:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the socket, as a node that is unmounted; a second call does nothing."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._end.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        owned = ownership.acquire(self._files)
        assert owned is not None
        names = ("sync_action", "remove", "add", "re_add", "grow", "check_grow")
        methods: dict[str, server.Method] = {name: self._recorder(name) for name in names}
        control = server.ControlServer(
            server.listen(self._files.socket), self._hello, {**methods, "status": self._tell}
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run)
            self._ready.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()
        owned.close()

    async def _tell(self, params: dict[str, Any]) -> Any:
        sync = self.syncs.pop(0) if len(self.syncs) > 1 else self.syncs[0]
        return dataclasses.replace(self.status, sync=sync).to_json()

    def _recorder(self, name: str) -> server.Method:
        async def called(params: dict[str, Any]) -> dict[str, Any] | None:
            self.calls.append((name, params))
            if self.failures.get(name):
                raise self.failures[name].pop(0)
            return self.results.get(name)

        return called
