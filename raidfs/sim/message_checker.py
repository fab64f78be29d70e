"""What nodes tell each other, seen from the lock manager: every message and every answer is a value block there.

A message is what is written into ``message`` on the way to CW; what a member makes of it, the value of its bitmap's
lock. So the checker needs to believe neither the sender nor the receiver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from raidfs.cluster.channel import Channel
from raidfs.cluster.messages import Message, Result, SlotValue, result_text
from raidfs.format.superblock import SUPER_BYTES, SUPER_OFFSET_BYTES
from raidfs.lock.api import Mode
from raidfs.sim.checkers import LockChecker, Report
from raidfs.sim.disks import SimDisk
from raidfs.sim.stepper import Group


@dataclasses.dataclass(frozen=True)
class Sending:
    """A request that sends a message: whose, how many that node had published before, and who served then."""

    name: str
    published: int
    serving: frozenset[str]


class MessageChecker:
    """Follows messages and answers: applied-before-acked, refusals-told, superblock-under-token.

    ``on_published(client, message)`` hears of each message, ``on_window(client, slot, low, high)`` of the resync
    window in each value of a slot, in sectors.
    """

    def __init__(self, locks: LockChecker, report: Report, on_published: Callable[[str, Message], None]) -> None:
        self._locks = locks
        self._report = report
        self._on_published = on_published
        self._published: dict[str, list[Message]] = {}  # by client
        self._refusals: dict[int, dict[str, int]] = {}  # by the message's number: the client, the result
        self.on_window: Callable[[str, int, int, int], None] = lambda client, slot, low, high: None
        locks.on_value = self._written

    def begin(self, name: str, serving: Mapping[str, Channel]) -> Sending:
        """A user of node ``name`` asks for something that sends a message last of all; return its handle."""
        return Sending(name, len(self._published.get(name, ())), frozenset(serving))

    def end(self, sending: Sending, serving: Mapping[str, Channel], *, is_known: bool = True) -> None:
        """It has returned to the user without an error; ``is_known``: nodes know messages of its type.

        Who serves now and did when it began has heard it all and must have applied it.
        """
        name = sending.name
        published = self._published.get(name, [])
        if len(published) == sending.published:
            self._report("applied-before-acked", f"{name} was told that all have applied it, and nobody was asked")
            return
        message = published[-1]
        heard = sending.serving & serving.keys()
        if not is_known and heard - {name}:
            others = ", ".join(sorted(heard - {name}))
            self._report("refusals-told", f"{message.type_name} of {name} counts as applied by {others}: who knows it?")
        for other in sorted(heard):
            seen = serving[other].sequence_seen
            if seen < message.sequence:
                self._report(
                    "applied-before-acked",
                    f"{message.type_name}, number {message.sequence} of {name}, is acknowledged; {other} is at {seen}",
                )
        for other, result in sorted(self._refusals.get(message.sequence, {}).items()):
            if not self._locks.has_gone(other):
                self._report(
                    "refusals-told",
                    f"{message.type_name}, number {message.sequence} of {name}, counts as applied; {other} has said: "
                    f"{result_text(result)}",
                )

    def landed(self, disk: SimDisk, owner: Group | None, offset: int, length: int) -> None:
        """See `raidfs.sim.disks.Watcher`."""
        if owner is None or offset >= SUPER_OFFSET_BYTES + SUPER_BYTES or offset + length <= SUPER_OFFSET_BYTES:
            return
        is_erased = not any(disk.content[SUPER_OFFSET_BYTES : SUPER_OFFSET_BYTES + SUPER_BYTES])
        if not is_erased and not self._locks.holds(owner.name, "token", Mode.EX):
            self._report("superblock-under-token", f"{owner.name} writes the superblock of {disk.name} without it")

    def _written(self, client: str, resource: str, mode: Mode, value: bytes) -> None:
        if resource == "message" and mode is Mode.CW:
            message = Message.decode(value)
            if message is not None:
                self._published.setdefault(client, []).append(message)
                self._refusals.pop(message.sequence, None)
                self._on_published(client, message)
        elif resource.startswith("bitmap"):
            answer = SlotValue.decode(value)
            if answer is not None:
                self.on_window(client, int(resource.removeprefix("bitmap")), answer.low, answer.high)
            if answer is not None and answer.result != Result.APPLIED:
                self._refusals.setdefault(answer.sequence, {})[client] = answer.result
