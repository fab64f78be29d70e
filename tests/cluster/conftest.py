"""What all tests of the protocol need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.protocol import Cluster


@pytest.fixture(autouse=True)
def _nothing_of_a_cluster_runs_on() -> Iterator[None]:
    yield
    Cluster.dispose_all()
