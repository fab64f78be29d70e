"""From mount to unmount, in all the ways that a node may come and go."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from support.mounted import SIZE_BYTES, Array, Backend, Memory, Node, eventually, is_mounted, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

NOBODY = 65534


def test_umount_returns_when_the_node_has_left(node: Node) -> None:
    said = raidfs("umount", node.directory)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert not is_mounted(node.directory)
    assert os.listdir(node.directory) == []
    node.wait_gone()


def test_the_mount_point_can_be_used_again_at_once(node: Node, backend: Backend) -> None:
    for _ in range(3):
        assert raidfs("umount", node.directory).returncode == 0
        node = backend.mount(node.directory)
        assert node.file.stat().st_size == SIZE_BYTES


def test_a_clean_stop_leaves_no_file_but_the_log(backend: Backend, directories: list[pathlib.Path]) -> None:
    node = backend.mount(directories[0])
    assert raidfs("umount", node.directory).returncode == 0
    left = os.listdir(os.environ["RAIDFS_RUNTIME_DIR"])
    assert [name for name in left if not name.endswith(".log")] == []


def test_umount_of_a_busy_mount_fails_and_changes_nothing(node: Node) -> None:
    with open(node.file, "r+b", buffering=0) as used:
        said = raidfs("umount", node.directory)
        assert said.returncode == 1
        assert said.stderr == (
            f"raidfs: {node.directory} is in use and stays mounted; see by whom with `fuser -vm {node.directory}`, "
            "end that, and unmount again\n"
        )
        assert used.write(b"x" * 512) == 512
        assert node.status().node.mountpoint == str(node.directory)
    assert raidfs("umount", node.directory).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_umount(node: Node, number: signal.Signals) -> None:
    node.signal(number)
    node.wait_gone()
    assert not is_mounted(node.directory)


def test_a_signal_to_a_busy_node_changes_nothing_and_is_logged(memory: Memory, directories: list[pathlib.Path]) -> None:
    node = memory.mount(directories[0])
    with open(node.file, "rb", buffering=0) as used:
        node.signal(signal.SIGTERM)
        time.sleep(0.3)  # nothing tells that nothing happens
        assert node.is_alive()
        assert len(used.read(512)) == 512
    node.signal(signal.SIGTERM)
    node.wait_gone()


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_the_systems_own_umount_stops_the_node_cleanly(node: Node, command: list[str]) -> None:
    subprocess.run([*command, str(node.directory)], check=True)
    node.wait_gone()


def test_a_lazy_umount_stops_the_node_after_the_last_close(node: Node) -> None:
    with open(node.file, "r+b", buffering=0) as used:
        subprocess.run(["umount", "-l", str(node.directory)], check=True)
        assert used.write(b"x" * 512) == 512
        assert node.is_alive()
    node.wait_gone()


def test_a_killed_node_leaves_a_clean_mount_point(node: Node, backend: Backend) -> None:
    node.signal(signal.SIGKILL)
    eventually(lambda: not is_mounted(node.directory), "the mount point is cleaned up")
    assert os.listdir(node.directory) == []
    assert raidfs("status").stdout == "no node of yours is mounted on this machine\n"
    again = backend.mount(node.directory)
    assert again.file.stat().st_size == SIZE_BYTES


def test_a_killed_node_that_was_in_use_is_detached(node: Node) -> None:
    fd = os.open(node.file, os.O_RDONLY)
    node.signal(signal.SIGKILL)
    eventually(lambda: not is_mounted(node.directory), "the mount point is cleaned up")
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.pread(fd, 512, 0)
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)


def test_a_second_node_at_the_same_mount_point_is_refused(node: Node, array: Array) -> None:
    said = raidfs("mount", *array.images, node.directory)
    assert said.returncode == 1
    assert said.stderr == (
        f"raidfs: {node.directory} is served by another node; unmount it first: raidfs umount {node.directory}\n"
    )
    assert node.file.exists()


class TestTwoNodes:
    """Two nodes of one array on this machine."""

    @pytest.fixture
    def nodes(self, array: Array, directories: list[pathlib.Path]) -> list[Node]:
        return [array.mount(directory) for directory in directories]

    def test_each_reads_what_the_other_wrote(self, nodes: list[Node]) -> None:
        for writer, reader, offset in ((nodes[0], nodes[1], 0), (nodes[1], nodes[0], 5000)):
            data = os.urandom(12345)
            with open(writer.file, "r+b", buffering=0) as file:
                file.seek(offset)
                assert file.write(data) == len(data)
            with open(reader.file, "rb", buffering=0) as file:
                file.seek(offset)
                assert file.read(len(data)) == data

    def test_status_without_a_mount_point_shows_both(self, nodes: list[Node]) -> None:
        said = raidfs("status", "--json")
        shown = json.loads(said.stdout)["nodes"]
        assert sorted(one["node"]["mountpoint"] for one in shown) == [str(node.directory) for node in nodes]
        assert sorted(one["node"]["slot"] for one in shown) == [0, 1]

    def test_each_knows_of_the_other(self, nodes: list[Node]) -> None:
        for node in nodes:
            eventually(lambda node=node: len(node.status().members) == 2, "both are members")  # type: ignore[misc]

    def test_status_shows_one_when_asked_for_one(self, nodes: list[Node]) -> None:
        said = raidfs("status", nodes[1].directory)
        assert said.stdout.startswith("md0 : active raid1 b.img[1] a.img[0]\n")
        assert said.stdout.count("[2/2] [UU]") == 1
        assert raidfs("status", "--test").returncode == 0

    def test_one_may_leave_and_the_other_goes_on(self, nodes: list[Node]) -> None:
        assert raidfs("umount", nodes[0].directory).returncode == 0
        with open(nodes[1].file, "r+b", buffering=0) as file:
            assert file.write(b"x" * 4096) == 4096

    def test_one_may_die_and_the_other_goes_on(self, nodes: list[Node]) -> None:
        nodes[0].signal(signal.SIGKILL)
        nodes[0].wait_gone()
        with open(nodes[1].file, "r+b", buffering=0) as file:
            assert file.write(b"x" * 4096) == 4096


class TestErrorsOfTheStart:
    """What cannot be mounted is refused by the command that was given, in one line."""

    def _refused(self, *words: str | pathlib.Path) -> str:
        said = raidfs("mount", *words)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr.startswith("raidfs: ")
        assert said.stderr.count("\n") == 1
        return said.stderr

    def test_a_missing_image(self, array: Array, directories: list[pathlib.Path]) -> None:
        missing = array.images[0].with_name("missing.img")
        assert str(missing) in self._refused(missing, directories[0])
        assert not is_mounted(directories[0])

    def test_a_mount_point_that_is_not_there(self, array: Array, short_path: pathlib.Path) -> None:
        path = short_path / "nowhere"
        assert self._refused(*array.images, path) == (
            f"raidfs: {path}: there is no such directory; make it first: mkdir -p {path}\n"
        )

    def test_a_mount_point_that_is_a_file(self, array: Array, short_path: pathlib.Path) -> None:
        path = short_path / "file"
        path.touch()
        assert f"{path} is not a directory" in self._refused(*array.images, path)

    def test_a_mount_point_that_is_not_empty(self, array: Array, directories: list[pathlib.Path]) -> None:
        (directories[0] / "file").touch()
        assert "is not empty" in self._refused(*array.images, directories[0])

    def test_a_mount_point_of_something_else(self, array: Array, directories: list[pathlib.Path]) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may mount a tmpfs")
        subprocess.run(["mount", "-t", "tmpfs", "other", str(directories[0])], check=True)
        try:
            assert "is a mount point of other already" in self._refused(*array.images, directories[0])
        finally:
            subprocess.run(["umount", str(directories[0])], check=True)

    def test_an_image_without_an_array(self, array: Array, directories: list[pathlib.Path]) -> None:
        blank = array.images[0].with_name("blank.img")
        blank.write_bytes(bytes(1 << 20))
        assert str(blank) in self._refused(blank, directories[0])


def test_mounting_works_in_the_foreground(array: Array, directories: list[pathlib.Path]) -> None:
    words = [sys.executable, "-m", "raidfs", "mount", "--foreground", *map(str, array.images), str(directories[0])]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: (directories[0] / "md0").exists(), "the block file appears")
        process.send_signal(signal.SIGTERM)
        _out, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert not is_mounted(directories[0])


@dataclasses.dataclass(frozen=True)
class Nobody:
    """An ordinary user with a directory of their own: ``work`` holds ``mnt`` and ``run``."""

    work: pathlib.Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RAIDFS_RUNTIME_DIR": str(self.work / "run"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def command(self, *words: object) -> list[str]:
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *map(str, words)]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, env=self.environment, timeout=60
        )

    def raidfs(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "raidfs", *words)


@pytest.mark.root
class TestOrdinaryUser:
    @pytest.fixture
    def nobody(self, short_path: pathlib.Path) -> Nobody:
        if os.geteuid() != 0:
            pytest.skip("only root may become another user")
        nobody = Nobody(short_path / "nobody")
        for path in (nobody.work, nobody.work / "mnt", nobody.work / "run"):
            path.mkdir(mode=0o700)
            os.chown(path, NOBODY, NOBODY)
        short_path.chmod(0o711)
        if nobody.raidfs("--version").returncode != 0:
            pytest.skip(f"user {NOBODY} cannot run {sys.executable}")
        return nobody

    def test_a_node_serves_its_user_alone_and_is_cleaned_up_when_killed(self, nobody: Nobody) -> None:
        mnt = nobody.work / "mnt"
        node = subprocess.Popen(
            nobody.command(sys.executable, "-m", "support.memory_node", mnt),
            stdout=subprocess.PIPE,
            env=nobody.environment,
            text=True,
        )
        with node:
            assert node.stdout is not None
            assert node.stdout.readline() == "ready\n"
            written = nobody.run("dd", "if=/dev/zero", f"of={mnt}/md0", "bs=4k", "count=4", "conv=notrunc,fsync")
            assert written.returncode == 0, written.stderr
            with pytest.raises(PermissionError):
                (mnt / "md0").stat()  # not even root may look, as FUSE has it
            node.kill()
        eventually(lambda: not is_mounted(mnt), "the mount point is cleaned up")

    def test_create_mount_and_umount(self, nobody: Nobody) -> None:
        mnt, images = nobody.work / "mnt", [nobody.work / "a.img", nobody.work / "b.img"]
        for words in (["create", "--size", "32M", "--assume-clean", *images], ["mount", *images, mnt]):
            said = nobody.raidfs(*words)
            assert said.returncode == 0, said.stderr
        assert is_mounted(mnt)
        said = nobody.raidfs("umount", mnt)
        assert (said.returncode, said.stderr) == (0, "")
        assert not is_mounted(mnt)
