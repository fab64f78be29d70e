"""Nodes in this process, on real images with a real lock server."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from raidfs import errors
from raidfs.array.head import read_candidates
from raidfs.format.bitmap import count_dirty
from raidfs.format.superblock import Superblock
from raidfs.node import Node, open_node
from raidfs.node_options import NodeOptions
from raidfs.runtime import TrioRuntime
from raidfs.units import MIB

CHUNK = 64 * 1024


@dataclasses.dataclass
class Images:
    """The images of one array."""

    paths: tuple[str, ...]

    def superblocks(self) -> list[Superblock]:
        found = []
        for candidate in read_candidates(self.paths):
            assert isinstance(candidate.superblock, Superblock)
            found.append(candidate.superblock)
        return found

    def data(self, leg: int) -> bytes:
        offset = self.superblocks()[leg].data_offset_sectors * 512
        return Path(self.paths[leg]).read_bytes()[offset : offset + 4 * MIB]

    def dirty(self, slot: int, leg: int = 0) -> int:
        data = Path(self.paths[leg]).read_bytes()[8192 + slot * 4096 : 8192 + (slot + 1) * 4096]
        return count_dirty(data[256:], 4 * MIB // CHUNK)

    def dirty_everywhere(self) -> int:
        """How many bits are set, over all slots and legs."""
        return sum(self.dirty(slot, leg) for slot in range(4) for leg in range(len(self.paths)))

    def set_bits(self, slot: int, chunks: list[int]) -> None:
        """Leave a slot as a node does that died after writes to these chunks."""
        bits = sum(1 << chunk for chunk in chunks).to_bytes(4 * MIB // CHUNK // 8, "little")
        for path in self.paths:
            with open(path, "r+b") as file:
                file.seek(8192 + slot * 4096 + 256)
                file.write(bits)

    def scribble(self, leg: int, offset: int, data: bytes) -> None:
        """Change the data of one leg behind everybody's back."""
        start = self.superblocks()[leg].data_offset_sectors * 512
        with open(self.paths[leg], "r+b") as file:
            file.seek(start + offset)
            file.write(data)


def answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextlib.asynccontextmanager
async def node(images: Images, lock: str, name: str = "n", **options: object) -> AsyncIterator[Node]:
    wanted = dataclasses.replace(NodeOptions(images=images.paths, client_name=name, lock=lock), **options)  # type: ignore[arg-type]
    async with open_node(TrioRuntime(), wanted) as joined:
        with trio.fail_after(20):
            while not joined.mddev.updates or joined.mddev.reconfig_mutex.owner is not None:  # it announces itself
                await trio.sleep(0.01)
        yield joined


@contextlib.contextmanager
def refused(error: type[errors.RaidfsError], **facts: object) -> Iterator[None]:
    """Expect an error of ours, however deep in exception groups."""

    def inner(e: BaseException) -> BaseException:
        return inner(e.exceptions[0]) if isinstance(e, BaseExceptionGroup) else e

    with pytest.raises((BaseExceptionGroup, errors.RaidfsError)) as caught:
        yield
    found = inner(caught.value)
    assert isinstance(found, error), found
    for fact, value in facts.items():
        assert found.facts[fact] == value
