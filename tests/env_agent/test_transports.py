"""For which of its sockets a serving loop waits."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from gymwire.env_agent import transports as transports_module
from gymwire.env_agent.session import Session
from gymwire.env_agent.transports import (
    PAUSE_S,
    POLL_ALL_EVERY,
    RELAY,
    DirectEndpoint,
    DirectSettings,
    Transports,
)
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import Act
from gymwire.protocol.transport import kernel
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import TICK_MS, Received, Waitable
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import UnixDealer
from tests.chaos.fleet import until
from tests.protocol.transport.test_stalled_readers import dial_as_dealer

SID = 5
REQUEST = bytes(PLAIN.encode(Act(1), SID, 2))
Receive = Callable[[bool], Received | None]
ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy


@pytest.fixture
def broker() -> Iterator[Router]:
    made = Router(["tcp://127.0.0.1:*"])
    yield made
    made.close()


@pytest.fixture
def transports(broker: Router) -> Iterator[Transports]:
    """The transports of a loop whose only session is attached to a direct connection."""
    url = broker.urls[0]
    made = Transports(
        BrokerLink(Dealer(url)), DirectEndpoint(DirectSettings("tcp://127.0.0.1:*"), 0, url)
    )
    assert made.direct is not None
    session = Session(SID, b"n" * 16, "cartpole", "")
    assert made.direct.attach(session, session.nonce, b"\x01its learner", None)
    yield made
    made.close()


def relay(broker: Router, transports: Transports) -> None:
    """Let the broker relay a request of the session."""
    assert any(transports.link.send(b"x", wait=True) for _ in range(ATTEMPTS))
    received = next(filter(None, (broker.receive() for _ in range(ATTEMPTS))))
    broker.send(received[0], REQUEST)


def arrived(transports: Transports) -> Received:
    for _ in range(ATTEMPTS):
        found = transports.receive(1)
        if found is not None:
            return found
    raise AssertionError("no frame arrived")


def test_a_session_that_fell_back_to_the_relay_does_not_wait_for_the_direct_socket(
    broker: Router, transports: Transports, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transports.direct is not None
    waits: list[bool] = []
    for listener in transports.direct.listeners:
        receive = listener.receive

        def counted(wait: bool = True, receive: Receive = receive) -> Received | None:
            waits.append(wait)
            return receive(wait)

        monkeypatch.setattr(listener, "receive", counted)
    relay(broker, transports)
    assert arrived(transports) == (RELAY, None, REQUEST)
    assert waits  # nothing has shown yet that the session uses the relay
    waits.clear()
    for _ in range(3):
        relay(broker, transports)
        assert arrived(transports) == (RELAY, None, REQUEST)
    assert not waits


def within_host(url: str) -> Transports:
    """Return the transports of a loop that accepts direct connections, and has none yet."""
    return Transports(BrokerLink(Dealer(url)), DirectEndpoint(DirectSettings(None), 0, url))


def test_a_new_learner_that_connects_directly_does_not_wait_for_the_relay(
    broker: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(within_host(broker.urls[0])) as made:
        assert made.direct is not None
        (unix,) = made.direct.listeners
        made.direct.expect(SID, "")
        monkeypatch.setattr(
            made.link, "receive", lambda: pytest.fail("waited for the wrong socket")
        )
        with contextlib.closing(UnixDealer(unix.urls[0])) as learner:
            learner.send(REQUEST)
            found = next(filter(None, (made.receive(1) for _ in range(ATTEMPTS))))
            assert found[2] == REQUEST
        session = Session(SID, b"n" * 16, "cartpole", "")
        assert made.direct.attach(session, session.nonce, found[0], None)
        assert made.direct.new_learner_polls == 0  # no other learner is expected


@pytest.fixture
def learner(within: Transports) -> Iterator[UnixDealer]:
    """Connect the learner of the only session of `within` directly."""
    assert within.direct is not None
    (unix,) = within.direct.listeners
    within.direct.expect(SID, "")
    with contextlib.closing(UnixDealer(unix.urls[0])) as made:
        made.send(REQUEST)
        session = Session(SID, b"n" * 16, "cartpole", "")
        assert within.direct.attach(session, session.nonce, arrived(within)[0], None)
        yield made


@pytest.fixture
def within(broker: Router) -> Iterator[Transports]:
    with contextlib.closing(within_host(broker.urls[0])) as made:
        yield made


def test_after_a_silent_tick_the_relay_is_waited_for_too(
    broker: Router, within: Transports, learner: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner.send(REQUEST)
    assert arrived(within)[0] != RELAY
    assert within.receive(1) is None
    (unix,) = within._listeners
    receive = unix.receive

    def at_once(wait: bool = True) -> Received | None:
        assert not wait, "waited for the direct socket alone"
        return receive(wait)

    with monkeypatch.context() as patched:
        patched.setattr(unix, "receive", at_once)
        assert within.direct is not None
        within.direct.receive_alone = None  # so that it gets the patched one
        relay(broker, within)
        assert arrived(within) == (RELAY, None, REQUEST)


def test_polling_all_sockets_between_two_steps_waits_for_the_second(
    within: Transports, learner: UnixDealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the loop would run all its timers after each 64 steps."""
    waits: list[float] = []

    def counted(sockets: Sequence[Waitable], timeout_s: float) -> list[int]:
        waits.append(timeout_s)
        return wait_among(sockets, timeout_s)

    monkeypatch.setattr(transports_module, "wait_among", counted)
    for _ in range(3 * POLL_ALL_EVERY):
        learner.send(REQUEST)
        assert arrived(within)[0] != RELAY
    assert len(waits) >= 2
    assert set(waits) == {TICK_MS / 1000}


def test_only_the_relay_is_waited_for_while_all_sessions_use_it(
    broker: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll over all sockets would make each step slower."""
    with contextlib.closing(within_host(broker.urls[0])) as made:
        assert made.direct is not None
        made.direct.new_learner_polls = 1
        relay(broker, made)
        assert arrived(made) == (RELAY, None, REQUEST)  # found by a poll over all sockets
        monkeypatch.setattr(made, "_receive_any", lambda _: pytest.fail("polled all sockets"))
        relay(broker, made)
        assert arrived(made) == (RELAY, None, REQUEST)


def test_without_a_temporary_folder_direct_sessions_use_tcp_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    endpoint = DirectEndpoint(DirectSettings("tcp://127.0.0.1:*"), 0, "tcp://127.0.0.1:5555")
    assert [url.partition(":")[0] for url in endpoint.offer["urls"]] == ["tcp"]
    endpoint.close()
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        DirectEndpoint(DirectSettings(None), 0, "tcp://127.0.0.1:5555")


def test_after_a_connection_has_failed_unnoticed_the_sessions_use_the_broker_alone(
    broker: Router, transports: Transports, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transports.direct is not None
    listener = next(one for one in transports.direct.listeners if isinstance(one, Router))
    port = int(listener.urls[0].rpartition(":")[2])
    with dial_as_dealer(port):
        until(listener.link_events, "the connection is accepted")
        monkeypatch.setattr(listener, "receive", lambda: pytest.fail("received"))
        now = time.monotonic()
        transports.watch(now)
        monkeypatch.setattr(kernel, "has_failed", lambda _fd: True)
        transports.watch_after_pause(now + PAUSE_S / 2)
        assert transports.direct is not None  # it was looked at all the time
        transports.watch_after_pause(now + 2 * PAUSE_S)
    assert transports.direct is None
    transports.send(b"\x01its learner", REQUEST)  # is dropped
    relay(broker, transports)
    assert arrived(transports)[2] == REQUEST
