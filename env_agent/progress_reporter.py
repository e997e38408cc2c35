"""The progress connection: reports which requests of the loops take long.

It runs in a thread of its own, and needs the interpreter only briefly each second. If an
environment does not release the interpreter at all, the liveness connection still shows that the
process is alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.registration import hello
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Busy, BusyReason, Kind, Ping, Progress, Role
from gymwire.protocol.transport.zmq_sockets import Dealer

EVERY_S = 1.0
SLOW_S = 1.0  # report requests that take longer


class ProgressReporter(threading.Thread):
    """Reports the long requests of these loops until `stop` is called."""

    def __init__(
        self, make_dealer: Callable[[], Dealer], loops: Sequence[ServingLoop], agent: bytes
    ) -> None:
        super().__init__(name="progress", daemon=True)
        self._make_dealer = make_dealer
        self._loops = loops
        self._agent = agent
        self._stopping = threading.Event()

    def run(self) -> None:
        """Run the thread."""
        dealer = self._make_dealer()
        next_report = 0.0
        try:
            while not self._stopping.is_set():
                data = dealer.receive()
                linked = any(event.up for event in dealer.link_events())
                if linked or (data is not None and _wants_hello(data)):
                    dealer.send(self._greeting())
                now = time.monotonic()
                if now >= next_report:
                    next_report = now + EVERY_S
                    dealer.send(PLAIN.encode(Ping()))  # else the broker closes the connection
                    self._report(dealer, now)
        finally:
            dealer.close()

    def _greeting(self) -> bytes | bytearray:
        """Return a HELLO with all sessions, which a loop in a long step cannot announce itself."""
        sessions = [row for loop in self._loops for row in loop.sessions]
        return PLAIN.encode(hello(Role.PULSE, self._agent, sessions))

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _report(self, dealer: Dealer, now: float) -> None:
        for loop in self._loops:
            request = loop.current_request  # read once, since the loop continues meanwhile
            if request is None:
                continue
            sid, seq, since = request
            if now - since >= SLOW_S:
                dealer.send(PLAIN.encode(Progress(round(now - since, 3)), sid, seq))


def _wants_hello(data: bytes | memoryview) -> bool:
    try:
        header = codec.read_header(data)
        match header.kind is Kind.BUSY and PLAIN.decode(data, header):
            case Busy(reason=BusyReason.HELLO):
                return True
        return False
    except GymwireError:
        return False
