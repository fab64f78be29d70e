"""``raidfs examine``: show the md metadata of images."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Iterator

from raidfs.array.examine import Examination, SlotExamination, examine_image
from raidfs.errors import EXIT_FAILED, RaidfsError
from raidfs.format.superblock import (
    LEVEL_RAID1,
    MAGIC,
    SUPER_OFFSET_SECTORS,
    TIME_SECONDS_MASK,
    Feature,
    Superblock,
)
from raidfs.units import GIB, MIB, SECTOR_BYTES, TIB, format_size

SCHEMA = 1

_EPILOG = """\
example: which of two images was used last, and which chunks are dirty
  raidfs examine /srv/a/leg0.img /srv/b/leg1.img

The first part is what `mdadm --examine` prints; the slots of the bitmap follow. Nothing is written. Exit status
1: an image has no md superblock or cannot be read.
"""

_LEVELS = {-4: "multipath", -1: "linear", 0: "raid0", 1: "raid1", 4: "raid4", 5: "raid5", 6: "raid6", 10: "raid10"}
_FLAGS = ((1, "write-mostly"), (2, "failfast"))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of ``raidfs``."""
    parser = subparsers.add_parser(
        "examine",
        help="show the metadata of images",
        description="Show the md superblock and the bitmap slots of backing images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMG", help="a file or block device")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show what each image says; an image that says nothing is told on stderr and does not stop the others."""
    documents: list[dict[str, object]] = []
    status = 0
    for path in args.images:
        try:
            examination = examine_image(path)
        except RaidfsError as e:
            print(f"raidfs: {e}", file=sys.stderr)
            documents.append({"path": path, "error": e.to_json()})
            status = EXIT_FAILED
            continue
        documents.append(examination.to_json())
        if not args.json:
            print("\n".join(text_lines(examination, homehost=socket.gethostname())))
    if args.json:
        print(json.dumps({"schema": SCHEMA, "images": documents}, indent=2))
    return status


def text_lines(examination: Examination, *, homehost: str) -> Iterator[str]:
    """Give the lines for people: those of ``mdadm --examine`` (``examine_super1``), then the slots."""
    yield f"{examination.path}:"
    yield from _array_lines(examination, homehost)
    yield ""
    yield from _leg_lines(examination)
    yield ""
    yield ""
    yield f"   Device Role : {examination.device_role}"
    state = examination.array_state
    yield f"   Array State : {state} ('A' == active, '.' == missing, 'R' == replacing)"
    if examination.problem is not None:
        yield ""
        yield f"        Problem : {examination.problem}"
    if examination.slots:
        yield ""
        yield from _bitmap_lines(examination)


def _array_lines(examination: Examination, homehost: str) -> Iterator[str]:
    superblock = examination.superblock
    local = f"  (local to host {homehost})" if homehost and superblock.name.startswith(f"{homehost}:") else ""
    yield f"          Magic : {MAGIC:08x}"
    yield "        Version : 1.2"
    yield f"    Feature Map : {superblock.feature_map:#x}"
    yield f"     Array UUID : {superblock.set_uuid_text}"
    yield f"           Name : {superblock.name}{local}"
    if examination.slots and (bitmap := examination.slots[0].bitmap) is not None:
        yield f"   Cluster Name : {bitmap.cluster_name_text}"
    yield f"  Creation Time : {_time_text(superblock.ctime)}"
    yield f"     Raid Level : {_LEVELS.get(superblock.level, '-unknown-')}"
    yield f"   Raid Devices : {superblock.raid_disks}"


def _leg_lines(examination: Examination) -> Iterator[str]:
    superblock = examination.superblock
    yield f" Avail Dev Size : {_sectors_text(superblock.data_size_sectors)}"
    if superblock.level == LEVEL_RAID1:
        size_bytes = superblock.size_sectors * SECTOR_BYTES
        yield f"     Array Size : {size_bytes // 1024} KiB{_both_units(size_bytes)}"
        if superblock.size_sectors != superblock.data_size_sectors:
            yield f"  Used Dev Size : {_sectors_text(superblock.size_sectors)}"
    yield f"    Data Offset : {superblock.data_offset_sectors} sectors"
    yield f"   Super Offset : {SUPER_OFFSET_SECTORS} sectors"
    if superblock.is_recovering:
        yield f"Recovery Offset : {superblock.recovery_offset_sectors} sectors"
    before, after = examination.unused_before_sectors, examination.unused_after_sectors
    yield f"   Unused Space : before={before} sectors, after={after} sectors"
    truncated = " TRUNCATED DEVICE" if examination.is_truncated else ""
    yield f"          State : {'clean' if superblock.is_clean else 'active'}{truncated}"
    yield f"    Device UUID : {superblock.device_uuid_text}"
    yield ""
    yield from _update_lines(examination, superblock)


def _update_lines(examination: Examination, superblock: Superblock) -> Iterator[str]:
    if superblock.feature_map & Feature.BITMAP_OFFSET:
        yield f"Internal Bitmap : {superblock.bitmap_offset_sectors} sectors from superblock"
    if flags := [name for bit, name in _FLAGS if superblock.devflags & bit]:
        yield f"          Flags : {' '.join(flags)}"
    yield f"    Update Time : {_time_text(superblock.utime)}"
    if superblock.bblog_size_sectors and superblock.bblog_offset_sectors:
        entries = superblock.bblog_size_sectors * SECTOR_BYTES // 8
        present = " - bad blocks present." if superblock.feature_map & Feature.BAD_BLOCKS else ""
        place = f"at offset {superblock.bblog_offset_sectors} sectors"
        yield f"  Bad Block Log : {entries} entries available {place}{present}"
    verdict = "correct" if examination.checksum_is_right else f"expected {examination.checksum_computed:x}"
    yield f"       Checksum : {examination.checksum_stored:x} - {verdict}"
    yield f"         Events : {superblock.events}"


def _bitmap_lines(examination: Examination) -> Iterator[str]:
    layout = examination.layout
    if layout is not None:
        yield f"   Bitmap Chunk : {format_size(layout.chunk_bytes)}"
        yield f"   Bitmap Slots : {layout.nodes} of {format_size(layout.slot_bytes)}, {layout.nodes_max} would fit"
    for slot in examination.slots:
        yield f"{f'Slot {slot.slot}':>15} : {_slot_text(slot)}"


def _slot_text(slot: SlotExamination) -> str:
    if slot.error is not None or slot.bitmap is None:
        return str(slot.error)
    share = 100 * slot.dirty / max(1, slot.bits)
    state = "out of date" if slot.bitmap.is_stale else "OK"
    events = f"events {slot.bitmap.events}, cleared at {slot.bitmap.events_cleared}"
    return f"{state}, {slot.bits} bits (chunks), {slot.dirty} dirty ({share:.1f}%), {events}"


def _time_text(stored: int) -> str:
    try:
        return time.ctime(stored & TIME_SECONDS_MASK)
    except (OverflowError, OSError, ValueError):  # a damaged time beyond what the C library can name
        return f"{stored & TIME_SECONDS_MASK} seconds"


def _sectors_text(sectors: int) -> str:
    return f"{sectors} sectors{_both_units(sectors * SECTOR_BYTES)}"


def _both_units(size_bytes: int) -> str:
    """Return mdadm's ``human_size``: binary and decimal units, rounded half up to two places."""
    if size_bytes < 5000 * 1024:
        return ""
    for letter, binary, decimal in (("M", MIB, 10**6), ("G", GIB, 10**9), ("T", TIB, 10**12)):
        if letter == "T" or size_bytes < 2048 * binary:
            hundredths = (size_bytes * 200 // binary + 1) // 2
            hundredths_decimal = (size_bytes // (decimal // 200) + 1) // 2
            return (
                f" ({hundredths // 100}.{hundredths % 100:02d} {letter}iB "
                f"{hundredths_decimal // 100}.{hundredths_decimal % 100:02d} {letter}B)"
            )
    raise AssertionError("the last unit takes every size")
