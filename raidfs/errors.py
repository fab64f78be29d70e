"""Every error that raidfs tells its users, in one tree.

A class holds the text (with the next step a user can take), the exit code of the command line and the errno
that a system call would give; an instance holds the facts as attributes::

    raise NotAnArray(path="/srv/a.img")

The text is never put together where the error is raised. An error crosses a pipe or socket as
``to_json`` and comes back as ``from_json``.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2


class RaidfsError(Exception):
    """The base of all errors of raidfs; ``template`` is formatted with the facts given to it."""

    template: ClassVar[str] = "{text}"
    exit_code: ClassVar[int] = EXIT_FAILED
    errno: ClassVar[int] = _errno.EIO

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no fact {name!r}")

    def __str__(self) -> str:
        return self.template.format(**self.facts)

    def to_json(self) -> dict[str, Any]:
        """Return a document that ``from_json`` turns into the same error in another process."""
        return {"error": type(self).__name__, "message": str(self), "facts": {k: str(v) for k, v in self.facts.items()}}


class RemoteError(RaidfsError):
    """An error that another process reported and this version does not know by name."""

    template = "{message}"


def from_json(document: dict[str, Any]) -> RaidfsError:
    """Return the error that ``to_json`` wrote; an unknown name gives a RemoteError with the same text."""
    known = {cls.__name__: cls for cls in _subclasses(RaidfsError)}
    cls = known.get(document["error"])
    if cls is None:
        return RemoteError(message=document["message"])
    return cls(**document["facts"])


def _subclasses(cls: type[RaidfsError]) -> list[type[RaidfsError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found += _subclasses(sub)
    return found


# ---- usage -------------------------------------------------------------------------------------------------


class UsageError(RaidfsError):
    """The command line asks for something that has no meaning."""

    exit_code = EXIT_USAGE
    errno = _errno.EINVAL


class BadArguments(UsageError):
    """The words after ``raidfs`` do not fit the command; ``problem`` is argparse's finding."""

    template = "{problem}; see `{program} --help`"


class BadSize(UsageError):
    """A size that cannot be read."""

    template = "{text!r} is not a size; write bytes or a number with K, M, G or T, for example 64M"


class BadFault(UsageError):
    """A fault for ``raidfs mount --fault`` that cannot be read; ``problem`` names the word."""

    template = "--fault {text}: {problem}"


class FaultOfNoLeg(UsageError):
    """A fault is for an image that is not among those given: it would never strike."""

    template = "--fault {text}: no image is called {leg}; the images are {images}"


# ---- images and their format -------------------------------------------------------------------------------


class ImageError(RaidfsError):
    """Something is wrong with a backing image; nothing was written to it."""


class ImageNotFound(ImageError):
    """There is no file or device of that name."""

    template = "{path}: there is no such image; check the name, or let `raidfs create --size` make it"
    errno = _errno.ENOENT


class ImageNotUsable(ImageError):
    """The name is neither a regular file nor a block device."""

    template = "{path} is {kind}; a backing image is a regular file or a block device"
    errno = _errno.EINVAL


class ImageAccess(ImageError):
    """The system refused a call on an image; ``doing`` names the call's purpose, ``reason`` is the errno in words."""

    template = "{path}: cannot {doing}: {reason}"


class ImageInUse(ImageError):
    """Another process holds the image: a mounted node, a file system, a device mapper table."""

    template = "{path} is in use by another process; unmount its array (`raidfs umount`) or stop what uses it first"
    errno = _errno.EBUSY


class ImageClosed(ImageError):
    """An image is used after it was closed: a fault of the program, never of the image."""

    template = "{path} was closed already; open it again"
    errno = _errno.EBADF


class ImageShort(ImageError):
    """An image ends before a place that has to be read."""

    template = "{path} ends at byte {size_bytes}, before the {wanted_bytes} bytes at {offset_bytes}; it is truncated"


class ImageTooSmall(ImageError):
    """An image that cannot hold the array that is asked for."""

    template = (
        "{path} is too small: it has {have_sectors} sectors and {need_sectors} are needed; "
        "give a larger image or a smaller --size"
    )
    errno = _errno.ENOSPC


class ImageNotExtended(ImageError):
    """The file system does not make an image longer; it has its old length."""

    template = "{path} cannot be extended from {have_bytes} to {need_bytes} bytes: {reason}"
    errno = _errno.ENOSPC


class DeviceNotExtendable(ImageError):
    """An image that should be made longer is a block device, whose size is not ours to change."""

    template = (
        "{path} is a block device of {have_bytes} bytes and {need_bytes} are needed; make the device larger first "
        "(`lvextend` and the like), only files are extended"
    )
    errno = _errno.ENOSPC


