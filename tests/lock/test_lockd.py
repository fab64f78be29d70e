"""``raidfs lockd`` as the process that it is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from raidfs.errors import LockspaceLost, WrongClusterName
from raidfs.lock import client
from raidfs.lock.address import LockAddress, parse_address
from raidfs.lock.client import connected
from raidfs.runtime import TrioRuntime

pytestmark = pytest.mark.slow  # each starts a Python

ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


@pytest.fixture
def address() -> LockAddress:
    return LockAddress(f"raidfs-test-lockd/{os.getpid()}/{next(_numbers)}", abstract=True)


@contextlib.contextmanager
def lockd(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run lockd until the end of the block; it has told its status when the block begins."""
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "raidfs", "lockd", *arguments, "--status-fd", str(write_fd)],
        cwd=ROOT,
        pass_fds=(write_fd,),
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_fd)
    with open(read_fd) as status, process:
        process.status = json.loads(status.read())  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_and_its_clients_are_told(address: LockAddress, number: signal.Signals) -> None:
    with lockd("--listen", str(address)) as process:
        async with connected(address, runtime=TrioRuntime()) as manager:
            space = await manager.open_lockspace("space", cluster_name="c", client="x")
            process.send_signal(number)
            with trio.fail_after(10):
                assert number.name in await space.wait_lost()
        assert await trio.to_thread.run_sync(process.wait) == 0


async def test_killed_it_is_a_loss_and_its_address_is_free_at_once(address: LockAddress) -> None:
    with lockd("--listen", str(address)) as process:
        async with connected(address, runtime=TrioRuntime()) as manager:
            space = await manager.open_lockspace("space", cluster_name="c", client="x")
            process.kill()
            with trio.fail_after(10):
                await space.wait_lost()
            with pytest.raises(LockspaceLost):
                await space.query()
    with lockd("--listen", str(address)):
        (await client.greet(address)).close()


async def test_a_killed_server_s_path_is_taken_over_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / 'lock'}"
    with lockd("--listen", listen) as process:
        with lockd("--listen", listen) as second:
            assert second.status["error"] == "LockAddressInUse"  # type: ignore[attr-defined]
            assert await trio.to_thread.run_sync(second.wait) == 1
        process.kill()
        await trio.to_thread.run_sync(process.wait)
    assert (tmp_path / "lock").exists()
    with lockd("--listen", listen) as third:
        assert third.status["status"] == "listening"  # type: ignore[attr-defined]
        (await client.greet(parse_address(listen))).close()


async def test_it_ends_with_its_last_client_when_told_to(address: LockAddress) -> None:
    with lockd("--listen", str(address), "--exit-when-idle") as process:
        async with connected(address, runtime=TrioRuntime()):
            pass
        with trio.fail_after(10):
            assert await trio.to_thread.run_sync(process.wait) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


async def test_it_serves_the_cluster_that_it_is_told(address: LockAddress) -> None:
    with lockd("--listen", str(address), "--cluster-name", "mine"):
        async with connected(address, runtime=TrioRuntime()) as manager:
            with pytest.raises(WrongClusterName, match="'mine', not to 'yours'"):
                await manager.open_lockspace("space", cluster_name="yours", client="x")
            await manager.open_lockspace("space", cluster_name="mine", client="x")


@pytest.mark.parametrize(("listen", "code", "words"), [
    ("tls://host:1", 1, "this build has no lock manager"),
    ("/run/lock", 2, "write auto, unix:PATH or abstract:NAME"),
    ("unix:/nowhere/at/all", 1, "No such file or directory"),
])  # fmt: skip
def test_an_address_that_cannot_be_used_is_one_line_and_a_code(listen: str, code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raidfs", "lockd", "--listen", listen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_loads_nothing_heavy_before_it_listens() -> None:
    program = "import sys, raidfs.cli.lockd; print([name for name in ('trio', 'pyfuse3') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
