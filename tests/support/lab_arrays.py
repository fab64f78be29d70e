"""One array on the machines of a lab, run by raidfs or by the kernel's md-cluster, behind the same verbs.

So a test says once what is done and how it must end, and both have to end so.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
from collections.abc import Sequence

from support.lab_nodes import (
    FILE,
    MD,
    MOUNTPOINT,
    Cluster,
    Disk,
    Node,
    eventually,
    md_assemble,
    md_state,
    md_stop,
    raidfs_create,
    raidfs_mount,
    raidfs_status,
    raidfs_umount,
)

# Nodes that share one lock space over several machines; the lab's dlm.conf does not fence.
DLM = ("--lock", "dlm", "--allow-unfenced")
SLOWLY_KIB_S = 256  # of a sync that a test wants to see,
SLOWLY_KIB = 24576  # of an array of this size


@dataclasses.dataclass(frozen=True)
class Sync:
    """What a machine shows of a sync: ``resync`` or ``recovery``, and whether it works itself."""

    action: str
    is_here: bool


class Array(abc.ABC):
    """An array over the first disks of a cluster; ``file`` is where its data is on each machine that has it."""

    file: str

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.first, self.second = cluster.nodes[:2]
        self._is_slow = False

    @abc.abstractmethod
    def create(self, disks: Sequence[Disk], *, spares: Sequence[Disk] = (), clean: bool, name: str = "md0") -> None:
        """Make the array and start it on the first machine."""

    @abc.abstractmethod
    def start(self, node: Node, disks: Sequence[Disk]) -> None:
        """Start it on another machine."""

    @abc.abstractmethod
    def stop(self, node: Node) -> None:
        """Stop it on a machine."""

    @abc.abstractmethod
    def manage(self, node: Node, verb: str, disk: Disk) -> None:
        """``fail``, ``remove``, ``add``, ``add-spare``, ``re-add``."""

    @abc.abstractmethod
    def grow_legs(self, node: Node, count: int, added: Disk | None = None) -> None:
        """Change the number of legs, with a new one or with the spares that there are."""

    @abc.abstractmethod
    def grow_size(self, node: Node, size_kib: int | None) -> None:
        """Change the size, None for all that the legs have."""

    @abc.abstractmethod
    def size_bytes(self, node: Node) -> int:
        """Return the size as the machine sees it."""

    @abc.abstractmethod
    def sync(self, node: Node) -> Sync | None:
        """Return the sync that goes on or is due, None when there is none."""

    @abc.abstractmethod
    def text(self, node: Node) -> str:
        """Return the array as /proc/mdstat shows it."""

    @abc.abstractmethod
    def name(self, node: Node) -> str:
        """Return the array's name, without its home host."""

    @abc.abstractmethod
    def slowly(self) -> None:
        """Before `create`: let the array be small, and syncs of it take a minute and a half."""

    @abc.abstractmethod
    def at_speed(self) -> None:
        """Let syncs be fast again; those of raidfs where it is started from now on."""

    def _is_quiet(self, node: Node) -> bool:
        return self.sync(node) is None

    def _shows(self, node: Node, legs: str, spares: int) -> bool:
        text = self.text(node)
        return f" [{legs}]\n" in text and text.count("(S)") == spares

    @abc.abstractmethod
    def is_on(self, node: Node) -> bool:
        """Whether the array is started there."""

    def expect(self, legs: str, *, spares: int = 0) -> None:
        """Wait until all is quiet; then every machine that has the array shows these legs and spares."""
        self.at_speed()
        for node in filter(self.is_on, self.cluster.nodes):
            eventually(functools.partial(self._is_quiet, node), "all syncs have ended")
            what = f"{node} shows {legs} and {spares} spares"
            eventually(functools.partial(self._shows, node, legs, spares), what, 20)


