from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raidfs.array.head import read_candidates
from raidfs.cli.main import main
from raidfs.format.superblock import Superblock
from raidfs.units import GIB, MIB


def test_each_image_gets_a_line_and_the_array_its_uuid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b", "s")]
    assert main(["create", "--size", "64M", paths[0], paths[1], "--spare", paths[2], "--name", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"{paths[0]}: leg 0, 65 MiB, made",
        f"{paths[1]}: leg 1, 65 MiB, made",
        f"{paths[2]}: spare, 65 MiB, made",
    ]
    assert lines[3] == f"array {socket.gethostname()}:data: 64 MiB, 4 nodes, cluster raidfs, bitmap chunk 64 MiB"
    superblock = read_candidates(paths)[0].superblock
    assert isinstance(superblock, Superblock)
    assert lines[4] == f"uuid {superblock.set_uuid_text}"


def test_the_json_document_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "1G", "--nodes", "2", "--cluster-name", "blue", "--bitmap-chunk", "1M", "--assume-clean"]
    assert main(["create", "--json", *arguments, str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    array = document["array"]
    assert (array["size_bytes"], array["nodes"], array["bitmap_chunk_bytes"]) == (GIB, 2, MIB)
    assert (array["cluster_name"], array["assume_clean"]) == ("blue", True)
    assert [(image["role"], image["created"]) for image in document["images"]] == [(0, True), (1, True)]


def test_every_array_and_every_leg_has_a_uuid_of_its_own(tmp_path: Path) -> None:
    uuids = set()
    for name in "abcd":
        (tmp_path / name).mkdir()
        assert main(["create", "--size", "1M", str(tmp_path / name / "0"), str(tmp_path / name / "1")]) == 0
        for candidate in read_candidates([str(tmp_path / name / "0"), str(tmp_path / name / "1")]):
            assert isinstance(candidate.superblock, Superblock)
            uuids |= {candidate.superblock.set_uuid, candidate.superblock.device_uuid}
    assert len(uuids) == 4 + 8


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "IMG"),
        (["a"], 2, "number of images 1 is not possible"),
        (["a", "b"], 1, "a: there is no such image"),
        (["--size", "lots", "a", "b"], 2, "'lots' is not a size"),
        (["--size", "1G", "--nodes", "few", "a", "b"], 2, "few"),
        (["--size", "1G", "--nodes", "65", "a", "b"], 2, "number of nodes 65 is not possible: from 2 to 64"),
        (["--size", "1G", "--bitmap-chunk", "3K", "a", "b"], 2, "bitmap chunk 3072 is not possible"),
        (["--size", "1G", "--name", "a/b", "a", "b"], 2, "name 'a/b' is not possible"),
        (["--size", "1G", "absent/a", "b"], 1, "absent/a: cannot make it: No such file or directory"),
        (["--size", "1G", ".", "b"], 1, ". is a directory"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["create", *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("raidfs: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_overwriting_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["create", "--size", "1M", *paths]) == 0
    assert main(["create", *paths]) == 1
    assert "a already holds an md superblock (1.2); give --force to overwrite it" in capsys.readouterr().err
    assert main(["create", "--force", *paths]) == 0
    assert ", made" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["create", "examine"])
def test_the_command_starts_without_trio_and_fuse(command: str) -> None:
    program = (
        f"import sys, raidfs.cli.{command}; print(sorted({{'trio', 'pyfuse3', 'raidfs._core'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
