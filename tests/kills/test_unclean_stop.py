"""After an unclean stop no more is copied than has to be, counted from outside: what a heal copies to a leg is equal.

While no node runs the second leg is overwritten from end to end. Where the legs are equal afterwards, and nowhere else,
something was copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import struct

import pytest
from support.mounted import Node, eventually, is_mounted, raidfs

from raidfs.array.head import read_candidates
from raidfs.control import client
from raidfs.format.superblock import Superblock

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

SIZE_BYTES = 64 << 20
CHUNK_BYTES = 256 << 10
CHUNKS = SIZE_BYTES // CHUNK_BYTES
SLOTS = 4
WINDOW_BYTES = 1 << 20  # while the speed is limited as it is here, windows stay small
SLOWLY = ("--sync-speed-max", "8192")  # 8 s for all of it


@dataclasses.dataclass
class OneNode:
    """An array of two images and the directory where its only node is mounted, and killed."""

    place: pathlib.Path

    def __post_init__(self) -> None:
        self.images = [self.place / "a.img", self.place / "b.img"]
        self.directory = self.place / "m"
        self.directory.mkdir()

    def create(self, *options: str) -> None:
        shape = ("--size", str(SIZE_BYTES), "--bitmap-chunk", str(CHUNK_BYTES))
        said = raidfs("create", *options, *shape, *self.images)
        assert said.returncode == 0, said.stderr
        for image in self.images:  # bits are cleared after 1 s, not 5: bitmap_super_s.daemon_sleep
            with open(image, "r+b") as file:
                for slot in range(SLOTS):
                    file.seek(8192 + 4096 * slot + 56)
                    file.write(struct.pack("<I", 1))

    def mount(self, *options: str) -> Node:
        said = raidfs("mount", *options, *self.images, self.directory)
        assert said.returncode == 0, said.stderr
        with client.find(str(self.directory)) as found:
            return Node(self.directory, self.directory / "md0", found.hello.pid)

    def kill(self, node: Node) -> None:
        node.signal(signal.SIGKILL)
        node.wait_gone()
        eventually(lambda: not is_mounted(node.directory), "the mount is detached")

    def healed(self, node: Node) -> set[int]:
        """Wait until the node has nothing to do, stop it, and return the chunks that it has copied."""
        assert raidfs("wait", node.directory).returncode == 0
        assert [leg.state for leg in node.status().legs] == ["in_sync"] * 2
        assert raidfs("umount", node.directory).returncode == 0
        first, second = self._data(0), self._data(1)
        chunks = range(0, SIZE_BYTES, CHUNK_BYTES)
        return {at // CHUNK_BYTES for at in chunks if first[at : at + CHUNK_BYTES] == second[at : at + CHUNK_BYTES]}

    def dirty_chunks(self) -> int:
        (image,) = json.loads(raidfs("examine", "--json", self.images[0]).stdout)["images"]
        return sum(slot["dirty"] for slot in image["slots"])

    def scribble(self) -> None:
        with open(self.images[1], "r+b") as file:
            file.seek(self._data_offset(1))
            file.write(b"not the array's data" * 3277 * (SIZE_BYTES >> 16))
            file.truncate(self.images[0].stat().st_size)

    def _data(self, leg: int) -> bytes:
        with open(self.images[leg], "rb") as file:
            file.seek(self._data_offset(leg))
            return file.read(SIZE_BYTES)

    def _data_offset(self, leg: int) -> int:
        superblock = read_candidates([str(self.images[leg])])[0].superblock
        assert isinstance(superblock, Superblock)
        return superblock.data_offset_sectors * 512


@pytest.fixture
def one(short_path: pathlib.Path) -> OneNode:
    return OneNode(short_path)


def test_only_chunks_that_were_written_last_are_copied(one: OneNode) -> None:
    one.create("--assume-clean")
    assert raidfs("umount", one.mount().directory).returncode == 0  # a new bitmap is full of bits
    node = one.mount()
    written = {3, 4, 77, 200, 255}
    descriptor = os.open(node.file, os.O_RDWR)
    for chunk in sorted(written):
        assert os.pwrite(descriptor, b"acknowledged" * 100, chunk * CHUNK_BYTES + 1000) == 1200
    one.kill(node)
    with contextlib.suppress(OSError):  # the connection was aborted
        os.close(descriptor)
    assert one.dirty_chunks() == len(written)
    one.scribble()
    assert one.healed(one.mount()) == written


def test_a_resync_that_was_cut_off_copies_what_is_dirty_still(one: OneNode) -> None:
    one.create()
    node = one.mount(*SLOWLY)
    eventually(lambda: one.dirty_chunks() < CHUNKS * 3 // 4, "bits are cleared behind the resync")
    one.kill(node)
    dirty = one.dirty_chunks()
    assert 0 < dirty < CHUNKS
    one.scribble()
    copied = len(one.healed(one.mount()))
    assert dirty <= copied <= dirty + WINDOW_BYTES // CHUNK_BYTES


def test_a_recovery_that_was_cut_off_goes_on_from_its_checkpoint(one: OneNode) -> None:
    one.create("--assume-clean")
    node = one.mount(*SLOWLY)
    for verb in ("fail", "remove"):
        assert raidfs(verb, node.directory, one.images[1]).returncode == 0
    one.images[1].unlink()
    with open(one.images[1], "xb") as file:
        file.truncate(one.images[0].stat().st_size)
    assert raidfs("add", node.directory, one.images[1]).returncode == 0
    eventually(lambda: node.status().sync.done_bytes > SIZE_BYTES // 2, "half of it is recovered")
    done = node.status().sync.done_bytes
    one.kill(node)
    dirty = one.dirty_chunks()
    one.scribble()
    copied = one.healed(one.mount())
    most = SIZE_BYTES - done + SIZE_BYTES // 16 + dirty * CHUNK_BYTES + WINDOW_BYTES
    assert len(copied) * CHUNK_BYTES <= most
