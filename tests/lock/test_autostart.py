"""``--lock auto``: real servers, started by whoever comes first."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from pathlib import Path

import pytest
import trio

from raidfs.errors import BadLockAddress, LockManagerUnavailable, LockServerNotStarted, LockServerUnreachable
from raidfs.lock import autostart
from raidfs.lock.address import auto_address
from raidfs.lock.api import Mode
from raidfs.lock.autostart import open_manager
from raidfs.runtime import TrioRuntime


@pytest.fixture(autouse=True)
def among_traps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where modules lie about that must not be imported."""
    for name in ("raidfs", "trio", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current directory')")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def array_uuid() -> str:
    return str(uuid.uuid4())


async def gone(array_uuid: str) -> None:
    """Return as soon as nobody listens at the array's address, with the process behind it on its way out."""
    with trio.fail_after(20):
        while _somebody_listens(array_uuid):
            await trio.sleep(0.01)


def _somebody_listens(array_uuid: str) -> bool:
    name = f"@{auto_address(array_uuid).path}"
    return any(line.endswith(name) for line in Path("/proc/net/unix").read_text().splitlines())


@pytest.mark.slow
async def test_the_first_starts_a_server_that_outlives_it_and_ends_with_the_last(array_uuid: str) -> None:
    async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime()) as first:
        space = await first.open_lockspace("space", cluster_name="c", client="first")
        async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime()) as second:
            other = await second.open_lockspace("space", cluster_name="c", client="second")
            lock = await other.lock("r")
            await space.close()
            await first.close()
            await lock.convert(Mode.EX)
    await gone(array_uuid)


@pytest.mark.slow
async def test_twenty_starters_at_once_find_themselves_at_one_server(array_uuid: str) -> None:
    joined = 0
    all_joined = trio.Event()
    seen: list[int] = []

    async def start(number: int) -> None:
        nonlocal joined
        async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime()) as manager:
            space = await manager.open_lockspace("space", cluster_name="c", client=f"node{number}")
            await space.lock("r")
            joined += 1
            if joined == 20:
                all_joined.set()
            await all_joined.wait()
            (resource,) = await space.query()
            seen.append(len({lock.client for lock in resource.locks}))
            left = 20 - len(seen)
            if left == 0:
                nursery.cancel_scope.cancel()
            await trio.sleep_forever()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(start, number)
    assert seen == [20] * 20
    await gone(array_uuid)


@pytest.mark.slow
async def test_nobody_is_dropped_by_a_server_that_ends_while_they_come(array_uuid: str) -> None:
    """Joining and leaving from several sides, so that servers end and begin under the feet of the others."""
    rounds = 0

    async def come_and_go() -> None:
        nonlocal rounds
        for _ in range(8):
            async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime()) as manager:
                space = await manager.open_lockspace("space", cluster_name="c", client="x")
                lock = await space.lock("r")
                await lock.convert(Mode.EX)
                await lock.convert(Mode.NL)
                await space.close()
                rounds += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(come_and_go)
    assert rounds == 24
    await gone(array_uuid)


@pytest.mark.slow
async def test_a_server_keeps_nothing_of_its_starter_open(array_uuid: str, tmp_path: Path) -> None:
    precious = os.open(tmp_path / "precious", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(precious, True)
    try:
        async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime()):
            (server,) = _servers(array_uuid)
            opened = {os.readlink(fd) for fd in (server / "fd").iterdir()}
            assert str(tmp_path / "precious") not in opened
            assert {link for link in opened if link.startswith("/") and link != "/dev/null"} == set()
            fields = (server / "stat").read_text().rpartition(")")[2].split()
            assert int(fields[3]) == int(server.name), "it leads a session of its own"
            assert int(fields[1]) != os.getpid(), "it is nobody's child here"
            assert os.readlink(server / "cwd") == "/"
    finally:
        os.close(precious)
    await gone(array_uuid)


def _servers(array_uuid: str) -> list[Path]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and str(auto_address(array_uuid)) in (process / "cmdline").read_text():
                found.append(process)
    return found


async def test_a_server_that_cannot_be_run_is_named(array_uuid: str) -> None:
    with pytest.raises(LockServerNotStarted, match="/nonexistent/python: No such file"):
        async with open_manager(
            "auto", array_uuid=array_uuid, runtime=TrioRuntime(), server_command=["/nonexistent/python"]
        ):
            pass


async def test_a_server_that_ends_at_once_is_told_with_its_status(array_uuid: str) -> None:
    with pytest.raises(LockServerNotStarted, match=r"status 3.*raidfs lockd --listen abstract:raidfs/"):
        async with open_manager(
            "auto", array_uuid=array_uuid, runtime=TrioRuntime(), server_command=["/bin/sh", "-c", "exit 3"]
        ):
            pass


async def test_a_server_s_own_error_reaches_the_starter(array_uuid: str) -> None:
    script = """echo '{"error":"LockAddressNotUsable","message":"m","facts":{"address":"a","reason":"so"}}' >&$5"""
    command = ["/bin/bash", "-c", script.replace("$5", "${@: -1}"), "lockd"]
    with pytest.raises(LockServerNotStarted, match="cannot listen at a: so"):
        async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime(), server_command=command):
            pass


@pytest.mark.slow
async def test_a_starter_gives_up_after_a_while_with_the_last_reason(
    array_uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autostart, "JOIN_S", 0.3)
    liar = [sys.executable, "-c", """import os, sys; os.write(int(sys.argv[-1]), b'{"status":"listening"}')"""]
    with pytest.raises(LockServerNotStarted, match="Connection refused"):
        async with open_manager("auto", array_uuid=array_uuid, runtime=TrioRuntime(), server_command=liar):
            pass


async def test_a_named_manager_is_never_started(array_uuid: str) -> None:
    with pytest.raises(LockServerUnreachable):
        async with open_manager("abstract:raidfs-test/nobody", array_uuid=array_uuid, runtime=TrioRuntime()):
            pass


@pytest.mark.parametrize(("value", "kind"), [("tls://h:1", LockManagerUnavailable),
                                             ("somewhere", BadLockAddress)])  # fmt: skip
async def test_values_that_name_no_manager_are_refused(array_uuid: str, value: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        async with open_manager(value, array_uuid=array_uuid, runtime=TrioRuntime()):
            pass
