"""All machines of a lab: up, joined to one cluster, commands in them, and down."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

from lab import agent, images
from lab.agent import Said
from lab.machine import Machine
from lab.shape import LabError, Shape, Wish

BOOT_S = 300  # on a machine that has other things to do as well
_BEFORE_S = 60  # for a command that the lab itself runs

Teller = Callable[[str], None]


class Lab:
    """A lab that is up in the directory ``run``; everything that it is stands there, so any process can use it."""

    def __init__(self, run: pathlib.Path, shape: Shape) -> None:
        self.run_directory = run
        self.shape = shape
        self.machines = {number: Machine(number, shape, run) for number in shape.numbers}

    @classmethod
    def load(cls, run: pathlib.Path) -> Lab:
        """Return the lab that is up there; LabError when none is."""
        return cls(run, Shape.load(run))

    @classmethod
    def up(cls, run: pathlib.Path, wish: Wish, tell: Teller = lambda text: None) -> Lab:
        """Boot the machines, start the cluster on them, and return when all have joined and there is quorum.

        Images are built first where they are missing or out of date. When it fails nothing runs on.
        """
        made = images.ready(tell)
        run.mkdir(parents=True, exist_ok=True)
        with _only_one(run):
            if (run / "lab.json").exists():
                raise LabError(f"a lab is up in {run}: `scripts/lab down` first, or set RAIDFS_LAB_RUN")
            disks = []
            for number, size_bytes in enumerate(wish.disks_bytes):
                path = run / f"shared{number}.img"
                path.unlink(missing_ok=True)
                with open(path, "xb") as disk:
                    disk.truncate(size_bytes)
                disks.append(str(path))
            shape = Shape.of(wish, boot=str(made.boot), raidfs_image=str(made.raidfs), disks=disks)
            shape.save(run)
        lab = cls(run, shape)
        try:
            lab._bring_up(list(shape.numbers), tell)
        except BaseException:
            lab.down(keep_logs=True)
            raise
        return lab

    def down(self, *, keep_disks: bool = False, keep_logs: bool = True) -> None:
        """Switch all machines off and forget the lab. Consoles and logs stay below ``run`` unless told otherwise."""
        for machine in self.machines.values():
            machine.kill()
        (self.run_directory / "lab.json").unlink(missing_ok=True)
        if not keep_disks:
            for disk in self.shape.disks:
                pathlib.Path(disk).unlink(missing_ok=True)
        if not keep_logs:
            for machine in self.machines.values():
                for path in machine.home.iterdir():
                    path.unlink()
                machine.home.rmdir()

    # ---- machines ----------------------------------------------------------------------------------------------

    def machine(self, text: str) -> Machine:
        """Return the machine that is called ``1`` or ``n1``."""
        digits = text.removeprefix("n")
        if not digits.isdecimal() or int(digits) not in self.machines:
            raise LabError(f"no such machine: {text} (1 to {self.shape.wish.nodes})")
        return self.machines[int(digits)]

    def start(self, numbers: Iterable[int], tell: Teller = lambda text: None) -> None:
        """Boot machines that are off, and return when they have joined the others that are on."""
        self._bring_up(list(numbers), tell)

    def set_links(self, numbers: Iterable[int], *, up: bool) -> None:
        """Plug all cables between these machines and the others in or out; with all of them, every cable."""
        chosen = set(numbers)
        others = set(self.machines) - chosen or chosen
        for a in sorted(chosen):
            for b in sorted(others - {a}):
                for end, peer in ((a, b), (b, a)):
                    if self.machines[end].pid is not None:
                        self.machines[end].set_link(peer, up=up)

    # ---- commands in them --------------------------------------------------------------------------------------

    def run(
        self,
        number: int,
        *words: str,
        stdin: BinaryIO | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Said:
        """Run a command in a machine and return what it said."""
        machine, port = self.machines[number], self.shape.control[number - 1]
        return agent.run(machine, port, words, stdin=stdin, environment=environment, timeout_s=timeout_s)

    def checked(self, number: int, *words: str, timeout_s: float = _BEFORE_S) -> str:
        """Run a command that must succeed and return its standard output; LabError with all that it said otherwise."""
        said = self.run(number, *words, timeout_s=timeout_s)
        if said.status:
            raise LabError(f"n{number}: {shlex.join(words)} failed ({said.status}):\n{said.out}{said.err}")
        return said.out

    def _bring_up(self, numbers: list[int], tell: Teller) -> None:
        began = time.monotonic()

        def done(what: str) -> None:
            tell(f"[{time.monotonic() - began:5.1f} s] {what}")

        for number in numbers:
            self.machines[number].start()
        at_once(numbers, lambda n: agent.connect(self.machines[n], self.shape.control[n - 1], BOOT_S).close())
        done(f"booted: {' '.join(f'n{number}' for number in numbers)}")
        if not self.shape.wish.cluster:
            return
        at_once(numbers, lambda n: self.checked(n, "lab-cluster", "start", timeout_s=BOOT_S))
        done("corosync and dlm_controld run")
        members = sum(machine.pid is not None for machine in self.machines.values())
        at_once(numbers, lambda n: self.checked(n, "lab-cluster", "wait", str(members), timeout_s=BOOT_S))
        done(f"a cluster of {members} with quorum")


def at_once(numbers: Iterable[int], function: Callable[[int], object]) -> None:
    """Call ``function(number)`` for all numbers at the same time, and raise the first failure when all have ended."""
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _only_one(run: pathlib.Path) -> Iterator[None]:
    with open(run / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
