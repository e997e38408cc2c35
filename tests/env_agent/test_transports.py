"""Which of its two ways a serving loop waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gymwire.env_agent.session import Session
from gymwire.env_agent.transports import RELAY, Arrived, DirectEndpoint, DirectSettings, Paths
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Act
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import UnixDealer

SID = 5
REQUEST = bytes(PLAIN.encode(Act(1), SID, 2))
ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy


@pytest.fixture
def broker() -> Iterator[Router]:
    made = Router(["tcp://127.0.0.1:*"])
    yield made
    made.close()


@pytest.fixture
def paths(broker: Router) -> Iterator[Paths]:
    """Those of a loop whose only session has come directly."""
    url = broker.urls[0]
    made = Paths(
        BrokerLink(Dealer(url)), DirectEndpoint(DirectSettings("tcp://127.0.0.1:*"), 0, url)
    )
    assert made.direct is not None
    session = Session(SID, b"n" * 16, "cartpole", "")
    assert made.direct.attach(session, session.nonce, b"\x01its learner", None)
    yield made
    made.close()


def relay(broker: Router, paths: Paths) -> None:
    """The broker passes a request of the session on."""
    assert any(paths.dealer.send(b"x", wait=True) for _ in range(ATTEMPTS))
    received = next(filter(None, (broker.receive() for _ in range(ATTEMPTS))))
    broker.send(received[0], REQUEST)


def arrived(paths: Paths) -> Arrived:
    for _ in range(ATTEMPTS):
        found = paths.receive(1)
        if found is not None:
            return found
    raise AssertionError("nothing came")


def test_a_session_that_has_fallen_back_is_not_kept_waiting_for_the_direct_way(
    broker: Router, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay(broker, paths)
    assert arrived(paths) == (RELAY, None, REQUEST)
    assert paths.direct is not None
    for listener in paths.direct.listeners:
        monkeypatch.setattr(listener, "receive", lambda **_: pytest.fail("waited for in vain"))
    for _ in range(3):
        relay(broker, paths)
        assert arrived(paths) == (RELAY, None, REQUEST)


def within_host(url: str) -> Paths:
    """Those of a loop to which learners of its host may come directly, and none has."""
    return Paths(BrokerLink(Dealer(url)), DirectEndpoint(DirectSettings(None), 0, url))


def test_who_was_told_of_the_direct_way_is_not_kept_waiting_there(
    broker: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(within_host(broker.urls[0])) as made:
        assert made.direct is not None
        (unix,) = made.direct.listeners
        made.direct.expect(SID, "")
        monkeypatch.setattr(made.dealer, "receive", lambda: pytest.fail("waited for in vain"))
        with contextlib.closing(UnixDealer(unix.urls[0])) as learner:
            learner.send(REQUEST)
            found = next(filter(None, (made.receive(1) for _ in range(ATTEMPTS))))
            assert found[2] == REQUEST
        session = Session(SID, b"n" * 16, "cartpole", "")
        assert made.direct.attach(session, session.nonce, found[0], None)
        assert made.direct.newcomers == 0  # nobody else is waited for


def test_a_relayed_session_is_waited_for_where_it_comes(
    broker: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll over all sockets, of which nobody uses the others, would cost each step more."""
    with contextlib.closing(within_host(broker.urls[0])) as made:
        assert made.direct is not None
        made.direct.newcomers = 1
        relay(broker, made)
        assert arrived(made) == (RELAY, None, REQUEST)  # while all were waited for
        monkeypatch.setattr(made, "_any", lambda _: pytest.fail("waited for all"))
        relay(broker, made)
        assert arrived(made) == (RELAY, None, REQUEST)
