"""What the mount cannot show: handlers that the kernel, as it is set up, never calls in that way."""

from __future__ import annotations

import errno
import os
from typing import cast

import pyfuse3
import pytest
from support.memory_node import MemoryVolume

from raidfs.mount.operations import BLOCK_FILE_INODE, BlockFileOperations

NOBODY = cast(pyfuse3.RequestContext, None)


@pytest.fixture
def operations() -> BlockFileOperations:
    return BlockFileOperations(MemoryVolume("md0", 1 << 20), uid=1, gid=2, created_ns=3, read_only=False)


async def test_o_trunc_is_refused_even_if_the_kernel_had_it_atomic(operations: BlockFileOperations) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.open(BLOCK_FILE_INODE, os.O_RDWR | os.O_TRUNC, NOBODY)
    assert caught.value.errno == errno.EPERM


async def test_the_file_is_opened_past_the_page_cache(operations: BlockFileOperations) -> None:
    info = await operations.open(BLOCK_FILE_INODE, os.O_RDWR, NOBODY)
    assert (info.direct_io, info.keep_cache) == (True, False)


async def test_a_directory_is_no_file_and_a_file_no_directory(operations: BlockFileOperations) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.open(pyfuse3.ROOT_INODE, os.O_RDONLY, NOBODY)
    assert caught.value.errno == errno.EISDIR
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.opendir(BLOCK_FILE_INODE, NOBODY)
    assert caught.value.errno == errno.ENOTDIR


async def test_an_inode_that_never_was_is_stale(operations: BlockFileOperations) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getattr(99, NOBODY)
    assert caught.value.errno == errno.ESTALE


async def test_a_size_that_grew_is_told_at_the_next_question() -> None:
    volume = MemoryVolume("md0", 1 << 20)
    operations = BlockFileOperations(volume, uid=1, gid=2, created_ns=3, read_only=False)
    volume.size_bytes = 2 << 20
    assert (await operations.getattr(BLOCK_FILE_INODE, NOBODY)).st_size == 2 << 20


async def test_a_read_only_node_refuses_writers_with_erofs_even_if_the_mount_does_not() -> None:
    operations = BlockFileOperations(MemoryVolume("md0", 1 << 20), uid=1, gid=2, created_ns=3, read_only=True)
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await operations.open(BLOCK_FILE_INODE, flags, NOBODY)
        assert caught.value.errno == errno.EROFS
    assert (await operations.open(BLOCK_FILE_INODE, os.O_RDONLY, NOBODY)).direct_io
    # The mode does not change: with 0400 an ordinary user would get EACCES, and look for the fault elsewhere.
    assert (await operations.getattr(BLOCK_FILE_INODE, NOBODY)).st_mode & 0o777 == 0o600
