"""The env agent under test, seen from a learner, through a broker."""

from __future__ import annotations

import os
from collections.abc import Callable

from gymwire.conformance.agent import Agent
from gymwire.conformance.as_broker import SOFTWARE
from gymwire.conformance.check import Silence
from gymwire.conformance.wires import Wire
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import AddressUnknown, BrokerUnreachable, Refused
from gymwire.protocol.messages import (
    AGENT_SIZE,
    Bye,
    Code,
    Error,
    Find,
    Found,
    Hello,
    Message,
    Open,
    Role,
    Welcome,
)

FIND_AGAIN_S = 0.5  # while the address is not on offer


class LearnersAgent(Agent):
    """An env agent that offers an address at a broker. Each check has its own connection."""

    def __init__(
        self, wire: Wire, clock: Callable[[], float], timeout_s: float, address: str
    ) -> None:
        self._welcomed = False
        self._found: Found | None = None
        self._find_at = 0.0
        super().__init__(wire, clock, timeout_s)
        self.address = address

    def greet(self, wait_s: float) -> None:
        """Wait until the address is on offer. Raises BrokerUnreachable, AddressUnknown."""
        timeout_s, self._timeout_s = self._timeout_s, wait_s
        self.begin()
        try:
            self._hello()
            self.capacity = self.wait_for(self._found_slots, f"an offer of {self.address}")
        except Silence:
            if self._found is not None:
                raise AddressUnknown(
                    f"No env agent has offered {self.address!r} within {wait_s:g} s. `gymwire ls` "
                    f"lists the addresses on offer."
                ) from None
            raise BrokerUnreachable(f"No broker answers within {wait_s:g} s.") from None
        finally:
            self._timeout_s = timeout_s

    def _found_slots(self) -> int | None:
        """Return how many slots the address has; ask the broker again after a while."""
        slots = sum(int(one["capacity"]) for one in self._found.offers) if self._found else 0
        now = self._clock()
        if not slots and now >= self._find_at:
            self._find_at = now + FIND_AGAIN_S
            self.wire.send(bytes(PLAIN.encode(Find(self.address), 0, 1)))
        return slots or None

    def _hello(self) -> None:
        hello = Hello(Role.LEARNER, os.urandom(AGENT_SIZE), SOFTWARE, os.uname().nodename)
        self.send(hello, 0, 1)
        self.wait_for(lambda: self._welcomed or None, "WELCOME")

    def end(self) -> None:
        """Leave the broker, which ends the sessions of the check."""
        if self._welcomed:
            self.wire.send(bytes(PLAIN.encode(Bye("the check has ended"))))
            self._welcomed = False
            self.wire.renew()

    def ask_to_open(self, request: Open) -> tuple[bytes, bytes, Header, Message]:
        """Send OPEN, again while there is no free slot. Returns as `Agent.ask_to_open`."""
        if not self._welcomed:
            self._hello()
        while True:
            asked = super().ask_to_open(request)
            answer = asked[3]
            now = self._clock()
            if not isinstance(answer, Error) or asked[2].sid:
                return asked
            # The slots of the previous check become free when the env agent learns of its end.
            if answer.code != Code.NO_FREE_SLOT or now > self._ends_at:
                raise Refused(f"The broker refused OPEN: {answer.text}")
            self._pump(now)

    def handle(self, message: Message, header: Header) -> None:
        """Note what the broker says."""
        match message:
            case Welcome():
                self._welcomed = True
            case Found():
                self._found = message
            case Error():
                raise Refused(f"The broker refused: {message.text}")
