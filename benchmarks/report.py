"""Turns a result document into a Markdown table: medians, and the range behind each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.targets import TITLES


def markdown(document: dict[str, Any]) -> str:
    """Return the tables of a result document, one for each medium."""
    return "\n".join(line for medium in document["media"] for line in _medium(document, medium))


def _medium(document: dict[str, Any], medium: dict[str, Any]) -> Iterator[str]:
    host = document["host"]
    rows = list(dict.fromkeys(run["row"] for run in medium["runs"]))
    yield f"### {medium['name']}: {medium['file_system']} on {medium['device']}"
    yield ""
    yield (
        f"{document['date']}, {host['cpus']} x {host['cpu']}, Linux {host['kernel']}, {host['system']}, {host['fio']}, "
        f"commit {host['commit']}; {document['rounds']} rounds of {document['seconds']:g} s, legs of "
        f"{document['size_bytes'] >> 20} MiB, load average {medium['load_before']} to {medium['load_after']}."
    )
    yield ""
    yield "| | " + " | ".join(rows) + " |"
    yield "|---" * (len(rows) + 1) + "|"
    for target in dict.fromkeys(run["target"] for run in medium["runs"]):
        cells = [_cell([run for run in medium["runs"] if (run["target"], run["row"]) == (target, row)]) for row in rows]
        yield f"| {TITLES[target]} | " + " | ".join(cells) + " |"
    for target, reason in medium["left_out"].items():
        yield f"| {TITLES[target]} | left out: {reason} |" + " |" * (len(rows) - 1)
    yield ""


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "-"
    large = runs[0]["row"].split("-")[1] == "1m"
    values = [run["bytes_per_s"] / 1e6 if large else run["iops"] for run in runs]
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{_number(middle)}{' MB/s' if large else ''} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"
