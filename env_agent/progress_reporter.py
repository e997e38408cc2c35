"""The pulse: a thread with its own connection that says since when a loop has been in its step.

It needs the interpreter only for a moment each second; where an environment does not even leave it
that, libzmq's own heartbeats still say that the process is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from gymwire.env_agent.loop import ServingLoop, hello
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import Busy, BusyReason, Kind, Ping, Progress, Role
from gymwire.protocol.transport.zmq_sockets import Dealer

EVERY_S = 1.0
SLOW_S = 1.0  # a request that lasts longer is reported


class ProgressReporter(threading.Thread):
    """Reports the long requests of these loops until `stop` is called."""

    def __init__(
        self, make_dealer: Callable[[], Dealer], loops: Sequence[ServingLoop], agent: bytes
    ) -> None:
        super().__init__(name="pulse", daemon=True)
        self._make_dealer = make_dealer
        self._loops = loops
        self._agent = agent
        self._stopping = threading.Event()

    def run(self) -> None:
        """The thread."""
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
                    dealer.send(PLAIN.encode(Ping()))  # else the broker hangs up
                    self._report(dealer, now)
        finally:
            dealer.close()

    def _greeting(self) -> bytes | bytearray:
        """Names all sessions: a loop in a long step cannot announce them to a new broker itself."""
        sessions = [row for loop in self._loops for row in loop.sessions]
        return PLAIN.encode(hello(Role.PULSE, self._agent, sessions))

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _report(self, dealer: Dealer, now: float) -> None:
        for loop in self._loops:
            current_request = loop.current_request  # once: the loop goes on meanwhile
            if current_request is None:
                continue
            sid, seq, since = current_request
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
