"""The messages of the channel and the value that each node publishes of itself: two codecs of 32 bytes.

A userspace lock space has value blocks of 32 bytes (DLM_USER_LVB_LEN) where the kernel's md-cluster uses 64, so
the layout is ours; types and meaning are md-cluster's (drivers/md/md-cluster.c, ``enum msg_type``). All integers are
little-endian::

    message                                    value of a slot (bitmap%04d)
    0   u8   magic 0xC5, never 0               0   u64  low   of the range that the node resyncs, sectors
    1   u8   type                              8   u64  high
    2   u8   sender's slot                     16  u32  generation, +1 at each publication
    3   u8   protocol version                  20  u32  crc32 of all other bytes
    4   u32  sequence number                   24  u32  sequence number of the last message it has handled
    8   16   payload                           28  u16  what became of it: 0 applied, else a numbered reason
    24  u32  raid_slot (device number)         30  u8   protocol version
    28  u32  crc32 of bytes 0..27              31  u8   magic 0xC6

A block of zeros, as the lock manager gives it when nobody has written yet, is neither.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import zlib

from raidfs.lock.api import LVB_BYTES

PROTOCOL_VERSION = 1

_MESSAGE_MAGIC = 0xC5
_MESSAGE = struct.Struct("<BBBBI16sII")
_SLOT_MAGIC = 0xC6
_SLOT = struct.Struct("<QQIIIHBB")
assert _MESSAGE.size == _SLOT.size == LVB_BYTES


class MessageType(enum.IntEnum):
    """md-cluster's message types; new ones are added at the end."""

    METADATA_UPDATED = 0
    RESYNCING = 1
    NEWDISK = 2
    REMOVE = 3
    RE_ADD = 4
    BITMAP_NEEDS_SYNC = 5
    CHANGE_CAPACITY = 6
    BITMAP_RESIZE = 7
    RESYNCING_START = 8
    SYNC_ACTION = 9


class Result(enum.IntEnum):
    """What a receiver has made of a message. The numbers are the protocol; the texts are for users."""

    APPLIED = 0
    UNKNOWN_TYPE = 1
    NOT_SUPPORTED = 2
    UNREADABLE = 3
    BEHIND = 4
    LAST_LEG = 5
    SIZE = 6
    FAILED = 7
    NO_IMAGE = 8
    SEVERAL_IMAGES = 9
    IMAGE_UNFIT = 10
    NUMBER_IN_USE = 11
    LOOK_TOO_LONG = 12
    LEG_IN_USE = 13
    NO_ROOM = 14
    READ_ONLY = 15
    SLOTS_WOULD_MOVE = 16
    BUSY = 17
    LEG_FAILS = 18

    @property
    def text(self) -> str:
        """The reason in words."""
        return _RESULT_TEXTS[self]


_RESULT_TEXTS = {
    Result.APPLIED: "applied",
    Result.UNKNOWN_TYPE: "it does not know this kind of message; run the same version of raidfs on all nodes",
    Result.NOT_SUPPORTED: "it knows this kind of message but cannot do it",
    Result.UNREADABLE: "it cannot read the superblock from any leg",
    Result.BEHIND: "the superblock that it reads is older than the message; does it see the same storage?",
    Result.LAST_LEG: "it would lose its last leg",
    Result.SIZE: "it cannot follow the change of size",
    Result.FAILED: "it failed while applying it; see its log",
    Result.NO_IMAGE: "it does not see the image; make it visible there, or mount with --search and its directory",
    Result.SEVERAL_IMAGES: "it sees several images that say they are this one; see its log",
    Result.IMAGE_UNFIT: "it sees the image, which does not fit there; see its log",
    Result.NUMBER_IN_USE: "it has another leg with that number",
    Result.LOOK_TOO_LONG: "looking for the image took too long there; does its storage answer?",
    Result.LEG_IN_USE: "the leg is in use there",
    Result.NO_ROOM: "a leg is too small there; see its log",
    Result.READ_ONLY: "it is mounted read-only and cannot write its slot of the bitmap",
    Result.SLOTS_WOULD_MOVE: "the slots of the bitmap would move there; does it know the same array?",
    Result.LEG_FAILS: "a leg has failed there and that is not recorded yet",
    Result.BUSY: "requests behind the new end did not end in time there",
}


def result_text(number: int) -> str:
    """Return the words for a result, also for one of a newer version."""
    try:
        return Result(number).text
    except ValueError:
        return f"reason {number}, which this version has no words for"


@dataclasses.dataclass(frozen=True)
class Message:
    """One message.

    ``low`` and ``high`` are the payload as two numbers: a range in sectors for RESYNCING, the event count and the size
    in sectors for METADATA_UPDATED and CHANGE_CAPACITY, the chunk in bytes and the size in sectors for BITMAP_RESIZE, 0
    (idle) or 1 (resync) for SYNC_ACTION.
    ``raid_slot`` is the number of a device, or what is done for RESYNCING (`raidfs.remote_resync.resyncing_code`).
    """

    type: int
    slot: int
    sequence: int = 0
    low: int = 0
    high: int = 0
    raid_slot: int = 0
    protocol: int = PROTOCOL_VERSION

    @property
    def device_uuid(self) -> bytes:
        """The payload as the UUID of a device (NEWDISK)."""
        return struct.pack("<QQ", self.low, self.high)

    @property
    def type_name(self) -> str:
        """The type in md's words, or its number."""
        try:
            return MessageType(self.type).name
        except ValueError:
            return f"type {self.type}"

    def encode(self) -> bytes:
        """Return the 32 bytes for the value block of ``message``."""
        payload = struct.pack("<QQ", self.low, self.high)
        data = _MESSAGE.pack(
            _MESSAGE_MAGIC, self.type, self.slot, self.protocol, self.sequence, payload, self.raid_slot, 0
        )[:-4]
        return data + zlib.crc32(data).to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes) -> Message | None:
        """Return the message in a value block, or None when it holds none (never written, torn, foreign)."""
        magic, kind, slot, protocol, sequence, payload, raid_slot, crc = _MESSAGE.unpack(data)
        if magic != _MESSAGE_MAGIC or crc != zlib.crc32(data[:-4]):
            return None
        low, high = struct.unpack("<QQ", payload)
        return cls(kind, slot, sequence, low, high, raid_slot, protocol)


@dataclasses.dataclass(frozen=True)
class SlotValue:
    """What a node publishes in the value block of its own bitmap lock; ``low`` and ``high`` in sectors."""

    low: int = 0
    high: int = 0
    generation: int = 0
    sequence: int = 0
    result: int = Result.APPLIED
    protocol: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """Return the 32 bytes for the value block."""
        fields = (self.sequence, self.result, self.protocol, _SLOT_MAGIC)
        crc = zlib.crc32(_SLOT.pack(self.low, self.high, self.generation, 0, *fields))
        return _SLOT.pack(self.low, self.high, self.generation, crc, *fields)

    @classmethod
    def decode(cls, data: bytes) -> SlotValue | None:
        """Return the value in a block, or None when it holds none."""
        low, high, generation, _, sequence, result, protocol, magic = _SLOT.unpack(data)
        value = cls(low, high, generation, sequence, result, protocol)
        return value if magic == _SLOT_MAGIC and value.encode() == data else None
