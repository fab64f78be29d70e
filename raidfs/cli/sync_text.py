"""A sync in words: the progress line of ``/proc/mdstat``, and what ``mdadm --detail`` says of it."""

from __future__ import annotations

from raidfs.control.schema import SyncStatus
from raidfs.units import KIB, format_size

# md.c, status_resync: what a repair does is a resync that somebody asked for.
_MDSTAT_WORDS = {"recover": "recovery", "repair": "resync"}

# mdadm's Detail.c: the words of ``State`` and of the line ``... Status``.
_DETAIL_WORDS = {"recover": "recovering", "check": "checking"}
_STATUS_WORDS = {"recover": "Rebuild", "check": "Check"}

_BAR_STEPS = 20  # md.c, status_resync: a character for 5 percent
_RANGES_SHOWN = 8  # more than that is for programs, and --json has all


def mdstat_line(sync: SyncStatus) -> str | None:
    """Return the line below the array's in ``/proc/mdstat``, or None when nothing is to be said.

    A node that does not work itself shows the same progress, and who does: md has the word REMOTE there.
    """
    word = _MDSTAT_WORDS.get(sync.action, sync.action)
    if sync.state == "idle":
        return None
    if not is_going_on(sync):
        return f"\t{word}={sync.state.upper()}" + (f" ({sync.failure})" if sync.failure else "")
    permille = 1000 * sync.done_bytes // max(1, sync.total_bytes)
    full = permille // (1000 // _BAR_STEPS)
    line = (
        f"[{'=' * full}>{'.' * (_BAR_STEPS - full)}]  {word} ={permille // 10:3}.{permille % 10}% "
        f"({sync.done_bytes // KIB}/{sync.total_bytes // KIB})"
    )
    if sync.finish_s is not None:
        line += f" finish={finish_text(sync.finish_s)}"
    return f"{line} speed={sync.speed_bytes_s // KIB}K/sec{_by(sync)}"


def is_going_on(sync: SyncStatus) -> bool:
    """Whether a node is at work, this one or another."""
    return sync.state in ("running", "remote")


def percent(sync: SyncStatus) -> int:
    """Return how much is done, rounded down: 100 is said when it is over."""
    return 100 * sync.done_bytes // max(1, sync.total_bytes)


def finish_text(finish_s: float) -> str:
    """Return the time that is left as md tells it: minutes and tenths, rounded down."""
    return f"{int(finish_s) // 60}.{int(finish_s) % 60 // 6}min"


def detail_state(sync: SyncStatus) -> str | None:
    """Return the part of ``State`` that tells of the sync, as ``recovering`` or ``resyncing (PENDING)``."""
    if sync.state == "idle":
        return None
    word = _DETAIL_WORDS.get(sync.action, "resyncing")
    return f"{word}{_by(sync)}" if is_going_on(sync) else f"{word} ({sync.state.upper()})"


def detail_lines(sync: SyncStatus) -> list[tuple[str, str]]:
    """Return the lines of ``--detail`` on progress and on what the last check found, as label and value."""
    lines = []
    if is_going_on(sync):
        lines.append((f"{_STATUS_WORDS.get(sync.action, 'Resync')} Status", f"{percent(sync)}% complete{_by(sync)}"))
    if sync.failure:
        lines.append((f"{_STATUS_WORDS.get(sync.action, 'Resync')} Failure", sync.failure))
    if sync.mismatch_sectors:
        lines.append(("Mismatches", mismatches(sync)))
        for found in sync.mismatch_ranges[:_RANGES_SHOWN]:
            lines.append(("", f"{format_size(found.length_bytes)} at byte {found.start_bytes}"))
        if len(sync.mismatch_ranges) > _RANGES_SHOWN:
            lines.append(("", f"{len(sync.mismatch_ranges) - _RANGES_SHOWN} more ranges, see --json"))
    return lines


def mismatches(sync: SyncStatus) -> str:
    """Return what the last check found, in one line."""
    count = len(sync.mismatch_ranges)
    return f"{sync.mismatch_sectors} sectors of 512 bytes in {count} range{'' if count == 1 else 's'}"


def worker(sync: SyncStatus) -> str | None:
    """Return who works when it is another node, as ``slot 1 (host-b:2)``."""
    if sync.state != "remote" or sync.slot is None:
        return None
    return f"slot {sync.slot}" + (f" ({sync.client})" if sync.client else "")


def _by(sync: SyncStatus) -> str:
    name = worker(sync)
    return "" if name is None else f" by {name}"
