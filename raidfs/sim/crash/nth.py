"""A script of two nodes in which one single I/O goes wrong: each in turn, each in several ways.

The I/O of all nodes on all legs is numbered in the order in which it is submitted, the first look at the images
included. What must be seen whatever is struck: every request comes to its end; users see no error unless the leg was
the last one; what was acknowledged is there in the end; and the legs that are in sync on record are equal.
"""

from __future__ import annotations

import errno

from raidfs._core import OpKind
from raidfs.faults import Strike
from raidfs.sim.crash.recording import Recording, quiet, record
from raidfs.sim.crash.reopened import broken_promise, reopen
from raidfs.sim.crash.scenario import parse_scenario
from raidfs.sim.crash.states import Cutter, Model
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.units import SECTOR_BYTES

SCRIPT = (
    "w0,w1+b1,d1,flush,bflush,age,w1+b1,bstop,w0,b1,bfail,w1+b1,flush,breadd+b0,w0+b1,sync,repair,sync,age,"
    "stop,w0,d1,b1,fail,w1,readd+b0,w0,sync,bflush,bstop,stop"
)

STRIKES = {
    "EIO": Strike(keep_bytes=0, errno=errno.EIO),
    "ENOSPC": Strike(keep_bytes=0, errno=errno.ENOSPC),
    "short": Strike(keep_bytes=SECTOR_BYTES),
    "torn": Strike(keep_bytes=SECTOR_BYTES, errno=errno.EIO),
    "delay": Strike(delay_s=20.0),
}


class Nth:
    """Strikes the ``nth`` I/O (from 0; -1 strikes none) and counts them all; ``what`` says which one was struck."""

    def __init__(self, nth: int, strike: Strike) -> None:
        self.total = 0
        self.what = ""
        self._nth = nth
        self._strike = strike

    def __call__(self, disk: SimDisk, op: DiskOp) -> Strike | None:
        """See `raidfs.sim.strikes.Decide`."""
        self.total += 1
        if self.total - 1 != self._nth:
            return None
        self.what = (
            f"{op.owner.name}: {OpKind(op.kind).name.lower()} of {op.length} bytes at {op.offset} of {disk.name}"
        )
        return self._strike


def sites(script: str = SCRIPT) -> int:
    """Return how many I/Os the script has when nothing goes wrong."""
    nothing = Nth(-1, Strike())
    assert record(parse_scenario(script), nothing).problem is None
    return nothing.total


def failure_of(nth: int, how: str, script: str = SCRIPT) -> str | None:
    """Run the script with its nth I/O struck; return what went wrong that must not, or None."""
    struck = Nth(nth, STRIKES[how])
    with quiet():
        recording = record(parse_scenario(script), struck)
        problem = recording.problem or _lost(recording)
    return problem and f"I/O {nth} ({struck.what}), {how}: {problem}"


def _lost(recording: Recording) -> str | None:
    cut = next(cut for cut in Cutter(recording).cuts(only=len(recording.entries)) if cut.model is Model.NODES)
    broken = broken_promise(reopen(recording.final), cut.wanted)
    return broken and f"{broken[0]}: {broken[1]}"
