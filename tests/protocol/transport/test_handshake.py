"""The handshake with a broker, with a link and a clock of the test's own."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import PLAIN, Frame
from gymwire.protocol.errors import BrokerUnreachable, Denied
from gymwire.protocol.messages import Busy, BusyReason, Hello, Ping, Role, Welcome
from gymwire.protocol.transport.handshake import HELLO_AGAIN_S, NOTICE_S, Handshake
from gymwire.protocol.transport.interface import LinkEvent

TICK_S = 0.1
WELCOME = Welcome(7, "gymwire 0.2.0", "", 1000, 30.0, capabilities=[*CAPABILITIES, "more"])
UP, DOWN = LinkEvent(True, -1), LinkEvent(False, -1)


class Link:
    """A connection to a broker that answers the HELLO number `answers` (0: none)."""

    url = "tcp://127.0.0.1:5555"
    handshake_hint = ""

    def __init__(self, answers: int = 1, connected_at: float = 0.0) -> None:
        self.now = 0.0
        self.hellos: list[tuple[float, Hello]] = []
        self.events: list[LinkEvent] = []
        self.welcomes: list[Welcome] = []
        self.pumped = self.dialed_again = 0
        self._answers, self._connected_at = answers, connected_at

    def send_hello(self, hello: Frame, wait: bool = False) -> bool:
        if self.now < self._connected_at:
            self.now += TICK_S if wait else 0.0
            return False
        message = PLAIN.decode(hello)
        assert isinstance(message, Hello)
        self.hellos.append((self.now, message))
        return True

    def link_events(self) -> list[LinkEvent]:
        events, self.events = self.events, []
        return events

    def dial_again(self) -> None:
        self.dialed_again += 1

    def handle_welcome(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)

    def handshake(self, **options: Any) -> Handshake:
        return Handshake(cast(Any, self), Role.ENV, b"a" * 16, **options)

    def connect(self, handshake: Handshake, wait_s: float = 5.0, **options: Any) -> bool:
        def pump() -> None:
            self.pumped += 1
            self.now += TICK_S
            if self._answers and len(self.hellos) == self._answers:
                handshake.handle(WELCOME, self.now)

        return handshake.connect(
            lambda: self.now,
            wait_s,
            pump=pump,
            done=lambda: handshake.welcome is not None,
            **options,
        )


def test_hello_introduces_this_process_and_welcome_is_kept() -> None:
    link = Link()
    handshake = link.handshake(sessions=lambda: [[1, b"n" * 16, "a", ""]])
    assert link.connect(handshake)
    ((_, hello),) = link.hellos
    assert (hello.role, hello.agent) == (Role.ENV, b"a" * 16)
    assert hello.sessions == [[1, b"n" * 16, "a", ""]]
    assert hello.capabilities == list(CAPABILITIES)
    assert handshake.welcome == WELCOME
    assert link.welcomes == [WELCOME]
    assert handshake.capabilities == frozenset(CAPABILITIES)


def test_a_broker_of_0_1_0_shares_no_capabilities() -> None:
    handshake = Link().handshake()
    assert handshake.handle(Welcome(7, "gymwire 0.1.0", "", 1000, 30.0), 0.0)
    assert handshake.capabilities == frozenset()


def test_hello_is_repeated_until_it_is_answered() -> None:
    link = Link(answers=3)
    assert link.connect(link.handshake())
    assert [at for at, _ in link.hellos] == pytest.approx(
        [0.0, HELLO_AGAIN_S, 2 * HELLO_AGAIN_S], abs=2 * TICK_S
    )


def test_nothing_is_received_before_there_is_a_connection() -> None:
    link = Link(connected_at=2.0)
    assert link.connect(link.handshake())
    assert link.hellos[0][0] >= 2.0
    assert link.pumped == 1


def test_a_silent_broker_is_reported_once_and_then_given_up() -> None:
    link = Link(answers=0)
    noticed: list[float] = []
    with pytest.raises(BrokerUnreachable, match=r"No broker answers at tcp:.* or wait longer"):
        link.connect(link.handshake(), 10.0, on_wait=lambda: noticed.append(link.now))
    assert noticed == [pytest.approx(NOTICE_S, abs=2 * TICK_S)]
    assert link.now == pytest.approx(10.0, abs=2 * TICK_S)


def test_the_error_names_what_sets_the_url() -> None:
    link = Link(answers=0)
    with pytest.raises(BrokerUnreachable) as caught:
        link.connect(link.handshake(), 1.0)
    assert "check the URL (--broker, broker=, GYMWIRE_BROKER) and" in str(caught.value)
    caught.value.url_source = "in fleet.toml"
    assert "check the URL (in fleet.toml) and" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("tcp://127.0.0.1:5555", "gymwire broker"),
        ("tcp://localhost:5555", "gymwire broker"),
        ("tcp://localhost:23055", "gymwire broker --bind tcp://127.0.0.1:23055"),
        ("tcp://[::1]:5555", "gymwire broker --bind 'tcp://[::1]:5555'"),
        ("ipc:///tmp/a broker", "gymwire broker --bind 'ipc:///tmp/a broker'"),
        ("tcp://192.0.2.1:23055", "gymwire broker"),
    ],
)
def test_the_error_names_the_command_that_starts_a_broker_at_the_url(
    url: str, command: str
) -> None:
    link = Link(answers=0)
    link.url = url
    with pytest.raises(BrokerUnreachable) as caught:
        link.connect(link.handshake(), 1.0)
    assert f" Start one with `{command}`, check" in str(caught.value)


def test_an_unknown_host_is_named() -> None:
    link = Link(answers=0)
    link.url = "tcp://no.such.host.invalid:5555"
    with pytest.raises(BrokerUnreachable, match=r"the host 'no.such.host.invalid' is unknown"):
        link.connect(link.handshake(), 1.0)


def test_a_refusal_ends_it_at_once() -> None:
    link = Link(answers=0)
    link.events = [LinkEvent(False, -1, "it requires a key.")]
    with pytest.raises(Denied, match=r"^Cannot connect to the broker at tcp:.*: it requires a key"):
        link.connect(link.handshake())
    assert link.now < 1.0


def test_a_broker_that_closes_each_handshake_is_reported_in_the_end() -> None:
    link = Link(answers=0)
    link.handshake_hint = "it closes each handshake."
    with pytest.raises(Denied, match="closes each handshake"):
        link.connect(link.handshake(), 1.0)
    assert link.now >= 1.0


def test_it_can_be_stopped() -> None:
    link = Link(answers=0)
    assert not link.connect(link.handshake(), stopped=lambda: link.now > 0.5)


def test_the_first_connection_is_not_reported_as_a_reconnection() -> None:
    link = Link()
    handshake = link.handshake()
    link.events = [UP]
    assert link.connect(handshake)
    assert handshake.watch(link.now) == []
    assert len(link.hellos) == 1


def test_a_denial_counts_if_this_side_has_dialed_since_its_last_connection() -> None:
    link = Link()
    handshake = link.handshake()
    link.events = [UP]
    assert link.connect(handshake)
    denied = LinkEvent(False, 1, denied="it does not know this key")
    link.events = [DOWN, denied]  # ZeroMQ has dialed, maybe long ago
    assert handshake.watch(100.0) == [DOWN, denied]
    assert link.dialed_again == 1
    link.events = [denied]
    with pytest.raises(Denied, match="it does not know this key"):
        handshake.watch(101.0)
    assert link.dialed_again == 1
    assert handshake.watch(102.0) == []  # a later call
    assert link.dialed_again == 2
    link.events = [UP]
    assert handshake.watch(103.0) == [UP]


def test_hello_is_sent_over_each_new_connection_and_when_the_broker_asks() -> None:
    link = Link()
    handshake = link.handshake()
    link.events = [DOWN]
    assert handshake.watch(1.0) == [DOWN]
    assert link.hellos == []
    link.events = [DOWN, UP]
    assert handshake.watch(2.0) == [DOWN, UP]
    assert handshake.handle(Busy(BusyReason.HELLO), 2.5)
    assert len(link.hellos) == 2
    assert not handshake.handle(Busy(BusyReason.RATE), 3.0)
    assert not handshake.handle(Ping(), 3.0)
    assert len(link.hellos) == 2
