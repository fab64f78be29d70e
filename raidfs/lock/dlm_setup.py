"""Whether the DLM of this machine can be used for an array, and whether it stops nodes that are cut off.

Everything that ``--lock dlm`` needs is looked for in the order in which a person would set it up, and what is missing
gets a message of its own: opening a lock space without it would hang in the kernel, or fail with EINVAL.

Fencing. The DLM gives a dead node's locks to others when corosync has removed it and fencing has confirmed that it
does not write any more. So a set-up is refused that leaves a cut-off node alive:

* ``enable_fencing=0``: locks are given away as soon as corosync removes the node, paused or running;
* ``enable_quorum_lockspace=0``: a part without quorum goes on making lock spaces of its own;
* two nodes with ``wait_for_all: 0``: each has quorum alone, also one that boots while it is cut off and has never
  heard of the other, so there may be two lock spaces of one name.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

from raidfs.errors import (
    ControldNotRunning,
    DlmDenied,
    DlmDeviceMissing,
    DlmModuleMissing,
    NoQuorum,
    NotFenced,
    WrongClusterName,
)
from raidfs.lock.corosync import ClusterFacts, cluster_facts

CONTROL_PATH = "/dev/misc/dlm-control"
DUMP_CONFIG = ("dlm_tool", "dump_config")
DUMP_S = 10.0


@dataclasses.dataclass(frozen=True)
class DlmSetup:
    """What a member of a lock space has to know of its machine."""

    controld_pid: int
    unfenced: str | None  # why a node that is cut off would not be stopped


def check_setup(name: str, cluster_name: str, *, allow_unfenced: bool) -> DlmSetup:
    """Look whether lock space ``name`` of an array of ``cluster_name`` can be joined here; waits for daemons.

    Raises MissingLibrary, DlmModuleMissing, DlmDeviceMissing, DlmDenied, CorosyncNotRunning, CorosyncDenied,
    ControldNotRunning, WrongClusterName, NoQuorum, NotFenced.
    """
    check_kernel()
    facts = cluster_facts()
    if facts.cluster_name != cluster_name:
        raise WrongClusterName(name=name, manager_cluster=facts.cluster_name, own_cluster=cluster_name)
    pid = controld_pid()
    if not facts.quorate:
        raise NoQuorum()
    unfenced = why_unfenced(facts, read_config())
    if unfenced is not None and not allow_unfenced:
        raise NotFenced(reason=unfenced)
    return DlmSetup(pid, unfenced)


def check_kernel(misc: str = "/proc/misc", control: str = CONTROL_PATH) -> None:
    """Look whether the kernel's DLM is there and may be used; ``misc`` lists the devices that the kernel has."""
    if " dlm-control\n" not in pathlib.Path(misc).read_text():
        raise DlmModuleMissing()
    if not os.path.exists(control):
        raise DlmDeviceMissing(path=control)
    if not os.access(control, os.R_OK | os.W_OK):
        raise DlmDenied(path=control)


def controld_pid() -> int:
    """Return the process that runs the DLM's membership; raises ControldNotRunning."""
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if (process / "comm").read_text() == "dlm_controld\n":
                    return int(process.name)
            except OSError:  # it has ended
                continue
    raise ControldNotRunning()


def read_config(command: Sequence[str] = DUMP_CONFIG) -> Mapping[str, str] | None:
    """Return the options that dlm_controld runs with, None when it does not tell."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_config(done.stdout)


def parse_config(text: str) -> dict[str, str]:
    """Return what ``dlm_tool dump_config`` prints: lines of ``name=value``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.split()[0] for name, mark, value in pairs if mark and value.split()}


def why_unfenced(facts: ClusterFacts, config: Mapping[str, str] | None) -> str | None:
    """Return what would leave a cut-off node its locks, in words, or None when nothing does."""
    if config is None:
        return "dlm_controld does not tell whether it fences (`dlm_tool dump_config` fails)"
    if config.get("enable_fencing") != "1":
        return "dlm_controld does not fence (enable_fencing=0)"
    if config.get("enable_quorum_lockspace", "1") != "1":
        return "dlm_controld makes lock spaces without quorum (enable_quorum_lockspace=0)"
    if facts.two_node and not facts.wait_for_all:
        return "corosync gives each of two nodes quorum alone (two_node: 1 with wait_for_all: 0)"
    return None
