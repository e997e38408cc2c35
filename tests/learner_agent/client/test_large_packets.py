"""A path that loses large packets: the small messages that pass do not renew the patience."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import SETTLED_S
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import (
    AttributeDenied,
    BrokerUnreachable,
    EnvironmentFailed,
    EnvironmentLost,
    RequestTimeout,
)
from gymwire.protocol.messages import Call, Reset
from tests.learner_agent.client.network_faults import DEAD_S, LARGE, swallow_large
from tests.wire import Dealer, Network

TIMEOUT_S = 15.0


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        made.env_agent(service(address="cartpole", env="CartPole-v1"))
        yield made


def large_calls(
    connection: BrokerConnection, session: RemoteSession
) -> dict[str, Callable[[], object]]:
    """Return calls whose request or reply is large."""
    large = {"text": "x" * 2 * LARGE}
    return {
        "reset": lambda: session.request(Reset(options=large)),
        "open": lambda: connection.open("cartpole", env_kwargs=large),
        "reply": lambda: session.request(Call("get", "spec" * LARGE)),
    }


@pytest.mark.parametrize("timeout_s", [TIMEOUT_S, 4 * TIMEOUT_S])
@pytest.mark.parametrize("what", ["reset", "open", "reply"])
def test_the_call_ends_and_suggests_the_cause(
    network: Network, monkeypatch: pytest.MonkeyPatch, what: str, timeout_s: float
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    session = connection.open("cartpole")
    swallow_large(network, connection.link, monkeypatch, "in" if what == "reply" else "out")
    calls = large_calls(connection, session)
    began = network.now
    with pytest.raises(BrokerUnreachable, match="MTU"):
        calls[what]()
    assert timeout_s <= network.now - began <= timeout_s + SETTLED_S + 1


@pytest.mark.parametrize(
    ("what", "way"), [("reset", "in"), ("open", "in"), ("reply", "out"), ("opened", "out")]
)
def test_the_path_between_broker_and_env_agent(
    network: Network, monkeypatch: pytest.MonkeyPatch, what: str, way: str
) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    session = connection.open("cartpole")
    calls = large_calls(connection, session)
    calls["opened"] = lambda: connection.open("cartpole")  # OPENED lists the spaces
    least = 300 if what == "opened" else LARGE
    swallow_large(network, network.loops[0]._link, monkeypatch, way, least=least)
    expected = EnvironmentFailed if what.startswith("open") else EnvironmentLost
    began = network.now
    with pytest.raises(expected, match=r"env agent on .* lost 2 times .* MTU"):
        calls[what]()
    assert network.now - began <= TIMEOUT_S + 2 * DEAD_S
    # The slot is free again, and the other side is rid of the session.
    monkeypatch.undo()
    network.pass_time(DEAD_S + 1)
    session.close(wait=False)
    network.pass_time(DEAD_S + 1)
    assert not network.hosts[0].slots


def test_a_deadline_before_that_suggests_the_cause(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    session = connection.open("cartpole")
    swallow_large(network, network.loops[0]._link, monkeypatch, "out")
    with pytest.raises(RequestTimeout, match="MTU"):
        session.request(Call("get", "spec" * LARGE), timeout_s=DEAD_S)


@pytest.mark.parametrize("losses", range(4))
def test_losses_of_the_env_agent_between_requests_do_not_count(
    network: Network, losses: int
) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    session = connection.open("cartpole")
    agent = cast(Dealer, network.loops[0]._link._dealer)
    for _ in range(losses):
        session.request(Reset())
        network.pass_time(6.0)
        network.cut(agent, 0.5)
        network.pass_time(2.0)
    session.request(Reset())


def test_connections_that_are_lost_in_quick_succession_do_not_count(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    session = connection.open("cartpole")
    with monkeypatch.context() as patch:
        link = network.loops[0]._link
        swallow_large(network, link, patch, "out", dead_s=1e6)
        for i in range(10):
            network.after(i * 2.0, lambda: network.cut(cast(Dealer, link._dealer), 0.5))
        network.after(20.0, patch.undo)
        with pytest.raises(AttributeDenied):  # the reply
            session.request(Call("get", "spec" * LARGE))


def test_losses_between_requests_do_not_count(
    network: Network,
) -> None:
    connection = network.connection(timeout_s=TIMEOUT_S)
    session = connection.open("cartpole")
    session.request(Reset())
    for _ in range(4):
        network.cut(cast(Dealer, connection.link._dealer), 0.5)
        network.pass_time(6.0)
        session.request(Reset())
