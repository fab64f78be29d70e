"""The lab does what its users rely on: a cluster with the DLM, shared disks, power failures."""

from __future__ import annotations

import pytest
from support.lab_nodes import Cluster, eventually

from lab.agent import TIMED_OUT


def test_machines_are_one_cluster_and_share_their_disks(two: Cluster) -> None:
    first, second = two.nodes
    for node in two.nodes:
        assert "Quorate:          Yes" in node.run("lab-cluster", "status")
    disk = two.disks[0].guest
    first.write(disk, 7, 0, 65536)
    assert second.checksum(disk, 0, 65536) == first.checksum(disk, 0, 65536)


def test_a_command_has_its_output_and_its_exit_status(two: Cluster) -> None:
    said = two.nodes[0].said("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (said.status, said.out, said.err) == (3, "out\n", "err\n")
    assert two.nodes[0].said("sleep", 60, timeout_s=1).status == TIMED_OUT
    eventually(lambda: two.nodes[0].said("pidof", "sleep").status == 1, "what was given up is killed")


@pytest.mark.lab_full
def test_a_machine_that_was_killed_comes_back_as_a_member(two: Cluster) -> None:
    first, second = two.nodes
    second.kill()
    eventually(lambda: first.shell("dlm_tool status | grep -c '^node .* M'").strip() == "1", "it is missed")
    two.lab.start([second.number])
    assert first.shell("dlm_tool status | grep -c '^node .* M'").strip() == "2"


@pytest.mark.lab_full
def test_cables_can_be_cut_and_put_back(two: Cluster) -> None:
    first = two.nodes[0]
    assert first.said("busybox", "ping", "-c", 1, "-W", 5, "n2").status == 0
    two.lab.set_links([2], up=False)
    assert first.said("busybox", "ping", "-c", 1, "-W", 1, "n2").status == 1
    two.lab.set_links([2], up=True)
    assert first.said("busybox", "ping", "-c", 1, "-W", 5, "n2").status == 0
