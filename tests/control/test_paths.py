from __future__ import annotations

import os
import pathlib
import stat

import pytest

from raidfs.control import paths
from raidfs.errors import RuntimeDirectoryUnusable


def test_the_directory_is_the_sessions_else_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAIDFS_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert paths.runtime_directory() == "/run/user/7/raidfs"
    assert paths.search_directories() == ["/run/user/7/raidfs", "/run/raidfs"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.runtime_directory() == "/run/raidfs"
    assert paths.search_directories() == ["/run/raidfs"]


def test_a_directory_that_is_named_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", "/srv/run")
    assert paths.search_directories() == ["/srv/run"]


def test_the_directory_is_made_for_its_owner_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(tmp_path / "made"))
    made = paths.ensure_runtime_directory()
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700
    assert paths.ensure_runtime_directory() == made
    assert paths.is_trusted_directory(made)


def test_a_directory_that_others_may_use_is_refused(runtime_directory: pathlib.Path) -> None:
    runtime_directory.chmod(0o750)
    with pytest.raises(RuntimeDirectoryUnusable, match=r"others may use it \(mode 0750\)"):
        paths.ensure_runtime_directory()
    assert not paths.is_trusted_directory(str(runtime_directory))


def test_a_link_is_refused_wherever_it_points(runtime_directory: pathlib.Path) -> None:
    runtime_directory.rename(runtime_directory.with_name("elsewhere"))
    runtime_directory.symlink_to("elsewhere")
    with pytest.raises(RuntimeDirectoryUnusable, match="it is not a directory"):
        paths.ensure_runtime_directory()


def test_somebody_elses_directory_is_refused(runtime_directory: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a directory away")
    os.chown(runtime_directory, 12345, 12345)
    with pytest.raises(RuntimeDirectoryUnusable, match="it belongs to user 12345"):
        paths.ensure_runtime_directory()


def test_a_directory_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", "/proc/nowhere")
    with pytest.raises(RuntimeDirectoryUnusable, match="No such file or directory; set RAIDFS_RUNTIME_DIR"):
        paths.ensure_runtime_directory()


def test_two_mount_points_never_share_their_files() -> None:
    mountpoints = ["/a/b", "/a-b", "/a/b ", "/" + "x" * 200, "/y" + "x" * 199]
    sockets = {paths.node_paths("/run/raidfs", mountpoint).socket for mountpoint in mountpoints}
    assert len(sockets) == len(mountpoints)
    assert all(len(os.path.basename(socket)) < 60 for socket in sockets)


def test_the_files_of_a_node_are_found_from_its_socket() -> None:
    files = paths.node_paths("/run/raidfs", "/mnt/node0")
    assert files.socket.startswith("/run/raidfs/mnt-node0.")
    assert paths.paths_of_socket(files.socket) == files


def test_a_mount_point_has_one_name_whatever_way_leads_to_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path.resolve() / "real"
    (real / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to("link/mnt")
    monkeypatch.chdir(tmp_path)
    for way in ("real/mnt", "real/mnt/", "link/mnt", "direct", "real/../link/./mnt", str(tmp_path / "direct")):
        assert paths.canonical_mountpoint(way) == str(real / "mnt")
    assert paths.canonical_mountpoint("nowhere") == str(tmp_path.resolve() / "nowhere")


def test_a_loop_of_links_ends(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert paths.canonical_mountpoint(str(tmp_path / "a"))
