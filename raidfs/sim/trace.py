"""The trace of a simulated schedule: one line per event, byte-identical for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter


class Trace:
    """Lines of ``time machine event``, and counts of events by their first word.

    Without ``keep`` nothing is written down and only the counts are kept, which is what a campaign needs.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()

    def event(self, now: float, where: str, kind: str, *facts: object) -> None:
        """Note an event of ``kind`` (one word) at time ``now`` on machine, disk or lock manager ``where``."""
        self.counts[kind] += 1
        if self.keep:
            self.lines.append(" ".join((f"{now:12.6f}", f"{where:<10}", kind, *map(str, facts))))

    def text(self) -> str:
        """Return all lines."""
        return "".join(line + "\n" for line in self.lines)

    def digest(self) -> str:
        """Return a hash of `text`."""
        return hashlib.sha256(self.text().encode()).hexdigest()
