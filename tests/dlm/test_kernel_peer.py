"""Linux's md-cluster as a peer: an array goes from raidfs to the kernel and back, with all that it holds and owes."""

from __future__ import annotations

import functools
import re

import pytest
from support.lab_arrays import DLM
from support.lab_nodes import (
    DATA,
    FILE,
    MD,
    Cluster,
    Disk,
    Node,
    checksum_of,
    equal_chunks,
    eventually,
    md_assemble,
    md_is_quiet,
    md_stop,
    raidfs_create,
    raidfs_mount,
    raidfs_status,
    raidfs_umount,
)

from lab.agent import WentAway
from raidfs.units import KIB, MIB

SIZE = 24 * MIB
CHUNK = 64 * KIB
STRUCK = [3, 4, 77, 200, 255]  # chunks


def check(node: Node, disks: list[Disk], *, against: str = "") -> None:
    """Ask raidfs whether a handover is safe for the whole cluster; ``against`` are words of the reason why not."""
    said = node.said("raidfs", "handover", "--check", *[disk.guest for disk in disks])
    assert (said.status == 0) == (against == ""), said.out + said.err
    assert (against or "safe: no machine of the cluster uses the array") in said.out


def kill_node(node: Node) -> None:
    """End the raidfs daemon of a machine as the kernel does with a process that has used all memory."""
    pid = raidfs_status(node)["node"]["pid"]
    node.run("kill", "-KILL", pid)
    eventually(lambda: node.said("kill", "-0", pid).status != 0, "the daemon has ended")
    node.said("fusermount3", "-u", "-z", "/mnt")


def end_lock_space(node: Node, disks: list[Disk]) -> None:
    """Do what the check on that machine says."""
    said = node.said("raidfs", "handover", "--check", *[disk.guest for disk in disks])
    advice = re.search(r"`(dlm_tool leave [0-9a-f-]+)`", said.out)
    assert advice, said.out
    node.shell(advice[1])


def test_an_array_of_raidfs_is_used_and_grown_by_the_kernel_and_mounted_again(two: Cluster) -> None:
    first, second = two.nodes
    disks = two.disks[:2]
    raidfs_create(first, disks, "--assume-clean", "--size", str(SIZE), "--bitmap-chunk", "64K")
    raidfs_mount(first, disks, *DLM)
    first.write(FILE, 1, 0, SIZE)
    check(first, disks, against="is a leg of the node at /mnt")
    check(second, disks, against="is in use on machine 1 of the cluster")
    raidfs_umount(first)
    check(first, disks)

    for node in two.nodes:
        md_assemble(node, disks)
        assert node.checksum(MD, 0, SIZE) == checksum_of(1, SIZE)
    check(second, disks, against="is held by md0")
    second.run("mdadm", "--grow", MD, "--size=max")
    size = int(second.run("blockdev", "--getsize64", MD))
    assert size > 2 * SIZE
    eventually(lambda: int(first.run("blockdev", "--getsize64", MD)) == size, "the other machine has followed")
    first.write(MD, 2, SIZE, SIZE)
    for node in two.nodes:
        eventually(functools.partial(md_is_quiet, node), "the new space is resynced")
    md_stop(second)
    check(second, disks, against="is in use on machine 1 of the cluster")
    md_stop(first)
    check(second, disks)

    raidfs_mount(second, disks, *DLM)
    assert raidfs_status(second)["array"]["size_bytes"] == size
    second.run("raidfs", "wait", "/mnt")
    assert second.checksum(FILE, 0, SIZE) == checksum_of(1, SIZE)
    assert second.checksum(FILE, SIZE, SIZE) == checksum_of(2, SIZE)
    raidfs_umount(second)
    assert disks[0].data() == disks[1].data()


