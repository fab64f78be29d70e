"""The debug build of `scripts/debug-suite` stops at mistakes that the fast build lives with."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest

import raidfs._core

pytestmark = pytest.mark.skipif(os.environ.get("RAIDFS_DEBUG") != "1", reason="this is not the debug build")


def _said_by(mistake: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import debug_probe; debug_probe.{mistake}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def test_the_core_under_test_has_the_address_sanitizer_in_it() -> None:
    path = raidfs._core.__file__
    with open(path, "rb") as module:
        assert re.search(rb"__asan_report_store\d", module.read()), path


def test_reading_behind_a_memoryview_raises_index_error() -> None:
    probe = importlib.import_module("debug_probe")
    with pytest.raises(IndexError):
        probe.behind_the_view(b"four")


def test_writing_behind_an_allocation_ends_the_program() -> None:
    assert "heap-buffer-overflow" in _said_by("behind_the_heap(4096)")


def test_undefined_behaviour_ends_the_program() -> None:
    assert "shift exponent 40 is too large" in _said_by("shift_too_far(40)")
