"""The daemon's log: lines on standard error, which the starting process has pointed at a file or left at a terminal.

At the default level a node to which nothing happens writes nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import time

LEVEL_VARIABLE = "RAIDFS_LOG"
_LEVELS = ("debug", "info", "warning", "error")


class _UtcFormatter(logging.Formatter):
    # Nodes on several hosts are compared line by line, so their logs share one time zone.
    converter = staticmethod(time.gmtime)


def set_up() -> None:
    """Send the records of this process to standard error; ``RAIDFS_LOG`` gives the level (default ``warning``)."""
    level = (os.environ.get(LEVEL_VARIABLE) or "warning").lower()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _UtcFormatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper() if level in _LEVELS else "WARNING")
    if level not in _LEVELS:
        root.warning("%s=%s is no level; it is one of %s", LEVEL_VARIABLE, level, ", ".join(_LEVELS))
