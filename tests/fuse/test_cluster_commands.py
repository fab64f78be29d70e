"""Commands that concern all nodes of an array, on real mounts: fail, explain, and metadata updates under load."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.mounted import Array, Node, eventually, raidfs

from raidfs.control import client
from raidfs.control.explanation import NodeExplanation, conclude

pytestmark = pytest.mark.fuse

UPDATES = 1000  # of all nodes together


@pytest.fixture
def nodes(array: Array, short_path: pathlib.Path) -> list[Node]:
    mounted = []
    for number in range(3):
        directory = short_path / f"m{number}"
        directory.mkdir()
        mounted.append(array.mount(directory))
    return mounted


@pytest.fixture
def stopped(nodes: list[Node]) -> Iterator[Node]:
    """The third node, stopped when all have told each other that they are there: it has no token that others want."""
    eventually(lambda: is_quiet(nodes), "the nodes have announced themselves")
    nodes[2].signal(signal.SIGSTOP)
    yield nodes[2]
    nodes[2].signal(signal.SIGCONT)


def leg_states(node: Node) -> list[str]:
    return [leg.state for leg in node.status().legs]


def explanations(nodes: list[Node]) -> list[NodeExplanation]:
    found = []
    for node in nodes:
        with client.find(str(node.directory)) as conversation:
            found.append(NodeExplanation.from_json(conversation.call("explain")))
    return found


def is_quiet(nodes: list[Node]) -> bool:
    return all(
        (one.waits, one.locks, one.flags, one.reconfig_mutex) == ((), (), ("ALREADY_IN_CLUSTER",), None)
        for one in explanations(nodes)
    )


def test_a_leg_that_one_node_fails_is_faulty_on_all_when_the_command_returns(
    array: Array, nodes: list[Node], logs: Callable[[], str]
) -> None:
    said = raidfs("fail", nodes[1].directory, array.images[1])
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert [leg_states(node) for node in nodes] == [["in_sync", "faulty"]] * 3
    assert logs().count("the leg is faulty and left out") == 3
    shown = subprocess.run(["mdadm", "--examine", array.images[0]], capture_output=True, text=True, check=True).stdout
    assert "Array State : A. (" in shown
    assert "- correct" in shown
    with open(nodes[0].file, "r+b", buffering=0) as file:
        file.write(b"degraded" * 512)
    with open(nodes[2].file, "rb", buffering=0) as file:
        assert file.read(8) == b"degraded"


def test_failing_the_last_leg_or_a_stranger_is_refused(
    array: Array, nodes: list[Node], logs: Callable[[], str]
) -> None:
    assert raidfs("fail", nodes[0].directory, array.images[0]).returncode == 0
    said = raidfs("fail", nodes[2].directory, array.images[1])
    assert said.returncode == 1
    assert "is the last leg in sync; it is never failed" in said.stderr
    said = raidfs("fail", nodes[2].directory, "/dev/null")
    assert said.returncode == 2
    assert "is not a leg of this array; its legs are" in said.stderr


def test_explain_says_that_nobody_waits_when_nobody_does(nodes: list[Node]) -> None:
    quiet = "  nobody waits for anything\n"  # once they have told each other that they are there
    eventually(lambda: raidfs("explain", nodes[0].directory).stdout.endswith(quiet), "nobody waits")
    document = json.loads(raidfs("explain", "--json").stdout)
    assert [len(found["nodes"]) for found in document["arrays"]] == [3]


def test_explain_names_the_node_that_everybody_waits_for(nodes: list[Node], stopped: Node) -> None:
    touching = threading.Thread(target=touch, args=(nodes[0], 1))
    touching.start()
    client_name = f":{stopped.pid}"
    eventually(
        lambda: [
            wait
            for wait in conclude(explanations(nodes[:2])).locks
            if wait.resource == "ack" and [holder.endswith(client_name) for holder in wait.behind] == [True]
        ],
        "the sender waits for the acknowledgement of the stopped node alone",
    )
    conclusion = conclude(explanations(nodes[:2]))
    assert conclusion.circle == ()
    assert [root.endswith(client_name) for root in conclusion.roots] == [True]
    sender = explanations(nodes[:1])[0]
    assert "SEND_LOCK" in sender.flags
    assert sender.reconfig_mutex == "touch"
    stopped.signal(signal.SIGCONT)
    touching.join(30)
    assert not touching.is_alive()


def test_a_node_that_dies_while_all_wait_for_it_is_waited_for_no_longer(nodes: list[Node]) -> None:
    eventually(lambda: is_quiet(nodes), "the nodes have announced themselves")
    nodes[2].signal(signal.SIGSTOP)
    touching = threading.Thread(target=touch, args=(nodes[0], 1))
    touching.start()
    eventually(lambda: conclude(explanations(nodes[:2])).locks, "the sender waits")
    nodes[2].signal(signal.SIGKILL)
    touching.join(30)
    assert not touching.is_alive()
    eventually(lambda: [member.slot for member in nodes[0].status().members] == [0, 1], "the slot is free")


@pytest.mark.slow
def test_a_thousand_updates_from_all_nodes_under_load_end_without_a_stall(nodes: list[Node]) -> None:
    began = nodes[0].status().array.events
    load = [subprocess.Popen(fio_job(node, number), stdout=subprocess.PIPE) for number, node in enumerate(nodes)]
    slowest: list[float] = []
    shares = [UPDATES // 3 + (number < UPDATES % 3) for number in range(3)]
    threads = [
        threading.Thread(target=lambda node=node, share=share: slowest.append(touch(node, share)))
        for node, share in zip(nodes, shares, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in load:
        process.terminate()
        process.communicate(timeout=30)
    assert len(slowest) == 3
    assert max(slowest) < 30
    assert {node.status().array.events for node in nodes} == {began + UPDATES}
    for explanation in explanations(nodes):
        assert explanation.flags == ("ALREADY_IN_CLUSTER",)


def touch(node: Node, times: int) -> float:
    """Do metadata updates; return the seconds of the slowest."""
    slowest = 0.0
    with client.find(str(node.directory)) as conversation:
        for _ in range(times):
            began = time.monotonic()
            conversation.call("touch", timeout_s=60)
            slowest = max(slowest, time.monotonic() - began)
    return slowest


def fio_job(node: Node, number: int) -> list[str]:
    return [
        "fio", "--name=load", f"--filename={node.file}", f"--offset={number * 16}M", "--size=16M", "--rw=randwrite",
        "--bs=4k", "--iodepth=4", "--ioengine=libaio", "--direct=1", "--verify=crc32c", "--verify_state_save=0",
        "--time_based", "--runtime=600", "--rate_iops=200",
    ]  # fmt: skip
