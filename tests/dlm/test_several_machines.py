"""Nodes of raidfs on several machines, over the DLM and shared disks: load on all, machines that die, come and go."""

from __future__ import annotations

import functools
import json

import pytest
from support.lab_arrays import DLM
from support.lab_nodes import (
    FILE,
    MOUNTPOINT,
    Cluster,
    Node,
    Stamping,
    eventually,
    raidfs_create,
    raidfs_mount,
    raidfs_status,
    raidfs_umount,
)

from raidfs.units import KIB, MIB

BLOCKS = 512  # of 4 KiB, for each machine
PART = BLOCKS * 4 * KIB
SIZE = 24 * MIB
SLOWLY = ("--sync-speed-max", "64")  # KiB/s: six minutes for all of it
DIRTY_CHUNKS_OF_USERS = 3 * PART // (64 * KIB) + 3
full = pytest.mark.lab_full


@pytest.fixture(params=["two", pytest.param("three", marks=pytest.mark.lab_full)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found: Cluster = request.getfixturevalue(request.param)
    return found


def mounted(cluster: Cluster, *first_options: str, clean: bool = True) -> None:
    """Make an array over two disks and mount it on all machines, by turns so that slots are in their order."""
    disks = cluster.disks[:2]
    shape = ["--size", str(SIZE), "--bitmap-chunk", "64K", *(["--assume-clean"] if clean else [])]
    raidfs_create(cluster.nodes[0], disks, *shape)
    for node in cluster.nodes:
        raidfs_mount(node, disks, *DLM, *(first_options if node is cluster.nodes[0] else ()))


def stamping(cluster: Cluster) -> list[Stamping]:
    """Let every machine write its own blocks; those of all machines lie in the same chunks of the bitmap."""
    return [Stamping(node, FILE, node.number * BLOCKS, BLOCKS) for node in cluster.nodes]


def survivors_end_well(cluster: Cluster, nodes: list[Node]) -> None:
    """All is quiet and clean after the last node has gone, and the legs are equal."""
    nodes[0].run("raidfs", "wait", MOUNTPOINT, timeout_s=120)
    for node in nodes:
        raidfs_umount(node)
    first, second = cluster.disks[:2]
    assert first.data() == second.data()
    assert first.dirty_chunks() == second.dirty_chunks() == set()


def members(node: Node) -> list[int]:
    return [member["slot"] for member in raidfs_status(node)["members"]]


def test_fio_verifies_what_all_machines_write_at_once_and_each_sees_what_the_others_wrote(cluster: Cluster) -> None:
    mounted(cluster)

    def fio(part: Node, *options: str) -> tuple[str, ...]:
        shape = ("--ioengine=libaio", "--iodepth=4", "--direct=1", "--rw=randwrite", "--bs=4k", "--verify=crc32c")
        place = (f"--offset={part.number * PART}", f"--size={PART}", f"--filename={FILE}", f"--randseed={part.number}")
        return ("fio", "--name=part", "--output-format=json", *shape, *place, *options)

    for said in [node.begin(*fio(node)) for node in cluster.nodes]:
        (job,) = json.loads(said.succeeded())["jobs"]
        assert job["error"] == 0
    neighbours = [*cluster.nodes[1:], cluster.nodes[0]]
    checks = zip(cluster.nodes, neighbours, strict=True)
    for said in [node.begin(*fio(neighbour, "--verify_only")) for node, neighbour in checks]:
        assert json.loads(said.succeeded())["jobs"][0]["error"] == 0
    survivors_end_well(cluster, cluster.nodes)


def test_a_machine_that_dies_while_all_write_loses_nothing_and_the_others_go_on(cluster: Cluster) -> None:
    mounted(cluster)
    writers = stamping(cluster)
    for writer in writers:
        writer.go_on()
    *alive, dead = cluster.nodes
    dead.kill()
    for writer in writers[:-1]:
        writer.go_on()
    writers[-1].stop(fails=True)
    writers[-1].check(alive[0])
    eventually(lambda: members(alive[0]) == [node.number - 1 for node in alive], "the slot of the dead one is given up")
    for writer in writers[:-1]:
        writer.go_on()
        writer.stop()
        writer.check(alive[-1])
    survivors_end_well(cluster, alive)


@full
def test_a_machine_that_dies_in_a_resync_is_relieved_by_another(cluster: Cluster) -> None:
    mounted(cluster, *SLOWLY, clean=False)
    writers = stamping(cluster)
    for writer in writers:
        writer.go_on()
    dead, *alive = cluster.nodes
    eventually(lambda: raidfs_status(alive[0])["sync"]["slot"] == 0, "the first one resyncs")
    assert len(cluster.disks[0].dirty_chunks()) > DIRTY_CHUNKS_OF_USERS
    dead.kill()
    writers[0].stop(fails=True)
    alive[0].run("raidfs", "wait", MOUNTPOINT, timeout_s=120)
    for writer in writers[1:]:
        writer.go_on()
        writer.stop()
    for writer in writers:
        writer.check(alive[0])
    survivors_end_well(cluster, alive)


@full
def test_a_machine_that_dies_in_a_resize_leaves_all_with_one_size(cluster: Cluster) -> None:
    mounted(cluster)
    writers = stamping(cluster)
    for writer in writers:
        writer.go_on()
    first, *others = cluster.nodes
    grows = others[0].begin("raidfs", "grow", MOUNTPOINT, "--size", 2 * SIZE)
    first.kill()
    writers[0].stop(fails=True)
    wanted = 2 * SIZE if grows.said().status == 0 else SIZE
    for node, writer in zip(others, writers[1:], strict=True):
        eventually(functools.partial(has_size, node, wanted), f"{node} has {wanted} bytes")
        writer.go_on()
        writer.stop()
    writers[0].check(others[0])
    survivors_end_well(cluster, others)


@full
def test_an_array_grows_while_all_write_and_a_leg_fails_and_comes_back_by_different_machines(cluster: Cluster) -> None:
    mounted(cluster)
    writers = stamping(cluster)
    first, second = cluster.nodes[:2]
    leg = cluster.disks[1].guest
    for writer in writers:
        writer.go_on()
    second.run("raidfs", "grow", MOUNTPOINT, "--size", 2 * SIZE)
    for node in cluster.nodes:
        assert has_size(node, 2 * SIZE)
    first.run("raidfs", "wait", MOUNTPOINT)
    first.run("raidfs", "fail", MOUNTPOINT, leg)
    for node in cluster.nodes:
        assert [found["state"] for found in raidfs_status(node)["legs"] if found["path"] == leg] == ["faulty"]
    for writer in writers:
        writer.go_on()
    second.run("raidfs", "re-add", "--wait", MOUNTPOINT, leg)
    for writer in writers:
        writer.go_on()
        writer.stop()
        writer.check(first)
    assert [found["state"] for found in raidfs_status(first)["legs"]] == ["in_sync"] * 2
    survivors_end_well(cluster, cluster.nodes)


@full
def test_machines_come_and_go_while_another_one_writes(cluster: Cluster) -> None:
    mounted(cluster)
    first, *others = cluster.nodes
    writer = Stamping(first, FILE, BLOCKS, BLOCKS)
    for _ in range(2):
        for node in others:
            writer.go_on()
            raidfs_umount(node)
        assert members(first) == [0]
        for node in others:
            writer.go_on()
            raidfs_mount(node, cluster.disks[:2], *DLM)
        assert members(first) == [node.number - 1 for node in cluster.nodes]
    writer.stop()
    writer.check(others[-1])
    survivors_end_well(cluster, cluster.nodes)


def has_size(node: Node, size_bytes: int) -> bool:
    found: int = raidfs_status(node)["array"]["size_bytes"]
    return found == size_bytes
