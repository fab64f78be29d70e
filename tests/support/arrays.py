"""Arrays made by ``create_array`` with known UUIDs, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raidfs.array.create import CreatedArray, create_array
from raidfs.array.head import Candidate, read_candidates
from raidfs.array.request import ArrayRequest
from raidfs.units import MIB

SET_UUID = bytes(range(16))
NOW_S = 1_700_000_000


def device_uuid(number: int) -> bytes:
    """Return the UUID of the leg with this number."""
    return bytes([0xD0 + number]) * 16


def make_array(directory: Path, *, legs: int = 2, spares: int = 0, **request: Any) -> CreatedArray:
    """Create an array of new sparse files ``leg0``, ``leg1`` ... and ``spare0`` ... in ``directory``."""
    request.setdefault("size_bytes", 4 * MIB)
    request.setdefault("homehost", "alpha")
    return create_array(
        ArrayRequest(
            images=tuple(str(directory / f"leg{n}") for n in range(legs)),
            spares=tuple(str(directory / f"spare{n}") for n in range(spares)),
            **request,
        ),
        set_uuid=SET_UUID,
        device_uuids=[device_uuid(n) for n in range(legs + spares)],
        now_s=NOW_S,
    )


def make_candidates(directory: Path, **request: Any) -> list[Candidate]:
    """Create an array and return its images as candidates, in the order of their device numbers."""
    created = make_array(directory, **request)
    return list(read_candidates([image.path for image in created.images]))
