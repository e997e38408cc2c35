"""What a serving loop sends to register its offers."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import structlog
import structlog.testing

from gymwire.env_agent.registration import Registration
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import BrokerUnreachable
from gymwire.protocol.messages import Busy, BusyReason, Hello, Message, Offer, Offered, Welcome
from tests.broker.harness import offer

WELCOME = Welcome(1, "", "", 2**26, 30.0)


class Link:
    """A link to a broker that keeps the messages sent over it."""

    url = "tcp://127.0.0.1:5555"

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, frame: bytes, wait: bool = False) -> bool:
        self.sent.append(PLAIN.decode(frame))
        return True

    send_hello = send

    def handle_welcome(self, welcome: Welcome) -> None:
        pass

    def link_events(self) -> list[Any]:
        return []

    def take(self, kind: type[Message]) -> list[Any]:
        """Return the messages of this type that were sent, and forget all."""
        taken, self.sent = self.sent, []
        return [one for one in taken if isinstance(one, kind)]


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def registration(link: Link) -> Registration:
    offers = [offer("a"), offer("b")]
    return Registration(cast(Any, link), b"a" * 16, offers, list, lambda _: None)


def test_only_unconfirmed_offers_are_sent_again(link: Link, registration: Registration) -> None:
    registration.handle(WELCOME, 1.0)
    assert [one.address for one in link.take(Offer)] == ["a", "b"]
    registration.handle(Offered("a"), 1.0)
    registration.handle(WELCOME, 2.0)
    assert [one.address for one in link.take(Offer)] == ["b"]


def test_all_offers_are_sent_to_another_run_of_the_broker(
    link: Link, registration: Registration
) -> None:
    registration.handle(WELCOME, 1.0)
    registration.handle(Offered("a"), 1.0)
    link.sent.clear()
    registration.handle(Welcome(2, "", "", 2**26, 30.0), 2.0)
    assert [one.address for one in link.take(Offer)] == ["a", "b"]
    assert registration.unconfirmed == {"a", "b"}


def test_a_throttled_loop_waits_as_long_as_the_broker_says(
    link: Link, registration: Registration
) -> None:
    registration.handle(WELCOME, 10.0)
    registration.handle(Busy(BusyReason.RATE, 1.0), 10.0)
    registration.run_timers(10.9)
    assert link.take(Hello) == []
    registration.run_timers(11.0)
    assert len(link.take(Hello)) == 1


def test_an_offer_that_does_not_get_through_is_named_and_the_mtu_suggested(link: Link) -> None:
    clock = itertools.count(1.0, 0.5)
    with structlog.testing.capture_logs() as logs:
        registration = Registration(
            cast(Any, link), b"a" * 16, [offer("a"), offer("b")], list, lambda _: None
        )
        registration.handle(WELCOME, 1.0)
        registration.handle(Offered("a"), 1.0)
        with pytest.raises(BrokerUnreachable, match=r"has not confirmed all offers .* wrong MTU"):
            registration.connect(clock.__next__, 9.0, pump=lambda: None, stopped=lambda: False)
    [waiting] = [one for one in logs if one["event"].startswith("waiting")]
    assert (waiting["event"], waiting["offers"]) == ("waiting for confirmation", ["b"])
    assert "wrong MTU" in waiting["why"]
