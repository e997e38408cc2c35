"""A path that loses large packets: the small messages that pass do not renew the patience."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from gymwire.env_agent.config import service
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.patience import SETTLED_S
from gymwire.protocol.errors import BrokerUnreachable
from gymwire.protocol.messages import Call, Reset
from tests.wire import Dealer, Network

TIMEOUT_S = 15.0
DEAD_S = 6.0  # after how long a connection that carries nothing counts as lost
LARGE = 1000


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        made.env_agent(service(address="cartpole", env="CartPole-v1"))
        yield made


def swallow_large(
    network: Network, connection: BrokerConnection, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Let each connection of the learner stop at its first large message, in one direction."""
    ours = cast(Dealer, connection.link._dealer)
    stopped: set[int] = set()  # connections
    pass_on: Callable[..., Any] = connection.link.send if way == "request" else ours.arrived

    def carry(frame: bytes, *args: Any) -> Any:
        if ours.up and len(frame) > LARGE and ours.generation not in stopped:
            stopped.add(ours.generation)
            network.after(DEAD_S, lambda: network.cut(ours, 0.5))
        return True if ours.generation in stopped else pass_on(frame, *args)

    if way == "request":
        monkeypatch.setattr(connection.link, "send", carry)
    else:
        monkeypatch.setattr(ours, "arrived", carry)


@pytest.mark.parametrize("timeout_s", [TIMEOUT_S, 4 * TIMEOUT_S])
@pytest.mark.parametrize("what", ["reset", "open", "reply"])
def test_the_call_ends_and_suggests_the_cause(
    network: Network, monkeypatch: pytest.MonkeyPatch, what: str, timeout_s: float
) -> None:
    connection = network.connection(timeout_s=timeout_s)
    session = connection.open("cartpole")
    way = "reply" if what == "reply" else "request"
    swallow_large(network, connection, monkeypatch, way)
    large = {"text": "x" * 2 * LARGE}
    calls: dict[str, Callable[[], object]] = {
        "reset": lambda: session.request(Reset(options=large)),
        "open": lambda: connection.open("cartpole", env_kwargs=large),
        "reply": lambda: session.request(Call("get", "spec" * LARGE)),
    }
    began = network.now
    with pytest.raises(BrokerUnreachable, match="MTU"):
        calls[what]()
    assert timeout_s <= network.now - began <= timeout_s + SETTLED_S + 1


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
