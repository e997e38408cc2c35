"""Direct connections that are being made, with an injected clock."""

from __future__ import annotations

from typing import Any, cast

import pytest
import zmq

from gymwire.learner_agent.client import direct
from gymwire.learner_agent.client.direct import DirectLink, DirectLinks, DirectPath
from gymwire.protocol.codec import PLAIN, read_header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Kind, Resumed
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.interface import LinkEvent


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Dealer:
    """A connection that is up from `up_at` on; its peer answers RESUME at once, or never."""

    def __init__(self, clock: Clock, up_at: float, *, answers: bool, denied: str = "") -> None:
        self._clock, self._up_at = clock, up_at
        self._answers, self._denied = answers, denied
        self._told = False
        self._arrived: list[bytes | bytearray] = []
        self.sent: list[Kind] = []
        self.refused = 1  # libzmq may not take a frame in the moment when a connection is made

    def link_events(self) -> list[LinkEvent]:
        if self._told or self._clock.now < self._up_at:
            return []
        self._told = True
        return [LinkEvent(not self._denied, -1, self._denied)]

    def send(self, frame: bytes | bytearray) -> bool:
        if self.refused:
            self.refused -= 1
            return False
        self.sent.append(read_header(frame).kind)
        if self._answers:
            self._arrived.append(PLAIN.encode(Resumed(), 7, 0))
        return True

    def poll(self, timeout_s: float = 0.0) -> bool:
        if not self._arrived:
            self._clock.now += timeout_s
        return bool(self._arrived)

    def receive(self) -> bytes | bytearray:
        return self._arrived.pop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def path(dealer: Dealer) -> DirectPath:
    return DirectPath(DirectLink(cast(Any, dealer)), 7, bytes(16), lambda *_: True)


def test_connections_are_made_side_by_side(clock: Clock) -> None:
    never, silent = Dealer(clock, 1e9, answers=False), Dealer(clock, 0.1, answers=False)
    late = Dealer(clock, 0.4, answers=True)
    links = [path(dealer) for dealer in (never, silent, never, late)]
    direct.wait_until_attached(links, 0.5, clock)
    assert [one.up for one in links] == [False, False, False, True]
    assert 0.5 <= clock.now < 0.51
    assert silent.sent == late.sent == [Kind.RESUME]


def test_connections_that_are_up_or_denied_are_not_waited_for(clock: Clock) -> None:
    denied = Dealer(clock, 0.2, answers=False, denied="it knows no such key")
    links = [path(dealer) for dealer in (denied, Dealer(clock, 0.1, answers=True))]
    direct.wait_until_attached(links, 0.5, clock)
    assert [one.up for one in links] == [False, True]
    assert clock.now < 0.21


@pytest.mark.parametrize(
    "key", ["text", 5, [1], b"x", b"\xff" * 40, b"a" * 39, {"a": 1}, True], ids=repr
)
def test_a_malformed_key_of_an_endpoint_is_an_error_of_the_env_agent(key: object) -> None:
    mine = KeyPair(*zmq.curve_keypair())
    with pytest.raises(DecodingError, match="direct endpoint"):
        DirectLinks().link({"urls": ["tcp://127.0.0.1:1"], "key": key}, mine)
