"""How long the broker may be silent: no false silence, and no endless patience."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import cast

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client import session_timers
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import PING_S, SETTLED_S
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import BrokerUnreachable
from gymwire.protocol.messages import Act, Call, Kind, Message, Opened, Percept, Reset
from tests.learner_agent.client.network_faults import LARGE, delay, swallow_large
from tests.wire import Dealer, Network

SESSIONS = 100
TURN_S = 10.0  # in which each of these sessions may send something again
LONG_S = 1000.0


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        made.env_agent(service(address="cartpole", env="CartPole-v1", max_sessions=SESSIONS))
        yield made


@pytest.fixture
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hundred sessions send as rarely as thousands."""
    monkeypatch.setattr(session_timers, "MANY", 10)
    monkeypatch.setattr(session_timers, "REPEATS_PER_SECOND", SESSIONS / TURN_S)
    monkeypatch.setattr(session_timers, "MAX_REPEATED", 1)


def all_stepping(
    network: Network,
    connection: BrokerConnection,
    patch: pytest.MonkeyPatch,
    for_s: float,
    count: int = SESSIONS,
) -> list[RemoteSession]:
    """Return sessions of which each is in a step of `for_s` seconds."""
    sessions = connection.open_all("cartpole", [0] * count)
    for session in sessions:
        session.request(Reset(1))
    delay(network, network.loops[0], Kind.PERCEPT, for_s, patch)
    for session in sessions:
        session.begin(Act(0))
    return sessions


@pytest.mark.usefixtures("few_repeats")
@pytest.mark.parametrize("timeout_s", [15.0, 60.0])
@pytest.mark.parametrize("number", [0, 50, 99])
@pytest.mark.parametrize(
    ("way", "request_"),
    [("out", Reset(options={"text": "x" * 2 * LARGE})), ("in", Call("get", "spec" * LARGE))],
    ids=["request", "reply"],
)
def test_what_does_not_pass_ends_beside_many_other_sessions(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    request_: Message,
    timeout_s: float,
    number: int,
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    sessions = all_stepping(network, connection, monkeypatch, LONG_S)
    swallow_large(network, connection.link, monkeypatch, way)
    sessions[number].exchange.mark_returned()
    sessions[number].begin(request_)
    began = network.now
    with pytest.raises(BrokerUnreachable, match="MTU"):
        sessions[number].finish()
    turn_s = 3 * TURN_S  # RESUME, the request and PING
    assert timeout_s < network.now - began <= timeout_s + turn_s + SETTLED_S + 2 * PING_S


@pytest.mark.usefixtures("few_repeats")
@pytest.mark.parametrize(
    ("restarts", "timeout_s"), [(1, 1.0), (1, 5.0), (1, 15.0), (2, 60.0), (3, 60.0)]
)
def test_a_broker_that_returns_is_not_silent_for_sessions_that_wait_for_their_turn(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float, restarts: int
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    sessions = all_stepping(network, connection, monkeypatch, 4 * TURN_S)
    for number in range(restarts):
        network.after(5.0 * number, partial(network.restart_broker, 0.4))
    for session in reversed(sessions):
        assert isinstance(session.finish(), Percept)


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 10.0, 30.0])
def test_a_broker_that_returns_at_the_last_moment_is_in_time(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    (session,) = all_stepping(network, connection, monkeypatch, 3 * timeout_s, count=1)
    network.after(0.1, lambda: network.cut(dealer_of(connection), 0.9 * timeout_s))
    assert isinstance(session.finish(), Percept)


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 2.0, 60.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_process_that_is_suspended_or_late_does_not_blame_the_broker(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float, seed: int
) -> None:
    rng = random.Random(seed)

    def suspend() -> None:
        network.now += rng.choice([0.03, 0.1, rng.uniform(0.0, 2 * timeout_s)])
        network.after(rng.uniform(0.0, timeout_s), suspend)

    connection = network.connection(timeout_s=timeout_s)
    (session,) = all_stepping(network, connection, monkeypatch, 20 * timeout_s, count=1)
    network.after(0.1, suspend)
    assert isinstance(session.finish(), Percept)


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 2.0, 3.0, 5.0, 60.0])
def test_a_long_constructor_is_waited_for_as_long_as_the_broker_answers(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    delay(network, network.loops[0], Kind.OPENED, 2 * timeout_s + 20.0, monkeypatch)
    session = network.connection(timeout_s=timeout_s).open("cartpole")
    assert isinstance(session.opened, Opened)


def dealer_of(connection: BrokerConnection) -> Dealer:
    return cast(Dealer, connection.link._dealer)
