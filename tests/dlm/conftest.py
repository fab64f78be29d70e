"""Tests on virtual machines: run by ``scripts/lab test``, which sets ``RAIDFS_LAB_TEST``, and skipped elsewhere."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.lab_nodes import Cluster

CHOSEN = os.environ.get("RAIDFS_LAB_TEST")  # reduced, full
TIMEOUT_S = 300
DISK_BYTES = 64 << 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
        if CHOSEN is None:
            item.add_marker(pytest.mark.skip(reason="needs virtual machines: scripts/lab test"))
        elif CHOSEN != "full" and item.get_closest_marker("lab_full") is not None:
            item.add_marker(pytest.mark.skip(reason="only in scripts/lab test --full"))


@pytest.fixture(scope="session")
def _two_up() -> Iterator[Cluster]:
    from support.lab_nodes import lab_up

    with lab_up("two", nodes=2, disks_bytes=(DISK_BYTES,) * 6) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _three_up() -> Iterator[Cluster]:
    from support.lab_nodes import lab_up

    with lab_up("three", nodes=3, disks_bytes=(DISK_BYTES,) * 4) as cluster:
        yield cluster


@pytest.fixture
def two(_two_up: Cluster) -> Cluster:
    """Two machines on which nothing runs, and six disks with nothing on them."""
    _two_up.make_ready()
    return _two_up


@pytest.fixture
def three(_three_up: Cluster) -> Cluster:
    """Three machines on which nothing runs, and four disks with nothing on them."""
    _three_up.make_ready()
    return _three_up
