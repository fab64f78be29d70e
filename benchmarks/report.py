"""Turns a result document into a Markdown table: medians, and the range behind each."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from typing import Any

from benchmarks.targets import TITLES


def markdown(document: dict[str, Any], rows: Collection[str], targets: Collection[str]) -> str:
    """Return the tables of a result document, one for each medium, with these rows and targets of it."""
    lines: list[str] = []
    for medium in document["media"]:
        runs = [run for run in medium["runs"] if run["row"] in rows and run["target"] in targets]
        left_out = {target: reason for target, reason in medium["left_out"].items() if target in targets}
        lines += _medium(document, {**medium, "runs": runs, "left_out": left_out})
    return "\n".join(lines)


def _medium(document: dict[str, Any], medium: dict[str, Any]) -> Iterator[str]:
    host = document["host"]
    rows = list(dict.fromkeys(run["row"] for run in medium["runs"]))
    yield f"### {medium['name']}: {medium['file_system']} on {medium['device']}"
    yield ""
    yield (
        f"{document['date']}, {host['cpus']} x {host['cpu']}, Linux {host['kernel']}, {host['system']}, {host['fio']}, "
        f"commit {host['commit']}; {document['rounds']} rounds of {document['seconds']:g} s, legs of "
        f"{document['size_bytes'] >> 20} MiB, load average {medium['load_before']} to {medium['load_after']}."
        + (f" {host['note']}." if "note" in host else "")
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
    yield from _beside(medium)


def _beside(medium: dict[str, Any]) -> Iterator[str]:
    """Tell memory, CPU time and the cost of the bitmap, where the document has them."""
    runs = [run for run in medium["runs"] if run["target"] == "raidfs"]
    for target, idle in medium.get("rss_idle_mib", {}).items():
        if not any(run["target"] == target for run in medium["runs"]):
            continue
        most = max((run["rss_mib"] for run in medium["runs"] if run["target"] == target), default=idle)
        yield f"* {TITLES[target]}: {idle:.0f} MiB resident before, at most {most:.0f} MiB after a run."
    costs = {
        row: statistics.median(run["cpu_us_per_io"] for run in runs if run["row"] == row)
        for row in dict.fromkeys(run["row"] for run in runs if run.get("cpu_us_per_io") is not None)
    }
    if costs:
        yield (
            "* CPU time of the node per I/O: " + ", ".join(f"{row} {cost:.0f} us" for row, cost in costs.items()) + "."
        )
    touch = medium.get("first_touch")
    if touch:
        clean, dirty = statistics.median(touch["clean"]), statistics.median(touch["dirty"])
        yield (
            f"* {touch['writes']} random writes of 4 KiB, 32 in flight, chunks of {touch['chunk_bytes'] >> 10} KiB: "
            f"{_number(clean)} IOPS over clean chunks, {_number(dirty)} over dirty ones ({clean / dirty:.0%})."
        )
    yield ""


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return a table of how many times the medians of one document are those of another."""
    lines = [f"{new['date']} (commit {new['host']['commit']}) over {old['date']} (commit {old['host']['commit']})", ""]
    lines += ["| medium | target | row | before | after | times |", "|---|---|---|---|---|---|"]
    before = _medians(old)
    for key, value in _medians(new).items():
        if key in before:
            words = (*key, _number(before[key]), _number(value), f"{value / before[key]:.2f}")
            lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _medians(document: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Return the median of each medium, target and row: IOPS, or MB/s for the rows of 1 MiB."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for medium in document["media"]:
        for run in medium["runs"]:
            found.setdefault((medium["name"], run["target"], run["row"]), []).append(_value(run))
    return {key: statistics.median(values) for key, values in found.items()}


def _value(run: dict[str, Any]) -> float:
    return float(run["bytes_per_s"] / 1e6 if run["row"].split("-")[1] == "1m" else run["iops"])


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "-"
    large = runs[0]["row"].split("-")[1] == "1m"
    values = [_value(run) for run in runs]
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{_number(middle)}{' MB/s' if large else ''} ({_number(low)}-{_number(high)})"


def _number(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"
