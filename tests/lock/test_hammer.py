"""Real processes that convert as fast as they can, some of them killed in the middle of it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from raidfs.lock.address import LockAddress
from raidfs.lock.client import connected
from raidfs.runtime import TrioRuntime

ROOT = Path(__file__).parents[2]
HAMMERS = 3
KILLS = 12


async def start(address: LockAddress, counter: Path, seed: int) -> trio.Process:
    process = await trio.lowlevel.open_process(
        [sys.executable, Path(__file__).with_name("hammer_program.py"), str(address), str(counter), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    await process.stdout.receive_some()
    return process


async def end(process: trio.Process, number: signal.Signals | None) -> tuple[int, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if number is not None:
        process.send_signal(number)
    await process.stdin.aclose()
    text = b""
    while data := await process.stderr.receive_some():
        text += data
    await process.stdout.aclose()
    await process.stderr.aclose()
    return await process.wait(), text.decode()


@pytest.mark.slow
async def test_kills_in_the_middle_of_conversions_break_nothing_and_leave_nothing(tmp_path: Path) -> None:
    generator = random.Random(1)
    address = LockAddress(f"raidfs-test-hammer/{os.getpid()}", abstract=True)
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    read_fd, write_fd = os.pipe()
    arguments = ["--listen", str(address), "--exit-when-idle", "--status-fd", str(write_fd)]
    lockd = await trio.lowlevel.open_process(
        [sys.executable, "-m", "raidfs", "lockd", *arguments],
        cwd=ROOT,
        pass_fds=(write_fd,),
    )
    os.close(write_fd)
    async with trio.lowlevel.FdStream(read_fd) as status:
        await status.receive_some()
    counts = []
    async with connected(address, runtime=TrioRuntime()) as manager:
        watch = await manager.open_lockspace("hammer", cluster_name="tests", client="watch")
        hammers = [await start(address, counter, seed) for seed in range(HAMMERS)]
        for kill in range(KILLS):
            await trio.sleep(generator.uniform(0.02, 0.1))
            victim = generator.randrange(HAMMERS)
            assert await end(hammers[victim], signal.SIGKILL) == (-signal.SIGKILL, "")
            hammers[victim] = await start(address, counter, HAMMERS + kill)
            counts.append(int.from_bytes(counter.read_bytes(), "little"))
        for hammer in hammers:
            code, text = await end(hammer, None)
            assert code == 0, text
        while await watch.query():
            await trio.sleep(0.01)
    assert all(earlier < later for earlier, later in itertools.pairwise(counts)), "somebody stood still"
    with trio.fail_after(10):
        assert await lockd.wait() == 0