class ImageHoldsData(ImageError):
    """Creating an array would overwrite something; ``found`` names it."""

    template = "{path} already holds {found}; give --force to overwrite it"
    errno = _errno.EEXIST


class SameImageTwice(ImageError):
    """Two names of one file or device: a mirror on it would protect nothing."""

    template = "{path} and {other_path} are the same image; give each image once"
    errno = _errno.EINVAL


class NoSuperblock(ImageError):
    """The place of the superblock holds something else (mdadm's words)."""

    template = "No md superblock detected on {path}."
    errno = _errno.ENOENT


class SuperblockVersion(ImageError):
    """A superblock of a format that is not version 1."""

    template = "{path}: the superblock has version {version}; raidfs reads version 1.2"
    errno = _errno.EINVAL


class SuperblockChecksum(ImageError):
    """The superblock does not add up: it is damaged."""

    template = (
        "{path}: the superblock's checksum is {stored} and should be {computed}: it is damaged; "
        "leave this image out (`raidfs mount --run`) and add it again"
    )


class SuperblockFeatures(ImageError):
    """The superblock asks for features that a clustered RAID1 does not have."""

    template = (
        "{path}: the superblock's feature map {feature_map} has the bits {unknown}, which raidfs does not know; "
        "use the program that set them"
    )
    errno = _errno.EOPNOTSUPP


class SuperblockField(ImageError):
    """One field of a superblock or bitmap superblock has a value that cannot be; ``rule`` says what it must be."""

    template = "{path}: {place} field {field} is {value}, but {rule}; compare with `raidfs examine` of the other images"
    errno = _errno.EINVAL


class NoBitmapSuperblock(ImageError):
    """The place of a slot's bitmap superblock holds something else."""

    template = (
        "{path}: no bitmap superblock in slot {slot} (magic {magic}): it is damaged; "
        "leave this image out (`raidfs mount --run`) and add it again"
    )

    @property
    def is_blank(self) -> bool:
        """Whether there are only zeros: the slot was never written."""
        return str(self.magic) == "00000000"


class NotClusteredBitmap(ImageError):
    """A bitmap of one host, or of a version from the future."""

    template = (
        "{path}: the bitmap has version {version}, a clustered bitmap has 5; "
        "change it with `mdadm --grow --bitmap=none`, then `--bitmap=clustered`"
    )
    errno = _errno.EOPNOTSUPP


class BadGeometry(ImageError):
    """An array that cannot be laid out as asked; ``rule`` says what is possible."""

    template = "the {what} {value} is not possible: {rule}"
    exit_code = EXIT_USAGE
    errno = _errno.EINVAL


class TooManyNodes(ImageError):
    """The slots of all nodes do not fit before the data area."""

    template = (
        "{nodes} nodes need {need_bytes} bytes of bitmap and there is room for {have_bytes}, "
        "that is {nodes_max} nodes; give a larger --bitmap-chunk or fewer --nodes"
    )
    errno = _errno.ENOSPC


class SlotsWouldMove(ImageError):
    """A size or a chunk with which a slot of the bitmap would have another length, and so all slots another place."""

    template = (
        "with chunks of {chunk_bytes} bytes one slot of the bitmap would have {need_bytes} bytes and not {slot_bytes}, "
        "so all slots would move; choose a --bitmap-chunk or a --size with which they stay"
    )
    errno = _errno.EINVAL


class AssembleError(ImageError):
    """These images do not make up an array that could be started."""

    errno = _errno.EINVAL


class NoImagesGiven(AssembleError):
    """An array of nothing."""

    template = "no image was given; name the images of the array"
    exit_code = EXIT_USAGE


class NotRaid1(AssembleError):
    """An md array of another kind."""

    template = "{path} belongs to an array of level {level}; raidfs runs RAID1 only, use mdadm"


class NotClustered(AssembleError):
    """An md RAID1 of one host."""

    template = (
        "{path} belongs to an array without a clustered bitmap (feature map {feature_map}); "
        "make it one with `mdadm --grow --bitmap=clustered`"
    )


class OtherArray(AssembleError):
    """Images of two arrays were given."""

    template = (
        "{path} belongs to array {uuid} and {other_path} to array {other_uuid}; "
        "give the images of one array (`raidfs examine` tells them apart)"
    )


class OtherCluster(AssembleError):
    """The array belongs to another cluster than the one that is asked for."""

    template = (
        "{path}: the array belongs to cluster {found!r}, not to {wanted!r}; "
        "mount it there, or change it with `raidfs update --cluster-name`"
    )


class DuplicateLeg(AssembleError):
    """Two images say that they are the same leg: one is a copy of the other."""

    template = "{path} and {other_path} are both leg {dev_number} ({what} is the same): one is a copy; leave it out"


