"""Draws a result document, bars for each medium, as an SVG. Needs matplotlib (``pip install raidfs[bench]``)."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

from benchmarks.targets import TITLES

SHOWN = ("raw", "null", "null-uring", "qemu", "raidfs", "raidfs-uring", "raidfs-pyfuse3")


def draw(document: dict[str, Any], path: pathlib.Path) -> None:
    """Write the plot; bars are medians, whiskers the range of all rounds."""
    import matplotlib  # type: ignore[import-not-found,unused-ignore]

    matplotlib.use("svg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    matplotlib.rcParams["svg.hashsalt"] = "raidfs"  # the same document gives the same file
    media = document["media"]
    figure, areas = pyplot.subplots(len(media), 2, figsize=(13, 4 * len(media)), squeeze=False, width_ratios=(3, 1))
    for medium, (small, large) in zip(media, areas, strict=True):
        rows = list(dict.fromkeys(run["row"] for run in medium["runs"]))
        is_large = [row.split("-")[1] == "1m" for row in rows]
        _bars(small, medium, [row for row, large_ in zip(rows, is_large, strict=True) if not large_], "thousand IOPS")
        _bars(large, medium, [row for row, large_ in zip(rows, is_large, strict=True) if large_], "GB/s")
        small.set_title(f"legs on {medium['name']}", loc="left")
    figure.legend(*areas[0][0].get_legend_handles_labels(), fontsize="small", ncols=4, loc="lower center")
    host = document["host"]
    figure.suptitle(f"{document['date']}, {host['cpus']} x {host['cpu']}, Linux {host['kernel']}", fontsize="small")
    figure.tight_layout(rect=(0, 0.06, 1, 1))  # the legend is below
    figure.savefig(path, format="svg", metadata={"Date": None})


def _bars(area: Any, medium: dict[str, Any], rows: list[str], unit: str) -> None:
    targets = [target for target in SHOWN if any(run["target"] == target for run in medium["runs"])]
    rows = [row for row in rows if any((run["row"], run["target"]) == (row, "raidfs") for run in medium["runs"])]
    width = 0.8 / max(1, len(targets))
    for number, target in enumerate(targets):
        values = [
            [run["bytes_per_s"] / 1e9 if unit == "GB/s" else run["iops"] / 1e3 for run in medium["runs"]
             if (run["row"], run["target"]) == (row, target)] or [0.0]
            for row in rows
        ]  # fmt: skip
        middles = [statistics.median(found) for found in values]
        ranges = [
            [middle - min(found) for middle, found in zip(middles, values, strict=True)],
            [max(found) - middle for middle, found in zip(middles, values, strict=True)],
        ]
        places = [place + (number - (len(targets) - 1) / 2) * width for place in range(len(rows))]
        area.bar(places, middles, width, yerr=ranges, capsize=1.5, error_kw={"linewidth": 0.6}, label=TITLES[target],
                 color=f"C{SHOWN.index(target)}")  # fmt: skip
    area.set_xticks(
        range(len(rows)), [row.replace("-", " ") for row in rows], rotation=25, ha="right", fontsize="small"
    )
    area.set_ylabel(unit)
