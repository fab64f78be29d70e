"""What ``raidfs mount`` was asked for: the mount point and the node's options, and the way of both to the daemon."""

from __future__ import annotations

import dataclasses
from typing import Literal

from raidfs.node_options import NodeOptions

Plane = Literal["native", "pyfuse3"]
PLANES: tuple[Plane, ...] = ("native", "pyfuse3")


@dataclasses.dataclass(frozen=True)
class MountOptions:
    """One mount. ``mountpoint`` is absolute and free of links, images are absolute: a daemon lives in ``/``."""

    mountpoint: str
    node: NodeOptions
    plane: Plane = "native"
    fuse_uring: bool = False

    def arguments(self) -> list[str]:
        """Return the words after ``raidfs mount`` that mean the same, for the process that becomes the daemon."""
        node = self.node
        words = ["--lock", node.lock, "--plane", self.plane]
        words += ["--fuse-uring"] if self.fuse_uring else []
        words += ["--run"] if node.run else []
        words += ["--read-only"] if node.read_only else []
        words += ["--buffered"] if node.buffered else []
        words += ["--allow-unfenced"] if node.allow_unfenced else []
        words += ["--slot", str(node.slot)] if node.slot is not None else []
        words += ["--cluster-name", node.cluster_name] if node.cluster_name is not None else []
        for fault in node.faults:
            words += ["--fault", fault.text]
        for directory in node.search:
            words += ["--search", directory]
        for option in ("sync_speed_min", "sync_speed_max", "sync_stall_ms"):
            if getattr(node, option) != getattr(NodeOptions, option):
                words += [f"--{option.replace('_', '-')}", str(getattr(node, option))]
        return [*words, "--", *node.images, self.mountpoint]
