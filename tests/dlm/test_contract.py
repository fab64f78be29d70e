"""The contract suite of lock managers on the real DLM, with clients on two machines."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import pytest
from support.lab_nodes import SITE, TREE, Cluster, Node, eventually

from lab.shape import CLUSTER_NAME

PORT = 7777
SPACES = ("6f1c9a52-33aa-4c5e-9d0f-1f2b3c4d5e6f", "probe")  # of tests/lock/conftest.py, and of its harness
LOG = "/tmp/peer.log"
ENVIRONMENT = (f"PYTHONPATH=/opt/raidfs/site:{SITE}:{TREE}/tests", f"RAIDFS_LOCK_CLUSTER={CLUSTER_NAME}")
SUITE_S = 1500

# What differs most from a manager of our own: NOQUEUE, cancel, deadlock, deaths, value blocks, notices, leaving.
CORE = (
    "death or deadlock or neither_writes or one_message or leaving or another_cluster or refused_lock or cancel_ends "
    "or told_the_mode or query"
)


def _is_ready(node: Node) -> bool:
    return node.said("grep", "-q", "ready", LOG).status == 0


@contextlib.contextmanager
def peers(cluster: Cluster) -> Iterator[None]:
    program = f"{TREE}/tests/lock/dlm_peer_program.py"
    for node in cluster.nodes:
        words = (*ENVIRONMENT, "python3", "-P", program, node, PORT, *SPACES)
        node.begin("sh", "-c", f'exec env "$@" > {LOG} 2>&1', "sh", *words, timeout_s=SUITE_S)
    try:
        for node in cluster.nodes:
            eventually(functools.partial(_is_ready, node), f"{node}: clients may come")
        yield
    finally:
        for node in cluster.nodes:
            node.said("pkill", "-TERM", "-f", "dlm_peer_program")


def run_suite(node: Node, peer: Node, *words: str) -> str:
    return node.shell(
        f"cd {TREE} && env {' '.join(ENVIRONMENT)} RAIDFS_LOCK=dlm RAIDFS_LOCK_PEER={peer}:{PORT} "
        f"python3 -P -m pytest -q -p no:cacheprovider -o addopts=--import-mode=importlib "
        f"tests/lock/test_contract.py {' '.join(words)} 2>&1 || {{ tail -n 30 {LOG}; exit 1; }}",
        timeout_s=SUITE_S,
    )


def test_the_core_of_the_contract_holds_on_the_dlm_from_two_machines(two: Cluster) -> None:
    with peers(two):
        said = run_suite(two.nodes[0], two.nodes[1], "-k", f"'{CORE}'")
    print(said)
    assert " passed" in said


@pytest.mark.lab_full
@pytest.mark.timeout(SUITE_S)
def test_the_whole_contract_holds_on_the_dlm_from_two_machines(two: Cluster) -> None:
    with peers(two):
        said = run_suite(two.nodes[0], two.nodes[1])
    print(said)
    assert " passed" in said
