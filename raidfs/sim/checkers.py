"""What must always hold in a simulated cluster. The checkers watch; they drive nothing.

Each rule has a name, which a failure carries: see `RULES`. The checkers know the promises and the disk format, and as
little as can be of how the code keeps the promises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

from raidfs._core import LegState, OpKind
from raidfs.cluster.channel import Channel, State
from raidfs.errors import LockProtocolError, RaidfsError
from raidfs.format.bitmap import SUPER_BYTES as BITMAP_SUPER_BYTES
from raidfs.format.geometry import ArrayLayout
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES, Superblock
from raidfs.lock import machine as lock_machine
from raidfs.lock.api import Mode
from raidfs.node import Node
from raidfs.sim.disk_view import DiskView
from raidfs.sim.disks import SimDisk
from raidfs.sim.host import SimHost
from raidfs.sim.stepper import Group
from raidfs.units import SECTOR_BYTES

RULES = {
    "superblock-decodable": "every leg's superblock is one that mdadm accepts, at any time",
    "events-grow": "the event count of a leg's superblock never falls, and grows with every change",
    "bit-before-data": "a chunk's bit is durable on every good leg before data of the chunk is submitted (P2)",
    "resync-offset": "resync_offset is 0 on every good leg before the first data is submitted (P2)",
    "one-slot-owner": "no two nodes that are alive own one slot",
    "write-of-a-stranger": "nothing is written by a node whose locks the lock manager has given free (P6)",
    "lock-modes": "the modes granted on a resource are compatible, so there is at most one EX",
    "lock-protocol": "nobody asks the lock manager for what makes no sense, as a conversion while another is under way",
    "register": "a read returns the newest acknowledged write, or one that is in flight (P3)",
    "sector-whole": "a sector is never a mixture of two writes",
    "legs-acknowledged": "every leg in sync holds what was acknowledged (P1)",
    "legs-equal": "legs in sync are equal in chunks whose bits are clear in every slot",
    "read-atomic": "reads of what dead writers left do not go back, once the reader knows of the deaths (P3)",
    "one-syncer": "legs are copied, and called in sync, by the holder of resync alone",
    "sync-in-window": "legs are copied inside a window that all have acknowledged",
    "window-quiet": "nobody else writes in a window, nor is still writing there when all have acknowledged it",
    "in-sync-copied": "a leg that becomes in sync has everything, durably, but for chunks with bits on it",
    "recovery-offset": "below the recovery offset on disk a leg has everything, durably, but for chunks with bits",
    "slots-on-leg": "a leg that becomes in sync has the slots of all nodes (W13)",
    "cleared-when-equal": "the last bit of a chunk is cleared only when all legs in sync agree, durably",
    "served-beyond": "a node serves more than before only when all nodes and all slots on all legs in sync say so (P4)",
    "one-size": "with time superblocks and slots say one size, on all legs in sync",
    "healed": "with time the array heals: no bits, equal legs, every position filled that a disk is there for",
    "applied-before-acked": "when a metadata update returns, every member has applied it",
    "same-view": "when nothing has happened for a while, all nodes have the metadata that is on the disks",
    "refusals-told": "who sends a message that a member refuses is told so",
    "superblock-under-token": "superblocks are written by the node that holds the token in EX, and by no other",
    "channel-restored": "a channel that nobody uses has its flags and lock modes at rest",
    "stall": "whatever was asked comes to an end",
    "locks-left": "a cluster that all have left leaves no locks behind",
    "node-error": "nodes fail only where the storage failed",
}

Report = Callable[[str, str], None]
JUNK = 1 << 48  # values from here on are what disks hold behind the array's end


class MetadataChecker:
    """Decodes each superblock as it changes: superblock-decodable, events-grow. ``superblocks`` has the last ones."""

    def __init__(self, disks: tuple[SimDisk, ...], report: Report) -> None:
        self.superblocks: dict[SimDisk, Superblock] = {}
        self._report = report
        for disk in disks:
            self._look(disk)
            disk.watchers.append(self._changed)

    def _changed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        if offset < SUPER_OFFSET_BYTES + SUPER_BYTES and offset + length > SUPER_OFFSET_BYTES:
            self._look(disk)

    def _look(self, disk: SimDisk) -> None:
        data = bytes(disk.content[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES])
        if not any(data) and not self._is_leg(disk):
            self.superblocks.pop(disk, None)  # it belongs to no array, or not any more
            return
        try:
            superblock = Superblock.decode(data, path=disk.name)
        except RaidfsError as e:
            self._report("superblock-decodable", str(e))
            return
        before = self.superblocks.get(disk)
        if before is not None and before.device_uuid != superblock.device_uuid:
            before = None  # the disk has been added, and is another leg now
        if before is not None and superblock.events < before.events:
            self._report("events-grow", f"{disk.name}: {superblock.events} after {before.events}")
        if before is not None and superblock.events == before.events and superblock != before:
            self._report("events-grow", f"{disk.name}: changed, and the event count is still {superblock.events}")
        self.superblocks[disk] = superblock

    def _is_leg(self, disk: SimDisk) -> bool:
        if disk not in self.superblocks:
            return False
        freshest = max(self.superblocks.values(), key=lambda superblock: superblock.events)
        return freshest.role_of(self.superblocks[disk].dev_number) < freshest.raid_disks


class DataChecker:
    """Looks at each data write of users as it is submitted: bit-before-data, resync-offset.

    ``is_copy(disk, offset, data)`` tells what a sync writes: it changes nothing that a bit would have to tell.
    """

    def __init__(
        self,
        layout: ArrayLayout,
        metadata: MetadataChecker,
        is_copy: Callable[[SimDisk, int, bytes], bool],
        report: Report,
    ) -> None:
        self._layout = layout
        self._metadata = metadata
        self._is_copy = is_copy
        self._report = report

    def on_op(self, host: SimHost, disk: SimDisk, kind: OpKind, offset: int, data: bytes | None) -> None:
        """See `raidfs.sim.host.OpWatcher`."""
        layout = self._layout
        if data is None or offset < layout.data_offset_bytes or self._is_copy(disk, offset, data):
            return
        start = offset - layout.data_offset_bytes
        assert host.port is not None
        assert host.slot is not None, "a node writes data before it has joined"
        states = host.port.engine.statistics()["legs"]
        good = [
            host.disks[number]
            for number, leg in enumerate(states)
            if leg["state"] in (LegState.IN_SYNC, LegState.RECOVERING) and not leg["blocked"]
        ]
        for leg in good:
            if self._metadata.superblocks[leg].resync_offset_sectors != 0:
                self._report("resync-offset", f"{host.name} writes data, and {leg.name} does not say 0")
            bits = layout.slot_offset_bytes(host.slot) + BITMAP_SUPER_BYTES
            for chunk in range(start // layout.chunk_bytes, (start + len(data) - 1) // layout.chunk_bytes + 1):
                if not leg.durable[bits + chunk // 8] >> chunk % 8 & 1:
                    self._report(
                        "bit-before-data",
                        f"{host.name} (slot {host.slot}) writes chunk {chunk}, whose bit is not durable on {leg.name}",
                    )


class SlotChecker:
    """Who owns which slot: one-slot-owner."""

    def __init__(self, report: Report) -> None:
        self._owners: dict[int, str] = {}
        self._report = report

    def joined(self, slot: int, name: str) -> None:
        """A node has joined."""
        if slot in self._owners:
            self._report("one-slot-owner", f"slot {slot}: {name} and {self._owners[slot]}")
        self._owners[slot] = name

    def left(self, name: str) -> None:
        """A node begins to leave, or is fenced."""
        self._owners = {slot: owner for slot, owner in self._owners.items() if owner != name}


class ChannelChecker:
    """Looks at the nodes that serve, when a metadata update has returned: applied-before-acked, channel-restored."""

    def __init__(self, report: Report) -> None:
        self._nodes: dict[str, Node] = {}
        self._report = report

    def serves(self, name: str, node: Node) -> None:
        """A node has joined."""
        self._nodes[name] = node

    def left(self, name: str) -> None:
        """A node begins to leave, or has died."""
        self._nodes.pop(name, None)

    def serving_nodes(self) -> dict[str, Node]:
        """Return the nodes that serve, by the names of their runs."""
        return {name: node for name, node in self._nodes.items() if node.lost is None}

    def serving(self) -> dict[str, Channel]:
        """Return the channels of the nodes that serve, by the names of their runs."""
        return {name: node.channel for name, node in self.serving_nodes().items()}

    def updated(self, name: str) -> None:
        """A metadata update of this node has returned without an error."""
        events = self._nodes[name].array.superblock.events
        for other, node in self._nodes.items():
            have = node.array.superblock.events
            if node.lost is None and have < events:
                self._report(
                    "applied-before-acked", f"{name} was told that all have event {events}; {other} has {have}"
                )
        self.look()

    def look(self) -> None:
        """Look at every channel that nobody uses now."""
        for name, node in self._nodes.items():
            channel = node.channel
            is_used = channel.recv_mutex.owner or channel.reconfig_mutex.owner or State.SEND_LOCK in channel.state
            if node.lost is not None or channel.lockspace.lost is not None or is_used:
                continue
            modes = tuple(lock.mode for lock in (channel.token, channel.message, channel.ack))
            if modes != (Mode.NL, Mode.NL, Mode.CR) or State.HOLDING_MUTEX_FOR_RECVD in channel.state:
                names = ", ".join(mode.name for mode in modes)
                flags = ", ".join(sorted(flag.name for flag in channel.state))
                self._report("channel-restored", f"{name}: token, message, ack are {names}; flags {flags}")


class LockStepper(Protocol):
    """What the simulated lock manager needs of a lock machine."""

    def step(self, event: lock_machine.Event, now: float) -> list[lock_machine.Action]:
        """See `raidfs.lock.machine.LockMachine.step`."""

    def statistics(self) -> lock_machine.MachineStatistics:
        """See `raidfs.lock.machine.LockMachine.statistics`."""


# Table of the VMS lock manager: for each mode those that may be granted beside it. Written down here again on purpose.
_BESIDE = {
    Mode.NL: "NL CR CW PR PW EX",
    Mode.CR: "NL CR CW PR PW",
    Mode.CW: "NL CR CW",
    Mode.PR: "NL CR PR",
    Mode.PW: "NL CR",
    Mode.EX: "NL",
}


class LockChecker:
    """A lock machine that is watched: lock-modes, lock-protocol, write-of-a-stranger.

    ``note`` hears of each event before it is carried out, ``on_value(client, resource, mode, value)`` of each value
    block that is written, ``on_granted(client, resource, mode)`` of each grant; `landed` is to be told of each write
    that takes place.
    """

    def __init__(self, inner: LockStepper, report: Report, note: Callable[[lock_machine.Event], None]) -> None:
        self._inner = inner
        self._report = report
        self._note = note
        self._resources: dict[tuple[int, int], str] = {}  # (member, lock)
        self._clients: dict[int, str] = {}
        self._gone: set[str] = set()  # clients whose locks are free
        self._modes: dict[str, dict[tuple[int, int], Mode]] = {}
        self.on_value: Callable[[str, str, Mode, bytes], None] = lambda client, resource, mode, value: None
        self.on_granted: Callable[[str, str, Mode], None] = lambda client, resource, mode: None

    def step(self, event: lock_machine.Event, now: float) -> list[lock_machine.Action]:
        """See `raidfs.lock.machine.LockMachine.step`."""
        self._note(event)
        try:
            actions = self._inner.step(event, now)
        except LockProtocolError as e:
            self._report("lock-protocol", f"{self.words(event)}: {e.reason}")
            return []
        match event:
            case lock_machine.Open():
                self._clients[event.member] = event.client
            case lock_machine.Request():
                self._resources[event.member, event.lock] = event.resource
            case lock_machine.Convert() if event.lvb is not None:
                resource = self._resources[event.member, event.lock]
                self.on_value(self._clients[event.member], resource, event.mode, event.lvb)
            case lock_machine.Release():
                self._forget(event.member, event.lock)
            case lock_machine.Close() | lock_machine.Died():
                self._gone.add(self._clients.get(event.member, ""))
                for member, lock in list(self._resources):
                    if member == event.member:
                        self._forget(member, lock)
            case _:
                pass
        for action in actions:
            if isinstance(action, lock_machine.Granted):
                self._granted(action)
        return actions

    def statistics(self) -> lock_machine.MachineStatistics:
        """See `raidfs.lock.machine.LockMachine.statistics`."""
        return self._inner.statistics()

    def has_gone(self, client: str) -> bool:
        """Tell whether the locks of a client are free: it has left, or its death is known."""
        return client in self._gone

    def holds(self, client: str, resource: str, mode: Mode) -> bool:
        """Tell whether a client was granted a mode on a resource and has not asked for a lower one since."""
        modes = self._modes.get(resource, {})
        return any(self._clients[member] == client and mode is granted for (member, _), granted in modes.items())

    def landed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        """See `raidfs.sim.disks.Watcher`; machines go by the same name here and there."""
        if owner is not None and owner.name in self._gone:
            self._report("write-of-a-stranger", f"{owner.name} writes {length} bytes at {offset} of {disk.name}")

    def words(self, event: lock_machine.Event) -> str:
        """Return what a client asks, for a trace: who, what, of which resource and to which mode."""
        client = event.client if isinstance(event, lock_machine.Open) else self._clients.get(event.member, "?")
        words = [client, type(event).__name__.lower()]
        match event:
            case lock_machine.Request():
                words += [event.resource, event.mode.name]
            case lock_machine.Convert():
                words += [self._resources.get((event.member, event.lock), "?"), event.mode.name]
                words += ["noqueue"] * event.noqueue
            case lock_machine.Cancel() | lock_machine.Release():
                words.append(self._resources.get((event.member, event.lock), "?"))
            case _:
                pass
        return " ".join(words)

    def _granted(self, action: lock_machine.Granted) -> None:
        key = (action.member, action.lock)
        resource = self._resources[key]
        modes = self._modes.setdefault(resource, {})
        modes[key] = action.mode
        self.on_granted(self._clients[action.member], resource, action.mode)
        beside = _BESIDE[action.mode].split()
        for other, mode in modes.items():
            if other != key and mode.name not in beside:
                self._report("lock-modes", f"{resource}: {action.mode.name} was granted beside {mode.name}")

    def _forget(self, member: int, lock: int) -> None:
        resource = self._resources.pop((member, lock), None)
        if resource is not None:
            self._modes.get(resource, {}).pop((member, lock), None)


@dataclasses.dataclass(eq=False)
class Written:
    """One write of one sector: when it was asked and acknowledged (infinite: never, or with an error)."""

    value: int
    machine: int
    start: int
    end: float = float("inf")
    durable: bool = False
    run: str = ""


class RegisterChecker:
    """Sectors as regular registers: register, sector-whole, read-atomic. Each sector's writer is one machine.

    A write is allowed to be seen by a read if it began before the read ended, unless another write that came after it
    was acknowledged before the read began. A write comes after another if it began after that one's end, or after its
    start on the same machine (a node orders its own overlapping writes; a machine's next run begins after the
    last one's writes have landed). Power loss makes everything that was not flushed possible but not certain.

    A read whose only doubt is what runs that are over left half done, of whose end the reader knows, must not go back
    behind what another such read has returned. When a leg fails (`upset`) it may: what was on that leg alone is lost.
    So may reads of a sector that one leg could not read and that differs on another one (`read_from_another`): the
    other's is returned, and written over the first one's.
    """

    def __init__(self, sectors: int, report: Report, *, sectors_max: int = 0) -> None:
        self._history: list[list[Written]] = [[Written(0, -1, -2, -1, True)] for _ in range(max(sectors, sectors_max))]
        self._report = report
        self._clock = 0
        self._values = 0
        self._over: dict[str, int] = {}  # runs of nodes whose writes have all landed or never will: since when
        self._unknown: dict[str, dict[str, int]] = {}  # by reader: the runs of whose end it has not heard; their slots
        self._seen: dict[int, tuple[Written, int]] = {}  # by sector: what a quiet read returned, and when
        self._elsewhere: set[int] = set()  # sectors that were read from another leg, which differs
        self._upset = -1  # when: a read that began before may be of what is gone
        self._sectors = sectors  # that the array had from the start
        self._undefined_from = float("inf")
        self._size_max = sectors  # that anybody has asked for

    # ---- runs of nodes ---------------------------------------------------------------------------------------------

    def ends(self, run: str, slot: int, readers: Iterable[str]) -> None:
        """A run dies or begins to leave; ``readers`` serve now and know nothing of that yet."""
        for reader in readers:
            self._unknown.setdefault(reader, {})[run] = slot

    def over(self, run: str) -> None:
        """Nothing of a run takes place any more."""
        self._over.setdefault(run, self._tick())

    def knows(self, reader: str, slot: int) -> None:
        """A reader begins to handle the end of whoever had a slot."""
        runs = self._unknown.get(reader, {})
        self._unknown[reader] = {run: its for run, its in runs.items() if its != slot}

    def upset(self) -> None:
        """What was on some leg only may be gone."""
        self._seen.clear()
        self._upset = self._tick()

    def read_from_another(self, sector: int) -> None:
        """A leg could not read a sector that is not the same on another leg."""
        self._elsewhere.add(sector)

    def resizes(self, sectors: int) -> None:
        """Somebody asks for another size: what lies behind a smaller one is not promised any more."""
        if sectors < self._size_max:
            self._undefined_from = min(self._undefined_from, sectors)
        self._size_max = max(self._size_max, sectors)

    # ---- requests --------------------------------------------------------------------------------------------------

    def begin_write(self, machine: int, sector: int, sectors: int, run: str = "") -> tuple[list[Written], bytes]:
        """A write begins; return its handle and the bytes to write."""
        self._values += 1
        now = self._tick()
        written = [Written(self._values, machine, now, run=run) for _ in range(sectors)]
        for number, entry in enumerate(written):
            self._history[sector + number].append(entry)
        return written, sector_bytes(self._values) * sectors

    def end_write(self, written: list[Written], *, durable: bool) -> None:
        """A write was acknowledged."""
        now = self._tick()
        for entry in written:
            entry.end = now
            entry.durable = durable

    def begin_flush(self, machine: int) -> list[Written]:
        """A flush begins; return what it will make durable."""
        return [w for history in self._history for w in history if w.machine == machine and w.end != float("inf")]

    def end_flush(self, flushed: list[Written]) -> None:
        """A flush was acknowledged."""
        for entry in flushed:
            entry.durable = True

    def power_loss(self) -> None:
        """All storage lost its power and all nodes died."""
        self.upset()
        for history in self._history:
            for entry in history:
                if not entry.durable:
                    entry.end = float("inf")

    def begin_read(self) -> int:
        """A read begins; return its handle."""
        return self._tick()

    def end_read(self, start: int, sector: int, data: bytes, who: str, *, rule: str = "register") -> None:
        """A read has returned ``data`` from ``sector`` on."""
        now = self._tick()
        for number in range(len(data) // SECTOR_BYTES):
            piece = data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]
            value = int.from_bytes(piece[:8], "little")
            at = sector + number
            if at >= self._undefined_from:
                break
            if at >= self._sectors and value >= JUNK and piece == sector_bytes(value):
                value, piece = 0, bytes(SECTOR_BYTES)  # what was there before anybody wrote
            if piece != sector_bytes(value):
                self._report("sector-whole", f"{who}: sector {at} is a mixture of writes")
                continue
            allowed = self._allowed(at, start, now)
            if value not in allowed:
                self._report(rule, f"{who}: sector {at} has write {value}; allowed are {sorted(allowed)}")
            elif len(allowed) > 1 and rule == "register":
                self._not_back(at, start, now, allowed[value], list(allowed.values()), who)

    def _allowed(self, sector: int, start: int, end: int) -> dict[int, Written]:
        history = self._history[sector]
        acknowledged = [entry for entry in history if entry.end <= start]
        return {
            entry.value: entry
            for entry in history
            if entry.start < end and not any(_comes_after(later, entry) for later in acknowledged)
        }

    def _not_back(self, sector: int, start: int, now: int, entry: Written, allowed: list[Written], who: str) -> None:
        if sector in self._elsewhere:
            return
        unknown = self._unknown.get(who, {})
        for other in allowed:
            is_left = self._over.get(other.run, now) < start and other.run not in unknown
            if other.end > start and not is_left:
                return  # in flight, for all that this reader knows
        seen, at = self._seen.get(sector, (entry, now))
        if seen.start > entry.start and at < start:
            self._report(
                "read-atomic", f"{who}: sector {sector} has write {entry.value} after {seen.value} had been read"
            )
        if seen.start <= entry.start and start > self._upset:
            self._seen[sector] = (entry, now)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def sector_bytes(value: int) -> bytes:
    """Return a sector that tells its write in every 8 bytes."""
    return value.to_bytes(8, "little") * (SECTOR_BYTES // 8)


def _comes_after(later: Written, earlier: Written) -> bool:
    return later.start > earlier.end or (later.machine == earlier.machine and later.start > earlier.start)


def check_legs(view: DiskView, register: RegisterChecker, report: Report) -> None:
    """When nobody runs: legs-acknowledged and legs-equal, over the legs in sync.

    Any of them may be the one whose bitmaps are believed next.
    """
    disks = view.in_sync()
    layout = view.layout
    for disk in disks:
        data = bytes(disk.content[layout.data_offset_bytes : layout.end_bytes])
        register.end_read(register.begin_read(), 0, data, disk.name, rule="legs-acknowledged")
        dirty = view.dirty(disk)
        for chunk in range(layout.bits):
            where = view.chunk(chunk)
            for other in disks:
                if not dirty >> chunk & 1 and disk.content[where] != other.content[where]:
                    report(
                        "legs-equal", f"chunk {chunk} of {disk.name} is not that of {other.name}, and its bit is clear"
                    )


def check_healed(view: DiskView, report: Report) -> None:
    """When nobody runs, and the last nodes had time: healed."""
    disks = view.in_sync()
    freshest = view.freshest
    if len(disks) < min(freshest.raid_disks, len(disks) + len(view.usable_spares())):
        report("healed", f"{len(disks)} of {freshest.raid_disks} legs are in sync, and there are disks for more")
    if len(disks) < freshest.raid_disks or freshest.raid_disks == 1:
        return  # the bits stay, for the leg that comes back or is the second one
    # Nodes read slots from the first leg. One that died while it set a bit may have reached another leg only; it costs
    # a resync of the chunk, should that leg come to be the first.
    if view.dirty(disks[0]):
        report("healed", f"{disks[0].name} has bits {view.dirty(disks[0]):b} still")