class NoUsableLeg(AssembleError):
    """No image holds all of the array's data."""

    template = (
        "array {uuid}: none of the images is in sync ({reasons}); "
        "give the image that was used last (`raidfs examine` shows Events)"
    )


class LegMissing(AssembleError):
    """A position of the array has no image; starting degraded is the user's decision."""

    template = "array {uuid}: leg {role} is missing; give its image too, or start degraded with --run"


class LegLeftOut(AssembleError):
    """An image was given that is not usable as the leg it was; starting degraded is the user's decision."""

    template = "{path} cannot be used as a leg: it is {reason}; start degraded with --run, then add it again"


class LegsDiverged(AssembleError):
    """Two legs that were each run without the other: which data counts is the user's decision."""

    template = (
        "{path} (events {events}) and {other_path} (events {other_events}) do not follow from one another "
        "({field} differs): each was used without the other; give only the one whose data you want, with --run"
    )


class LegLayoutDiffers(AssembleError):
    """Legs of one array that do not have one layout."""

    template = "{path}: {field} is {value}, but {other_value} on {other_path}; give legs that were made together"


class LegTruncated(AssembleError):
    """An image is shorter than its superblock says."""

    template = (
        "{path} is truncated: it has {have_sectors} sectors and its array needs {need_sectors}; "
        "restore its length, or leave it out and start degraded with --run"
    )


class BitmapOfOtherArray(AssembleError):
    """A slot's bitmap superblock carries another UUID than the superblock."""

    template = (
        "{path}: the bitmap of slot {slot} belongs to array {found}, the superblock to {uuid}; leave the image out"
    )


class BitmapSlotsDiffer(AssembleError):
    """The bitmap superblocks of two slots do not describe one array."""

    template = (
        "{path}: the bitmaps of slot {slot} and slot {other_slot} differ in {field} ({value} and {other_value}); "
        "compare the images with `raidfs examine` and leave a damaged one out"
    )


class ArrayHalfResized(AssembleError):
    """A stopped array whose last change of size was cut off cannot be changed in another way."""

    template = (
        "{path}: slots {slots} are of another size than the array: a resize was cut off; "
        "mount the array once, which finishes or undoes it, then try again"
    )


# ---- handing an array over ---------------------------------------------------------------------------------


class HandoverError(RaidfsError):
    """What stands against using an array with Linux's md after raidfs, or with raidfs after Linux's md."""

    errno = _errno.EBUSY


class HandoverUnsafe(HandoverError):
    """The sum of a check that has found something."""

    template = "not safe now, for {reasons} told above; do what is said there, then check again"


class ImageServed(HandoverError):
    """A node of raidfs that is mounted here has the image."""

    template = "{path} is a leg of the node at {mountpoint}; unmount it: raidfs umount {mountpoint}"


class ImageHeld(HandoverError):
    """A device of this machine's kernel stands on the image."""

    template = "{path} is held by {holder}; stop that first (an md array: `mdadm --stop /dev/{holder}`)"


class LockSpaceHere(HandoverError):
    """This machine's DLM has the array's lock space: somebody here runs the array, or was killed."""

    template = (
        "the DLM of this machine has lock space {uuid}: the array is in use here; stop it. If a node of raidfs was "
        "killed here, nobody uses it any more, and `dlm_tool leave {uuid}` ends it"
    )


class LockSpaceElsewhere(HandoverError):
    """Other machines of the cluster have the array's lock space."""

    template = (
        "lock space {uuid} is in use on machine {machines} of the cluster (ids of corosync): stop the array there; "
        "`raidfs handover --check` says there what has it"
    )


class SuperblocksDiffer(HandoverError):
    """A leg's superblock was not reached by the last update."""

    template = (
        "{path}: its superblock does not say what that of {other_path} says (events {events} and {other_events}): "
        "whoever used the array last did not end well; start and stop it there once, or with raidfs"
    )


class RecoveryUnfinished(HandoverError):
    """A leg is not yet copied in full."""

    template = "{path} is not recovered in full yet; let who recovers it finish (`raidfs wait`, `mdadm --wait`)"


class SlotsLacking(HandoverError):
    """A leg in sync on which some slots of the bitmap were never written."""

    template = (
        "{path} lacks slots of the bitmap, as Linux leaves a leg that was added; mount the array once with raidfs"
    )


class UpdateCutOff(HandoverError):
    """A change of the number of slots or of the cluster's name was cut off."""

    template = "{path}: slots disagree on their number or the cluster: `raidfs update` was cut off; run it again"


