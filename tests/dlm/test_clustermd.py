"""mdadm's clustermd_tests for RAID1, said once and run by the kernel's md-cluster and by raidfs: both end alike.

The names in the comments are those of mdadm's files; docs/clustermd-tests.md has the table. What a machine shows while
it syncs is waited for, and not looked at after one second as there.
"""

from __future__ import annotations

import functools

import pytest
from support.lab_arrays import KINDS, Array, Kernel, Raidfs
from support.lab_nodes import MD, Cluster, Node, eventually, md_assemble, raidfs_mount

from lab.shape import CLUSTER_NAME
from raidfs.errors import EXIT_FAILED

full = pytest.mark.lab_full
SMALL_KIB = 10000  # 01r1_Grow_resize


@pytest.fixture(params=sorted(KINDS))
def array(request: pytest.FixtureRequest, two: Cluster) -> Array:
    kind: type[Array] = KINDS[request.param]
    return kind(two)


def on_both(array: Array, *, legs: int = 2, spares: int = 0, clean: bool = True) -> None:
    disks = array.cluster.disks
    array.create(disks[:legs], spares=disks[legs : legs + spares], clean=clean)
    array.start(array.second, disks[: legs + spares])


# ---- 00r1_Create ---------------------------------------------------------------------------------------------------


@full
def test_a_new_array_is_resynced_by_one_machine_and_shown_by_both(array: Array) -> None:
    array.slowly()
    on_both(array, clean=False)
    for node in (array.first, array.second):
        eventually(functools.partial(shows, array, node, "resync"), f"{node} shows the resync")
    first, second = array.sync(array.first), array.sync(array.second)
    assert [one.is_here for one in (first, second) if one is not None] == [True, False]
    array.expect("UU")
    assert array.cluster.disks[0].data() == array.cluster.disks[1].data()


@full
def test_a_new_array_that_is_clean_is_not_resynced(array: Array) -> None:
    on_both(array)
    assert array.sync(array.first) is array.sync(array.second) is None
    array.expect("UU")


@full
def test_a_new_array_has_its_spare_on_both(array: Array) -> None:
    on_both(array, spares=1)
    array.expect("UU", spares=1)


@full
def test_a_new_array_has_its_name_on_both(array: Array) -> None:
    disks = array.cluster.disks[:2]
    array.create(disks, clean=True, name="tstmd0")
    array.start(array.second, disks)
    assert array.name(array.first) == array.name(array.second) == "tstmd0"
    array.expect("UU")


# ---- 01r1_Grow_add -------------------------------------------------------------------------------------------------


@full
@pytest.mark.parametrize("way", ["added", "added beside a spare", "spare"])
def test_a_third_leg_is_recovered_on_either_machine(array: Array, way: str) -> None:
    spares = 0 if way == "added" else 1
    on_both(array, spares=spares)
    array.grow_legs(array.first, 3, None if way == "spare" else array.cluster.disks[3])
    array.expect("UUU", spares=1 if way == "added beside a spare" else 0)


# ---- 01r1_Grow_bitmap-switch ---------------------------------------------------------------------------------------


@full
def test_an_array_whose_bitmap_was_switched_away_and_back_is_taken_by_both_kinds(two: Cluster) -> None:
    kernel, disks = Kernel(two), two.disks[:2]
    on_both(kernel)
    kernel.stop(kernel.second)
    for bitmap in ("none", "internal", "none", "clustered"):
        switched = kernel.first.said("mdadm", "--grow", MD, f"--bitmap={bitmap}")
        if bitmap == "clustered" and "write-mostly" in switched.err:
            pytest.skip("this mdadm, as Debian 12's 4.2, finds disks write-mostly that are not, and cannot go back")
        assert switched.status == 0, switched.err
        if bitmap == "clustered":
            break
        # raidfs has no such arrays: it refuses them, and says which command makes them clustered again.
        said = kernel.second.said("raidfs", "mount", *[disk.guest for disk in disks], "/mnt")
        assert said.status == EXIT_FAILED
        assert "without a clustered bitmap" in said.err
    assert f"Cluster name : {CLUSTER_NAME}" in kernel.first.run("mdadm", "-X", disks[0].guest)
    md_assemble(kernel.second, disks)
    kernel.expect("UU")
    for node in two.nodes:
        kernel.stop(node)
    raidfs = Raidfs(two)
    for node in two.nodes:
        raidfs_mount(node, disks, *raidfs._options)
    raidfs.expect("UU")


