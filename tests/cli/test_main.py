from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from raidfs import __version__
from raidfs.cli import main as cli
from raidfs.errors import MountBusy, UsageError


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"raidfs {__version__}\n"


def test_help_names_every_command_and_shows_a_first_array(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n    {command} " in said for command in cli.COMMANDS)
    assert "raidfs create --size 1G" in said


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: raidfs {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND; see `raidfs --help`"),
        (["mirror"], "argument COMMAND: invalid choice: 'mirror'"),
        (["mount"], "the following arguments are required: IMG, MOUNTPOINT; see `raidfs mount --help`"),
        (["mount", "a.img"], "the following arguments are required"),
        (["mount", "--slot", "one", "a", "b"], "argument --slot: invalid int value: 'one'"),
        (["mount", "--plane", "jet", "a", "b"], "argument --plane: invalid choice: 'jet'"),
        (["mount", "--read", "a", "b"], "unrecognized arguments: --read"),
        (["status", "--json", "--detail"], "not allowed with argument"),
        (["check"], "the following arguments are required: MOUNTPOINT; see `raidfs check --help`"),
        (["re-add", "/mnt"], "the following arguments are required: IMG; see `raidfs re-add --help`"),
        (["grow", "/mnt"], "give --size, --bitmap-chunk or --raid-devices; see `raidfs grow --help`"),
        (["grow", "/mnt", "--raid-devices", "two"], "argument --raid-devices: invalid int value: 'two'"),
        (["grow", "/mnt", "--size", "two"], "'two' is not a size"),
        (["grow", "/mnt", "--raid-devices", "2", "--extend"], "--extend and --assume-clean go with --size"),
        (["grow", "/mnt", "--size", "2G", "--sparse"], "--sparse goes with --extend"),
        (["grow", "/mnt", "--size", "2G", "--add", "c.img"], "--add goes with --raid-devices"),
        (["grow", "/mnt", "--raid-devices", "3", "--add", "c.img", "--dry-run"], "--add writes to the image"),
        (["umount"], "the following arguments are required: MOUNTPOINT; see `raidfs umount --help`"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line_with_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("raidfs: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


class TestEndings:
    """How a verb may end, played by ``status``."""

    def _ending(self, monkeypatch: pytest.MonkeyPatch, ending: BaseException) -> int:
        def run(args: object) -> int:
            raise ending

        monkeypatch.setattr("raidfs.cli.status.run", run)
        return cli.main(["status"])

    def test_an_error_gives_its_exit_code_and_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self._ending(monkeypatch, MountBusy(path="/mnt/x")) == 1
        assert capsys.readouterr().err.startswith("raidfs: /mnt/x is in use")
        assert self._ending(monkeypatch, UsageError(text="no")) == 2

    def test_an_interrupt_is_told_by_the_code_alone(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self._ending(monkeypatch, KeyboardInterrupt()) == 130
        assert capsys.readouterr().err == ""

    def test_a_system_call_that_nobody_foresaw_is_one_line_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self._ending(monkeypatch, PermissionError(13, "Permission denied", "/srv/a.img")) == 1
        assert capsys.readouterr().err == "raidfs: /srv/a.img: Permission denied\n"
        assert self._ending(monkeypatch, OSError(28, "No space left on device")) == 1
        assert capsys.readouterr().err == "raidfs: No space left on device\n"


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_traceback() -> None:
    command = [sys.executable, "-m", "raidfs", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        run = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert run.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["status"], ["umount", "/nowhere"], ["check", "--wait", "/nowhere"], ["mount", "--help"], ["--help"]]
)
def test_the_command_line_imports_neither_trio_nor_pyfuse3_nor_rich(words: list[str], tmp_path: pathlib.Path) -> None:
    script = (
        "import sys\nfrom raidfs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'trio', 'pyfuse3', 'asyncio', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "RAIDFS_RUNTIME_DIR": str(tmp_path)},
    )
    assert run.stderr.splitlines()[-1] == "[]"
