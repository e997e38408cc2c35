"""How long the broker may be silent: no false silence, and no endless patience."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from gymwire import ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.learner_agent.aio.calls import run
from gymwire.learner_agent.client import session_timers
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import PING_S, SETTLED_S, Contact, Patience
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import BrokerUnreachable
from gymwire.protocol.messages import Act, Call, Kind, Message, Opened, Percept, Ping, Reset
from tests.learner_agent.aio.virtual import VirtualConnection
from tests.learner_agent.client.network_faults import LARGE, delay, swallow_large
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER, Dealer, Faults, Network

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
    monkeypatch.setattr(session_timers, "MANY_TIMERS", 10)
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
    turns_s = 2 * 3 * TURN_S  # RESUME, the request and PING, over two connections
    assert timeout_s < network.now - began <= timeout_s + turns_s + SETTLED_S + 2 * PING_S


@pytest.mark.usefixtures("few_repeats")
@pytest.mark.parametrize(
    ("restarts", "timeout_s"), [(1, 1.0), (1, 5.0), (1, 15.0), (2, 5.0), (2, 15.0), (3, 60.0)]
)
@pytest.mark.parametrize("every_s", [5.0, 7.0, 10.0])
def test_a_broker_that_returns_is_not_silent_for_sessions_that_wait_for_their_turn(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    timeout_s: float,
    restarts: int,
    every_s: float,
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    sessions = all_stepping(network, connection, monkeypatch, 4 * TURN_S)
    for number in range(restarts):
        network.after(every_s * number, partial(network.restart_broker, 0.4))
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


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("call", ["step", "step_wait", "recv", "other"])
def test_a_call_after_a_silence_waits_as_long_again(call: str, sessions: int) -> None:
    with in_memory() as network:
        envs = ProxyVectorEnv("moody", 2, BROKER, sessions=sessions, timeout_s=10.0)
        envs.reset(seed=1)
        connection, began, actions = envs._group.connection, network.now, np.array([0, 1])
        other = connection.open("moody")
        network.cut(dealer_of(connection), 25.0)
        if call == "step_wait":
            envs.step_async(actions)
        elif call == "recv":
            envs.send(actions, [0, 1])
        elif call == "other":
            other.begin(Reset(1))  # nobody waits for this one
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: envs.step(actions),
            "step_wait": envs.step_wait,
            "recv": lambda: envs.recv(2),
            "other": lambda: envs.step(actions),
        }
        for ends_s in (10.0, 20.0):
            with pytest.raises(BrokerUnreachable, match="silent"):
                calls[call]()
            assert ends_s <= network.now - began <= ends_s + 1.0
        calls[call]()
        assert network.now - began < 26.0
        envs.close()


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


def killed_after_a_restart(network: Network, dealer: Dealer) -> None:
    network.after(60.0, partial(network.restart_broker, 0.5))
    network.after(1800.0, partial(network.cut, dealer, None))


def frozen_after_a_restart(network: Network, dealer: Dealer) -> None:
    network.after(60.0, partial(network.restart_broker, 0.5))
    network.after(1800.0, partial(setattr, network, "faults", Faults(drop=1.0)))


def gone_after_a_short_loss(network: Network, dealer: Dealer) -> None:
    network.after(60.0, partial(network.cut, dealer, 0.5))
    network.after(62.0, partial(network.cut, dealer, None))


def away_at_the_beginning(network: Network, dealer: Dealer) -> None:
    network.cut(dealer, 3.0)
    network.after(100.0, partial(network.cut, dealer, None))


@pytest.mark.parametrize(
    "end",
    [
        killed_after_a_restart,
        frozen_after_a_restart,
        gone_after_a_short_loss,
        away_at_the_beginning,
    ],
)
def test_a_lost_connection_does_not_suggest_that_large_packets_are_lost(
    network: Network, monkeypatch: pytest.MonkeyPatch, end: Callable[[Network, Dealer], None]
) -> None:
    connection = network.connection(timeout_s=60.0)
    (session,) = all_stepping(network, connection, monkeypatch, 3600.0, count=1)
    end(network, dealer_of(connection))
    with pytest.raises(BrokerUnreachable, match="silent for 60 s"):
        session.finish()


@pytest.mark.parametrize(
    ("timeout_s", "spent_s"),
    [*itertools.product([0.5, 1.0, 2.0, 60.0], [0.005, 0.02, 0.05]), (60.0, 3.0)],
)
def test_a_silent_broker_is_noticed_in_time_if_the_timers_take_long(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float, spent_s: float
) -> None:
    async def main() -> None:
        connection = VirtualConnection(
            BROKER,
            timeout_s=timeout_s,
            clock=network.monotonic,
            clock_ns=network.monotonic_ns,
            dial=lambda *_, **__: network.dealer(),
        )
        session = await run(connection.open, "cartpole")
        await run(session.request, Reset(1))
        run_timers = connection._session_timers.run

        def take_long(*args: Any) -> None:
            network.now += spent_s
            run_timers(*args)

        monkeypatch.setattr(connection._session_timers, "run", take_long)
        network.faults, began = Faults(drop=1.0), network.now
        network.after(10 * timeout_s, partial(setattr, network, "faults", Faults()))
        with pytest.raises(BrokerUnreachable, match="silent"):
            await run(session.request, Act(0))
        assert timeout_s < network.now - began <= 1.5 * timeout_s + 1.0

    asyncio.run(main())


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 2.0, 60.0])
def test_slow_timers_of_many_sessions_ask_the_broker_in_time(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    monkeypatch.setattr(session_timers, "MANY_TIMERS", 0)
    connection = network.connection(timeout_s=timeout_s)
    (session,) = all_stepping(network, connection, monkeypatch, 10 * timeout_s, count=1)
    tick = session.tick

    def take_long(*args: Any) -> None:
        network.now += 0.05
        tick(*args)

    monkeypatch.setattr(session, "tick", take_long)
    assert isinstance(session.finish(), Percept)


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 5.0])
def test_a_broker_that_nothing_reaches_is_silent_although_frames_arrive(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    (session,) = all_stepping(network, connection, monkeypatch, LONG_S, count=1)
    dealer, tick, began = dealer_of(connection), session.tick, network.now

    def take_long(*args: Any) -> None:
        network.now += 0.05
        tick(*args)

    def report() -> None:
        dealer.arrived(bytes(PLAIN.encode(Ping())))
        if network.now < began + 3 * timeout_s:
            network.after(0.01, report)

    monkeypatch.setattr(session, "tick", take_long)
    network.faults = Faults(drop=1.0)
    report()
    with pytest.raises(BrokerUnreachable, match="silent"):
        session.finish()
    assert network.now - began <= 1.5 * timeout_s + 1.0


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 2.0, 3.0, 5.0, 60.0])
def test_a_long_constructor_is_waited_for_as_long_as_the_broker_answers(
    network: Network, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    delay(network, network.loops[0], Kind.OPENED, 2 * timeout_s + 20.0, monkeypatch)
    session = network.connection(timeout_s=timeout_s).open("cartpole")
    assert isinstance(session.opened, Opened)


def dealer_of(connection: BrokerConnection) -> Dealer:
    return cast(Dealer, connection.link._dealer)


@pytest.fixture
def contact() -> Contact:
    return Contact(10.0)


@pytest.fixture
def patience(contact: Contact) -> Patience:
    """Return one for a request that was sent at 0, and whose connection was lost at 1."""
    made = Patience(contact)
    made.begin(0.0)
    made.reconnected(1.0)
    return made


def test_a_request_is_no_reason_for_the_loss_of_a_connection_that_did_not_carry_it(
    contact: Contact, patience: Patience
) -> None:
    contact.last = 1.5
    patience.reconnected(2.0)
    contact.last = 2.5
    assert patience.lost_again("a step", 1) is None


def test_the_wait_for_the_turn_is_silence_if_the_connection_carries_nothing(
    contact: Contact, patience: Patience
) -> None:
    patience.sent_again(9.0)
    assert not patience.is_over(10.0)
    assert patience.is_over(10.1)


def test_a_connection_that_is_lost_after_the_end_gives_no_more_time(
    contact: Contact, patience: Patience
) -> None:
    patience.reconnected(9.0)
    contact.last = 9.5
    patience.sent_again(9.5)
    assert not patience.is_over(10.5)
    patience.reconnected(11.0)
    contact.last = 11.5
    assert patience.is_over(11.6)


def test_a_connection_that_has_carried_nothing_gives_no_more_time(
    contact: Contact, patience: Patience
) -> None:
    patience.sent_again(6.0)
    contact.last = 8.0
    patience.reconnected(9.5)
    assert not patience.is_over(10.0)
    assert patience.is_over(10.1)


def test_an_earlier_sign_of_the_broker_does_not_shorten_the_wait(
    contact: Contact, patience: Patience
) -> None:
    patience.sent_again(1.0)
    contact.last = 5.0
    patience.renew(8.0)
    assert not patience.is_over(18.0)


def test_the_wait_for_the_turn_counts_until_the_next_sign_of_the_broker(
    contact: Contact, patience: Patience
) -> None:
    contact.last = 1.5
    patience.sent_again(6.0)
    assert not patience.is_over(15.0)
    contact.last = 9.0
    assert not patience.is_over(19.0)
    assert patience.is_over(19.1)
