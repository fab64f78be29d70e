from __future__ import annotations

import os
import pathlib

import pytest

from raidfs import errors
from raidfs.mount import mountpoint
from raidfs.mount.mountpoint import Mount

TABLE = (
    "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    "23 22 0:21 / /srv/with\\040space rw - fuse.raidfs md\\0400 rw,user_id=0\n"
    "24 22 0:22 / /srv/x rw shared:2 master:1 - tmpfs first rw\n"
    "25 24 0:23 / /srv/x rw - tmpfs second rw\n"
)


def test_mountinfo_gives_place_type_and_source_with_escapes_undone() -> None:
    assert mountpoint.mounts(TABLE) == [
        Mount("253:0", "/", "ext4", "/dev/vda"),
        Mount("0:21", "/srv/with space", "fuse.raidfs", "md 0"),
        Mount("0:22", "/srv/x", "tmpfs", "first"),
        Mount("0:23", "/srv/x", "tmpfs", "second"),
    ]


def test_the_root_of_this_machine_is_a_mount_and_an_ordinary_directory_none(tmp_path: pathlib.Path) -> None:
    assert mountpoint.mount_at("/") is not None
    assert mountpoint.mount_at(str(tmp_path)) is None


def test_an_empty_directory_is_fine(tmp_path: pathlib.Path) -> None:
    mountpoint.check(str(tmp_path))


def test_a_mount_that_is_not_ours_is_not_dead() -> None:
    assert not mountpoint.is_dead("/")


def test_what_cannot_be_mounted_on_is_told_apart(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, kind in (
        ("/", errors.MountpointTaken),
        (tmp_path, errors.MountpointNotEmpty),
        (tmp_path / "nowhere", errors.MountpointMissing),
        (file, errors.MountpointNotDirectory),
        (file / "below", errors.MountpointNotDirectory),
        (tmp_path / ("x" * 300), errors.MountpointAccess),
    ):
        with pytest.raises(kind, match="/"):
            mountpoint.check(str(path))


def test_without_fusermount3_the_package_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.FusermountMissing, match="fuse3"):
        mountpoint.mount(str(tmp_path), source="md0")


def _fake_fusermount(directory: pathlib.Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = directory / "fusermount3"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_what_fusermount3_says_becomes_the_reason(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_fusermount(tmp_path, "echo 'fusermount3: mount failed: Operation not permitted' >&2; exit 1", monkeypatch)
    with pytest.raises(errors.MountRefused, match=r"cannot mount: mount failed: Operation not permitted; is /dev/fuse"):
        mountpoint.mount("/srv/x", source="md0")


def test_a_mount_without_a_descriptor_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_fusermount(tmp_path, "exit 0", monkeypatch)
    with pytest.raises(errors.MountRefused, match="gave no descriptor back"):
        mountpoint.mount("/srv/x", source="md0")


def test_unmounting_tells_busy_from_other_reasons(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_fusermount(
        tmp_path, "echo 'fusermount3: failed to unmount x: Device or resource busy' >&2; exit 1", monkeypatch
    )
    with pytest.raises(errors.MountBusy, match="/srv/x is in use"):
        mountpoint.unmount("/srv/x")
    _fake_fusermount(tmp_path, "exit 3", monkeypatch)
    with pytest.raises(errors.UnmountFailed, match="fusermount3 exited with 3"):
        mountpoint.unmount("/srv/x")
    with pytest.raises(errors.UnmountFailed, match="fusermount3 exited with 3"):
        mountpoint.detach("/srv/x")


def test_a_comma_in_the_arrays_name_starts_no_mount_option(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake_fusermount(tmp_path, f'echo "$2" > {tmp_path}/options; exit 1', monkeypatch)
    with pytest.raises(errors.MountRefused):
        mountpoint.mount("/srv/x", source="a,allow_other")
    assert (tmp_path / "options").read_text().startswith("rw,fsname=a\\,allow_other,subtype=raidfs,")
