"""Images to add, and what a node makes of its legs: for tests of legs that come and go."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from raidfs.array.head import read_candidates
from raidfs.format.superblock import Superblock
from raidfs.lock.api import Mode
from raidfs.node import Node
from raidfs.units import MIB

LENGTH = 6 * MIB


def new_image(path: Path) -> str:
    with open(path, "wb") as file:
        file.truncate(LENGTH)
    return str(path)


def superblock(path: str) -> Superblock:
    found = read_candidates([path])[0].superblock
    assert isinstance(found, Superblock), found
    return found


def places(node: Node) -> dict[str, str]:
    """What the node makes of each image: its state, by the image's name."""
    return {os.path.basename(leg.path): leg.state for leg in node.status().legs if leg.path}


async def until(node: Node, **wanted: str) -> None:
    with trio.fail_after(20):
        while any(places(node).get(name) != state for name, state in wanted.items()):
            await node.array.legs_changed.wait_event(
                lambda: all(places(node).get(name) == state for name, state in wanted.items()), what="legs"
            )


def at_rest(node: Node) -> bool:
    return node.channel.no_new_dev.mode is Mode.CR and not node.devices.candidates
