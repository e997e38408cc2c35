"""The progress connection: reports which requests of the loops take long.

It runs in a thread of its own, and needs the interpreter only briefly each second. If an
environment does not release the interpreter at all, the liveness connection still shows that the
process is alive.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gymwire.env_agent.crew import CurrentRequest
from gymwire.env_agent.loop import ServingLoop
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Ping, Progress, Role, Withdraw
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.handshake import Handshake

EVERY_S = 1.0
SLOW_S = 1.0  # report requests that take longer
MAX_REPORTS = 500  # at once: the broker answers 1,000 messages a second on one connection


class ProgressReporter(threading.Thread):
    """Reports the long requests of these loops until `stop` is called."""

    def __init__(
        self, make_dealer: Callable[[], Dealer], loops: Sequence[ServingLoop], agent: bytes
    ) -> None:
        super().__init__(name="progress", daemon=True)
        self._link = BrokerLink(make_dealer())  # here, so that the caller sees a failure
        self._loops = loops
        self._agent = agent
        self._stopping = threading.Event()
        self._withdrawn: Sequence[str] = ()
        self._reported = 0

    def run(self) -> None:
        """Run the thread."""
        link = self._link
        handshake = Handshake(link, Role.PROGRESS, self._agent, self._sessions)
        next_report = 0.0
        try:
            while not self._stopping.is_set():
                data, now = link.receive(), time.monotonic()
                with contextlib.suppress(GymwireError):  # the loops report what is wrong
                    handshake.watch(now)
                    if data is not None:
                        handshake.handle(PLAIN.decode(data), now)
                withdrawn, self._withdrawn = self._withdrawn, ()
                for address in withdrawn:
                    link.send(PLAIN.encode(Withdraw(address)))
                if now >= next_report:
                    next_report = now + EVERY_S
                    link.send(PLAIN.encode(Ping()))  # else the broker closes the connection
                    self._report(link, now)
        finally:
            link.close()

    def _sessions(self) -> list[list[Any]]:
        """Return all sessions, since a loop in a long step cannot announce its own."""
        return [row for loop in self._loops for row in loop.sessions]

    def withdraw(self, addresses: Sequence[str]) -> None:
        """Withdraw the offers of all loops soon, also of a loop that executes a long step."""
        self._withdrawn = tuple(addresses)

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _report(self, link: BrokerLink, now: float) -> None:
        requests = [request for loop in self._loops for request in loop.current_requests]
        due, self._reported = choose(requests, now, self._reported)
        for sid, seq, since in due:
            link.send(PLAIN.encode(Progress(round(now - since, 3)), sid, seq))


def choose(
    requests: Sequence[CurrentRequest], now: float, reported: int
) -> tuple[list[CurrentRequest], int]:
    """Return the requests to report now, and `reported` for the next call.

    If there are too many long ones, they take turns. `reported`: the sid of the last one reported.
    """
    long = sorted(request for request in requests if now - request[2] >= SLOW_S)
    after = [request for request in long if request[0] > reported]
    due = (after + long)[: min(MAX_REPORTS, len(long))]
    return due, due[-1][0] if due else 0
