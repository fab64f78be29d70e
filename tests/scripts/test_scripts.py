"""Scripts explain themselves without doing anything, and kept benchmark results can still be shown."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "scripts"
WITH_HELP = ["setup", "test", "quickstart", "wheel-test", "debug-suite", "race-check", "lab"]


def _run(*command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


@pytest.mark.parametrize("name", WITH_HELP)
def test_a_script_tells_what_it_does_and_does_nothing(name: str) -> None:
    done = _run("bash", SCRIPTS / name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: scripts/{name}")


@pytest.mark.parametrize("name", ["setup", "quickstart"])
def test_a_script_refuses_words_that_it_does_not_know(name: str) -> None:
    done = _run("bash", SCRIPTS / name, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage:")


@pytest.mark.parametrize(
    "path", sorted(path for path in SCRIPTS.iterdir() if path.is_file()), ids=lambda path: path.name
)
def test_a_script_is_executable_and_can_be_parsed(path: pathlib.Path) -> None:
    assert path.stat().st_mode & 0o111
    assert _run("bash", "-n", path).returncode == 0


def test_every_row_of_the_benchmark_has_its_job_file() -> None:
    rows = re.search(r"ROWS = \(([^)]*)\)", (ROOT / "benchmarks" / "fio.py").read_text())
    assert rows is not None
    assert set(re.findall(r'"([^"]+)"', rows[1])) == {path.stem for path in (SCRIPTS / "fio").glob("*.fio")}


def test_every_kept_result_can_be_shown_as_a_table() -> None:
    # Those of fio; other programs of benchmarks/ keep documents of their own.
    found = [(path, json.loads(path.read_text())) for path in (ROOT / "benchmarks").glob("*.json")]
    kept = [path for path, document in found if any("runs" in medium for medium in document.get("media", ()))]
    assert kept
    for path in kept:
        done = _run(sys.executable, "-m", "benchmarks", "--table", path)
        assert done.returncode == 0, done.stderr
        assert "raidfs, 2 legs" in done.stdout
