"""What ``--lock dlm`` says when something is missing, and what a node does when the ground under its locks goes."""

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
    eventually,
    lab_up,
    raidfs_create,
    raidfs_mount,
    raidfs_status,
    raidfs_umount,
)

from raidfs.units import MIB

full = pytest.mark.lab_full
WRITE = f"dd if=/dev/zero of={FILE} bs=4096 count=1 oflag=direct conv=notrunc"


def refusal(cluster: Cluster, node: Node, *options: str) -> str:
    said = node.said("raidfs", "mount", *options, *[disk.guest for disk in cluster.disks[:2]], MOUNTPOINT)
    assert said.status == 1
    return str(said.err)


def test_a_cluster_that_does_not_fence_is_refused_and_told_how_to_go_on(two: Cluster) -> None:
    raidfs_create(two.nodes[0], two.disks[:2], "--assume-clean")
    text = refusal(two, two.nodes[0], "--lock", "dlm")
    assert "enable_fencing=0" in text
    assert "--allow-unfenced" in text
    raidfs_mount(two.nodes[0], two.disks[:2], *DLM)
    assert raidfs_status(two.nodes[0])["lock"]["manager"] == "dlm"
    raidfs_umount(two.nodes[0])
    assert two.nodes[0].run("dlm_tool", "ls").strip() in ("", "dlm lockspaces")


@full
def test_what_is_missing_is_named(two: Cluster) -> None:
    node = two.nodes[0]
    disks = [disk.guest for disk in two.disks[:2]]
    node.run("raidfs", "create", "--assume-clean", "--cluster-name", "elsewhere", *disks)
    text = refusal(two, node, *DLM)
    assert "elsewhere" in text
    assert "raidfs update --cluster-name" in text
    for disk in two.disks[:2]:
        disk.wipe()
    raidfs_create(node, two.disks[:2], "--assume-clean")
    try:
        node.shell("pkill -x dlm_controld; while pidof dlm_controld; do sleep 0.1; done")
        assert "systemctl start dlm" in refusal(two, node, *DLM)
        node.shell("pkill -x corosync; while pidof corosync; do sleep 0.1; done")
        assert "systemctl start corosync" in refusal(two, node, *DLM)
        node.run("modprobe", "-r", "md_cluster", "dlm")
        assert "modprobe dlm" in refusal(two, node, *DLM)
    finally:
        node.run("lab-cluster", "start")
        node.run("lab-cluster", "wait", 2)
    raidfs_mount(node, two.disks[:2], *DLM)
    raidfs_umount(node)


@full
@pytest.mark.parametrize("daemon", ["corosync", "dlm_controld"])
def test_a_node_under_which_a_daemon_ends_serves_nothing_more_and_another_takes_over(two: Cluster, daemon: str) -> None:
    victim, other = two.nodes
    raidfs_create(victim, two.disks[:2], "--assume-clean")
    for node in two.nodes:
        raidfs_mount(node, two.disks[:2], *DLM)
    slot = raidfs_status(victim)["node"]["slot"]
    victim.shell(WRITE)
    victim.run("pkill", "-KILL", "-x", daemon)
    reason = eventually(lambda: raidfs_status(victim)["node"]["lost"], "it notices")
    assert "ended on this node" in reason  # without dlm_controld the others have corosync expelled, which is faster
    assert "Input/output error" in victim.said("sh", "-c", WRITE).err
    eventually(
        lambda: slot not in [member["slot"] for member in raidfs_status(other)["members"]], "the other one misses it"
    )
    other.shell(WRITE)
    other.run("raidfs", "wait", MOUNTPOINT)
    victim.run("raidfs", "umount", MOUNTPOINT)
    raidfs_umount(other)
    first, second = two.disks[:2]
    assert first.data() == second.data()
    assert first.dirty_chunks() == second.dirty_chunks() == set()
    victim.kill()  # a machine without its daemons is none of the cluster


@pytest.fixture
def fenced() -> Iterator[Cluster]:
    with lab_up(
        "fenced", nodes=2, disks_bytes=(64 * MIB,) * 2, dlm=(("enable_fencing", "1"),), wait_for_all=True
    ) as cluster:
        cluster.make_ready()
        yield cluster


@full
def test_until_a_dead_machine_is_fenced_nothing_is_granted_and_nobody_is_held_up_who_asks_or_leaves(
    fenced: Cluster,
) -> None:
    survivor, victim = fenced.nodes
    raidfs_create(survivor, fenced.disks, "--assume-clean")
    for node in fenced.nodes:
        raidfs_mount(node, fenced.disks, "--lock", "dlm")  # without --allow-unfenced
    slot = raidfs_status(victim)["node"]["slot"]
    victim.shell(WRITE)
    victim.kill()
    eventually(lambda: "fencing" in survivor.run("dlm_tool", "ls"), "the DLM waits for fencing")
    survivor.shell(WRITE)
    assert raidfs_status(survivor)["node"]["lost"] is None
    assert "recovery, or fencing" in survivor.run("raidfs", "explain", MOUNTPOINT)
    assert fenced.disks[0].dirty_chunks([slot]), "nobody has taken the slot over"
    start = time.monotonic()
    survivor.run("raidfs", "umount", MOUNTPOINT)
    assert time.monotonic() - start < 60
    survivor.run("dlm_tool", "fence_ack", victim.number)
    eventually(lambda: "fencing" not in survivor.run("dlm_tool", "ls"), "the DLM goes on")
    raidfs_mount(survivor, fenced.disks, "--lock", "dlm")
    survivor.run("raidfs", "wait", MOUNTPOINT)
    raidfs_umount(survivor)
    first, second = fenced.disks
    assert first.data() == second.data()
    assert first.dirty_chunks() == second.dirty_chunks() == set()
