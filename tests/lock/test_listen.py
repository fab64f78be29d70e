from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from raidfs.errors import LockAddressInUse, LockAddressNotUsable
from raidfs.lock.address import LockAddress
from raidfs.lock.listen import bound_listener


def abstract(name: str) -> LockAddress:
    return LockAddress(f"raidfs-test/{os.getpid()}/{name}", abstract=True)


def test_an_abstract_name_has_one_listener_and_is_free_afterwards() -> None:
    for _ in range(2):
        with bound_listener(abstract("one")), pytest.raises(LockAddressInUse), bound_listener(abstract("one")):
            pass


def test_a_path_has_one_listener_and_is_gone_afterwards(tmp_path: Path) -> None:
    address = LockAddress(str(tmp_path / "lock"))
    for _ in range(2):
        with bound_listener(address), pytest.raises(LockAddressInUse), bound_listener(address):
            pass
        assert not (tmp_path / "lock").exists()


def test_a_socket_that_nobody_answers_at_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.exists()
    with bound_listener(LockAddress(str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_that_a_stranger_listens_at_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with socket.socket(socket.AF_UNIX) as stranger, socket.socket(socket.AF_UNIX) as client:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(LockAddressInUse), bound_listener(LockAddress(str(path))):
            pass
        client.connect(str(path))


def test_a_path_whose_election_another_one_has_won_is_left_alone(tmp_path: Path) -> None:
    """Between the election and the bind the old socket may still be there; only the winner may remove it."""
    path = tmp_path / "lock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with open(f"{path}.lock", "w") as election:
        fcntl.flock(election, fcntl.LOCK_EX)
        with pytest.raises(LockAddressInUse), bound_listener(LockAddress(str(path))):
            pass
    assert path.exists()


def test_a_file_that_is_not_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("precious")
    with pytest.raises(LockAddressNotUsable, match="not a socket"), bound_listener(LockAddress(str(path))):
        pass
    assert path.read_text() == "precious"


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LockAddressNotUsable), bound_listener(LockAddress(str(tmp_path / "lock"))):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_is_missing_is_named_in_the_refusal(tmp_path: Path) -> None:
    address = LockAddress(str(tmp_path / "missing" / "lock"))
    with pytest.raises(LockAddressNotUsable, match="missing/lock: No such file"), bound_listener(address):
        pass


@pytest.mark.parametrize(("everybody", "mode"), [(False, 0o600), (True, 0o666)])
def test_a_path_lets_others_connect_only_when_others_are_served(tmp_path: Path, everybody: bool, mode: int) -> None:
    path = tmp_path / "lock"
    with bound_listener(LockAddress(str(path)), everybody=everybody):
        assert stat.S_IMODE(path.stat().st_mode) == mode
