"""One node: the place where the array, the lock manager and the cluster meet.

Joining, all of it under ``token`` EX so that nobody else joins or changes metadata meanwhile:

1. read the images and see which array they make up;
2. join the lock space named by the array's UUID; take the token; claim a slot (``alive``, ``bitmap``);
3. look that all members speak our version of the protocol, and become a receiver of messages;
4. prove with flock that no other lock manager's nodes use the images; read the metadata again, which may have changed
   before we had the token, and choose the legs;
5. load the own slot's bits, and add those of every slot whose node does not run; suspend what another node resyncs;
6. unless read-only: make ``resync_offset = 0`` durable, then the own slot, then clear the slots that were added; from
   now on the engine may write;
7. give the token back; messages are processed from now on, and the first one that is sent says that we are there: the
   others watch us from then on, and only then anything is served.

Leaving: drain, bitmap flushed, locks released. Losing the lock manager is losing the membership: the engine is fenced
at once, every request gets EIO, and the node serves nothing but that until it is unmounted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from raidfs._backend_threads import ThreadBackend
from raidfs._core import Engine, LegState
from raidfs.array.array import Array
from raidfs.array.assemble import Assembly, assemble
from raidfs.array.head import Candidate
from raidfs.array.images import OpenImage
from raidfs.array.resync import SyncAction
from raidfs.array.search import Found
from raidfs.backend import ThreadedLegs
from raidfs.cluster.channel import Channel
from raidfs.cluster.membership import Membership
from raidfs.cluster.messages import Message, MessageType
from raidfs.cluster.mutex import ReconfigMutex
from raidfs.cluster.receiver import Receiver
from raidfs.control.schema import NodeStatus, SyncStatus
from raidfs.devices import Devices
from raidfs.errors import (
    LegInUseElsewhere,
    LockError,
    LockspaceLost,
    RaidfsError,
    ReadOnlyNode,
    SeveralImages,
    UnknownSyncAction,
)
from raidfs.format.superblock import Superblock
from raidfs.host import Host, LinuxHost
from raidfs.hot_add import HotAdd
from raidfs.lock.api import Lockspace
from raidfs.mddev import Mddev
from raidfs.node_explain import node_explanation, to_json
from raidfs.node_options import NodeOptions
from raidfs.node_status import node_status
from raidfs.resize import Resize
from raidfs.resize_plan import Change
from raidfs.runtime import Nursery, Runtime
from raidfs.sync_status import sync_status
from raidfs.sync_thread import SyncThread
from raidfs.takeover import Takeover

log = logging.getLogger(__name__)

MEMBERS_REFRESH_S = 1.0  # how old the list of members in a status may be
TAKEOVER_RETRY_S = 1.0  # after a takeover that an error ended


class Volume:
    """The array's bytes, for the mount (`raidfs.mount.volume.BlockVolume`)."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.name = array.assembly.array_name
        self.block_size_bytes = array.block_bytes
        self.read = array.port.read
        self.flush = array.port.flush

    @property
    def size_bytes(self) -> int:
        """What is served now."""
        return self._array.size_bytes

    async def write(self, offset: int, data: bytes, *, durable: bool) -> int:
        """Write and return the bytes taken; see `EnginePort.write`."""
        return await self._array.port.write(offset, data, durable=durable)


