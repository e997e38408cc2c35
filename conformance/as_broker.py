"""The env agent under test, seen from its broker."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Silence, Violation, expect, shown
from gymwire.conformance.wires import Wire
from gymwire.protocol.codec import PLAIN, Header
from gymwire.protocol.errors import ConnectionFailed
from gymwire.protocol.messages import (
    Bye,
    Code,
    Error,
    Gone,
    Hello,
    Message,
    Offer,
    Offered,
    Ping,
    Pong,
    Role,
    Welcome,
)

FIRST_SID = 2**40
MAX_MESSAGE = 2**26
LEASE = 30.0  # seconds
SOFTWARE = "gymwire conformance"


class BrokersAgent(Agent):
    """An env agent that has dialed the suite.

    Attributes:
        hellos, offers, pongs: what it has sent, the latest last.
        first_hello, first_offer: the frames of the first ones.
        epoch: the number of the broker that the suite plays.
        max_message: the limit that the next WELCOME names.
    """

    is_broker = True

    def __init__(
        self, wire: Wire, clock: Callable[[], float], timeout_s: float, address: str = ""
    ) -> None:
        self.hellos: list[Hello] = []
        self.offers: list[Offer] = []
        self.first_hello = self.first_offer = b""
        self.pongs = 0
        self.epoch = 1
        self.max_message = MAX_MESSAGE
        self._sids = itertools.count(FIRST_SID)
        super().__init__(wire, clock, timeout_s)
        self.address = address

    def greet(self, wait_s: float) -> None:
        """Wait for the first env agent. Raises ConnectionFailed, Violation."""
        timeout_s, self._timeout_s = self._timeout_s, wait_s
        self.begin()
        try:
            offer = self.wait_for(self.offer, f"OFFER of {self.address or 'an address'}")
        except Silence:
            seen = [one.address for one in self.offers]
            raise ConnectionFailed(
                f"No env agent has offered {self.address or 'an address'} within {wait_s:g} s. "
                + (f"It offers {', '.join(seen)}." if seen else "Start it, and connect it here.")
            ) from None
        finally:
            self._timeout_s = timeout_s
        self.address, self.capacity = offer.address, offer.capacity

    def offer(self) -> Offer | None:
        """Return the latest offer of the address under test."""
        mine = [one for one in self.offers if self.address in ("", one.address)]
        return mine[-1] if mine else None

    def end(self) -> None:
        """End the sessions of a check, as if their learner had gone."""
        for sid in self.sessions:
            self.wire.send(bytes(PLAIN.encode(Gone("the check has ended"), sid)))

    def new_sid(self) -> int:
        """Return the session id of the next OPEN."""
        return next(self._sids)

    def handle(self, message: Message, header: Header) -> None:
        """Play the broker. Raises Violation."""
        match message:
            case Hello():
                expect(message.role == Role.ENV, 'the role "env"', message.role, "4.3.1")
                self.first_hello = self.first_hello or self.received
                self.hellos.append(message)
                welcome = Welcome(self.epoch, SOFTWARE, "", self.max_message, LEASE)
                self.wire.welcome = bytes(PLAIN.encode(welcome, 0, header.seq))
                self.wire.send(self.wire.welcome)
            case Offer():
                if self.address in ("", message.address):
                    self.first_offer = self.first_offer or self.received
                self.offers.append(message)
                self.wire.send(bytes(PLAIN.encode(Offered(message.address), 0, header.seq)))
            case Ping():
                self.wire.send(bytes(PLAIN.encode(Pong(), header.sid, header.seq)))
            case Pong():
                self.pongs += 1
            case Bye():
                raise Violation("an env agent that serves", shown(message), "4.3")
            case Error() if message.code == Code.VERSION:
                raise Violation("frames of version 1", shown(message), "3.8")