class FeatureInTheWay(HandoverError):
    """A leg has a feature that only one of the two sides knows what to do with."""

    template = (
        "{path}: feature map {feature_map} has {features}, which raidfs does not take care of; stay with Linux's md"
    )
    errno = _errno.EOPNOTSUPP


class CorosyncOfOtherCluster(HandoverError):
    """Linux's md joins the array's cluster only where corosync has the same name."""

    template = (
        "the array belongs to cluster {found!r}, and corosync of this machine to {own!r}: Linux's md would refuse it; "
        "change it with `raidfs update --cluster-name`"
    )


# ---- lock managers -----------------------------------------------------------------------------------------


class LockError(RaidfsError):
    """A lock manager refused or failed."""


class LockRefused(LockError):
    """A NOQUEUE request was incompatible with what others hold or wait for (EAGAIN in the DLM)."""

    template = "lock {resource}: {mode} is not to be had at once"
    errno = _errno.EAGAIN


class LockCancelled(LockError):
    """A waiting request was cancelled; the lock has the mode that it had before (ECANCEL in the DLM)."""

    template = "lock {resource}: the request for {mode} was cancelled"
    errno = _errno.ECANCELED


class LockspaceLost(LockError):
    """The lock manager is gone or has evicted this node: none of its locks protect anything any more."""

    template = "lock space {name} is lost: {reason}; unmount and mount again to rejoin"
    errno = _errno.EIO


class LockDeadlock(LockError):
    """The conversion would have closed a circle of conversions on one resource (EDEADLK in the DLM)."""

    template = "lock {resource}: converting to {mode} would deadlock with a conversion that waits; convert to NL first"
    errno = _errno.EDEADLK


class LockBusy(LockError):
    """A second conversion was asked of a lock whose first one is still under way (EBUSY in the DLM)."""

    template = "lock {resource}: a conversion to {mode} is under way; wait for it or cancel it"
    errno = _errno.EBUSY


class LockProtocolError(LockError):
    """A peer said something that has no meaning in the lock protocol; its connection is ended."""

    template = "lock protocol: {reason}; if both sides run the same version of raidfs, report this as a bug"
    errno = _errno.EPROTO


class LockVersionMismatch(LockError):
    """Node and lock server speak different versions of the lock protocol."""

    template = (
        "the lock server at {address} speaks protocol version {server_version}, this raidfs speaks {own_version}; "
        "run the same version of raidfs on all nodes and restart the lock server"
    )
    errno = _errno.EPROTO


class LockServerUnreachable(LockError):
    """Nobody answers at the address of the lock server."""

    template = "no lock server answers at {address}: {reason}; start one with `raidfs lockd --listen {address}`"
    errno = _errno.ECONNREFUSED


class LockServerNotStarted(LockError):
    """The lock server of ``--lock auto`` could not be started, or ended at once."""

    template = "the lock server at {address} could not be started: {reason}; try `raidfs lockd --listen {address}`"
    errno = _errno.ECONNREFUSED


class LockServerUntrusted(LockError):
    """Somebody who must not be trusted with the locks of these images listens at the address."""

    template = (
        "the lock server at {address} runs as user {uid}, who is neither root, nor you, nor an owner of the images; "
        "have it stopped, or name another manager with --lock"
    )
    errno = _errno.EPERM


class LockClientRefused(LockError):
    """The lock server does not serve this user."""

    template = "the lock server does not serve user {uid}; start it with `raidfs lockd --allow-uid {uid}`"
    errno = _errno.EPERM


class LockServerFull(LockError):
    """The lock server has as many clients as it can serve."""

    template = "the lock server has {clients} clients already, and that is its limit; unmount a node first"
    errno = _errno.EUSERS


class LockAddressInUse(LockError):
    """Another lock server listens at the address."""

    template = "a lock server listens at {address} already; use it, or choose another address with --listen"
    errno = _errno.EADDRINUSE


class LockAddressNotUsable(LockError):
    """A lock server cannot listen at the address."""

    template = "cannot listen at {address}: {reason}; choose another address with --listen"
    errno = _errno.EADDRNOTAVAIL


class LockManagerUnavailable(LockError):
    """A kind of lock manager that this build does not have."""

    template = (
        "this build has no lock manager {text!r}; use --lock auto or unix:PATH on one host, --lock dlm for several"
    )
    errno = _errno.EOPNOTSUPP


class BadLockAddress(UsageError):
    """A ``--lock`` or ``--listen`` value that cannot be read."""

    template = "{text!r} is not a lock manager's address: {reason}; write auto, unix:PATH or abstract:NAME"


class DlmError(LockError):
    """``--lock dlm`` does not work here."""

    errno = _errno.EOPNOTSUPP