class Node:
    """A node that has joined; made by `open_node`."""

    def __init__(self, runtime: Runtime, options: NodeOptions, host: Host, array: Array, channel: Channel) -> None:
        membership = channel.membership
        self.options = options
        self.array = array
        self.membership = membership
        self.volume = Volume(array)
        self.uuid = array.superblock.set_uuid_text
        self.lost: str | None = None
        self.members: dict[int, str] = {}
        self.suspended = (0, 0)
        self.runtime = runtime
        self.channel = channel
        self.devices = Devices(runtime, host, options, array)
        self.mddev = Mddev(array, self.devices, channel, channel.reconfig_mutex, self.fence, self._watch)
        self.hot_add = HotAdd(self.mddev, channel, self.devices)
        self.takeover = Takeover(array, channel, self.mddev.remote, self._watch, array.legs_changed.wake_up)
        self.resize = Resize(self.mddev, channel, self.devices)
        self.sync = SyncThread(array, self.mddev, channel, self.takeover, self.resize, options)
        self.mddev.remote.on_end = self.sync.wake
        self.mddev.on_work_left = self.takeover.left_with_work
        self.mddev.on_sync_action = lambda frozen: self.sync.freeze(frozen=frozen)
        self.receiver = Receiver(channel, self.mddev)
        self._leaving = False
        self._watched: set[int] = set()
        self._met: set[int] = set()  # slots whose nodes ran when this one joined
        self._nursery: Nursery | None = None

    @property
    def engine(self) -> Engine:
        """The array's engine, which the native plane feeds."""
        return self.array.port.engine

    def tell_capacity(self, hook: Callable[[int], Awaitable[None]]) -> None:
        """Have ``hook(size_bytes)`` awaited whenever the array's capacity has changed, before that is acknowledged."""
        self.array.on_capacity = hook

    @property
    def lifelines(self) -> Sequence[int]:
        """See `raidfs.lock.api.Lockspace.lifelines`."""
        return self.membership.lockspace.lifelines

    def leg_threads(self) -> ThreadBackend | None:
        """Return the pool with the legs' descriptors; None when the native plane must leave leg operations alone."""
        backend = self.devices.backend
        return backend.threads if isinstance(backend, ThreadedLegs) else None

    def status(self) -> NodeStatus:
        """Return everything that ``raidfs status`` tells, of this moment, without waiting."""
        return node_status(self)

    async def refresh(self) -> None:
        """Ask the lock manager who is a member, for the next `status`."""
        if self.lost is None:
            self.members = await self.membership.members()

    async def fail(self, path: str) -> None:
        """See `raidfs.mddev.Mddev.fail`."""
        await self.mddev.fail(path)

    def sync_status(self) -> SyncStatus:
        """Return what is synced, by whom and how far, or what is due."""
        return sync_status(self)

    async def sync_action(self, action: str) -> None:
        """Begin or end a sync: ``resync``, ``check``, ``repair`` or ``idle`` (md: sync_action).

        ``idle`` stops what runs on any node and returns when it has stopped; nothing begins before ``resync``. Raises
        UnknownSyncAction, SyncRuns, SyncStopped, MessageRefused and MessageNotAcknowledged.
        """
        if action in ("check", "repair"):
            if self.array.read_only:
                raise ReadOnlyNode()
            await self.sync.request(SyncAction.CHECK if action == "check" else SyncAction.REPAIR)
            return
        if action not in ("idle", "resync"):
            raise UnknownSyncAction(action=action)
        frozen = action == "idle"
        self.sync.freeze(frozen=frozen)
        message = Message(MessageType.SYNC_ACTION, self.channel.slot, low=0 if frozen else 1)
        await self.channel.sendmsg(message, mddev_locked=False)
        if frozen:
            await self.sync.wait_stopped(self.mddev.remote)

    async def wait_for_syncs(self) -> bool:
        """Return when no sync runs or is due anywhere; returns whether there was one to wait for."""
        return await self.sync.wait_idle(self.mddev.remote)

    async def remove(self, path: str) -> None:
        """See `raidfs.hot_add.HotAdd.remove`."""
        await self.hot_add.remove(path)

    async def add(self, path: str, *, spare: bool, force: bool) -> None:
        """See `raidfs.hot_add.HotAdd.add`."""
        await self.hot_add.add(path, spare=spare, force=force)

    async def re_add(self, path: str) -> None:
        """See `raidfs.hot_add.HotAdd.re_add`."""
        await self.hot_add.re_add(path)

    async def set_raid_devices(self, count: int) -> None:
        """Change the number of positions; raises what `raidfs.resize.Resize.grow` raises."""
        await self.resize.grow(Change(raid_disks=count))

    async def grow(self, change: Change) -> None:
        """See `raidfs.resize.Resize.grow`."""
        await self.resize.grow(change)

    async def check_grow(self, change: Change) -> tuple[list[tuple[str, str]], RaidfsError | None]:
        """See `raidfs.resize.Resize.check`."""
        return await self.resize.check(change)

    async def touch(self) -> None:
        """See `raidfs.mddev.Mddev.touch`."""
        await self.mddev.touch()

    async def explain(self) -> dict[str, object]:
        """Return this node's part of ``raidfs explain``."""
        return to_json(await node_explanation(self))

    async def suspend_range(self, lo_bytes: int, hi_bytes: int) -> None:
        """Park new writes into [lo, hi) until the range is lifted by 0, 0 (md's suspend_lo, suspend_hi).

        Returns when no older request into the range is in flight.
        """
        self.suspended = (lo_bytes, hi_bytes)
        self.array.port.engine.suspend(lo_bytes, hi_bytes)
        await self.array.port.drain(lo_bytes, hi_bytes)

    # ---- tasks of a running node -----------------------------------------------------------------------------------

    async def sweep_bitmap(self) -> None:
        """Let idle chunks age, every ``daemon_sleep`` seconds of the bitmap superblock."""
        while True:
            await self.runtime.sleep(self.array.assembly.bitmap.daemon_sleep_s, what="the next sweep of the bitmap")
            try:
                await self.array.port.sweep()
                self.devices.reap()
            except OSError as e:
                log.warning("the bitmap was not written: %s", e.strerror)
            self.sync.wake()  # chunks that the engine made NEEDED wake nobody

    async def review_doubts(self) -> None:
        """Trust chunks again that other nodes have ended with, as often as those sweep their bitmaps."""
        while self.lost is None:
            await self.runtime.sleep(self.array.assembly.bitmap.daemon_sleep_s, what="the next look at others' bitmaps")
            try:
                await self.takeover.review_doubts()
            except (RaidfsError, OSError) as e:
                log.warning("the bitmaps of other nodes were not read: %s", e)

    async def watch_membership(self) -> None:
        """Fence the engine as soon as the lock space is lost (P6)."""
        reason = await self.membership.lockspace.wait_lost()
        if not self._leaving:
            self.fence(f"lost the membership: {reason}")

    async def watch_members(self, nursery: Nursery) -> None:
        """Keep the list of members, and a request on ``alive`` of each, whose grant says that it has gone."""
        self._nursery = nursery
        for slot in sorted(self._met):
            self._watch(slot)
        while self.lost is None:
            with contextlib.suppress(LockError):
                await self.refresh()
            for slot in self.members:
                self._watch(slot)
            await self.runtime.sleep(MEMBERS_REFRESH_S, what="the next look at the members")

    async def announce(self) -> None:
        """Let the others know of this node at once: they watch whom they have heard of (section 2.4)."""
        try:
            await self.mddev.announce()
        except RaidfsError as e:
            log.warning("not all nodes have heard that this one has joined: %s", e)

    def _watch(self, slot: int) -> None:
        if self._nursery is None:
            self._met.add(slot)  # while joining
        elif slot != self.membership.slot and slot not in self._watched:
            self._watched.add(slot)
            self._nursery.start_soon(self._watch_peer, slot, name=f"watch slot {slot}")

    async def _watch_peer(self, slot: int) -> None:
        try:
            await self.membership.wait_gone(slot)
        except RaidfsError as e:
            if not (self._leaving or self.lost is not None):  # the lock space was left, which cancels the request
                log.error("slot %d is not watched any more: %s", slot, e)
            return
        self._watched.discard(slot)
        self.takeover.suspect(slot)
        while not self._leaving and self.lost is None:
            try:
                await self.refresh()
                await self._follow_the_dead(slot)
                await self.takeover.peer_gone(slot)
                await self.resize.look()
                self.sync.wake()
                return
            except (RaidfsError, OSError) as e:
                log.error("what slot %d has left is not taken over yet: %s", slot, e)
                await self.runtime.sleep(TAKEOVER_RETRY_S, what="the time to try the takeover again")

    async def _follow_the_dead(self, slot: int) -> None:
        try:
            await self.mddev.peer_gone(slot)
        except RaidfsError as e:
            log.error("after slot %d has gone: %s", slot, e)

    async def answer_failures(self) -> None:
        """Record legs that the engine reports as failed, so that writes that wait for it may return."""
        array = self.array
        while True:
            await array.failures.wait_event(lambda: bool(array.failed), what="a leg to fail")
            index, _ = array.failed.pop(0)
            try:
                await self.mddev.leg_failed(index)
            except (RaidfsError, OSError) as e:
                log.error("%s: its failure could not be recorded: %s", array.leg(index).path, e)

    def fence(self, reason: str) -> None:
        """Serve nothing any more: every request gets EIO from now on (P6); a second reason changes nothing."""
        if self.lost is not None:
            return
        self.lost = reason
        self.array.fence(errno.EIO)
        log.error("%s; every request fails now, unmount and mount again", reason)

    # ---- leaving ---------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Bring the bitmap to the disk and stop receiving; what was lost stays lost without an error.

        The legs are closed next, and the lock space after that: a node that finds itself alone proves it with the
        images' flocks, which ours must not contradict.
        """
        array = self.array
        self.membership.lockspace.leave_soon()
        await self.sync.stop()
        await self.resize.resync.close()  # a resize that was begun here comes to its end first
        if self.lost is None:
            try:
                # As a full member: a leg that fails now is recorded for all nodes like any other.
                await array.port.drain(0, array.size_bytes)
                if not array.read_only:
                    await array.flush_bitmap()
            except OSError as e:
                log.error("the bitmap was not flushed, its bits stay set: %s", e.strerror)
        if self.membership.lockspace.lost is None:
            # As md's do_md_stop: with reconfig_mutex, and the receiver stopped before its locks go (D1).
            await self.mddev.reconfig_mutex.lock("leaving")
            await self._hand_work_over()
            await self.receiver.stop()
        self._leaving = True

    async def _hand_work_over(self) -> None:
        """Tell the others if chunks of ours are still to be resynced (BITMAP_NEEDS_SYNC)."""
        if self.lost is not None or not self.array.port.engine.statistics()["chunks_needed"]:
            return
        try:
            await self.channel.sendmsg(Message(MessageType.BITMAP_NEEDS_SYNC, self.channel.slot), mddev_locked=True)
        except RaidfsError as e:
            log.warning("leaving: %s", e)


@contextlib.asynccontextmanager
async def open_node(runtime: Runtime, options: NodeOptions, host: Host | None = None) -> AsyncIterator[Node]:
    """Join the array of ``options`` for the length of the block; leaving it is the clean stop.

    Raises the RaidfsError that says why the array cannot be joined (inside an exception group, as all errors of
    nurseries); nothing was written then, except that a slot's bitmap may have been.
    """
    host = host or LinuxHost(options.faults)
    first = await _assembled(options, host)
    uuid = _dashed(first.set_uuid)
    async with host.lock_manager(runtime, options, uuid) as manager:
        lockspace = await manager.open_lockspace(uuid, cluster_name=first.cluster_name, client=options.client_name)
        try:
            async with _joined(runtime, options, host, lockspace, first) as node:
                yield node
        finally:
            with runtime.cancel_scope(shield=True), contextlib.suppress(LockspaceLost):
                await lockspace.close()


@contextlib.asynccontextmanager
async def _joined(
    runtime: Runtime, options: NodeOptions, host: Host, lockspace: Lockspace, first: Assembly
) -> AsyncIterator[Node]:
    membership = Membership(runtime, lockspace, first.nodes)
    with contextlib.ExitStack() as cleanup:
        async with runtime.open_nursery() as nursery:
            async with membership.token():
                slot = await membership.claim_slot(options.slot)
                channel = Channel(runtime, membership, ReconfigMutex(runtime), slot)
                assembly, images = await _claimed(options, host, membership, cleanup)
                array = Array(runtime, assembly, images, wall_time=host.wall_time, read_only=options.read_only)
                node = Node(runtime, options, host, array, channel)
                await channel.create_locks(node.receiver.ack_bast)
                await channel.check_protocols()
                await channel.become_receiver()
                nursery.start_soon(node.receiver.run, name="receiver")
                backend = node.devices.backend = host.backend(array.port)
                cleanup.callback(node.devices.close)
                cleanup.callback(backend.close)
                node.devices.began(images)
                nursery.start_soon(backend.run, name="leg backend")
                await _load(node)
                node.resize.unfinished = bool(assembly.slots_of_other_size) and not options.read_only
                node.mddev.loaded()
                node.receiver.already_in_cluster()
            await node.refresh()
            nursery.start_soon(node.watch_membership, name="membership")
            nursery.start_soon(node.watch_members, nursery, name="members")
            nursery.start_soon(node.answer_failures, name="leg failures")
            nursery.start_soon(node.review_doubts, name="doubts")
            # Before anything is served: who is not heard of is not watched, and nobody would take over what it leaves.
            await node.announce()
            if not options.read_only:
                nursery.start_soon(node.sweep_bitmap, name="bitmap sweep")
                nursery.start_soon(node.sync.run, name="sync")
            _log_joined(node)
            try:
                yield node
            finally:
                with runtime.cancel_scope(shield=True):
                    await node.leave()
                nursery.cancel_scope.cancel()


async def _claimed(
    options: NodeOptions, host: Host, membership: Membership, cleanup: contextlib.ExitStack
) -> tuple[Assembly, list[OpenImage]]:
    """Read the metadata again under the token, open the legs and take their flocks."""
    assembly = await _assembled(options, host)
    alone = await membership.alone()
    if not alone:
        _check_legs_of_others(assembly)
    paths = [leg.path for leg in (*assembly.legs, *assembly.spares)]
    images = await host.open_images(paths, options)
    for image in images:
        cleanup.callback(image.close)
    await host.claim_images(images, alone=alone)
    return assembly, images


async def _assembled(options: NodeOptions, host: Host) -> Assembly:
    """Read the images and decide; legs of the array that were not named are looked for unless ``run`` is given.

    So the command line that mounted an array still does when another node has replaced a leg meanwhile, as long as the
    new image is to be seen where images are looked for.
    """
    heads = list(await host.candidates(options.images))
    named = len(heads)
    while not options.run and (unnamed := _unnamed(heads)):
        found: dict[int, Found] = {}
        set_uuid, numbers = unnamed
        for one in await host.find_images(set_uuid, options.images, options.search):
            number = one.superblock.dev_number
            other = found.get(number)
            if number not in numbers or (other is not None and other.superblock.events > one.superblock.events):
                continue
            if other is not None and other.superblock.events == one.superblock.events:
                raise SeveralImages(number=number, paths=f"{other.path}, {one.path}")
            found[number] = one
        if not found:
            break
        heads += await host.candidates([one.path for one in found.values()])
    for head in heads[named:]:
        log.info("%s was not named and is a leg of the array: it is used", head.path)
    return assemble(heads, run=options.run, cluster_name=options.cluster_name, heals_bitmaps=True)


def _unnamed(heads: Sequence[Candidate]) -> tuple[bytes, set[int]] | None:
    """Return the array's UUID and the device numbers that have a position and no image, None when there are none."""
    given = [head.superblock for head in heads if isinstance(head.superblock, Superblock)]
    if len(given) < len(heads):
        return None  # one of them cannot be read at all; whoever assembles says why
    freshest = max(given, key=lambda superblock: superblock.events)
    known = {superblock.dev_number for superblock in given}
    positions = range(freshest.raid_disks)
    numbers = {number for number, role in enumerate(freshest.dev_roles) if role in positions} - known
    return (freshest.set_uuid, numbers) if numbers else None


def _check_legs_of_others(assembly: Assembly) -> None:
    """Refuse to leave out a leg that the nodes which run have: it would miss our writes while they read it."""
    in_use = set(assembly.superblock.dev_roles) & set(assembly.missing_roles)
    if in_use:
        raise LegInUseElsewhere(role=min(in_use))


async def _load(node: Node) -> None:
    array = node.array
    if not array.read_only:
        await array.complete_slots()
    await array.load(node.channel.slot)
    for slot, value in await node.channel.values():
        if value is not None and value.high:  # a sync is under way there (6.1, step 10)
            node.mddev.remote.found(slot, value.low, value.high)
    async with node.takeover.slots():
        if not array.read_only:
            await array.make_active()
            await array.activate()


def _log_joined(node: Node) -> None:
    array = node.array
    in_sync = sum(leg.state == LegState.IN_SYNC for leg in array.legs)
    log.info(
        "joined array %s (%s) in slot %d with %d of %d legs",
        node.volume.name, node.uuid, node.membership.slot, in_sync, array.superblock.raid_disks,
    )  # fmt: skip


def _dashed(uuid: bytes) -> str:
    """Return an array's UUID as lock spaces and sockets are named: lower case, 8-4-4-4-12."""
    text = uuid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