# ---- 01r1_Grow_resize ----------------------------------------------------------------------------------------------


@full
def test_both_machines_follow_to_a_smaller_size_to_all_there_is_and_back(array: Array) -> None:
    on_both(array)
    most = array.size_bytes(array.first)
    for size_kib, wanted in ((SMALL_KIB, SMALL_KIB << 10), (None, most), (SMALL_KIB, SMALL_KIB << 10)):
        array.grow_size(array.first, size_kib)
        for node in (array.first, array.second):
            eventually(functools.partial(has_size, array, node, wanted), f"{node} has {wanted} bytes")
        array.expect("UU")
    assert array.cluster.disks[0].data() == array.cluster.disks[1].data()


# ---- 02r1_Manage_add -----------------------------------------------------------------------------------------------


@full
def test_a_new_disk_takes_the_place_of_one_that_was_removed(array: Array) -> None:
    on_both(array)
    gone, new = array.cluster.disks[0], array.cluster.disks[2]
    array.manage(array.first, "fail", gone)
    array.manage(array.first, "remove", gone)
    array.expect("_U")
    array.manage(array.first, "add", new)
    array.expect("UU")
    assert new.data() == array.cluster.disks[1].data()


@full
def test_a_disk_that_is_added_to_a_whole_array_is_a_spare(array: Array) -> None:
    on_both(array)
    array.manage(array.first, "add", array.cluster.disks[2])
    array.expect("UU", spares=1)


# ---- 02r1_Manage_add-spare -----------------------------------------------------------------------------------------


@full
def test_spares_are_added_on_both(array: Array) -> None:
    on_both(array)
    for count in (1, 2):
        array.manage(array.first, "add-spare", array.cluster.disks[1 + count])
        array.expect("UU", spares=count)


# ---- 02r1_Manage_re-add --------------------------------------------------------------------------------------------


def test_a_leg_that_was_removed_comes_back(array: Array) -> None:
    on_both(array)
    disk = array.cluster.disks[0]
    array.manage(array.first, "fail", disk)
    array.manage(array.first, "remove", disk)
    array.expect("_U")
    array.first.write(array.file, 5, 1 << 20, 1 << 20)
    array.manage(array.first, "re-add", disk)
    array.expect("UU")
    assert array.cluster.disks[0].data() == array.cluster.disks[1].data()


# ---- 03r1_switch-recovery, 03r1_switch-resync ----------------------------------------------------------------------


@full
def test_the_other_machine_finishes_a_recovery(array: Array) -> None:
    array.slowly()
    on_both(array, spares=1)
    array.manage(array.first, "fail", array.cluster.disks[0])
    working = who_syncs(array, "recovery")
    other = array.second if working is array.first else array.first
    array.stop(working)
    eventually(lambda: works(array, other), "the other one goes on")
    array.expect("UU")
    assert array.cluster.disks[2].data() == array.cluster.disks[1].data()


@full
def test_the_other_machine_finishes_a_resync_and_the_first_one_comes_back(array: Array) -> None:
    array.slowly()
    on_both(array, clean=False)
    working = who_syncs(array, "resync")
    other = array.second if working is array.first else array.first
    array.stop(working)
    eventually(lambda: works(array, other), "the other one goes on")
    array.start(working, array.cluster.disks[:2])
    array.expect("UU")
    assert array.cluster.disks[0].data() == array.cluster.disks[1].data()


def shows(array: Array, node: Node, action: str) -> bool:
    sync = array.sync(node)
    return sync is not None and sync.action == action


def works(array: Array, node: Node) -> bool:
    sync = array.sync(node)
    return sync is not None and sync.is_here


def has_size(array: Array, node: Node, size_bytes: int) -> bool:
    return array.size_bytes(node) == size_bytes


def who_syncs(array: Array, action: str) -> Node:
    """Return the machine that works, once one does."""

    def found() -> Node | None:
        both = (array.first, array.second)
        return next((node for node in both if shows(array, node, action) and works(array, node)), None)

    node: Node = eventually(found, f"somebody does the {action}")
    return node
