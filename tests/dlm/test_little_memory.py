"""A file system over a loop device over the block file, on a machine with little memory left.

Dirty pages of the file system are freed only by writing them through the node, which must not wait for memory then. A
machine of its own, because a loop device that stands still cannot be ended.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.lab_nodes import FILE, PROGRAMS, Cluster, lab_up, raidfs_create, raidfs_mount, raidfs_umount

from raidfs.units import MIB

pytestmark = [pytest.mark.lab_full, pytest.mark.timeout(600)]

MEMORY_MIB = 384
SIZE = 256 * MIB
WRITTEN = 96 * MIB
LEFT_MIB = 24  # for the page cache, and for whoever needs memory in order to write


@pytest.fixture
def small() -> Iterator[Cluster]:
    with lab_up("small", nodes=1, memory_mib=MEMORY_MIB, cluster=False, disks_bytes=(SIZE + 64 * MIB,) * 2) as cluster:
        yield cluster


def test_a_loop_device_does_not_stand_still_when_memory_is_short(small: Cluster) -> None:
    (node,) = small.nodes
    raidfs_create(node, small.disks, "--assume-clean", "--size", str(SIZE))
    raidfs_mount(node, small.disks)
    pid = node.shell("pgrep -f 'raidfs mount --foreground'").split()[0]
    assert int(node.shell(f"awk '/VmLck/ {{print $2}}' /proc/{pid}/status")) > 0, "the node's memory is not locked"

    node.shell(f"modprobe loop && losetup /dev/loop0 {FILE} && mkfs.ext4 -q /dev/loop0")
    node.shell("mkdir -p /run/top && mount /dev/loop0 /run/top")
    node.shell("sysctl -q vm.dirty_ratio=90 vm.dirty_background_ratio=85")
    hog = node.begin("python3", f"{PROGRAMS}/hog.py", LEFT_MIB)
    written = node.shell(f"head -c {WRITTEN} /dev/urandom | tee /run/top/file | sha256sum", timeout_s=250)
    assert not hog.has_ended
    node.shell("sync; echo 3 > /proc/sys/vm/drop_caches", timeout_s=100)
    assert node.shell("sha256sum < /run/top/file", timeout_s=200) == written
    node.shell("pkill -f [h]og.py; umount /run/top && losetup -d /dev/loop0")
    assert "oom" not in node.run("dmesg").lower()
    raidfs_umount(node)
