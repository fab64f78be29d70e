"""`raidfs grow --size` on real mounts: mdadm's peer test, a file system grown online, and every refusal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from support.mounted import Array, Node, eventually, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
SMALL, MIDDLE, ROOM = 32 * MIB, 40 * MIB, 96 * MIB
DATA_OFFSET = MIB
NODES = 4
HALF = 16 * MIB

needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="loop devices need root and /dev/loop-control"
)
needs_mdadm = pytest.mark.skipif(shutil.which("mdadm") is None, reason="mdadm is not installed")


class Roomy(Array):
    """An array of 32 MiB over images with room for 96 MiB, or as much as each is said to have."""

    def __init__(self, directory: pathlib.Path, rooms: Sequence[int] = (ROOM, ROOM)) -> None:
        self.images = [directory / "a.img", directory / "b.img"]
        self._options = ()
        self._nodes = []
        for image, room in zip(self.images, rooms, strict=True):
            with open(image, "xb") as file:
                file.truncate(DATA_OFFSET + room)
        made = raidfs("create", "--size", str(SMALL), "--assume-clean", *self.images)
        assert made.returncode == 0, made.stderr


@pytest.fixture
def array(short_path: pathlib.Path) -> Iterator[Roomy]:
    backend = Roomy(short_path)
    yield backend
    backend.close()


@pytest.fixture
def nodes(array: Roomy, directories: list[pathlib.Path]) -> list[Node]:
    return [array.mount(directory) for directory in directories]


def grow(node: Node, *words: str, timeout_s: int = 100) -> subprocess.CompletedProcess[str]:
    """Run ``raidfs grow``; a sync that goes on is waited for before."""
    assert raidfs("wait", node.directory).returncode == 0
    command = [sys.executable, "-m", "raidfs", "grow", str(node.directory), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def check_size(nodes: Sequence[Node], size: int) -> None:
    """Every node and every kernel has this size now: in stat, in direct reads at the end, behind the end."""
    for node in nodes:
        assert node.status().array.size_bytes == size
        descriptor = os.open(node.file, os.O_RDONLY | os.O_DIRECT)
        try:
            assert os.fstat(descriptor).st_size == os.stat(node.file).st_size == size
            buffer = mmap.mmap(-1, 4096)
            assert os.preadv(descriptor, [buffer], size - 4096) == 4096
            assert os.preadv(descriptor, [buffer], size) == 0
        finally:
            os.close(descriptor)


def check_refused(
    nodes: Sequence[Node], said: subprocess.CompletedProcess[str], *words: str, size: int = SMALL
) -> None:
    """The command has failed with one line that has these words, and everybody has the old size."""
    assert (said.returncode, said.stdout) == (1, ""), said
    assert said.stderr.startswith("raidfs: ")
    assert said.stderr.count("\n") == 1, said.stderr
    for word in words:
        assert word in said.stderr, said.stderr
    check_size(nodes, size)


def check_metadata(array: Roomy, size: int, *, dirty: bool | None = None) -> None:
    """Superblock and every slot of every image say this size, to us and to mdadm if it is here."""
    for path in array.images:
        (image,) = json.loads(raidfs("examine", "--json", path).stdout)["images"]
        assert image["size_sectors"] == size // 512
        assert [slot["sync_size_sectors"] for slot in image["slots"]] == [size // 512] * NODES
        if dirty is not None:
            assert any(slot["dirty"] for slot in image["slots"]) == dirty
        if shutil.which("mdadm") is None:
            continue
        shown = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=True).stdout
        assert "- correct" in shown
        assert re.findall(r"Array Size : (\d+) KiB", shown) == [str(size // 1024)]
        if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
            continue
        with loop_device(path, "--read-only") as device:
            shown = subprocess.run(["mdadm", "-X", device], capture_output=True, text=True, check=True).stdout
        assert re.findall(r"Sync Size : (\d+)", shown) == [str(size // 1024)]  # of slot 0
        assert re.findall(r"Bitmap : (\d+) bits", shown) == [str(slot["bits"]) for slot in image["slots"]]
        assert shown.count("State : OK") == NODES


@contextlib.contextmanager
def loop_device(path: pathlib.Path, *options: str) -> Iterator[str]:
    command = ["losetup", "--find", "--show", *options, str(path)]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


# ---- mdadm's peer test (clustermd_tests/01r1_Grow_resize) ----------------------------------------------------------


def fio(node: Node, half: int) -> subprocess.Popen[str]:
    """Write and verify below the smaller size until told to stop."""
    command = [
        "fio", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite", "--verify=crc32c",
        "--verify_backlog=100", "--verify_state_save=0", "--time_based", "--runtime=600", "--randrepeat=0",
        "--rate_iops=400", "--output-format=json", f"--filename={node.file}",
    ]  # fmt: skip
    for number, block in enumerate((4096, 65536)):
        offset = half * HALF + number * HALF // 2
        command += [f"--name=bs{block}", f"--bs={block}", f"--offset={offset}", f"--size={HALF // 2}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def fio_stopped(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    assert process.poll() is None, "fio has ended by itself"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert "verify:" not in said, said
    jobs: list[dict[str, object]] = json.loads(said[said.index("{\n") :])["jobs"]
    return jobs


@pytest.mark.root
@pytest.mark.interop
@needs_loop
@needs_mdadm
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_grow_to_a_size_to_max_and_back_while_both_nodes_verify_below_the_smallest(
    array: Roomy, nodes: list[Node]
) -> None:
    running = [fio(node, half) for half, node in enumerate(nodes)]
    try:
        for asked, size in ((0, MIDDLE), (1, ROOM), (0, SMALL)):
            said = grow(nodes[asked], "--size", "max" if size == ROOM else str(size), "--force")
            assert (said.returncode, said.stderr) == (0, "")
            check_size(nodes, size)
            for node in nodes:
                assert raidfs("wait", node.directory).returncode == 0
                assert "[2/2] [UU]" in raidfs("status", node.directory).stdout
            check_metadata(array, size)
    finally:
        for process in running:
            if process.poll() is not None:
                print(process.communicate()[0])
        jobs = [job for process in running for job in fio_stopped(process)]
    assert [job["error"] for job in jobs] == [0] * 4
    for node in nodes:
        assert raidfs("umount", node.directory).returncode == 0
    check_metadata(array, SMALL, dirty=False)
    data = [path.read_bytes()[DATA_OFFSET : DATA_OFFSET + SMALL] for path in array.images]
    assert data[0] == data[1]


@pytest.mark.root
@pytest.mark.interop
@needs_loop
@needs_mdadm
def test_new_space_is_resynced_unless_it_is_the_same_already(array: Roomy, nodes: list[Node]) -> None:
    with open(array.images[0], "r+b") as file:
        file.seek(DATA_OFFSET + MIDDLE - 512)
        file.write(b"differs!" * 64)
    assert grow(nodes[0], "--size", str(MIDDLE)).returncode == 0
    assert raidfs("wait", nodes[1].directory).returncode == 0
    end = DATA_OFFSET + MIDDLE
    assert array.images[1].read_bytes()[end - 512 : end] == b"differs!" * 64
    before = nodes[1].status().sync.last_action
    assert grow(nodes[1], "--size", "max", "--assume-clean").returncode == 0
    assert nodes[1].status().sync.state == "idle"
    assert (before, nodes[1].status().bitmap.needed) == ("idle", 0)
    check_metadata(array, ROOM)


def test_images_that_are_files_are_extended_on_both_legs_and_the_space_is_reserved(
    array: Roomy, nodes: list[Node]
) -> None:
    check_refused(nodes, grow(nodes[0], "--size", "128M"), "a.img", str(128 * MIB), "--extend")
    said = grow(nodes[0], "--size", "128M", "--extend")
    assert (said.returncode, said.stderr) == (0, "")
    check_size(nodes, 128 * MIB)
    for path in array.images:
        assert path.stat().st_size == DATA_OFFSET + 128 * MIB
        assert path.stat().st_blocks * 512 >= 128 * MIB - ROOM
    assert grow(nodes[1], "--size", "256M", "--extend", "--sparse", "--assume-clean").returncode == 0
    check_size(nodes, 256 * MIB)
    for path in array.images:
        assert path.stat().st_blocks * 512 < 160 * MIB


def test_a_dry_run_tells_every_step_and_changes_nothing(array: Roomy, nodes: list[Node]) -> None:
    before = [path.read_bytes()[:DATA_OFFSET] for path in array.images]
    said = grow(nodes[0], "--size", "max", "--dry-run")
    assert (said.returncode, said.stderr) == (0, "")
    assert "room on every leg: every leg has it\n" in said.stdout
    assert f"{ROOM} bytes" in said.stdout
    assert [path.read_bytes()[:DATA_OFFSET] for path in array.images] == before
    check_size(nodes, SMALL)


# ---- a file system on a loop device, grown online ------------------------------------------------------------------


def may_resize_mounted_ext4() -> bool:
    """Whether we have CAP_SYS_RESOURCE, which ext4 asks for (ext4_resize_begin)."""
    [effective] = re.findall(r"^CapEff:\s*(\w+)$", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(effective, 16) >> 24 & 1)


def run(*command: str | pathlib.Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def grow_ext4(device: str, top: pathlib.Path) -> None:
    run("resize2fs", device)


def grow_ext4_unmounted(device: str, top: pathlib.Path) -> None:
    run("umount", top)
    run("e2fsck", "-fp", device)
    run("resize2fs", device)
    run("mount", device, top)


def grow_xfs(device: str, top: pathlib.Path) -> None:
    run("xfs_growfs", top)


KINDS = {
    "ext4": (["mkfs.ext4", "-q"], grow_ext4, ["e2fsck", "-fn"], 64 * MIB),
    "ext4, unmounted": (["mkfs.ext4", "-q"], grow_ext4_unmounted, ["e2fsck", "-fn"], 64 * MIB),
    "xfs": (["mkfs.xfs", "-q"], grow_xfs, ["xfs_repair", "-n"], 320 * MIB),
}


def sums(top: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in top.iterdir() if path.is_file()}


@contextlib.contextmanager
def mounted(device: str, top: pathlib.Path, *options: str) -> Iterator[None]:
    run("mount", *options, device, top)
    try:
        yield
    finally:
        run("umount", top)


@pytest.mark.root
@needs_loop
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_is_grown_on_a_loop_device_and_keeps_its_files(
    array: Roomy, nodes: list[Node], short_path: pathlib.Path, kind: str
) -> None:
    make, grow_it, check, small = KINDS[kind]
    if shutil.which(make[0]) is None or shutil.which(check[0]) is None:
        pytest.skip(f"{make[0]} or {check[0]} is not installed")
    if kind == "ext4" and not may_resize_mounted_ext4():
        pytest.skip("a mounted ext4 is resized with CAP_SYS_RESOURCE alone, which is missing here")
    size = small + 96 * MIB
    top = short_path / "top"
    top.mkdir()
    assert grow(nodes[0], "--size", str(small), "--extend", "--sparse", "--assume-clean").returncode == 0
    with loop_device(nodes[0].file) as device:
        run(*make, device)
        with mounted(device, top):
            for number in range(12):
                (top / f"before-{number}").write_bytes(os.urandom(1_500_000 + number))
            kept = sums(top)
            free = os.statvfs(top).f_bavail
            # Not the node that the loop device is on.
            said = grow(nodes[1], "--size", str(size), "--extend", "--sparse", "--assume-clean")
            assert (said.returncode, said.stderr) == (0, "")
            run("losetup", "-c", device)
            assert int(run("blockdev", "--getsize64", device)) == size
            grow_it(device, top)
            assert os.statvfs(top).f_bavail > free + (size - small) * 3 // 4 // os.statvfs(top).f_frsize
            for number in range(50):
                (top / f"after-{number}").write_bytes(os.urandom(1_500_000 + number))
            run("sync", "-f", top)  # and no other file system of this machine
            added = sums(top)
            assert {name: added[name] for name in kept} == kept
        assert "corrupt" not in run(*check, device)
    assert raidfs("wait", nodes[0].directory).returncode == 0
    with loop_device(nodes[1].file, "--read-only") as device, mounted(device, top, "-o", "ro"):
        assert sums(top) == added
    for node in nodes:
        assert raidfs("umount", node.directory).returncode == 0
    data = [path.read_bytes()[DATA_OFFSET:] for path in array.images]
    assert data[0] == data[1]


# ---- refusals: all nodes are back at the old size ------------------------------------------------------------------


def test_an_image_that_is_too_small_is_named(short_path: pathlib.Path, directories: list[pathlib.Path]) -> None:
    array = Roomy(short_path, (ROOM, MIDDLE))
    try:
        nodes = [array.mount(directory) for directory in directories]
        check_refused(nodes, grow(nodes[1], "--size", "64M"), "b.img", str(MIDDLE), "--extend")
        assert grow(nodes[1], "--size", "max").returncode == 0
        check_size(nodes, MIDDLE)
    finally:
        array.close()


@pytest.mark.root
@needs_loop
def test_a_node_that_sees_a_shorter_image_refuses_and_is_named(
    array: Roomy, directories: list[pathlib.Path], logs: Callable[[], str]
) -> None:
    with contextlib.ExitStack() as ends:
        devices = [ends.enter_context(loop_device(path, "--direct-io=on")) for path in array.images]
        first = array.mount(directories[0])
        array.images = [pathlib.Path(device) for device in devices]
        nodes = [first, array.mount(directories[1])]
        said = grow(nodes[0], "--size", "128M", "--extend", "--assume-clean")
        check_refused(nodes, said, f"slot {nodes[1].status().node.slot}", "too small there")
        assert "the resize is taken back" in logs()
        for device in devices:
            subprocess.run(["losetup", "-c", device], check=True)
        assert grow(nodes[0], "--size", "128M", "--extend", "--assume-clean").returncode == 0
        check_size(nodes, 128 * MIB)
        array.close()


def test_a_read_only_node_refuses_and_is_named(
    array: Roomy, directories: list[pathlib.Path], logs: Callable[[], str]
) -> None:
    nodes = [array.mount(directories[0]), array.mount(directories[1], "--read-only")]
    said = grow(nodes[0], "--size", "64M")
    check_refused(nodes, said, f"slot {nodes[1].status().node.slot}", "read-only")
    check_refused(nodes, grow(nodes[1], "--size", "64M"), "read-only")
    assert raidfs("umount", nodes[1].directory).returncode == 0
    assert grow(nodes[0], "--size", "64M").returncode == 0
    check_size(nodes[:1], 64 * MIB)


def test_a_sync_of_another_node_is_named(array: Roomy, directories: list[pathlib.Path]) -> None:
    nodes = [array.mount(directory, "--sync-speed-max", "1024") for directory in directories]
    assert raidfs("check", nodes[1].directory).returncode == 0
    eventually(lambda: nodes[0].status().sync.state == "remote", "the other node's check is known")
    command = [sys.executable, "-m", "raidfs", "grow", str(nodes[0].directory), "--size", "64M"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    check_refused(nodes, said, f":{nodes[1].pid} syncs the array", "raidfs wait")
    assert raidfs("idle", nodes[1].directory).returncode == 0
    assert raidfs("resync", nodes[1].directory).returncode == 0
    assert grow(nodes[0], "--size", "64M").returncode == 0
    check_size(nodes, 64 * MIB)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed")
def test_a_shrink_below_a_file_system_names_it_and_what_it_needs(array: Roomy, nodes: list[Node]) -> None:
    assert grow(nodes[0], "--size", "max").returncode == 0
    subprocess.run(["mkfs.ext4", "-q", "-F", str(nodes[0].file), "64M"], check=True)
    check_refused(nodes, grow(nodes[1], "--size", "48M"), "ext4 file system", "--force", size=ROOM)
    check_refused(nodes, grow(nodes[1], "--size", "80M"), "--force", size=ROOM)
    assert grow(nodes[1], "--size", "64M", "--force").returncode == 0
    check_size(nodes, 64 * MIB)
    checked = subprocess.run(["e2fsck", "-fn", str(nodes[0].file)], capture_output=True, text=True, check=False)
    assert (checked.returncode, "corrupt" in checked.stdout + checked.stderr) == (0, False)


@contextlib.contextmanager
def impatient(array: Roomy, directory: pathlib.Path) -> Iterator[Node]:
    """Mount a node that gives up on others after 1 s and not after 60."""
    program = "import sys; from raidfs.cluster import channel; channel.NO_PROGRESS_S = 1.0; "
    program += "from raidfs.cli.main import main; sys.exit(main())"
    words = ["mount", "--foreground", *map(str, array.images), str(directory)]
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: (directory / "md0").exists(), "the node is mounted")
            yield Node(directory, directory / "md0", process.pid)
        finally:
            process.terminate()


def test_a_node_that_does_not_answer_is_named_and_all_keep_the_old_size(
    array: Roomy, directories: list[pathlib.Path], logs: Callable[[], str]
) -> None:
    with impatient(array, directories[0]) as first:
        nodes = [first, array.mount(directories[1])]
        assert raidfs("wait", nodes[0].directory).returncode == 0
        eventually(lambda: len(nodes[0].status().members) == 2, "the nodes know of each other")
        nodes[1].signal(signal.SIGSTOP)
        try:
            said = grow(nodes[0], "--size", "64M")
            check_size(nodes[:1], SMALL)
            check_metadata(array, SMALL)
        finally:
            nodes[1].signal(signal.SIGCONT)
        check_refused(nodes, said, f"was not acknowledged by {socket.gethostname()}:{nodes[1].pid}", "for 1 s")
        logs()
        assert grow(nodes[1], "--size", "64M").returncode == 0
        check_size(nodes, 64 * MIB)
        check_metadata(array, 64 * MIB)