@pytest.mark.lab_full
def test_an_array_of_mdadm_is_used_by_raidfs_and_assembled_again(two: Cluster) -> None:
    first, second = two.nodes
    disks = two.disks[:2]
    md_create(first, disks)
    md_assemble(second, disks)
    first.write(MD, 1, 0, SIZE // 2)
    second.write(MD, 2, SIZE // 2, SIZE // 2)
    for node in two.nodes:
        eventually(functools.partial(md_is_quiet, node), "it is resynced")
    check(first, disks, against="is held by md0")
    for node in two.nodes:
        md_stop(node)
    check(first, disks)

    raidfs_mount(first, disks)
    first.run("raidfs", "wait", "/mnt")
    status = raidfs_status(first)
    assert [leg["state"] for leg in status["legs"]] == ["in_sync"] * 2
    assert first.checksum(FILE, 0, SIZE // 2) == checksum_of(1, SIZE // 2)
    assert first.checksum(FILE, SIZE // 2, SIZE // 2) == checksum_of(2, SIZE // 2)
    first.write(FILE, 3, SIZE, SIZE)
    raidfs_umount(first)
    check(second, disks)
    assert disks[0].data() == disks[1].data()

    for node in two.nodes:
        md_assemble(node, disks)
        assert node.checksum(MD, 0, SIZE // 2) == checksum_of(1, SIZE // 2)
        assert node.checksum(MD, SIZE, SIZE) == checksum_of(3, SIZE)


@pytest.mark.parametrize("options", [(), pytest.param(DLM, marks=pytest.mark.lab_full)], ids=["local", "dlm"])
def test_the_kernel_resyncs_just_what_a_node_of_raidfs_was_writing_when_it_died(
    two: Cluster, options: tuple[str, ...]
) -> None:
    first, second = two.nodes
    disks = two.disks[:2]
    raidfs_create(first, disks, "--assume-clean", "--bitmap-chunk", "64K")
    raidfs_mount(first, disks, *options)
    raidfs_umount(first)  # a new bitmap is full of bits
    raidfs_mount(first, disks, *options)
    writer = first.begin(*DATA, "strike", FILE, CHUNK, *STRUCK)
    eventually(lambda: disks[0].dirty_chunks() == set(STRUCK), "all of them are being written")
    kill_node(first)
    assert writer.said().status != 0
    assert disks[0].dirty_chunks() == disks[1].dirty_chunks() == set(STRUCK)
    if options == DLM:  # the kernel keeps a lock space when who has made it is killed
        check(second, disks, against="is in use on machine 1 of the cluster")
        end_lock_space(first, disks)
    check(second, disks)  # dirty bits are what the other side is for
    disks[1].scribble()

    md_assemble(second, disks)
    second.run("mdadm", "--readwrite", MD)
    eventually(lambda: md_is_quiet(second), "it is resynced")
    md_stop(second)
    assert equal_chunks(disks, CHUNK) == set(STRUCK)
    assert disks[0].dirty_chunks() == set()


@pytest.mark.lab_full
def test_raidfs_resyncs_just_what_the_kernel_was_writing_when_its_machine_died(two: Cluster) -> None:
    first, second = two.nodes
    disks = two.disks[:2]
    md_create(first, disks, "--assume-clean", "--delay=1")
    eventually(lambda: disks[0].dirty_chunks() == set(), "the bits of a new array have aged")
    writer = first.begin(*DATA, "strike", MD, CHUNK, *STRUCK)
    eventually(lambda: disks[0].dirty_chunks() == set(STRUCK), "all of them are being written")
    first.kill()
    with pytest.raises(WentAway):
        writer.said()
    dirty = disks[0].dirty_chunks()
    assert dirty
    assert dirty <= set(STRUCK)
    images = [disk.guest for disk in disks]
    eventually(
        lambda: second.said("raidfs", "handover", "--check", *images).status == 0, "corosync has removed the machine"
    )
    disks[1].scribble()

    raidfs_mount(second, disks)
    second.run("raidfs", "wait", "/mnt")
    raidfs_umount(second)
    assert equal_chunks(disks, CHUNK) == dirty
    assert disks[0].dirty_chunks() == disks[1].dirty_chunks() == set()


def md_create(node: Node, disks: list[Disk], *options: str) -> None:
    node.run("modprobe", "-a", "raid1", "md-cluster")
    shape = ("--level=1", "--bitmap=clustered", "--metadata=1.2", "--nodes=4", "--bitmap-chunk=64K", "--name=md0")
    devices = [disk.guest for disk in disks]
    node.run("mdadm", "--create", MD, *shape, f"--raid-devices={len(disks)}", "--run", *options, *devices)


@pytest.mark.lab_full
def test_a_node_does_not_join_what_the_kernel_runs_on_another_machine(two: Cluster) -> None:
    first, second = two.nodes
    disks = two.disks[:2]
    md_create(first, disks)
    check(second, disks, against="is in use on machine 1 of the cluster")
    said = second.said("raidfs", "mount", *DLM, *[disk.guest for disk in disks], "/mnt", timeout_s=120)
    assert said.status != 0
    assert "Linux's md runs this array on another machine; stop it there" in said.err
    first.write(MD, 1, 0, SIZE)
    assert first.checksum(MD, 0, SIZE) == checksum_of(1, SIZE)
    md_assemble(second, disks)
    assert second.checksum(MD, 0, SIZE) == checksum_of(1, SIZE)
