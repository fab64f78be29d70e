"""What goes over the DLM's device, byte by byte (linux/dlm_device.h on a 64-bit machine); none of this needs a DLM."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from raidfs.errors import LockProtocolError
from raidfs.lock import libdlm
from raidfs.lock.api import Mode

LVB = bytes(range(32))


def kernel_result(*, status: int = 0, flags: int = 0, bast_mode: int = 0, lvb: bytes = b"", version: int = 6) -> bytes:
    # version[3], length, astaddr, astparam, user_lksb; lksb: status, lkid, flags, lvbptr; bast_mode, lvb_offset
    offset = 72 if lvb else 0
    head = struct.pack("<4I3Q", version, 0, 2, 72 + len(lvb), 1, 42, 0x7F0000001000)
    return head + struct.pack("<iIB7xQB3xI", status, 0x1234, flags, 0, bast_mode, offset) + lvb


def test_a_grant_carries_its_lock_and_value_block() -> None:
    result = libdlm.parse_result(kernel_result(lvb=LVB))
    assert result == libdlm.Result(42, 0x1234, 0, LVB, lvb_valid=True, blocking=None)


def test_a_value_block_that_is_not_valid_is_told() -> None:
    assert not libdlm.parse_result(kernel_result(flags=0x02, lvb=LVB)).lvb_valid
    assert libdlm.parse_result(kernel_result(flags=0x01)).lvb_valid  # DLM_SBF_DEMOTED


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (-errno.EAGAIN, errno.EAGAIN),
        (-errno.EDEADLK, errno.EDEADLK),
        (-0x10001, libdlm.ECANCEL),
        (-65538, libdlm.EUNLOCK),
    ],
)
def test_refusals_and_ends_are_told_apart(status: int, meaning: int) -> None:
    assert libdlm.parse_result(kernel_result(status=status)).status == meaning


def test_a_blocking_notice_names_the_mode() -> None:
    assert libdlm.parse_result(kernel_result(bast_mode=5)).blocking is Mode.EX


@pytest.mark.parametrize("data", [b"", kernel_result()[:71], kernel_result() + b"x", kernel_result(version=5)])
def test_what_is_no_result_is_refused(data: bytes) -> None:
    with pytest.raises(LockProtocolError):
        libdlm.parse_result(data)


def test_a_release_sends_the_value_block_that_it_was_given() -> None:
    reader, writer = os.pipe()
    libdlm.unlock(writer, 0x1234, libdlm.FORCEUNLOCK | libdlm.VALBLK, 42, LVB)
    request = os.read(reader, 4096)
    os.close(reader)
    os.close(writer)
    assert len(request) == 120  # sizeof(struct dlm_write_request)
    assert request[:16] == struct.pack("<3IBB2x", 6, 0, 0, 2, 1)
    assert struct.unpack_from("<BBHIII", request, 16) == (0, 0, 0, 0x20008, 0x1234, 0)
    assert struct.unpack_from("<5Q", request, 48) == (42, 0, 0, 0, 0)
    assert request[88:] == LVB


def test_a_lock_space_that_is_not_there_does_not_recover() -> None:
    assert not libdlm.recovering("no such lock space")
