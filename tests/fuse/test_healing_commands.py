"""Legs that fail, go and come, and syncs, as a user sees them: every command on two real nodes, from either."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest
from support.mounted import Array, Node, raidfs

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MIB = 1 << 20
SILENT = (0, "", "")

Logs = Callable[[], str]


@pytest.fixture
def pair(array: Array, directories: list[pathlib.Path]) -> list[Node]:
    return [array.mount(directory) for directory in directories]


def said(*words: str | pathlib.Path) -> tuple[int, str, str]:
    done = raidfs(*words)
    return done.returncode, done.stdout, done.stderr


def positions(node: Node) -> str:
    """md's ``[U_]`` with the leg marks before it, as ``b.img[1](F) a.img[0] [U_]``."""
    first, second = raidfs("status", node.directory).stdout.splitlines()[:2]
    return f"{first.partition(' raid1 ')[2]} {second.split()[-1]}"


def sized(image: pathlib.Path, size_bytes: int) -> None:
    image.write_bytes(b"")
    os.truncate(image, size_bytes)


def test_what_cannot_be_done_is_refused_in_one_line_that_names_it(
    array: Array, pair: list[Node], short_path: pathlib.Path, logs: Logs
) -> None:
    a = array.images[0]
    stranger, missing, small, text = (short_path / f"{name}.img" for name in ("stranger", "missing", "small", "text"))
    for image in (stranger, small, text):
        sized(image, MIB if image == small else a.stat().st_size)
    subprocess.run(["mkfs.ext4", "-q", "-F", text], check=True, capture_output=True)
    for command, words, code, told in (
        ("remove", [a], 1, ["a.img", "raidfs fail"]),
        ("remove", ["/dev/null"], 2, ["/dev/null is not a leg of this array"]),
        ("re-add", [a], 1, ["a.img"]),
        ("re-add", [stranger], 1, ["stranger.img"]),
        ("add", [a], 1, ["a.img"]),
        ("add", [missing], 1, ["missing.img"]),
        ("add", [small], 1, ["small.img", "too small"]),
        ("add", [text], 1, ["text.img", "ext", "--force"]),
        ("grow", ["--raid-devices", "0"], 2, ["0"]),
        ("grow", ["--raid-devices", "1000"], 2, ["1000"]),
    ):
        failed, out, err = said(command, pair[1].directory, *words)
        assert (failed, out) == (code, ""), (command, words, err)
        assert err.startswith("raidfs: ")
        assert err.count("\n") == 1
        assert all(one in err for one in told), err
    assert [positions(node) for node in pair] == ["b.img[1] a.img[0] [UU]"] * 2
    logs()
