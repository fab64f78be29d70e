"""A mounted node stands against a handover, and is named; after its end nothing does."""

from __future__ import annotations

import pathlib

from support.mounted import Array, raidfs


def test_a_mounted_node_is_named_and_its_end_makes_the_handover_safe(
    array: Array, directories: list[pathlib.Path]
) -> None:
    node = array.mount(directories[0])
    said = raidfs("handover", "--check", *array.images)
    assert said.returncode == 1
    for image in array.images:
        assert f"against it: {image} is a leg of the node at {node.directory}" in said.stdout
    assert raidfs("umount", node.directory).returncode == 0
    said = raidfs("handover", "--check", *array.images)
    assert (said.returncode, said.stderr) == (0, "")
