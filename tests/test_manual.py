"""The manual page tells of every command and option, and of nothing else."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import pkgutil
import re
import shutil
import subprocess

import pytest

import raidfs
import raidfs.cli
from raidfs import errors
from raidfs.cli.main import COMMANDS

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "raidfs.1"


def _documented() -> dict[str, set[str]]:
    # Each ``.SS raidfs COMMAND ...`` section with the options that head a tagged paragraph in it.
    text = PAGE.read_text().replace("\\-", "-")
    found = {}
    for section in re.split(r"^\.SS raidfs ", text, flags=re.MULTILINE)[1:]:
        section = section.partition("\n.SH ")[0]
        found[section.split()[0]] = set(re.findall(r"^\.TP\n\.BI? (--[a-z-]+)", section, re.MULTILINE))
    return found


def _parsers() -> dict[str, argparse.ArgumentParser]:
    subparsers = argparse.ArgumentParser().add_subparsers()
    for module in pkgutil.iter_modules(raidfs.cli.__path__):
        add_parser = getattr(importlib.import_module(f"raidfs.cli.{module.name}"), "add_parser", None)
        if add_parser is not None:
            add_parser(subparsers)
    return dict(subparsers.choices)


PARSERS = _parsers()


def test_the_manual_has_a_section_for_each_command_and_no_other() -> None:
    assert set(_documented()) == set(PARSERS)
    assert set(COMMANDS) <= set(PARSERS)


@pytest.mark.parametrize("command", sorted(PARSERS))
def test_the_manual_tells_every_option_that_help_tells(command: str) -> None:
    shown = {
        option
        for action in PARSERS[command]._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    }
    assert _documented()[command] == shown - {"--help"}


def test_the_manual_lists_the_exit_codes() -> None:
    section = PAGE.read_text().partition(".SH EXIT STATUS\n")[2].partition("\n.SH ")[0]
    listed = {int(code) for code in re.findall(r"^\.B (\d+)$", section, re.MULTILINE)}
    assert {0, errors.EXIT_FAILED, errors.EXIT_USAGE} <= listed


def test_the_manual_is_of_this_version() -> None:
    assert f'"raidfs {raidfs.__version__}"' in PAGE.read_text()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_is_typeset_without_a_warning() -> None:
    # Without the sanitizer of the debug suite, which finds something in groff itself.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = ["groff", "-man", "-Tutf8", "-ww", "-z", str(PAGE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
