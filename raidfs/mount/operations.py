"""The name space of a mount as pyfuse3 handlers: one directory with one block file, and nothing can be changed.

READ, WRITE and FSYNC never come here, see `raidfs.mount.plane` and `raidfs.mount.relay`. The block file has the size
that the array serves (`raidfs.mount.capacity` tells the kernel when that changes), belongs to whoever mounted it and is
theirs alone; what would change the directory or the file's size from here is refused with EPERM. There are no handlers
for FALLOCATE, LSEEK and IOCTL in pyfuse3: libfuse answers ENOSYS, so without the native plane, which serves them,
discards of a loop device are not supported and ``SEEK_HOLE`` finds no hole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NoReturn

import pyfuse3

from raidfs.mount.volume import BlockVolume
from raidfs.units import SECTOR_BYTES

BLOCK_FILE_INODE = 2

# How long the kernel may trust a size: a resize is also told to it at once, this is the safety net.
_ATTRIBUTES_VALID_S = 1.0
_ENTRY_VALID_S = 300.0

# What one request can hold, so that tools which look at st_blksize choose well.
_PREFERRED_IO_BYTES = 1024 * 1024


class BlockFileOperations(pyfuse3.Operations):
    """Handlers for a directory that holds ``volume.name``.

    ``created_ns`` is shown as all times of both, in nanoseconds since the epoch. ``read_only`` refuses opens for
    writing with EROFS.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, volume: BlockVolume, *, uid: int, gid: int, created_ns: int, read_only: bool) -> None:
        super().__init__()
        self._volume = volume
        self._name = os.fsencode(volume.name)
        self._uid = uid
        self._gid = gid
        self._created_ns = created_ns
        self._read_only = read_only
        self.asked = 0  # how often the kernel has asked for the block file's attributes

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = _ATTRIBUTES_VALID_S
        entry.entry_timeout = _ENTRY_VALID_S
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._created_ns
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o700
            entry.st_nlink = 2
        elif inode == BLOCK_FILE_INODE:
            entry.st_mode = stat.S_IFREG | 0o600
            entry.st_size = self._volume.size_bytes
            entry.st_blocks = self._volume.size_bytes // SECTOR_BYTES
            entry.st_blksize = _PREFERRED_IO_BYTES
        else:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Find the block file, ``.`` or ``..``; anything else is ENOENT."""
        if name in (b".", b".."):
            return self._attributes(pyfuse3.ROOT_INODE)
        if parent_inode == pyfuse3.ROOT_INODE and name == self._name:
            return self._attributes(BLOCK_FILE_INODE)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Do nothing: both inodes live as long as the mount."""

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return the attributes of the directory or the block file."""
        self.asked += inode == BLOCK_FILE_INODE
        return self._attributes(inode)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Refuse to change size, mode or owner with EPERM; new times are forgotten, so that ``touch`` works."""
        if fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._attributes(inode)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open the directory."""
        if inode != pyfuse3.ROOT_INODE:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return pyfuse3.ROOT_INODE

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the block file."""
        if start_id == 0:
            pyfuse3.readdir_reply(token, self._name, self._attributes(BLOCK_FILE_INODE), 1)

    async def releasedir(self, fh: int) -> None:
        """Close the directory."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Succeed: the directory never changes."""

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the block file past the page cache.

        EPERM with O_TRUNC, EROFS for writing on a read-only node. O_SYNC and O_DSYNC need no memory here: the kernel
        repeats the open flags in each WRITE.
        """
        if inode != BLOCK_FILE_INODE:
            raise pyfuse3.FUSEError(errno.EISDIR)
        if flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EPERM)
        if self._read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=BLOCK_FILE_INODE, direct_io=True, keep_cache=False)

    async def flush(self, fh: int) -> None:
        """Succeed: ``close`` promises nothing about stable storage, ``fsync`` does."""

    async def release(self, fh: int) -> None:
        """Close the block file."""

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return a file system that is full: one file, of the array's size, and no room for another."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = self._volume.block_size_bytes
        data.f_blocks = self._volume.size_bytes // self._volume.block_size_bytes
        data.f_bfree = data.f_bavail = 0
        data.f_files = 1
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Refuse once and for all (ENOSYS): the kernel then answers ENOTSUP itself, also before each write."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Refuse once and for all, as `getxattr`."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Refuse once and for all, as `getxattr`."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Refuse once and for all, as `getxattr`."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Refuse a second file."""
        _refuse()

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Refuse a second file."""
        _refuse()

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Refuse a directory."""
        _refuse()

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Refuse a link."""
        _refuse()

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Refuse a second name."""
        _refuse()

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Refuse to remove the block file."""
        _refuse()

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Refuse; there is no directory to remove."""
        _refuse()

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Refuse to rename the block file."""
        _refuse()


def _refuse() -> NoReturn:
    raise pyfuse3.FUSEError(errno.EPERM)
