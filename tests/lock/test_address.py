from __future__ import annotations

import pytest

from raidfs.errors import EXIT_USAGE, BadLockAddress, LockManagerUnavailable
from raidfs.lock.address import SOCKET_PATH_BYTES_MAX, LockAddress, auto_address, parse_address


@pytest.mark.parametrize("text", ["unix:/run/raidfs/lock", "unix:relative:with:colons", "abstract:raidfs/name"])
def test_an_address_comes_back_from_its_text(text: str) -> None:
    assert str(parse_address(text)) == text


def test_an_abstract_name_is_bound_with_a_leading_nul() -> None:
    assert parse_address("abstract:x").sockaddr == "\0x"
    assert parse_address("unix:/x").sockaddr == "/x"


def test_the_automatic_address_is_made_of_the_array_s_uuid() -> None:
    uuid = "6f1c9a52-33aa-4c5e-9d0f-1f2b3c4d5e6f"
    assert auto_address(uuid) == LockAddress(f"raidfs/{uuid}", abstract=True)


@pytest.mark.parametrize("text", ["", "auto", "/run/lock", "unix:", "abstract:", "tcp:host:1", "unix:a\0b"])
def test_what_is_no_address_is_a_usage_error_that_shows_the_forms(text: str) -> None:
    with pytest.raises(BadLockAddress) as caught:
        parse_address(text)
    assert caught.value.exit_code == EXIT_USAGE
    assert "unix:PATH or abstract:NAME" in str(caught.value)


def test_the_longest_path_fits_a_socket_address_and_one_more_byte_does_not() -> None:
    parse_address("unix:" + "p" * SOCKET_PATH_BYTES_MAX)
    with pytest.raises(BadLockAddress, match="longer than"):
        parse_address("unix:" + "p" * (SOCKET_PATH_BYTES_MAX + 1))


@pytest.mark.parametrize("text", ["dlm", "tls://host:1"])
def test_managers_of_other_builds_are_named_as_such(text: str) -> None:
    with pytest.raises(LockManagerUnavailable, match="--lock auto"):
        parse_address(text)
