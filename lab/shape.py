"""What a lab consists of, and where it and what it boots from are kept."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import socket
from collections.abc import Mapping, Sequence

NODES_MAX = 8
CLUSTER_NAME = "raidfs-lab"
AGENT_PORT = 7070  # inside a machine
MIB = 1 << 20


class LabError(Exception):
    """Something that the lab cannot do, in words for its user."""


def cache_directory() -> pathlib.Path:
    """Return where packages and images are kept between labs: ``RAIDFS_LAB_CACHE``, else in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("RAIDFS_LAB_CACHE") or pathlib.Path(caches) / "raidfs-lab")


def run_directory() -> pathlib.Path:
    """Return where the state of this user's lab is: ``RAIDFS_LAB_RUN``, one for each lab that runs at a time."""
    return pathlib.Path(os.environ.get("RAIDFS_LAB_RUN") or f"/var/tmp/raidfs-lab-{os.getuid()}")


@dataclasses.dataclass(frozen=True)
class Share:
    """A host directory that all machines see at ``guest``."""

    host: str
    guest: str
    read_only: bool = False


@dataclasses.dataclass(frozen=True)
class Wish:
    """What somebody wants a lab to be; `Shape.of` finds the ports for it.

    ``disks_bytes`` are the sizes of the shared disks, ``token_ms`` is corosync's token timeout, ``dlm`` are lines of
    dlm.conf, ``wait_for_all`` is corosync's option of two nodes that makes a lone one wait for the other after a boot.
    """

    nodes: int = 2
    memory_mib: int = 512
    cpus: int = 1
    disks_bytes: tuple[int, ...] = (256 * MIB, 256 * MIB)
    shares: tuple[Share, ...] = ()
    token_ms: int = 3000
    dlm: tuple[tuple[str, str], ...] = ()
    wait_for_all: bool = False
    cluster: bool = True


@dataclasses.dataclass(frozen=True)
class Shape:
    """A lab that is up: what was wished for, its images, and the ports on the loopback device.

    ``control`` has the port of each machine's agent, ``cables`` that of each end of the wire between two machines:
    the key ``"1-2"`` is where machine 1 sends to machine 2 from.
    """

    wish: Wish
    boot: str
    raidfs_image: str | None
    disks: tuple[str, ...]
    accelerator: str
    control: tuple[int, ...]
    cables: Mapping[str, int]

    @classmethod
    def of(cls, wish: Wish, *, boot: str, raidfs_image: str | None, disks: Sequence[str]) -> Shape:
        """Return the lab that was wished for, with ports that are free at this moment."""
        numbers = range(1, wish.nodes + 1)
        pairs = [f"{a}-{b}" for a in numbers for b in numbers if a != b]
        ports = _free_ports(wish.nodes + len(pairs))
        return cls(
            wish=wish,
            boot=boot,
            raidfs_image=raidfs_image,
            disks=tuple(disks),
            accelerator=os.environ.get("RAIDFS_LAB_ACCEL") or "tcg,thread=multi",
            control=tuple(ports[: wish.nodes]),
            cables=dict(zip(pairs, ports[wish.nodes :], strict=True)),
        )

    @property
    def numbers(self) -> range:
        """The machines, from 1."""
        return range(1, self.wish.nodes + 1)

    def save(self, run: pathlib.Path) -> None:
        """Write the lab's state file, as `load` reads it."""
        partial = run / "lab.json.partial"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        partial.rename(run / "lab.json")

    @classmethod
    def load(cls, run: pathlib.Path) -> Shape:
        """Return the lab that is up in ``run``; LabError when none is."""
        try:
            document = json.loads((run / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError(f"no lab is up (nothing in {run})") from None
        wish = document.pop("wish")
        shares = tuple(Share(**share) for share in wish.pop("shares"))
        disks_bytes, dlm = tuple(wish.pop("disks_bytes")), tuple((key, value) for key, value in wish.pop("dlm"))
        disks, control = tuple(document.pop("disks")), tuple(document.pop("control"))
        wished = Wish(shares=shares, disks_bytes=disks_bytes, dlm=dlm, **wish)
        return cls(wish=wished, disks=disks, control=control, **document)

    def corosync_conf(self) -> str:
        """Return /etc/corosync/corosync.conf of every machine."""
        wish = self.wish
        nodes = "".join(
            f"  node {{\n    nodeid: {n}\n    name: n{n}\n    ring0_addr: 192.168.77.{n}\n  }}\n" for n in self.numbers
        )
        two = f"  two_node: 1\n  wait_for_all: {int(wish.wait_for_all)}\n" if wish.nodes == 2 else ""
        return (
            f"totem {{\n  version: 2\n  cluster_name: {CLUSTER_NAME}\n  transport: knet\n"
            f"  crypto_cipher: none\n  crypto_hash: none\n  token: {wish.token_ms}\n}}\n"
            f"quorum {{\n  provider: corosync_votequorum\n  expected_votes: {wish.nodes}\n{two}}}\n"
            f"nodelist {{\n{nodes}}}\n"
            "logging {\n  to_stderr: no\n  to_syslog: no\n  to_logfile: yes\n"
            "  logfile: /var/log/corosync/corosync.log\n  timestamp: hires\n}\n"
        )

    def dlm_conf(self) -> str:
        """Return /etc/dlm/dlm.conf of every machine."""
        lines = {"enable_fencing": "0", **dict(self.wish.dlm)}
        return "".join(f"{key}={value}\n" for key, value in lines.items())


def _free_ports(count: int) -> list[int]:
    # Free for both TCP and UDP; all are held until the last one is found, so that they differ.
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
            held += [tcp, udp]
            tcp.bind(("127.0.0.1", 0))
            try:
                udp.bind(("127.0.0.1", tcp.getsockname()[1]))
            except OSError:
                continue
            ports.append(tcp.getsockname()[1])
    finally:
        for one in held:
            one.close()
    return ports
