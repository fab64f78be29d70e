from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

_SCRIPT = "import logging; from raidfs.mount import logs; logs.set_up(); log = logging.getLogger('raidfs.x');"


def _log(statement: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", f"{_SCRIPT} {statement}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return run.stderr


@pytest.mark.slow
def test_a_line_has_time_level_and_module() -> None:
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING raidfs\.x: leg 1 is gone\n",
        _log("log.warning('leg %d is gone', 1)"),
    )


@pytest.mark.slow
def test_information_is_kept_back_until_it_is_asked_for() -> None:
    assert _log("log.info('mounted')", RAIDFS_LOG="") == _log("pass", RAIDFS_LOG="")
    assert "mounted" in _log("log.info('mounted')", RAIDFS_LOG="info")


@pytest.mark.slow
def test_a_level_that_is_none_is_named_and_the_default_holds() -> None:
    said = _log("log.info('mounted')", RAIDFS_LOG="loud")
    assert "RAIDFS_LOG=loud is no level; it is one of debug, info, warning, error" in said
    assert "mounted" not in said
