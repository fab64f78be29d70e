"""Nodes are killed under verified writes, again and again: nothing that was acknowledged is lost, the rest goes on.

``RAIDFS_KILLS=200`` kills 200 times, ``RAIDFS_KILLS_SEED`` makes another plan, and ``RAIDFS_KILLS_REPORT=FILE`` keeps
the figures.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess

import pytest
from support.killing import NODES, Campaign
from support.mounted import raidfs

from raidfs.array.head import read_candidates
from raidfs.format.superblock import Superblock

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

KILLS = int(os.environ.get("RAIDFS_KILLS", "20"))
SEED = os.environ.get("RAIDFS_KILLS_SEED") or str(random.randrange(10**6))
STALL_MS_MAX = 30_000  # of a busy machine; the figure itself is in the report


@pytest.mark.timeout(120 + 12 * KILLS)
def test_nodes_that_are_killed_and_come_back_lose_nothing_and_hold_nobody_up(short_path: pathlib.Path) -> None:
    campaign = Campaign(short_path, KILLS, SEED)
    report = campaign.run()
    text = json.dumps(report, indent=2)
    print(text)
    if kept := os.environ.get("RAIDFS_KILLS_REPORT"):
        pathlib.Path(kept).write_text(text + "\n")
    assert report["lost"] == []
    assert report["strange_failures"] == []
    assert report["kills"] >= KILLS
    assert report["survivor_stall_ms"]["max"] < STALL_MS_MAX
    assert report["tracebacks"] == 0
    superblock = read_candidates([str(path) for path in campaign.images])[0].superblock
    assert isinstance(superblock, Superblock)
    data = [path.read_bytes()[superblock.data_offset_sectors * 512 :] for path in campaign.images]
    assert data[0] == data[1]
    for path in campaign.images:
        (image,) = json.loads(raidfs("examine", "--json", path).stdout)["images"]
        assert [slot["dirty"] for slot in image["slots"]] == [0] * NODES
        if shutil.which("mdadm"):
            shown = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=True).stdout
            assert "- correct" in shown
