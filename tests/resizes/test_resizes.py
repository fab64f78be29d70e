"""Any node resizes the array while all are written to and some are killed: all have one size, and nothing is lost.

``RAIDFS_RESIZES=100`` resizes 100 times, ``RAIDFS_RESIZES_SEED`` makes another plan, and
``RAIDFS_RESIZES_REPORT=FILE`` keeps the figures.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess

import pytest
from support.killing import NODES
from support.mounted import raidfs
from support.resizing import DATA_OFFSET_BYTES, ROOM_BYTES, Resizes

from raidfs.array.head import read_candidates
from raidfs.format.superblock import Superblock

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

RESIZES = int(os.environ.get("RAIDFS_RESIZES", "10"))
SEED = os.environ.get("RAIDFS_RESIZES_SEED") or str(random.randrange(10**6))


@pytest.mark.timeout(180 + 20 * RESIZES)
def test_nodes_that_resize_and_die_have_one_size_and_lose_nothing(short_path: pathlib.Path) -> None:
    campaign = Resizes(short_path, RESIZES, SEED)
    report = campaign.run()
    text = json.dumps(report, indent=2)
    print(text)
    if kept := os.environ.get("RAIDFS_RESIZES_REPORT"):
        pathlib.Path(kept).write_text(text + "\n")
    assert report["lost"] == []
    assert report["strange_failures"] == []
    assert report["tracebacks"] == 0
    for candidate in read_candidates([str(path) for path in campaign.images]):
        assert isinstance(candidate.superblock, Superblock)
        assert candidate.superblock.data_offset_sectors * 512 == DATA_OFFSET_BYTES
        assert candidate.superblock.size_sectors * 512 == ROOM_BYTES
    data = [path.read_bytes()[DATA_OFFSET_BYTES:] for path in campaign.images]
    assert len(data[0]) == ROOM_BYTES
    assert data[0] == data[1]
    for path in campaign.images:
        (image,) = json.loads(raidfs("examine", "--json", path).stdout)["images"]
        assert [(slot["dirty"], slot["sync_size_sectors"]) for slot in image["slots"]] == [
            (0, ROOM_BYTES // 512)
        ] * NODES
        if shutil.which("mdadm"):
            shown = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=True).stdout
            assert "- correct" in shown
