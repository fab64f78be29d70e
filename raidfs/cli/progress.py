"""How a command that waits for a sync shows it: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

from raidfs.cli import sync_text
from raidfs.control.schema import SyncStatus


class Progress(Protocol):
    """Something that shows the syncs of one wait, one after the other."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, sync: SyncStatus) -> None:
        """Show how far a sync is."""


def progress() -> Progress:
    """Return a bar on standard error if that is a terminal, else a progress that shows nothing.

    Standard output is for facts, so that it can be read by programs while a person looks at the bar.
    """
    return Bar() if sys.stderr.isatty() else Silence()


class Silence:
    """The progress in a pipe."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def show(self, sync: SyncStatus) -> None:
        """Show nothing."""


class Bar:
    """The progress on a terminal: a bar for each sync, with what the nodes say of rate and time."""

    def __init__(self) -> None:
        # rich takes 50 ms to import and nobody else needs it.
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,  # it changes when a node has told something new
            transient=True,  # how it ended is for the command to say, not for what was last drawn
        )
        self._action: str | None = None

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, sync: SyncStatus) -> None:
        """Draw it; another action than before begins again on the left."""
        going_on = sync_text.is_going_on(sync)
        if sync.action != self._action:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(_description(sync), total=None, rate="")
            self._action = sync.action
        self._bars.update(
            self._bars.task_ids[0],
            description=_description(sync),
            completed=sync.done_bytes,
            rate=_rate(sync) if going_on else "",
        )
        self._bars.tasks[0].total = sync.total_bytes if going_on else None
        self._bars.refresh()


def _description(sync: SyncStatus) -> str:
    word = "recovery" if sync.action == "recover" else sync.action
    who = sync_text.worker(sync)
    if who is not None:
        return f"{word} by {who}"
    return word if sync_text.is_going_on(sync) else f"{word} {sync.state}"


def _rate(sync: SyncStatus) -> str:
    rate = f"{sync.speed_bytes_s / (1 << 20):.1f} MiB/s"
    return rate if sync.finish_s is None else f"{rate}, {_clock(sync.finish_s)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
