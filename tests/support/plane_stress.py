"""The native plane under everything at once, with a socket pair in place of ``/dev/fuse``; for ThreadSanitizer, too::

    python -m support.plane_stress [--seconds S] [--directory DIR] [--ring] [--workers N]

Four callers read, write, flush and punch, each in blocks of its own, and know what they must read; control suspends
and lifts ranges, drains, sweeps, does leg I/O of its own, fails a leg and records it, and fences at the end. Exits with
a message if an answer is wrong or missing.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Sequence

from raidfs._backend_threads import ThreadBackend, notify_eventfd
from raidfs._core import Engine, LegState
from raidfs._plane import Plane

SIZE = 8 << 20
DATA_OFFSET = 64 * 1024
BLOCK = 4096
CALLERS = 4
IN_FLIGHT = 8
READ, WRITE, FSYNC, FALLOCATE = 15, 16, 20, 43
PUNCH_HOLE, KEEP_SIZE = 2, 1


def request(opcode: int, unique: int, body: bytes) -> bytes:
    """Return a message as the kernel would send it."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 2, 0, 0, 1, 0, 0) + body


class Rig:
    """An engine on two files, a pool, and a plane whose kernel is this program.

    With ``take_ops`` nobody carries leg operations out: they are for `Engine.take_ops`. The messages ``first`` are
    there before the workers begin.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        ring: bool,
        workers: int,
        take_ops: bool = False,
        first: Sequence[bytes] = (),
    ) -> None:
        self.fds = []
        self.engine = Engine(2)
        self.engine.configure(
            block_bytes=512, size_bytes=SIZE, data_offsets=[DATA_OFFSET] * 2, raid_disks=2, slot_offset=8192,
            chunk_bytes=64 * 1024, bitmap=bytes(4096), events=1, events_cleared=0,
        )  # fmt: skip
        self.engine.publish_legs([LegState.IN_SYNC] * 2)
        self.legs = ThreadBackend(self.engine)
        for leg in range(2):
            path = directory / f"leg{leg}"
            path.write_bytes(bytes(DATA_OFFSET + SIZE))
            self.fds.append(os.open(path, os.O_RDWR))
            self.legs.attach(leg, self.fds[leg])
        self.replies = os.eventfd(0, os.EFD_NONBLOCK)
        notify_eventfd(self.engine, self.replies)
        if not take_ops:
            self.legs.start(3)
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fuse_fd = ours.detach()
        for message in first:
            self.kernel.send(message)
        self.done = os.eventfd(0, os.EFD_NONBLOCK)
        self.pyfuse3, self.passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        legs = None if take_ops else self.legs
        fds = self.fuse_fd, self.pyfuse3.fileno(), self.done
        self.plane = Plane(self.engine, legs, *fds, workers=workers, ring=ring)
        self.threads = [threading.Thread(target=self._be_worker, args=(n,)) for n in range(workers)]
        for thread in self.threads:
            thread.start()

    def _be_worker(self, number: int) -> None:
        assert self.plane.prepare(number)
        self.plane.work(number)

    def control(self, tag: int) -> int:
        """Wait for one request of control's."""
        while True:
            select.select([self.replies], [], [], 1)
            for found, result, _data in self.engine.replies():
                if found == tag:
                    return result
            if select.select([self.replies], [], [], 0)[0]:
                os.eventfd_read(self.replies)

    def close(self) -> None:
        """Take the mount away, as it were, and everything with it."""
        self.kernel.close()
        for thread in self.threads:
            while thread.is_alive():
                self.plane.stop()
                thread.join(0.01)
        self.plane.close()
        self.legs.close()
        notify_eventfd(self.engine, -1)
        for end in (self.pyfuse3, self.passed):
            end.close()
        for fd in (*self.fds, self.replies, self.done, self.fuse_fd):
            os.close(fd)


