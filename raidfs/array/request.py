"""What somebody wants created, and whether such an array can be."""

from __future__ import annotations

import dataclasses

from raidfs.errors import BadGeometry
from raidfs.format.bitmap import CLUSTER_NAME_BYTES_MAX
from raidfs.format.geometry import SIZE_ALIGN_SECTORS, check_chunk, check_nodes
from raidfs.units import SECTOR_BYTES

LEGS_MIN = 2
LEGS_MAX = 16  # more copies than anybody keeps; each write goes to all of them
SPARES_MAX = 16
NAME_BYTES_MAX = 31  # of set_name's 32; a home host and a colon are put before it when there is room


@dataclasses.dataclass(frozen=True)
class ArrayRequest:
    """What is to be created.

    ``size_bytes`` None takes all that the smallest image has, ``chunk_bytes`` None takes mdadm's choice. ``homehost``
    is the name of this host, as in ``homehost:name``; "" leaves it out.
    """

    images: tuple[str, ...]
    spares: tuple[str, ...] = ()
    name: str = "md0"
    homehost: str = ""
    cluster_name: str = "raidfs"
    nodes: int = 4
    size_bytes: int | None = None
    chunk_bytes: int | None = None
    assume_clean: bool = False
    force: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """All images in the order of their device numbers: active ones first."""
        return self.images + self.spares


def check_request(request: ArrayRequest) -> None:
    """Raise BadGeometry for what no image could satisfy."""
    _check_count("number of images", len(request.images), LEGS_MIN, LEGS_MAX)
    _check_count("number of spares", len(request.spares), 0, SPARES_MAX)
    check_nodes(request.nodes)
    if request.chunk_bytes is not None:
        check_chunk(request.chunk_bytes)
    if request.size_bytes is not None and request.size_bytes < SIZE_ALIGN_SECTORS * SECTOR_BYTES:
        rule = f"an array has at least {SIZE_ALIGN_SECTORS * SECTOR_BYTES} bytes"
        raise BadGeometry(what="size", value=request.size_bytes, rule=rule)
    check_name("name", request.name, NAME_BYTES_MAX, forbidden="/:")
    check_name("cluster name", request.cluster_name, CLUSTER_NAME_BYTES_MAX, forbidden="")
    if request.name in (".", ".."):
        raise BadGeometry(what="name", value=repr(request.name), rule="the array is a file of that name")


def _check_count(what: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise BadGeometry(what=what, value=count, rule=f"from {least} to {most}")


def check_name(what: str, name: str, bytes_max: int, *, forbidden: str) -> None:
    """Raise BadGeometry unless a name is printable, fits, and has none of the ``forbidden`` letters."""
    raw = name.encode("utf-8", "surrogateescape")
    is_text = name.isprintable() and not any(letter in name for letter in forbidden)
    if not is_text or not 1 <= len(raw) <= bytes_max:
        without = f" without {' and '.join(forbidden)}" if forbidden else ""
        raise BadGeometry(what=what, value=repr(name), rule=f"1 to {bytes_max} bytes of printable text{without}")
