"""What a resize is asked for, and what its steps aim at: values, for the command line and for `raidfs.resize`."""

from __future__ import annotations

import dataclasses
from typing import Any

from raidfs.errors import BadDocument


@dataclasses.dataclass(frozen=True)
class Change:
    """What is asked for; sizes in sectors. What is None stays as it is.

    ``maximum`` in place of a size is all that every leg has room for. Without ``chunk_bytes`` md's rule chooses.
    ``extend`` makes images longer that are files, ``sparse`` without reserving the space; ``assume_clean`` says that
    new space is the same on all legs; ``force`` that what lies behind a smaller size may go.
    """

    size_sectors: int | None = None
    maximum: bool = False
    chunk_bytes: int | None = None
    raid_disks: int | None = None
    extend: bool = False
    sparse: bool = False
    assume_clean: bool = False
    force: bool = False

    def forced(self) -> Change:
        """Return the same with ``force``."""
        return dataclasses.replace(self, force=True)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Change:
        """Return the change of a document. Raises BadDocument."""
        return cls(
            size_sectors=_number_or_none(document, "size_sectors"),
            chunk_bytes=_number_or_none(document, "chunk_bytes"),
            raid_disks=_number_or_none(document, "raid_disks"),
            **{name: _flag(document, name) for name in ("maximum", "extend", "sparse", "assume_clean", "force")},
        )


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the steps make of the array; None leaves it.

    ``marked_from_sectors``: what lies from there on is to be resynced; None for nothing.
    """

    size_sectors: int
    chunk_bytes: int | None = None
    raid_disks: int | None = None
    marked_from_sectors: int | None = None


def _number_or_none(document: dict[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise BadDocument(where=name, wanted="a number or null")
    return value


def _flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise BadDocument(where=name, wanted="true or false")
    return value
