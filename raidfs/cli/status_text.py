"""A node's status as text: after ``/proc/mdstat`` (drivers/md/md.c, md_seq_show) and after ``mdadm --detail``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from raidfs.cli import sync_text
from raidfs.control.schema import LegStatus, NodeStatus
from raidfs.units import KIB, PAGE_BYTES, format_size

_LEG_WORDS = {
    "in_sync": "active sync",
    "recovering": "spare rebuilding",
    "spare": "spare",
    "faulty": "faulty",
    "missing": "removed",
}

_LABEL_WIDTH = 18  # mdadm aligns its labels at "Consistency Policy"


def mdstat(status: NodeStatus) -> str:
    """Return the array as ``/proc/mdstat`` shows it, and below it the node and its neighbours."""
    array, node, bitmap = status.array, status.node, status.bitmap
    read_only = " (read-only)" if node.read_only else ""
    legs = [leg for leg in status.legs if leg.number is not None]
    names = " ".join(_mdstat_leg(leg) for leg in sorted(legs, key=lambda leg: leg.number or 0, reverse=True))
    lines = [
        f"{array.name} : active{read_only} raid1 {names}",
        f"      {array.size_bytes // KIB} blocks super 1.2 [{array.raid_disks}/{status.in_sync_count()}] "
        f"[{_positions(status)}]",
    ]
    progress = sync_text.mdstat_line(status.sync)
    if progress is not None:
        lines.append(f"      {progress}")
    lines += [
        f"      bitmap: {bitmap.pages_allocated}/{bitmap.pages} pages "
        f"[{bitmap.pages_allocated * PAGE_BYTES // KIB}KB], {bitmap.chunk_bytes // KIB}KB chunk",
        f"      node: slot {node.slot} of {array.nodes} at {node.mountpoint}, pid {node.pid}",
        f"      members: {_members(status)}",
    ]
    if status.sync.mismatch_sectors:
        lines.append(f"      mismatches: {sync_text.mismatches(status.sync)}")
    if node.lost is not None:
        lines.append(f"      LOST: {node.lost}; every request gets EIO until it is unmounted and mounted again")
    return "\n".join(lines) + "\n"


def _mdstat_leg(leg: LegStatus) -> str:
    mark = {"faulty": "(F)", "spare": "(S)"}.get(leg.state, "")
    return f"{os.path.basename(leg.path)}[{leg.number}]{mark}"


def _positions(status: NodeStatus) -> str:
    in_sync = {leg.role for leg in status.legs if leg.state == "in_sync"}
    return "".join("U" if role in in_sync else "_" for role in range(status.array.raid_disks))


def _members(status: NodeStatus) -> str:
    return ", ".join(f"{member.slot} ({member.client})" for member in status.members) or "none"


def detail(status: NodeStatus) -> str:
    """Return everything, in the order and the words of ``mdadm --detail`` where it has them."""
    array, node, bitmap, engine = status.array, status.node, status.bitmap, status.engine
    count = {state: sum(leg.state == state for leg in status.legs) for state in _LEG_WORDS}
    working = len(status.legs) - count["faulty"] - count["missing"]
    groups: list[Sequence[tuple[str, object]]] = [
        [
            ("Version", "1.2"),
            ("Creation Time", _date(array.created_s)),
            ("Raid Level", "raid1"),
            ("Array Size", f"{array.size_bytes // KIB} ({format_size(array.size_bytes)})"),
            ("Block Size", f"{array.block_size_bytes} bytes"),
            ("Raid Devices", array.raid_disks),
            ("Total Devices", len(status.legs) - count["missing"]),
        ],
        [("Intent Bitmap", "Internal(Clustered)")],
        [
            ("Update Time", _date(array.updated_s)),
            ("State", _state(status)),
            ("Active Devices", count["in_sync"]),
            ("Working Devices", working),
            ("Failed Devices", count["faulty"]),
            ("Spare Devices", count["spare"] + count["recovering"]),
        ],
        [("Consistency Policy", "bitmap")],
        sync_text.detail_lines(status.sync),
        [
            ("Name", array.name),
            ("Cluster Name", array.cluster_name),
            ("UUID", array.uuid),
            ("Events", array.events),
        ],
        [
            ("Node", f"slot {node.slot} of {array.nodes}"),
            ("Mount Point", node.mountpoint),
            ("Process", f"{node.pid} on {node.host} since {_date(int(node.since_s))}, plane {node.plane}"),
            ("Members", _members(status)),
            ("Lock Manager", f"{status.lock.manager} {status.lock.address}".rstrip()),
            *([("Lost", node.lost)] if node.lost is not None else []),
            ("Bitmap", f"{bitmap.bits} bits of {format_size(bitmap.chunk_bytes)}, {bitmap.dirty} dirty, "
             f"{bitmap.needed} needed"),
            ("Requests", f"{engine.reads} reads, {engine.writes} writes, {engine.flushes} flushes, "
             f"{engine.in_flight} in flight, {engine.parked} parked"),
            ("Transferred", f"{format_size(engine.read_bytes)} read, {format_size(engine.written_bytes)} written"),
        ],
    ]  # fmt: skip
    blocks = ["".join(f"{label:>{_LABEL_WIDTH}} : {value}\n" for label, value in group) for group in groups if group]
    waits = "".join(f"      {wait.task} waits for {wait.what}, {wait.waited_s:.1f} s\n" for wait in status.waits)
    return f"{os.path.join(node.mountpoint, array.name)}:\n" + "\n".join([*blocks, _legs(status)]) + waits


def _state(status: NodeStatus) -> str:
    words: list[str] = [status.array.state]
    if status.in_sync_count() < status.array.raid_disks:
        words.append("degraded" if status.in_sync_count() else "FAILED")
    if status.node.read_only:
        words.append("read-only")
    syncing = sync_text.detail_state(status.sync)
    if syncing is not None:
        words.append(syncing)
    return ", ".join(words)


def _legs(status: NodeStatus) -> str:
    lines = ["    Number   RaidDevice   Errors (read/write)   State"]
    for leg in status.legs:
        number = "-" if leg.number is None else str(leg.number)
        role = "-" if leg.role is None else str(leg.role)
        mode = "" if leg.state == "missing" or leg.direct else " (buffered)"
        corrected = f" ({leg.corrected_reads} blocks corrected)" if leg.corrected_reads else ""
        errors = f"{leg.read_errors}/{leg.write_errors}"
        state = _LEG_WORDS.get(leg.state, leg.state)
        lines.append(f"    {number:>6}   {role:>10}   {errors:>19}   {state:<16} {leg.path}{mode}{corrected}".rstrip())
    return "\n".join(lines) + "\n"


def _date(seconds: int) -> str:
    # As mdadm prints it: the C library's ctime in local time.
    return time.ctime(seconds)
