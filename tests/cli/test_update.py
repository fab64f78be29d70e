from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.arrays import make_array

from raidfs.cli.main import main


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [image.path for image in make_array(tmp_path).images]


def test_it_says_what_the_array_has_and_had(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", "--nodes", "8", "--cluster-name", "blue", *paths]) == 0
    assert capsys.readouterr().out == "array md0 has 8 nodes, cluster blue; it had 4 nodes, cluster raidfs\n"
    assert main(["update", "--nodes", "8", *paths]) == 0
    assert capsys.readouterr().out == "array md0 has 8 nodes, cluster blue: nothing to do\n"


def test_a_dry_run_lists_the_steps(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = [Path(path).read_bytes() for path in paths]
    assert main(["update", "--nodes", "6", "--dry-run", *paths]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step 1: write slots 4 to 5, empty (4 writes to 2 images)",
        "step 2: let slots 0 to 3 say 6 nodes, cluster raidfs (8 writes to 2 images)",
        "array md0 would have 6 nodes, cluster raidfs; it has 4 nodes, cluster raidfs",
    ]
    assert [Path(path).read_bytes() for path in paths] == before


def test_the_json_document_says_the_same(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", "--nodes", "2", "--json", *paths]) == 0
    document = json.loads(capsys.readouterr().out)
    array = document["array"]
    assert (document["schema"], document["dry_run"], document["left_out"]) == (1, False, [])
    assert (array["nodes"], array["nodes_before"], array["cluster_name"]) == (2, 4, "raidfs")
    assert [step["writes"] for step in document["steps"]] == [4, 4]


def test_images_that_are_left_out_are_named(paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", "--run", "--nodes", "5", paths[0]]) == 0
    assert main(["update", "--nodes", "6", *paths]) == 1
    assert f"{paths[1]} cannot be used as a leg: it is faulty" in capsys.readouterr().err
    assert main(["update", "--run", "--nodes", "6", *paths]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{paths[1]}: not used, and left as it is"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "give --nodes or --cluster-name"),
        (["--nodes", "65"], 2, "number of nodes 65 is not possible: from 2 to 64"),
        (["--nodes", "many"], 2, "many"),
        (["--cluster-name", "x" * 64], 2, "1 to 63 bytes"),
        (["--nodes", "6", "absent"], 1, "absent: there is no such image"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    paths: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    before = [Path(path).read_bytes() for path in paths]
    assert main(["update", *arguments, *paths]) == status
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert [Path(path).read_bytes() for path in paths] == before
