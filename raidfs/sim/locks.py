"""A lock manager in this process: the lock machine with members attached by function calls.

For tests, and for the simulator, which plays whole clusters on one `Runtime`. What production does with a socket in
between is kept: events reach the machine and actions reach members later, not within the call, and those of one client
in order; those of different clients may overtake each other. How long each is under way is the caller's to say:
`delay_s` draws from the caller's generator.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable

from raidfs.lock import machine
from raidfs.lock.member import MemberHub
from raidfs.runtime import CancelScope, Runtime

MEMBERS_PER_CLIENT_MAX = 1 << 16


def _at_once() -> float:
    return 0.0


class SimulatedLocks:
    """A lock machine and the clients that are connected to it; `run` must be running as a task."""

    def __init__(
        self, runtime: Runtime, *, cluster_name: str | None = None, delay_s: Callable[[], float] = _at_once
    ) -> None:
        self._runtime = runtime
        self._delay_s = delay_s
        self._machine = machine.LockMachine(cluster_name)
        self._clients: dict[int, SimulatedClient] = {}
        self._clients_total = 0
        # When it arrives, a number that keeps equals in order, and what then happens.
        self._work: list[tuple[float, int, Callable[[], object]]] = []
        self._work_total = 0
        self._sleeping: CancelScope | None = None
        self._woken = runtime.wait_queue()

    def connect(self) -> SimulatedClient:
        """Return a new client; its ``hub`` is the lock manager that a node uses."""
        self._clients_total += 1
        client = SimulatedClient(self, self._clients_total)
        self._clients[client.number] = client
        return client

    def statistics(self) -> machine.MachineStatistics:
        """Return what the machine keeps."""
        return self._machine.statistics()

    def lose(self, reason: str) -> None:
        """Let the lock manager vanish: every client loses it."""
        for client in list(self._clients.values()):
            client.hub.lose(reason)

    async def run(self) -> None:
        """Carry events and actions for ever."""
        while True:
            await self._woken.wait_event(lambda: bool(self._work), what="the simulated lock manager: work")
            wait_s = self._work[0][0] - self._runtime.now()
            if wait_s <= 0:
                heapq.heappop(self._work)[2]()
                continue
            with self._runtime.cancel_scope() as self._sleeping:
                await self._runtime.sleep(wait_s, what="the simulated lock manager: a message under way")
            self._sleeping = None

    # Returns when it will arrive: never before what the same way carries already.
    def _later(self, not_before: float, work: Callable[[], object]) -> float:
        due = max(not_before, self._runtime.now() + self._delay_s())
        self._work_total += 1
        heapq.heappush(self._work, (due, self._work_total, work))
        if self._sleeping is not None and self._work[0][1] == self._work_total:
            self._sleeping.cancel()
        self._woken.wake_up()
        return due

    def _send(self, client: SimulatedClient, event: machine.Event) -> None:
        client.sent_until = self._later(client.sent_until, functools.partial(self._carry_out, client, event))

    def _carry_out(self, client: SimulatedClient, event: machine.Event) -> None:
        if isinstance(event, machine.Open):
            client.members.append(event.member)
        for action in self._machine.step(event, self._runtime.now()):
            number, member = divmod(action.member, MEMBERS_PER_CLIENT_MAX)
            target = self._clients.get(number)
            if target is not None:
                deliver = functools.partial(target.deliver, action._replace(member=member))
                target.delivered_until = self._later(target.delivered_until, deliver)

    def _end(self, client: SimulatedClient) -> None:
        if self._clients.pop(client.number, None) is not None:
            client.sent_until = self._later(client.sent_until, functools.partial(self._bury, client))

    def _bury(self, client: SimulatedClient) -> None:
        for member in client.members:
            self._carry_out(client, machine.Died(member))


class SimulatedClient:
    """One client of `SimulatedLocks`: the carrier under its ``hub``."""

    def __init__(self, locks: SimulatedLocks, number: int) -> None:
        self.number = number
        self.members: list[int] = []  # as the machine knows them
        self.sent_until = 0.0
        self.delivered_until = 0.0
        self._locks = locks
        self.hub = MemberHub(locks._runtime, self)

    def send(self, event: machine.Event) -> None:
        """See `raidfs.lock.member.Carrier`."""
        if self.number not in self._locks._clients:
            return
        number = self.number * MEMBERS_PER_CLIENT_MAX + event.member
        self._locks._send(self, event._replace(member=number))

    def close(self) -> None:
        """See `raidfs.lock.member.Carrier`."""
        self._locks._end(self)

    def lifelines(self) -> tuple[int, ...]:
        """See `raidfs.lock.member.Carrier`: a simulated node dies at once."""
        return ()

    def stalled(self) -> bool:
        """See `raidfs.lock.member.Carrier`."""
        return False

    def deliver(self, action: machine.Action) -> None:
        """Let an action arrive, unless the client has died or closed meanwhile."""
        if self.number in self._locks._clients:
            self.hub.deliver(action)

    def kill(self) -> None:
        """Die without a word: what was sent before still arrives, nothing is delivered any more."""
        self._locks._end(self)
