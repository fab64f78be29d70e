"""A sync that the storage makes fail is not tried for ever: it ends in a state that says so."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from support.sim_nodes import CHUNKS, SimNode, SimNodes

from raidfs._core import OpKind
from raidfs.cluster.messages import MessageType
from raidfs.faults import Strike
from raidfs.sim.disks import DiskOp, SimDisk
from raidfs.sim.layout import CHUNK_BYTES

SEEDS = range(3)


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    yield
    SimNodes.dispose_all()


class NoFlush:
    """The only leg in sync fails every flush: no recovery from it comes to its end."""

    def __init__(self) -> None:
        self.struck = 0

    def __call__(self, disk: SimDisk, op: DiskOp) -> Strike | None:
        if op.kind != OpKind.FLUSH or disk.name != "disk0":
            return None
        self.struck += 1
        return Strike(errno=errno.EIO)


def recovery_that_fails(seed: int) -> tuple[SimNodes, SimNode]:
    cluster = SimNodes(seed, clean=True)
    a = cluster.join("A")
    a.do(a.node.fail("disk1"))
    for chunk in range(CHUNKS):
        a.do(a.node.volume.write(chunk * CHUNK_BYTES, b"m" * 512, durable=True))
    a.host.decide = NoFlush()
    a.do(a.node.re_add("disk1"))
    cluster.until(lambda: has_failed(a))
    return cluster, a


def has_failed(one: SimNode) -> bool:
    return one.node.sync_status().state == "failed"


@pytest.mark.parametrize("seed", SEEDS)
def test_it_fails_with_a_reason_and_is_not_tried_again(seed: int) -> None:
    cluster, a = recovery_that_fails(seed)
    status = a.node.sync_status()
    assert (status.action, status.state, status.failure) == ("recover", "failed", "Input/output error")
    assert a.legs == {"disk0": "IN_SYNC", "disk1": "RECOVERING"}
    a.do(a.node.wait_for_syncs())  # nothing that could be waited for
    said = len(cluster.messages)
    cluster.settle(600)
    assert has_failed(a)
    assert len(cluster.messages) == said


@pytest.mark.parametrize("seed", SEEDS)
def test_a_user_who_asks_has_it_tried_again(seed: int) -> None:
    cluster, a = recovery_that_fails(seed)
    said = len(cluster.messages)
    a.do(a.node.sync_action("resync"))
    assert a.node.sync_status().failure == ""
    cluster.until(lambda: has_failed(a))
    assert (MessageType.RESYNCING_START, "A") in {(sent.type, who) for who, sent in cluster.messages[said:]}


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_tried_again_when_the_legs_have_changed(seed: int) -> None:
    cluster, a = recovery_that_fails(seed)
    a.do(a.node.fail("disk1"))
    assert a.node.sync_status().state == "idle"
    said = len(cluster.messages)
    a.do(a.node.re_add("disk1"))
    cluster.until(lambda: has_failed(a))
    assert (MessageType.RESYNCING_START, "A") in {(sent.type, who) for who, sent in cluster.messages[said:]}
