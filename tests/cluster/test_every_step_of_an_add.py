"""A node adds an image, takes a leg back or removes one, and dies at some step of that; the others find one answer.

Whichever step it is: what the other nodes have prepared is forgotten or is a leg on all of them, and the next command
works.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from support.sim_nodes import SimNode, SimNodes

from raidfs.lock.api import Mode
from raidfs.sim.layout import CHUNK_BYTES

STEPS_BETWEEN = 3
STEPS_MAX = 600


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


def adds(one: SimNode) -> Coroutine[Any, Any, None]:
    return one.node.add("disk3", spare=False, force=False)


def takes_back(one: SimNode) -> Coroutine[Any, Any, None]:
    return one.node.re_add("disk2")


def removes(one: SimNode) -> Coroutine[Any, Any, None]:
    return one.node.remove("disk2")


@pytest.mark.slow
@pytest.mark.parametrize("command", [adds, takes_back, removes])
def test_who_changes_the_legs_dies_at_every_step(command: Callable[[SimNode], Coroutine[Any, Any, None]]) -> None:
    step, done = 0, False
    while not done:
        done = dies(step, command)
        SimNodes.dispose_all()
        step += STEPS_BETWEEN
        assert step < STEPS_MAX
    assert step > 20 * STEPS_BETWEEN


def dies(step: int, command: Callable[[SimNode], Coroutine[Any, Any, None]]) -> bool:
    """Let the one that was asked die at this step of its own; returns whether the command had ended by then."""
    cluster = SimNodes(step, clean=True, legs=3, fresh=1)
    a, b, c = (cluster.join(name) for name in "ABC")
    b.do(b.node.fail("disk2"))
    b.do(b.node.volume.write(CHUNK_BYTES, b"m" * 512, durable=True))
    first = a.group.steps
    asked = a.ask(command(a))
    cluster.until(lambda: a.group.steps >= first + step or asked.done)
    a.die()
    cluster.until(lambda: has_gone(b, c) and healed(b, c))
    for one in (b, c):
        assert not one.node.devices.candidates
        assert one.node.channel.no_new_dev.mode is Mode.CR
        assert one.node.lost is None
    assert b.legs == c.legs
    in_sync = [int(path[-1]) for path, state in b.legs.items() if state == "IN_SYNC"]
    for disk in in_sync:
        assert cluster.data(disk) == cluster.data(0)
        for slot in range(cluster.layout.nodes):
            assert cluster.bits(slot, disk) == cluster.bits(slot, 0)
    if "disk3" not in b.legs:
        c.do(c.node.add("disk3", spare=False, force=any(cluster.disks[3].content[4096:4352])))
    cluster.until(lambda: healed(b, c))
    assert b.legs == c.legs
    assert b.legs["disk3"] in ("IN_SYNC", "MISSING")
    assert not b.node.array.is_degraded
    return asked.done


def has_gone(*others: SimNode) -> bool:
    """Whether the death of slot 0 is over and done with."""
    return not any(0 in one.node._watched or one.node.takeover._gone for one in others)


def healed(*nodes: SimNode) -> bool:
    return not any(one.node.sync.current or one.node.sync.is_due() or one.node.mddev.remote.slot for one in nodes)