class MissingLibrary(DlmError):
    """A library that only ``--lock dlm`` needs is not installed."""

    template = "--lock dlm needs {library}; install the package {package}"


class DlmModuleMissing(DlmError):
    """The kernel's lock manager is not loaded."""

    template = "the kernel's DLM is not loaded; run `modprobe dlm`, and let dlm_controld be started after it"


class DlmDenied(DlmError):
    """This user may not use the DLM."""

    template = "{path}: only root may use the DLM; run `raidfs mount --lock dlm` as root"
    errno = _errno.EPERM


class DlmDeviceMissing(DlmError):
    """The DLM is loaded, but libdlm has no way to reach it."""

    template = "there is no {path}: the udev rules of the package libdlm3 make it; run `udevadm trigger -c add -s misc`"


class CorosyncNotRunning(DlmError):
    """Nobody answers for corosync on this machine."""

    template = "corosync is not running on this machine (error {code}); start it: `systemctl start corosync`"
    errno = _errno.ECONNREFUSED


class CorosyncDenied(DlmError):
    """corosync does not talk to this user."""

    template = "corosync does not talk to this user; run `raidfs mount --lock dlm` as root"
    errno = _errno.EPERM


class ControldNotRunning(DlmError):
    """The daemon of the DLM does not run."""

    template = "dlm_controld is not running on this machine; start it: `systemctl start dlm`"
    errno = _errno.ECONNREFUSED


class NoQuorum(DlmError):
    """The part of the cluster that this machine is in is too small to go on."""

    template = (
        "this machine's part of the cluster has no quorum, so no lock space can be joined; "
        "see `corosync-quorumtool -s`, and start more of the cluster's nodes"
    )
    errno = _errno.EAGAIN


class NotFenced(DlmError):
    """A node that is cut off or stuck would keep its locks while others are given them."""

    template = (
        "{reason}: a node that is cut off or stuck could go on writing while others take its place, and data would be "
        "lost; set fencing up (see docs/locks.md), or accept that with --allow-unfenced"
    )
    errno = _errno.EPERM


class LockSpaceOfMd(DlmError):
    """The DLM does not let us join: the others have value blocks of another size, as the kernel's md has."""

    template = (
        "lock space {name} is not one of raidfs: Linux's md runs this array on another machine; stop it there "
        "(`mdadm --stop`), `raidfs handover --check` with the images says on which"
    )
    errno = _errno.EBUSY


class DlmFailed(DlmError):
    """The DLM refuses to open a lock space."""

    template = "lock space {name}: the DLM fails: {reason}; see `dlm_tool status` and `dlm_tool dump`"
    errno = _errno.EIO


class LockServerStopped(LockError):
    """The lock server was told to end while it had clients."""

    template = "the lock server was stopped by signal {signal}"
    errno = _errno.ESHUTDOWN


class LockClientTooSlow(LockError):
    """The lock server gave up a client that did not read what it was sent."""

    template = "the lock server evicted this client, which left {unread_bytes} bytes unread"
    errno = _errno.ETIMEDOUT


class WrongClusterName(LockError):
    """The lock manager, or the lock space, belongs to another cluster."""

    template = (
        "lock space {name} belongs to cluster {manager_cluster!r}, not to {own_cluster!r}; "
        "mount with the lock manager of the right cluster, or rename it with `raidfs update --cluster-name`"
    )
    errno = _errno.EBADR


# ---- messages between nodes --------------------------------------------------------------------------------


class MessageError(RaidfsError):
    """A message between nodes had not the effect that it was sent for."""


class MessageRefused(MessageError):
    """At least one node has not applied a message; ``refusals`` names nodes and reasons."""

    template = "not all nodes followed {message}: {refusals}"
    errno = _errno.EREMOTEIO


class MessageNotAcknowledged(MessageError):
    """Nodes that are members and did not answer."""

    template = (
        "{message} was not acknowledged by {nodes} and nothing moved for {seconds} s; "
        "see what they wait for with `raidfs explain` there, or end them"
    )
    errno = _errno.ETIMEDOUT


class ProtocolMismatch(MessageError):
    """A member speaks another version of the protocol."""

    template = (
        "{node} speaks version {theirs} of the cluster protocol and this raidfs version {ours}; "
        "run the same version on all nodes"
    )
    errno = _errno.EPROTONOSUPPORT


# ---- joining and running an array --------------------------------------------------------------------------


class NodeError(RaidfsError):
    """A node cannot join, or cannot do what it was asked."""


class NoFreeSlot(NodeError):
    """As many nodes as the array has slots run already."""

    template = (
        "all {nodes} slots of the array are taken ({holders}); unmount it on another node, "
        "or make the array with more --nodes"
    )
    errno = _errno.EUSERS


