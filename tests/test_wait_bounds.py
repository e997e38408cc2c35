"""Waits end at their bound, by the clock that they are given (docs/reliability.md lists them all).

The tests of a module that waits test its other bounds.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.env_agent.loop import AWAY_S, ServingLoop
from gymwire.learner_agent.client import open_sessions, session
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import PING_S
from gymwire.learner_agent.client.requests import BrokerRequests
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.waiting import TICK_S
from gymwire.learner_agent.proxies.options import ProxyOptions
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import (
    BrokerUnreachable,
    ConfigurationError,
    Denied,
    EnvironmentLost,
    GymwireError,
    RequestTimeout,
)
from gymwire.protocol.messages import Act, Find, Pong, Reset, Resume
from tests.wire import BROKER, Dealer, Faults, Network

TIMEOUT_S = 10.0
LATE_S = 1.0  # how much later than its bound a wait may end: timers run in ticks and back off


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    def connect(options: ProxyOptions) -> BrokerConnection:
        return made.connection(options.timeout_s, options.wait_s)

    monkeypatch.setattr(ProxyOptions, "connect", connect)
    with Network() as made:
        made.env_agent(service(address="cartpole", env="CartPole-v1", max_sessions=8))
        yield made


def freeze(loop: ServingLoop, network: Network) -> None:
    """Stop a serving loop, as in a step without end; its connection stays up."""
    network.loops.remove(loop)
    cast(Dealer, loop._link._dealer).loop = None


def ends(
    network: Network, wait: Callable[[], object], after_s: float, error: type[GymwireError] | None
) -> None:
    """Assert that a wait ends at its bound, with this error."""
    began = network.now
    if error is None:
        wait()
    else:
        with pytest.raises(error):
            wait()
    assert after_s <= network.now - began <= after_s + LATE_S


@pytest.mark.parametrize("wait_s", [0.0, 30.0])
def test_connecting(network: Network, wait_s: float) -> None:
    network.faults = Faults(drop=1.0)
    ends(network, lambda: network.connection(wait_s=wait_s), 2.5 + wait_s, BrokerUnreachable)


def test_an_offer(network: Network) -> None:
    network.faults = Faults(drop=1.0)
    one = service(address="other", env="CartPole-v1")
    ends(network, lambda: network.env_agent(one), 60.0, BrokerUnreachable)


@pytest.mark.parametrize("what", ["find", "open"])
def test_a_request_to_a_silent_broker(network: Network, what: str) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    network.faults = Faults(drop=1.0)
    asks: dict[str, Callable[[], object]] = {
        "find": connection.find,
        "open": lambda: connection.open("cartpole"),
    }
    ends(network, asks[what], TIMEOUT_S, BrokerUnreachable)


@pytest.fixture
def opened(network: Network) -> RemoteSession:
    connection = network.connection(timeout_s=TIMEOUT_S)
    return connection.open("cartpole")


def test_a_request_of_a_session_to_a_silent_broker(network: Network, opened: RemoteSession) -> None:
    network.faults = Faults(drop=1.0)
    ends(network, lambda: opened.request(Reset()), TIMEOUT_S, BrokerUnreachable)


@pytest.mark.parametrize("timeout_s", [0.0, 3.0, 100.0])
def test_a_request_to_an_agent_that_does_not_answer(
    network: Network, opened: RemoteSession, timeout_s: float
) -> None:
    opened.request(Reset())
    freeze(network.loops[0], network)
    ends(network, lambda: opened.request(Act(0), timeout_s), timeout_s, RequestTimeout)


@pytest.mark.parametrize("timeout_s", [TICK_S / 2, TICK_S * 2, 3.0])
def test_a_step_ends_when_its_time_is_over(
    network: Network, opened: RemoteSession, timeout_s: float
) -> None:
    opened.request(Reset())
    freeze(network.loops[0], network)
    began = network.monotonic()
    with pytest.raises(RequestTimeout):
        opened.step(0, timeout_s)
    assert network.monotonic() - began == pytest.approx(timeout_s, abs=TICK_S / 4)


def test_closing_a_session(network: Network, opened: RemoteSession) -> None:
    freeze(network.loops[0], network)
    ends(network, opened.close, session.CLOSE_S, None)


def test_asking_for_the_position_after_a_resume(network: Network, opened: RemoteSession) -> None:
    freeze(network.loops[0], network)
    opened.exchange.expected = None
    ends(network, lambda: open_sessions.query_position(opened), TIMEOUT_S, BrokerUnreachable)


def test_resuming_a_session_that_is_in_use(network: Network) -> None:
    env = ProxyEnv("cartpole", BROKER)
    env.reset()
    token = env.session_token()
    ends(network, lambda: ProxyEnv.resume(token), open_sessions.IN_USE_S, Denied)


def _lose_agent(network: Network) -> None:
    loop = network.loops[0]
    network.cut(cast(Dealer, loop._link._dealer), for_s=None)
    freeze(loop, network)
    network.pass_time(5.0)


def test_looking_for_an_agent_that_takes_an_episode_over(network: Network) -> None:
    env = ProxyEnv("cartpole", BROKER, on_lost="replay", timeout_s=TIMEOUT_S)
    env.reset(seed=1)
    _lose_agent(network)
    ends(network, lambda: env.step(0), TIMEOUT_S, EnvironmentLost)


def test_looking_for_an_agent_that_takes_lost_sessions_over(network: Network) -> None:
    envs = ProxyVectorEnv("cartpole", 2, BROKER, on_lost="truncate", timeout_s=TIMEOUT_S)
    envs.reset(seed=1)
    _lose_agent(network)
    assert envs.step(np.array([0, 0]))[3].all()  # truncated; the next step needs another agent
    ends(network, lambda: envs.step(np.array([0, 0])), TIMEOUT_S, EnvironmentLost)


@pytest.mark.parametrize("call", ["step", "step_wait", "recv"])
def test_the_steps_of_a_vector(network: Network, call: str) -> None:
    envs = ProxyVectorEnv("cartpole", 2, BROKER, sessions=2, step_timeout_s=3.0)
    envs.reset(seed=1)
    freeze(network.loops[0], network)
    actions = np.array([0, 0])
    wait: dict[str, Callable[[], Any]] = {
        "step": lambda: envs.step(actions),
        "step_wait": lambda: envs.step_wait(3.0),
        "recv": lambda: envs.recv(2, 3.0),
    }
    if call == "step_wait":
        envs.step_async(actions)
    elif call == "recv":
        envs.send(actions, np.array([0, 1]))
    ends(network, wait[call], 3.0, RequestTimeout)


def test_an_idle_session_while_the_broker_is_away(network: Network, opened: RemoteSession) -> None:
    loop = network.loops[0]
    network.cut(cast(Dealer, loop._link._dealer), for_s=None)
    network.pass_time(AWAY_S - LATE_S)
    assert not loop.idle
    network.pass_time(2 * LATE_S)
    assert loop.idle


@pytest.mark.parametrize("message", [Find(), Resume(b"n" * 16)])
def test_requests_to_the_broker_are_repeated_less_and_less_often(message: Any) -> None:
    pending = BrokerRequests(PING_S, secrets.randbits)
    pending.add(message, 0, 0.0)
    sent = [tenth / 10 for tenth in range(180) if pending.due(tenth / 10)]
    pauses = [later - earlier for earlier, later in zip([0.0, *sent], sent, strict=False)]
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0, 4.0, 4.0], abs=0.1)


def test_a_connection_that_gives_no_time_for_an_answer_is_refused() -> None:
    for timeout_s in (0.0, -1.0, 0.4, float("nan")):
        with pytest.raises(ConfigurationError, match="timeout_s must be at least"):
            BrokerConnection("tcp://127.0.0.1:1", timeout_s=timeout_s)


class Endless(deque[bytes]):
    """Frames that never run out."""

    def popleft(self) -> bytes:
        return self[0]


def test_a_broker_that_sends_without_a_pause_does_not_hold_a_learner_up(network: Network) -> None:
    connection = network.connection()
    dealer = cast(Dealer, connection.link._dealer)
    dealer.inbox = Endless([bytes(PLAIN.encode(Pong()))])
    connection.drain()
    dealer.inbox = deque()