class Raidfs(Array):
    """The array as nodes of raidfs, over the DLM."""

    file = FILE

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._options: tuple[str, ...] = DLM

    def create(self, disks: Sequence[Disk], *, spares: Sequence[Disk] = (), clean: bool, name: str = "md0") -> None:
        options = ["--name", name, "--bitmap-chunk", "64K", *(["--assume-clean"] if clean else [])]
        options += ["--size", f"{SLOWLY_KIB}K"] if self._is_slow else []
        for spare in spares:
            options += ["--spare", spare.guest]
        raidfs_create(self.first, disks, *options)
        self.start(self.first, [*disks, *spares])

    def start(self, node: Node, disks: Sequence[Disk]) -> None:
        raidfs_mount(node, disks, *self._options)

    def stop(self, node: Node) -> None:
        raidfs_umount(node)

    def manage(self, node: Node, verb: str, disk: Disk) -> None:
        node.run("raidfs", verb, MOUNTPOINT, disk.guest)

    def grow_legs(self, node: Node, count: int, added: Disk | None = None) -> None:
        options = [] if added is None else ["--add", added.guest]
        node.run("raidfs", "grow", MOUNTPOINT, "--raid-devices", count, *options)

    def grow_size(self, node: Node, size_kib: int | None) -> None:
        node.run("raidfs", "grow", MOUNTPOINT, "--force", "--size", "max" if size_kib is None else f"{size_kib}K")

    def size_bytes(self, node: Node) -> int:
        return int(raidfs_status(node)["array"]["size_bytes"])

    def sync(self, node: Node) -> Sync | None:
        found = raidfs_status(node)["sync"]
        if found["state"] == "idle":
            return None
        return Sync({"recover": "recovery"}.get(found["action"], found["action"]), found["state"] == "running")

    def text(self, node: Node) -> str:
        return node.run("raidfs", "status", MOUNTPOINT)

    def name(self, node: Node) -> str:
        return str(raidfs_status(node)["array"]["name"])

    def slowly(self) -> None:
        """Of nodes that are mounted from now on."""
        self._is_slow = True
        self._options = (*DLM, "--sync-speed-max", str(SLOWLY_KIB_S))

    def at_speed(self) -> None:
        self._options = DLM

    def is_on(self, node: Node) -> bool:
        machine = self.cluster.lab.machines[node.number]
        return machine.pid is not None and node.said("mountpoint", "-q", MOUNTPOINT).status == 0


class Kernel(Array):
    """The array as Linux's md-cluster, by mdadm."""

    file = MD

    def create(self, disks: Sequence[Disk], *, spares: Sequence[Disk] = (), clean: bool, name: str = "md0") -> None:
        self.first.run("modprobe", "-a", "raid1", "md-cluster")
        options = ["--level=1", "--bitmap=clustered", "--metadata=1.2", "--bitmap-chunk=64K", f"--name={name}", "--run"]
        options += [f"--raid-devices={len(disks)}", *(["--assume-clean"] if clean else [])]
        options += [f"--spare-devices={len(spares)}"] if spares else []
        options += [f"--size={SLOWLY_KIB}"] if self._is_slow else []
        self.first.run("mdadm", "--create", MD, *options, *[disk.guest for disk in (*disks, *spares)])

    def start(self, node: Node, disks: Sequence[Disk]) -> None:
        md_assemble(node, disks)
        node.run("mdadm", "--readwrite", MD)

    def stop(self, node: Node) -> None:
        md_stop(node)

    def manage(self, node: Node, verb: str, disk: Disk) -> None:
        node.run("mdadm", "--manage", MD, f"--{verb}", disk.guest)

    def grow_legs(self, node: Node, count: int, added: Disk | None = None) -> None:
        options = [] if added is None else ["--add", added.guest]
        node.run("mdadm", "--grow", MD, f"--raid-devices={count}", *options)

    def grow_size(self, node: Node, size_kib: int | None) -> None:
        node.run("mdadm", "--grow", MD, f"--size={'max' if size_kib is None else size_kib}")

    def size_bytes(self, node: Node) -> int:
        return int(node.run("blockdev", "--getsize64", MD))

    def sync(self, node: Node) -> Sync | None:
        match = re.search(r"(resync|recovery)\s*=\s*(\S+)", self.text(node))
        if match is not None:
            return Sync(match[1], match[2] not in ("REMOTE", "PENDING", "DELAYED"))
        # Between two passes it shows nothing, and is not idle.
        return None if md_state(node) == "idle" else Sync(md_state(node), True)

    def text(self, node: Node) -> str:
        return node.run("cat", "/proc/mdstat")

    def name(self, node: Node) -> str:
        match = re.search(r"^MD_NAME=(?:.*:)?(.*)$", node.run("mdadm", "--detail", "--export", MD), re.MULTILINE)
        assert match is not None
        return match[1]

    def slowly(self) -> None:
        self._is_slow = True
        self._limit(SLOWLY_KIB_S)

    def at_speed(self) -> None:
        self._limit(200000)

    def _limit(self, kib_s: int) -> None:
        for node in self.cluster.nodes:
            if self.cluster.lab.machines[node.number].pid is not None:
                node.shell(
                    f"cd /proc/sys/dev/raid 2>/dev/null || modprobe md-mod && cd /proc/sys/dev/raid && "
                    f"echo {min(kib_s, 1000)} >speed_limit_min && echo {kib_s} >speed_limit_max"
                )

    def is_on(self, node: Node) -> bool:
        machine = self.cluster.lab.machines[node.number]
        return machine.pid is not None and node.said("test", "-e", "/sys/block/md0/md/array_state").status == 0


KINDS: dict[str, type[Array]] = {"raidfs": Raidfs, "kernel": Kernel}

__all__ = ["DLM", "KINDS", "Array", "Kernel", "Raidfs", "Sync"]