class SlotTaken(NodeError):
    """The slot that was asked for belongs to a node that runs."""

    template = "slot {slot} is taken by {holder}; leave --slot out to get a free one, or unmount there"
    errno = _errno.EBUSY


class SlotOutOfRange(NodeError):
    """The array has no such slot."""

    template = "the array has {nodes} slots, 0 to {last}; there is no slot {slot}"
    exit_code = EXIT_USAGE
    errno = _errno.ERANGE


class OtherManager(NodeError):
    """Nodes of another lock manager use the array: two managers would give every lock twice."""

    template = (
        "{path} is in use by nodes of another lock manager, or by another program; "
        "mount with the --lock that those nodes use, or stop them"
    )
    errno = _errno.EBUSY


class NeedsBuffered(NodeError):
    """The storage does not take O_DIRECT, and other hosts might write behind our page cache."""

    template = (
        "{path} does not allow direct I/O, and with --lock {lock} other hosts may share it; "
        "put it on other storage, or give --buffered if only this host uses it"
    )
    errno = _errno.EINVAL


class BlockTooLarge(NodeError):
    """A leg with blocks that the engine does not know."""

    template = "{path} has blocks of {block_bytes} bytes; at most 4096 are possible"
    errno = _errno.EINVAL


class NoSuchLeg(NodeError):
    """A path that is not an image of the array."""

    template = "{path} is not a leg of this array; its legs are {legs}"
    exit_code = EXIT_USAGE
    errno = _errno.ENODEV


class CannotFollow(NodeError):
    """What other nodes have written to the superblock cannot be applied here; the node serves nothing any more."""

    template = "this node cannot follow the metadata: {reason}; unmount and mount again"


class NodeFenced(NodeError):
    """A command reaches a node that serves nothing any more."""

    template = "this node has lost its membership and serves nothing any more; unmount and mount again"


class LegInUseElsewhere(NodeError):
    """A leg that this node does not have and that other nodes read and write."""

    template = (
        "leg {role} is in use by other nodes of the array, so this node cannot leave it out; give its image too, "
        "or make it faulty there first (`raidfs fail`)"
    )
    errno = _errno.EBUSY


class LegNotWritable(NodeError):
    """A leg whose superblock cannot be written when a node joins."""

    template = "{path}: its superblock cannot be written: {reason}; leave the image out and start degraded with --run"


class LastLeg(NodeError):
    """Without this leg nothing of the data would be left."""

    template = "{path} is the last leg in sync; it is never failed"
    errno = _errno.EBUSY


class ReadOnlyNode(NodeError):
    """Something is to be changed through a node that is mounted read-only."""

    template = "this node is mounted read-only; use another one, or mount again without --read-only"
    errno = _errno.EROFS


class LegInUse(NodeError):
    """A leg that serves is to be removed."""

    template = (
        "{path} is {state}; only a leg that is faulty or a spare can be removed, make it faulty first (`raidfs fail`)"
    )
    errno = _errno.EBUSY


class AlreadyLeg(NodeError):
    """An image is to be added that the array has."""

    template = "{path} is a leg of this array already: {state}"
    errno = _errno.EEXIST


class NotFormerLeg(NodeError):
    """An image is to come back that never was in the array, or is no member of it any more."""

    template = "{path} was not a leg of this array, or another leg has its number now; add it with `raidfs add`"
    errno = _errno.EINVAL


class FormerLegDiverged(NodeError):
    """A leg is to come back that was used without those that the array has now."""

    template = (
        "{path} was used without the legs that the array has now, and what was written to it then is nowhere else; "
        "to lose that, add it with `raidfs add --force`"
    )
    errno = _errno.EINVAL


class NoVacantPosition(NodeError):
    """A leg is to come back and every position has a leg."""

    template = "no leg of the array is missing, so {path} cannot come back; add it as a spare with `raidfs add-spare`"
    errno = _errno.EBUSY


class TooManyLegs(NodeError):
    """An image more than a node can have open."""

    template = "the array has {legs} images, spares and faulty ones included, and no node has more; remove one first"
    errno = _errno.ENOSPC


class BlocksDiffer(NodeError):
    """An image whose blocks the running array cannot write in whole."""

    template = (
        "{path} has blocks of {block_bytes} bytes, and the array is in use with blocks of {array_block_bytes}; "
        "unmount it on all nodes first, or use another image"
    )
    errno = _errno.EINVAL


class SyncElsewhere(NodeError):
    """Something is to be changed that must not change while an array is synced."""

    template = "{holder} syncs the array; wait for that (`raidfs wait`) or stop it (`raidfs idle`)"
    errno = _errno.EBUSY


