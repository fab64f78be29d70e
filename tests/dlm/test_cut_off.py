"""Machines that are cut off or stand still, with fencing and without: never two writers of one slot (P6)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from support.lab_arrays import DLM
from support.lab_nodes import (
    FILE,
    MOUNTPOINT,
    Cluster,
    Node,
    Stamping,
    eventually,
    lab_up,
    raidfs_create,
    raidfs_mount,
    raidfs_status,
    raidfs_umount,
)

from raidfs.units import MIB

pytestmark = [pytest.mark.lab_full, pytest.mark.timeout(600)]

BLOCKS = 256
LONG_S = 15.0  # several times corosync's token, after which a machine counts as lost


@pytest.fixture
def fenced() -> Iterator[Cluster]:
    with lab_up("fenced3", nodes=3, disks_bytes=(64 * MIB,) * 2, dlm=(("enable_fencing", "1"),)) as cluster:
        raidfs_create(cluster.nodes[0], cluster.disks, "--assume-clean", "--bitmap-chunk", "64K")
        for node in cluster.nodes:
            raidfs_mount(node, cluster.disks, "--lock", "dlm")
        yield cluster


def members(node: Node) -> list[int]:
    return [member["slot"] for member in raidfs_status(node)["members"]]


def lost(node: Node) -> str | None:
    reason: str | None = raidfs_status(node)["node"]["lost"]
    return reason


def waits_for_fencing(node: Node) -> bool:
    return "fencing" in node.run("dlm_tool", "ls")


def fence(survivors: list[Node], victim: Node) -> None:
    """Make sure that a machine is off, and say so."""
    victim.kill()
    for node in survivors:
        node.said("dlm_tool", "fence_ack", victim.number)


def end_well(cluster: Cluster, survivors: list[Node], writers: list[Stamping]) -> None:
    """The slot is taken over now, nothing that was acknowledged is lost, and the legs are equal."""
    eventually(lambda: members(survivors[0]) == [node.number - 1 for node in survivors], "the slot is taken over")
    for writer in writers:
        writer.check(survivors[0])
    survivors[0].run("raidfs", "wait", MOUNTPOINT)
    for node in survivors:
        raidfs_umount(node)
    first, second = cluster.disks[:2]
    assert first.data() == second.data()
    assert first.dirty_chunks() == second.dirty_chunks() == set()


def test_a_machine_that_is_cut_off_serves_nothing_and_its_slot_is_taken_when_it_is_off(fenced: Cluster) -> None:
    *survivors, victim = fenced.nodes
    writers = [Stamping(node, FILE, node.number * BLOCKS, BLOCKS) for node in fenced.nodes]
    for writer in writers:
        writer.go_on()
    fenced.lab.set_links([victim.number], up=False)
    assert "quorum" in str(eventually(lambda: lost(victim), "it notices that it is alone"))
    writers[-1].stop(fails=True)
    assert writers[-1].status != 0, "its writes have failed"
    eventually(lambda: waits_for_fencing(survivors[0]), "the others wait for fencing")
    for writer in writers[:-1]:
        writer.go_on()  # which needs no lock
    time.sleep(LONG_S)
    assert fenced.disks[0].dirty_chunks([victim.number - 1]), "nobody has taken the slot over"
    assert all(lost(node) is None for node in survivors)
    fence(survivors, victim)
    for writer in writers[:-1]:
        writer.stop()
    end_well(fenced, survivors, writers)


def test_a_machine_that_stands_still_keeps_its_slot_until_it_is_off(fenced: Cluster) -> None:
    *survivors, victim = fenced.nodes
    writers = [Stamping(node, FILE, node.number * BLOCKS, BLOCKS) for node in fenced.nodes]
    for writer in writers:
        writer.go_on()
    fenced.lab.machines[victim.number].pause()
    eventually(lambda: waits_for_fencing(survivors[0]), "the others wait for fencing")
    time.sleep(LONG_S)
    assert fenced.disks[0].dirty_chunks([victim.number - 1]), "nobody has taken the slot over"
    for writer in writers[:-1]:
        writer.go_on()
    fenced.lab.machines[victim.number].resume()
    eventually(lambda: lost(victim), "it hears that it was expelled")
    writers[-1].stop(fails=True)
    assert writers[-1].status != 0, "its writes have failed"
    assert fenced.disks[0].dirty_chunks([victim.number - 1]), "nobody has taken the slot over"
    fence(survivors, victim)
    for writer in writers[:-1]:
        writer.stop()
    end_well(fenced, survivors, writers)


def test_a_daemon_that_stands_still_keeps_its_slot_and_goes_on(two: Cluster) -> None:
    stopped, other = two.nodes
    raidfs_create(stopped, two.disks[:2], "--assume-clean", "--bitmap-chunk", "64K")
    for node in two.nodes:
        raidfs_mount(node, two.disks[:2], *DLM)
    writers = [Stamping(node, FILE, node.number * BLOCKS, BLOCKS) for node in two.nodes]
    for writer in writers:
        writer.go_on()
    pid = raidfs_status(stopped)["node"]["pid"]
    stopped.run("kill", "-STOP", pid)
    writers[1].go_on()
    time.sleep(LONG_S)
    assert members(other) == [0, 1]
    stopped.run("kill", "-CONT", pid)
    for writer in writers:
        writer.go_on()
        writer.stop()
        writer.check(other)
    assert [lost(node) for node in two.nodes] == [None, None]
    end_well(two, two.nodes, [])


def test_without_fencing_the_slot_of_a_machine_that_stands_still_is_taken_and_it_serves_no_more(two: Cluster) -> None:
    """The outcome of ``--allow-unfenced`` that docs/locks.md tells of."""
    victim, other = two.nodes
    raidfs_create(victim, two.disks[:2], "--assume-clean", "--bitmap-chunk", "64K")
    for node in two.nodes:
        raidfs_mount(node, two.disks[:2], *DLM)
    writers = [Stamping(node, FILE, node.number * BLOCKS, BLOCKS) for node in two.nodes]
    for writer in writers:
        writer.go_on()
    two.lab.machines[victim.number].pause()
    eventually(lambda: members(other) == [1], "the slot is taken over while its node only stands still")
    writers[1].go_on()
    writers[1].stop()
    writers[1].check(other)
    two.lab.machines[victim.number].resume()
    eventually(lambda: lost(victim) or lost(other), "one of them hears that it was expelled")
    writers[0].stop(fails=True)
    for node in two.nodes:
        node.kill()  # which of them the DLM expels when they meet again is its choice
