"""The pulse: a thread with its own connection that says since when a loop has been in its step.

It needs the interpreter only for a moment each second; where an environment does not even leave it
that, libzmq's own heartbeats still say that the process is there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gymwire.env_agent.loop import Loop
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Ping, Progress, Role
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.handshake import Handshake

EVERY_S = 1.0
SLOW_S = 1.0  # a request that lasts longer is reported


class Pulse(threading.Thread):
    """Reports the long requests of these loops until `stop` is called."""

    def __init__(
        self, make_dealer: Callable[[], Dealer], loops: Sequence[Loop], agent: bytes
    ) -> None:
        super().__init__(name="pulse", daemon=True)
        self._make_dealer = make_dealer
        self._loops = loops
        self._agent = agent
        self._stopping = threading.Event()

    def run(self) -> None:
        """The thread."""
        dealer = BrokerLink(self._make_dealer())
        handshake = Handshake(dealer, Role.PROGRESS, self._agent, self._sessions)
        next_report = 0.0
        try:
            while not self._stopping.is_set():
                data = dealer.receive()
                now = time.monotonic()
                with contextlib.suppress(GymwireError):  # the loops report what is wrong
                    handshake.watch(now)
                    if data is not None:
                        handshake.take(PLAIN.decode(data), now)
                if now >= next_report:
                    next_report = now + EVERY_S
                    dealer.send(PLAIN.encode(Ping()))  # else the broker hangs up
                    self._report(dealer, now)
        finally:
            dealer.close()

    def _sessions(self) -> list[list[Any]]:
        """All sessions, since a loop in a long step cannot announce its own to a new broker."""
        return [row for loop in self._loops for row in loop.sessions]

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _report(self, dealer: BrokerLink, now: float) -> None:
        for loop in self._loops:
            in_step = loop.in_step  # once: the loop goes on meanwhile
            if in_step is None:
                continue
            sid, seq, since = in_step
            if now - since >= SLOW_S:
                dealer.send(PLAIN.encode(Progress(round(now - since, 3)), sid, seq))