class BadRaidDevices(UsageError):
    """A number of legs that the array cannot have."""

    template = "the array cannot have {count} legs: {rule}"


class PositionsInUse(NodeError):
    """There would be fewer positions than legs that have one."""

    template = "{used} legs are in use, so the array cannot have {count}; make some faulty and remove them"
    errno = _errno.EBUSY


class NoRoomOnLeg(NodeError):
    """A leg that is too small for the size that is asked for."""

    template = (
        "{path} has room for {have_bytes} bytes of data and {need_bytes} are needed; "
        "make it larger, let a file be extended with --extend, or ask for less (--size max)"
    )
    errno = _errno.ENOSPC


class ShrinkLosesData(NodeError):
    """The array shall become smaller, and nobody has said that what lies behind its new end may go."""

    template = (
        "what lies behind the first {size_bytes} bytes of the array would be lost{what}; say --force if that is meant"
    )
    errno = _errno.EBUSY


class DegradedAssumeClean(NodeError):
    """New space shall count as equal on all legs while one of them is not there."""

    template = (
        "the array is degraded, so what is said of the new space would not be true for the leg that is missing; "
        "grow without --assume-clean, or after the recovery"
    )
    errno = _errno.EBUSY


class BadArraySize(UsageError):
    """A size that no array can have."""

    template = "the array cannot have {size_bytes} bytes: {rule}"


class ResizeRefused(NodeError):
    """Not all could follow a resize, and all are back at the old size."""

    template = "the array has its old size again: {reason}"
    errno = _errno.EREMOTEIO


class ResizeUnfinished(NodeError):
    """A resize that could neither be finished nor be taken back; nobody was served more than all have agreed on."""

    template = (
        "the resize is neither finished nor taken back: {reason}; "
        "it is tried again as soon as nodes come or go, or ask again"
    )
    errno = _errno.EREMOTEIO


class OwnSizeStays(NodeError):
    """The node that was asked for a resize cannot do it itself."""

    template = "this node: {reason}"
    errno = _errno.EREMOTEIO


class SlotsDisagree(NodeError):
    """Slots of the bitmap that do not say the new size although all nodes have followed."""

    template = "slots {slots} of the bitmap do not say the new size"


class SeveralImages(AssembleError):
    """Several images say that they are one leg that was not named."""

    template = "the leg with number {number} was not named, and several images say that they are it: {paths}; name one"


class MetadataLost(NodeError):
    """No leg took a superblock update."""

    template = "no leg took the superblock with event count {events}: {reason}; check the storage of the legs"


# ---- mounting ----------------------------------------------------------------------------------------------


class MountError(RaidfsError):
    """The array cannot be mounted, or not be unmounted."""


class MountpointMissing(MountError):
    """The mount point does not exist."""

    template = "{path}: there is no such directory; make it first: mkdir -p {path}"
    errno = _errno.ENOENT


class MountpointNotDirectory(MountError):
    """The mount point is something else than a directory."""

    template = "{path} is not a directory; raidfs mounts a directory that holds the block file"
    errno = _errno.ENOTDIR


class MountpointNotEmpty(MountError):
    """A mount would hide files."""

    template = "{path} is not empty and a mount would hide what is in it; choose an empty directory"
    errno = _errno.ENOTEMPTY


class MountpointAccess(MountError):
    """The mount point cannot be looked at."""

    template = "{path}: cannot use it as mount point: {reason}; choose a directory of your own"
    errno = _errno.EACCES


class MountpointTaken(MountError):
    """Something is mounted there already."""

    template = "{path} is a mount point of {source} already; unmount that first, or choose another directory"
    errno = _errno.EBUSY


class MountpointDead(MountError):
    """A FUSE mount whose daemon is gone."""

    template = "{path} is left over from a daemon that died; clean it up: fusermount3 -u -z {path}"
    errno = _errno.ENOTCONN


class FusermountMissing(MountError):
    """The helper that mounts for ordinary users is not installed."""

    template = "fusermount3 is not to be found; install the package fuse3"
    errno = _errno.ENOENT


class MountRefused(MountError):
    """The system refused the mount; ``reason`` is what fusermount3 said."""

    template = "{path}: cannot mount: {reason}; is /dev/fuse there, and are FUSE mounts allowed here?"


class MountBusy(MountError):
    """Somebody has a file or directory below the mount point open."""

    template = "{path} is in use and stays mounted; see by whom with `fuser -vm {path}`, end that, and unmount again"
    errno = _errno.EBUSY


class UnmountFailed(MountError):
    """The system refused to unmount for another reason than being busy."""

    template = "{path}: cannot unmount: {reason}; the node goes on, its log tells more"


