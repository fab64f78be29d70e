"""The thread that talks to corosync for one lock space of this process, and watches the ground the locks stand on.

That ground is quorum, corosync and dlm_controld. Without any of them the DLM of this machine recovers from
nothing any more, while the others may go on without us: the lock space is lost at once.

Calls of corosync's libraries may wait for the daemon, so they are made here; what comes is posted to the event loop.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import threading
from collections.abc import Callable

import trio

from raidfs.errors import LockError
from raidfs.lock.corosync import Gone, Group, Process, QuorumWatch

NO_QUORUM = "this node is in a part of the cluster that has no quorum any more"
COROSYNC_ENDED = "corosync has ended on this node, or was expelled from the cluster"
CONTROLD_ENDED = "dlm_controld has ended on this node"

_AGAIN_MS = 100  # corosync asks to be asked again while its members change


class Line:
    """A thread with the group ``name``, whose functions it calls on the event loop that made it.

    ``on_message(sender, data)``, ``on_members(members)``, ``on_joined(self)``, ``on_lost(reason)``; nothing after that.
    """

    def __init__(
        self,
        name: str,
        controld_pid: int,
        *,
        on_message: Callable[[Process, bytes], None],
        on_members: Callable[[set[Process]], None],
        on_joined: Callable[[Process], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._name = name
        self._on_message = on_message
        self._on_members = on_members
        self._on_joined = on_joined
        self._on_lost = on_lost
        self._token = trio.lowlevel.current_trio_token()
        self._outbox: collections.deque[bytes] = collections.deque()
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._controld_fd = os.pidfd_open(controld_pid)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send a message, as soon as the group is joined."""
        self._outbox.append(data)
        self._wake()

    def close(self) -> None:
        """Leave the group and end the thread, which is not waited for."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the thread has ended, and has closed it
            os.eventfd_write(self._wake_fd, 1)

    # ---- in the thread ---------------------------------------------------------------------------------------------

    def _post(self, fn: Callable[..., None], *args: object) -> None:
        if not self._closing:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(fn, *args)

    def _run(self) -> None:
        reason = COROSYNC_ENDED
        try:
            with contextlib.ExitStack() as stack:
                quorum = QuorumWatch(self._quorum)
                stack.callback(quorum.close)
                group = Group(
                    self._name,
                    lambda sender, data: self._post(self._on_message, sender, data),
                    lambda members: self._post(self._on_members, members),
                )
                stack.callback(group.close)
                self._serve(quorum, group)
        except Gone:
            pass
        except (LockError, OSError) as error:
            reason = str(error)
        finally:
            self._post(self._on_lost, reason)
            os.close(self._controld_fd)
            wake_fd, self._wake_fd = self._wake_fd, -1
            os.close(wake_fd)

    def _quorum(self, quorate: bool) -> None:
        if not quorate:
            self._post(self._on_lost, NO_QUORUM)

    def _serve(self, quorum: QuorumWatch, group: Group) -> None:
        poll = select.poll()
        for fd in (quorum.fd, group.fd, self._wake_fd, self._controld_fd):
            poll.register(fd, select.POLLIN)
        joined = False
        while not self._closing:
            if not joined and group.join():
                joined = True
                self._post(self._on_joined, group.own)
            while joined and self._outbox and group.send(self._outbox[0]):
                self._outbox.popleft()
            events = dict(poll.poll(_AGAIN_MS if self._outbox or not joined else None))
            if self._wake_fd in events:
                os.eventfd_read(self._wake_fd)
            if self._controld_fd in events:
                self._post(self._on_lost, CONTROLD_ENDED)
                poll.unregister(self._controld_fd)
            quorum.dispatch()
            group.dispatch()