class Callers:
    """What the kernel's side sends and expects: one thread, many requests in flight, none of them overlapping."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.chance = random.Random(seed)
        self.unique = 2
        self.content = bytearray(SIZE)
        self.flying: dict[int, tuple[int, int, int, bytes]] = {}
        self.busy: set[int] = set()
        self.answers = 0
        self.faults: list[str] = []
        self.fenced = False

    def send(self) -> None:
        block = self.chance.randrange(SIZE // BLOCK)
        if block in self.busy:
            return
        self.unique += 2
        kind = self.chance.choice((READ, READ, WRITE, WRITE, WRITE, FSYNC, FALLOCATE))
        start = block * BLOCK + self.chance.choice((0, 0, 100, 512))
        length = self.chance.randrange(1, BLOCK - start % BLOCK + 1) if start % BLOCK else BLOCK
        data = b""
        if kind == READ:
            body = struct.pack("=QQIIQII", 2, start, length, 0, 0, 0, 0)
        elif kind == WRITE:
            data = self.chance.randbytes(length)
            body = struct.pack("=QQIIQII", 2, start, length, 0, 0, os.O_WRONLY, 0) + data
        elif kind == FALLOCATE:
            data = bytes(length)
            body = struct.pack("=QQQII", 2, start, length, PUNCH_HOLE | KEEP_SIZE, 0)
        else:
            body = bytes(16)
        self.busy.add(block)
        self.flying[self.unique] = (kind, start, length, data)
        self.rig.kernel.send(request(kind, self.unique, body))

    def receive(self) -> None:
        message = self.rig.kernel.recv(1 << 20)
        _length, error, unique = struct.unpack_from("=IiQ", message)
        kind, start, length, data = self.flying.pop(unique)
        self.busy.discard(start // BLOCK)
        self.answers += 1
        if error:
            if not self.fenced:
                self.faults.append(f"request {kind} at {start} got {error}")
        elif kind == READ and message[16:] != self.content[start : start + length]:
            self.faults.append(f"read at {start} is wrong")
        elif kind in (WRITE, FALLOCATE):
            self.content[start : start + length] = data

    def run(self, until: float) -> None:
        """Keep requests in flight until then, and take the answers that are left."""
        while time.monotonic() < until:
            while len(self.flying) < CALLERS * IN_FLIGHT:
                self.send()
            self.receive()
        while self.flying and select.select([self.rig.kernel], [], [], 10)[0]:
            self.receive()
        if self.flying:
            self.faults.append(f"{len(self.flying)} requests have no answer")


def control(rig: Rig, stop: threading.Event) -> None:
    """What a node's control does meanwhile."""
    engine, chance, number = rig.engine, random.Random(1), 0
    while not stop.is_set():
        number += 1
        start = chance.randrange(SIZE // 2)
        engine.suspend(start, start + SIZE // 4)
        rig.control(engine.submit_drain(start, start + SIZE // 4))
        time.sleep(0.001)
        engine.suspend(0, 0)
        rig.control(engine.submit_sweep())
        rig.control(engine.submit_leg_read(number % 2, 8192, 4096))
        engine.statistics()
        if number == 20:
            engine.block_leg(1)
            time.sleep(0.002)
            engine.leg_failure(1, recorded=True)
        engine.events()


def stress(directory: pathlib.Path, *, seconds: float, ring: bool, workers: int) -> tuple[int, list[str]]:
    """Return how many requests were answered and what was wrong."""
    rig = Rig(directory, ring=ring, workers=workers)
    callers = Callers(rig, seed=7)
    stop = threading.Event()
    controlling = threading.Thread(target=control, args=(rig, stop))
    controlling.start()
    callers.run(time.monotonic() + seconds)
    stop.set()
    controlling.join()
    fencing = threading.Timer(0.05, rig.engine.fence, (5,))
    callers.fenced = True
    fencing.start()
    callers.run(time.monotonic() + 0.2)
    fencing.join()
    rig.close()
    return callers.answers, callers.faults


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("/dev/shm"))
    parser.add_argument("--ring", action="store_true")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raidfs-", dir=options.directory) as place:
        answers, faults = stress(
            pathlib.Path(place), seconds=options.seconds, ring=options.ring, workers=options.workers
        )
    print(f"{answers} requests answered")
    if faults:
        raise SystemExit("\n".join(faults[:20]))


if __name__ == "__main__":
    main()
