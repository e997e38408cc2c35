"""How the suite reaches an env agent: as its broker, or as a learner through a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gymwire.protocol.codec import KIND_AT, PLAIN
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import LIVENESS_PREFIX, Busy, BusyReason, Hello, Kind, Role
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import Delivery
from gymwire.protocol.transport.router import Router, fd_of

LINGER_S = 0.3  # for which the last frames may still leave after `close`


class Wire(Protocol):
    """A connection to an env agent, or to the broker before it.

    Attributes:
        parts: whether the other side has sent a message of several parts.
        routing_id: that of the env agent's connection; b"" if it is unknown.
        welcome: the WELCOME for its progress connection.
    """

    parts: bool
    routing_id: bytes
    welcome: bytes

    def send(self, frame: bytes) -> bool:
        """Send one frame. Returns False if there is no connection."""

    def receive(self) -> bytes | None:
        """Return the next frame, or None after a tick without one."""

    def renew(self) -> bool:
        """Replace the connection by a new one. Returns False where that is impossible."""

    def close(self) -> None:
        """Close the connection."""


class BrokerWire:
    """A listening socket, at the first serving loop that introduces itself there.

    Further loops of the env agent are left waiting. Its progress connection is heard, too.
    """

    def __init__(self, url: str, key: KeyPair | None, *, insecure: bool = False) -> None:
        self._router = Router([url], key=key, insecure=insecure, elsewhere="choose another port")
        self.url = self._router.urls[0]
        self.parts = False
        self.routing_id = self.welcome = b""
        self._agent = b""
        self._fd = -1  # of its connection
        self._progress: set[bytes] = set()

    def send(self, frame: bytes) -> bool:
        """Send one frame to the serving loop."""
        return self._router.send(self.routing_id, frame) is Delivery.DONE

    def receive(self) -> bytes | None:
        """Return the next frame of the serving loop, or of its progress connection."""
        received = self._router.receive()
        if self.routing_id in self._router.take_multipart():
            self.parts = True
        if received is None:
            return None
        rid, frame = received[0], bytes(received[2])
        if rid == self.routing_id:
            self._fd = fd_of(received[1])
            return frame
        if rid in self._progress and len(frame) > KIND_AT and frame[KIND_AT] != Kind.HELLO:
            return frame
        return self._introduced(rid, frame)

    def _introduced(self, rid: bytes, frame: bytes) -> bytes | None:
        """Return the HELLO of the serving loop; ask others for theirs."""
        if rid.startswith(LIVENESS_PREFIX):
            return None
        try:
            hello = PLAIN.decode(frame)
        except GymwireError:
            hello = None
        if not isinstance(hello, Hello):
            if not self.routing_id:
                self._router.send(rid, bytes(PLAIN.encode(Busy(BusyReason.HELLO))))
            return None
        if hello.role == Role.ENV and not self.routing_id:
            if self._agent in (b"", hello.agent):
                self.routing_id, self._agent = rid, hello.agent
                return frame
        elif hello.role == Role.PROGRESS and hello.agent == self._agent and self.welcome:
            self._progress.add(rid)
            self._router.send(rid, self.welcome)
        return None

    def renew(self) -> bool:
        """Cut the connection, and wait for the next HELLO over another one."""
        self._router.hang_up(self._fd)
        self.routing_id = b""
        return self._fd >= 0

    def close(self) -> None:
        """Stop listening; the last frames may still leave for LINGER_S."""
        self._router.close(LINGER_S)


class LearnerWire:
    """A connection to a broker, as a learner's."""

    routing_id = welcome = b""
    parts = False

    def __init__(self, url: str, key: KeyPair | None, broker_key: bytes | None) -> None:
        self._dial: Callable[[], Dealer] = lambda: Dealer(url, key=key, server_key=broker_key)
        self._dealer = self._dial()

    def send(self, frame: bytes) -> bool:
        """Send one frame to the broker."""
        return self._dealer.send(frame)

    def receive(self) -> bytes | None:
        """Return the next frame from the broker, or None after a tick without one."""
        self._dealer.link_events()
        frame = self._dealer.receive()
        return None if frame is None else bytes(frame)

    def renew(self) -> bool:
        """Dial again."""
        self._dealer.close(LINGER_S)
        self._dealer = self._dial()
        return True

    def close(self) -> None:
        """Close the connection; the last frames may still leave for LINGER_S."""
        self._dealer.close(LINGER_S)