class MountInterrupted(MountError):
    """A signal ended the node while it was still starting."""

    template = "{path}: stopped by a signal before it was usable; nothing was left behind, mount again when you like"
    errno = _errno.EINTR


class DaemonDied(MountError):
    """The node's process ended before it was ready and without an error of its own."""

    template = "the node ended before it was usable ({how}); its log is {log}"


# ---- the control socket ------------------------------------------------------------------------------------


class ControlError(RaidfsError):
    """A node cannot be asked, or was asked something it does not understand."""


class BadDocument(ControlError):
    """A document on a control socket does not have the agreed shape."""

    template = "control message: {where} is not {wanted}; are daemon and command of the same version?"
    errno = _errno.EBADMSG


class UnknownMethod(ControlError):
    """The daemon does not know a request by that name."""

    template = "the node does not know {method!r}; it may be older: unmount and mount it again with this version"
    errno = _errno.ENOSYS


class NoNode(ControlError):
    """Nothing of raidfs is mounted there on this machine, as far as this user may see."""

    template = "{path}: no node of yours is mounted there; `raidfs status` lists them"
    errno = _errno.ENOENT


class NodeSilent(ControlError):
    """The node's process is there and does not answer."""

    template = "the node at {path} does not answer: {reason}; see its log {log}"
    errno = _errno.ETIMEDOUT


class MountpointServed(ControlError):
    """Another living daemon serves this mount point."""

    template = "{path} is served by another node; unmount it first: raidfs umount {path}"
    errno = _errno.EBUSY


class RuntimeDirectoryUnusable(ControlError):
    """The directory of control sockets and logs cannot be made or is not safe to use."""

    template = "{path} cannot hold control sockets and logs: {reason}; set RAIDFS_RUNTIME_DIR to a private directory"
    errno = _errno.EACCES


class StorageFailed(ControlError):
    """What was asked could not be done, since the storage gave an error that no other leg can make up for."""

    template = "{method} failed: {reason}; the node goes on, `raidfs status` shows its legs and its log says where"
    errno = _errno.EIO


class BadRange(UsageError):
    """A range of bytes that has no meaning for this array."""

    template = "bytes {lo} to {hi} are no range of this array; give 0 <= lo < hi <= {size}, or 0 0 to lift"


# ---- syncs -------------------------------------------------------------------------------------------------


class SyncStopped(RaidfsError):
    """A check is asked for while the user has stopped all syncs."""

    template = "syncs were stopped with `raidfs idle`; let them go on first: raidfs resync"
    errno = _errno.EBUSY


class UnknownSyncAction(UsageError):
    """No sync action of that name."""

    template = "{action!r} is no action; there are resync, check, repair and idle"


class SyncRuns(RaidfsError):
    """A check is asked for while a sync runs; ``who`` does it."""

    template = "{who} syncs the array at the moment; `raidfs wait` tells when it is over"
    errno = _errno.EBUSY


# ---- waiting for a sync ------------------------------------------------------------------------------------


class WaitForStopped(ControlError):
    """A wait for a sync that the user has stopped would never end."""

    template = "{path}: the {action} that is due was stopped; let it go on: raidfs resync {path}"
    errno = _errno.EDEADLK


class WaitForFailed(ControlError):
    """A wait for a sync that the storage makes fail would never end; ``reason`` is what went wrong."""

    template = "{path}: the {action} that is due has failed: {reason}; when that is mended: raidfs resync {path}"
    errno = _errno.EIO


class SyncBrokenOff(ControlError):
    """A check or repair that was waited for was stopped, or gave up; ``action`` is its name."""

    template = (
        "{path}: the {action} did not come to its end; somebody has stopped it, or the node's log says why; "
        "begin again: raidfs {action} {path}"
    )
    errno = _errno.EINTR


class WaitAtLostNode(ControlError):
    """A node that is no member any more knows nothing of syncs."""

    template = "{path}: {reason}; unmount and mount again, or wait at another node of the array"
    errno = _errno.EIO


# ---- the simulator -----------------------------------------------------------------------------------------


class SimulationFailed(RaidfsError):
    """A simulated cluster did what none may do; ``check`` names the rule."""

    @property
    def rule(self) -> str:
        """The name of the rule that was broken."""
        return str(self.facts.get("check", type(self).__name__))


class NothingCanRun(SimulationFailed):
    """Every task of the simulation waits and no timer is left: a deadlock."""

    template = "nothing can run:\n{waits}"


class TooManySteps(SimulationFailed):
    """A simulation that does not come to an end: tasks wake each other for ever."""

    template = "no end after {steps} steps:\n{waits}"


class RuleBroken(SimulationFailed):
    """A checker saw something that must never be; `raidfs.sim.checkers` lists the rules."""

    template = "{check}: {what}"
