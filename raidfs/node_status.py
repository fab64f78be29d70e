"""What a node tells of itself: from the running parts to the document of `raidfs.control.schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raidfs._core import LegState
from raidfs.array.array import Array
from raidfs.array.assembly import LeftOutReason
from raidfs.control import schema
from raidfs.lock.address import auto_address

if TYPE_CHECKING:
    from raidfs._core import EngineStatistics
    from raidfs.node import Node

_STATES: dict[LegState, schema.LegState] = {
    LegState.IN_SYNC: "in_sync",
    LegState.RECOVERING: "recovering",
    LegState.FAULTY: "faulty",
    LegState.MISSING: "missing",
}
_PARKED = ("suspended", "blocked", "failure", "resize")
_COUNTERS_PER_PAGE = 4096 // 2


def node_status(node: Node) -> schema.NodeStatus:
    """Return the document; the mount point's part is filled in by the daemon."""
    array = node.array
    statistics = array.port.engine.statistics()
    now = node.runtime.now()
    slot = node.membership.slot
    assert slot is not None
    sync = node.sync_status()
    return schema.NodeStatus(
        array=_array_status(array, statistics, sync.state),
        legs=_leg_statuses(array, statistics),
        node=schema.PlaceStatus(
            slot=slot, mountpoint="", pid=0, host="", since_s=0.0, read_only=array.read_only, plane="", lost=node.lost
        ),
        members=tuple(schema.MemberStatus(slot, client) for slot, client in sorted(node.members.items())),
        bitmap=_bitmap_status(array, statistics),
        lock=_lock_status(node),
        engine=_engine_status(node, statistics),
        waits=tuple(
            schema.WaitStatus(wait.task, wait.what, max(0.0, now - wait.since)) for wait in node.runtime.waits()
        ),
        sync=sync,
    )


def _lock_status(node: Node) -> schema.LockStatus:
    lock, name = node.options.lock, node.membership.lockspace.name
    if lock == "dlm":
        return schema.LockStatus("dlm", name)
    return schema.LockStatus("embedded", str(auto_address(name)) if lock == "auto" else lock)


def _array_status(array: Array, statistics: EngineStatistics, sync: schema.SyncState) -> schema.ArrayStatus:
    superblock = array.superblock
    return schema.ArrayStatus(
        name=superblock.array_name,
        uuid=superblock.set_uuid_text,
        cluster_name=array.assembly.cluster_name,
        size_bytes=array.size_bytes,
        block_size_bytes=array.block_bytes,
        raid_disks=superblock.raid_disks,
        nodes=array.layout.nodes,
        events=superblock.events,
        state="active" if statistics["chunks_dirty"] else "clean",
        sync=sync,
        created_s=superblock.ctime & 0xFFFFFFFFFF,
        updated_s=superblock.utime & 0xFFFFFFFFFF,
    )


def _leg_statuses(array: Array, statistics: EngineStatistics) -> tuple[schema.LegStatus, ...]:
    legs = []
    for leg in array.legs:
        counts = statistics["legs"][leg.index]
        legs.append(
            schema.LegStatus(
                path=leg.path,
                number=leg.number,
                role=leg.role,
                state="spare" if leg.is_spare else _STATES[leg.state],
                direct=leg.direct,
                read_errors=counts["read_errors"],
                write_errors=counts["write_errors"],
                corrected_reads=counts["corrected_reads"],
            )
        )
    for left in array.assembly.left_out:
        if left.reason is not LeftOutReason.FAULTY:
            legs.append(schema.LegStatus(left.path, None, None, "faulty", False, 0, 0))
    # A position is missing when there is no faulty leg to which it may have belonged.
    faulty = sum(leg.state == LegState.FAULTY for leg in array.legs)
    legs += [schema.LegStatus("", None, role, "missing", False, 0, 0) for role in array.vacant_positions()[faulty:]]
    return tuple(sorted(legs, key=_order))


def _order(leg: schema.LegStatus) -> tuple[bool, int]:
    return (leg.role is None, leg.role or 0)


def _bitmap_status(array: Array, statistics: EngineStatistics) -> schema.BitmapStatus:
    pages = -(-array.layout.bits // _COUNTERS_PER_PAGE)
    return schema.BitmapStatus(
        chunk_bytes=array.layout.chunk_bytes,
        bits=array.layout.bits,
        dirty=statistics["chunks_dirty"],
        needed=statistics["chunks_needed"],
        pages=pages,
        pages_allocated=pages,  # clustered bitmaps have all counters allocated from the start
    )


def _engine_status(node: Node, statistics: EngineStatistics) -> schema.EngineStatus:
    waiting = statistics["waiting"]
    parked = sum(waiting.get(stage, 0) for stage in _PARKED)
    return schema.EngineStatus(
        in_flight=sum(waiting.values()) - parked,
        parked=parked,
        reads=statistics["reads"],
        writes=statistics["writes"],
        flushes=statistics["flushes"],
        read_bytes=statistics["bytes_read"],
        written_bytes=statistics["bytes_written"],
        suspend_lo_bytes=node.suspended[0],
        suspend_hi_bytes=node.suspended[1],
    )
