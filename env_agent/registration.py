"""The registration of one serving loop with the broker: HELLO, WELCOME, OFFER, WITHDRAW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gymwire.protocol import logs
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.control_limits import check_control
from gymwire.protocol.errors import AddressTaken, Denied, Refused
from gymwire.protocol.messages import (
    Busy,
    BusyReason,
    Bye,
    Code,
    Error,
    Message,
    Offer,
    Offered,
    Ping,
    Role,
    Welcome,
    Withdraw,
)
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.handshake import Handshake

TOO_LARGE = (
    "Make the metadata and the spaces of the environment smaller: for example, use one bound for "
    "all elements, and put the name of a file in the place of its content."
)
MAX_TEXT = 20_000  # characters of what the broker says, in an error
PING_S = 1.0  # interval at which a loop asks whether the broker still knows it


def check_offer(offer: Offer) -> None:
    """Raise ConfigurationError if an offer is larger than a broker accepts."""
    check_control(f"OFFER of {offer.address!r}", PLAIN.encode(offer), TOO_LARGE)


class Registration:
    """Keeps the offers of one serving loop registered, also with a broker that was restarted.

    Args:
        link: the link to the broker.
        agent: the random bytes that identify this process.
        offers: what the loop offers.
        sessions: returns the live sessions, as HELLO lists them.
        log_state: logs an event that concerns the broker.

    Raises:
        ConfigurationError: an offer is larger than a broker accepts.

    Attributes:
        unconfirmed: the addresses for which the broker has not sent OFFERED yet.
        away_since: since when the broker is away, in monotonic seconds; None if it is not.
        withdrawn: whether the offers were withdrawn.
    """

    def __init__(
        self,
        link: BrokerLink,
        agent: bytes,
        offers: Sequence[Offer],
        sessions: Callable[[], list[Any]],
        log_state: Callable[[str], None],
    ) -> None:
        self.unconfirmed = {offer.address for offer in offers}
        self.away_since: float | None = None
        self.withdrawn = False
        self._link = link
        self._offers = offers
        for offer in offers:
            check_offer(offer)
        self._handshake = Handshake(link, Role.ENV, agent, sessions)
        self._log_state = log_state
        self._log = logs.logger()
        self._welcomed = False
        self._epoch = 0
        self._ping_at = 0.0

    def connect(
        self,
        clock: Callable[[], float],
        wait_s: float,
        *,
        pump: Callable[[], None],
        stopped: Callable[[], bool],
    ) -> bool:
        """Send HELLO and the offers until the broker has confirmed all of them.

        Args:
            clock: returns the time in seconds.
            wait_s: how long the broker may take.
            pump: receives at most one frame, waiting a tick at most, and handles it.
            stopped: whether to give up.

        Returns False if `stopped` meanwhile. Raises BrokerUnreachable, Denied, VersionMismatch or
        AddressTaken.
        """
        return self._handshake.connect(
            clock,
            wait_s,
            pump=pump,
            done=lambda: not self.unconfirmed,
            stopped=stopped,
            on_wait=lambda: self._log_wait(wait_s),
        )

    def _log_wait(self, wait_s: float) -> None:
        """Log for what `connect` has waited longer than usual."""
        facts: dict[str, object] = {"broker": self._link.url, "at_most_s": wait_s}
        if not self._welcomed:
            self._log.info("waiting for broker", **facts)
            return
        self._log.warning(
            "waiting for confirmation",
            **facts,
            offers=sorted(self.unconfirmed),
            why="the broker answers: it is overloaded, or the path loses large packets, as behind "
            "a tunnel with a wrong MTU",
        )

    def _await_confirmation(self) -> None:
        """Expect OFFERED for each offer: the offers follow each HELLO."""
        self.unconfirmed = {offer.address for offer in self._offers}

    def handle(self, message: Message, now: float) -> None:
        """Handle a message from the broker that concerns this loop, not one of its sessions.

        Raises AddressTaken, Denied or Refused if the broker rejects this agent.
        """
        match message:
            case Welcome():
                self._welcome(message, now)
            case Busy(reason=BusyReason.HELLO):
                self._await_confirmation()
                self._handshake.handle(message, now)
            case Busy(reason=BusyReason.RATE):
                self._handshake.pause(message.retry_after_s, now)
            case Error():
                self._refused(message)
            case Bye():
                self._log_state("broker stopping")
            case Offered():
                if message.address in self.unconfirmed:
                    self._handshake.progress_at = now
                self.unconfirmed.discard(message.address)

    def _welcome(self, welcome: Welcome, now: float) -> None:
        restarted = welcome.epoch != self._epoch
        if self._welcomed and restarted:
            self._log_state("broker restarted")
        elif self.away_since is not None:
            self._log_state("broker reconnected")
        self._welcomed, self._epoch, self.away_since = True, welcome.epoch, None
        self._handshake.handle(welcome, now)
        if restarted:
            self._await_confirmation()
        for offer in self._offers:
            # Only these: repeating large offers that are confirmed could use up the rate limit.
            if offer.address in self.unconfirmed:
                self._link.send(PLAIN.encode(offer))
            if self.withdrawn:
                self._link.send(PLAIN.encode(Withdraw(offer.address)))

    def _refused(self, error: Error) -> None:
        text = error.text[:MAX_TEXT]
        if error.code == Code.ADDRESS_TAKEN:
            raise AddressTaken(text)
        if error.code == Code.DENIED:
            raise Denied(text)
        if not self._welcomed or error.code == Code.LIMIT:
            raise Refused(text)
        self._log.warning("error from broker", error=text)

    def run_timers(self, now: float) -> None:
        """Follow the state of the connection, repeat HELLO if it is due, and ping the broker.

        Raises Denied if the broker denies the connection.
        """
        for event in self._handshake.watch(now):
            if event.up:
                self._await_confirmation()
            elif self.away_since is None and self._welcomed:
                self.away_since = now
                self._log_state("broker lost, waiting for it")
        if self.unconfirmed:  # a frame of the handshake may have been lost
            self._handshake.repeat_hello(now)
        if now >= self._ping_at:
            self._ping_at = now + PING_S
            self._link.send(PLAIN.encode(Ping()))

    @property
    def due_at(self) -> float:
        """When `run_timers` must be called again if no connection is made or lost."""
        return 0.0 if self.unconfirmed or self.away_since is not None else self._ping_at

    def withdraw(self) -> None:
        """Withdraw the offers, so that no new sessions are opened."""
        self.withdrawn = True
        for offer in self._offers:
            self._link.send(PLAIN.encode(Withdraw(offer.address)))
