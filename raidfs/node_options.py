"""What the user asks of a node: the options of ``raidfs mount`` that concern the array and not the mount point."""

from __future__ import annotations

import dataclasses

from raidfs.array.resync import WINDOW_BYTES_MAX, WINDOW_BYTES_MIN
from raidfs.faults import Fault


@dataclasses.dataclass(frozen=True)
class NodeOptions:
    """How a node opens and joins its array.

    ``images`` are the paths of the legs in any order. ``lock`` names the lock manager (``auto`` for one host,
    ``unix:PATH``, ``tls://HOST:PORT`` or ``dlm``). ``client_name`` is how other nodes see this one in queries.
    ``run`` starts a degraded array, as ``mdadm --run`` does. ``read_only`` refuses writes. ``slot`` asks for one slot
    and no other; None takes the first free one. ``cluster_name`` must match the array's when it is given.
    ``buffered`` opens legs without O_DIRECT, which only one host at a time may do. ``search`` are directories in which
    images are looked for that were not named: legs that other nodes add. ``allow_unfenced`` accepts a cluster that does
    not stop a node which was cut off. ``faults`` are to happen to the
    I/O of the legs, see `raidfs.faults`.
    ``sync_speed_min`` and ``sync_speed_max`` bound the speed of a sync in KiB/s as md's do (0: no bound): above the
    minimum it gives way to users. ``sync_stall_ms`` is how long a sync may hold a write up, on any node; its windows
    are as large as that allows, within ``sync_window_bytes`` (smallest, largest).
    """

    images: tuple[str, ...]
    client_name: str
    lock: str = "auto"
    run: bool = False
    read_only: bool = False
    slot: int | None = None
    cluster_name: str | None = None
    buffered: bool = False
    search: tuple[str, ...] = ()
    allow_unfenced: bool = False
    faults: tuple[Fault, ...] = ()
    sync_speed_min: int = 1000
    sync_speed_max: int = 0
    sync_stall_ms: int = 50
    sync_window_bytes: tuple[int, int] = (WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
