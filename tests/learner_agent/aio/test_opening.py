"""Opening sessions on a connection that tasks share, over a network in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import anyio

from gymwire.aio import Connection, ProxyEnv
from gymwire.errors import AddressUnknown
from gymwire.learner_agent.aio import proxy_env
from tests import wire
from tests.learner_agent.aio.virtual import VirtualConnection
from tests.learner_agent.client import test_connection
from tests.learner_agent.client.test_connection import agent, answers_late
from tests.wire import Network


@pytest.fixture(params=["asyncio", "trio"])
def go(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[..., Any], Network], None]:
    """Run a coroutine function with a connection in an event loop of each kind."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(wire, "BrokerConnection", VirtualConnection)

    def connect(network: Network, _url: str, *, wait_s: float, **_: object) -> Any:
        return network.connection(wait_s=wait_s)

    async def connected(body: Callable[..., Any], network: Network) -> None:
        monkeypatch.setattr(proxy_env, "AioConnection", partial(connect, network))
        async with Connection(wait_s=5.0) as connection:
            await body(connection)

    return lambda body, network: anyio.run(connected, body, network, backend=request.param)


def test_a_cancelled_open_frees_its_slot_while_the_connection_is_idle(
    go: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_connection, "AWAY_S", 0.5)

    async def body(connection: Connection) -> None:
        with anyio.CancelScope() as scope:
            network.after(0.2, scope.cancel)
            await ProxyEnv("cartpole", connection=connection, direct="never").open()
        assert scope.cancelled_caught
        network.pass_time(0.5)  # CLOSE arrives
        assert loop.idle

    with Network() as network:
        loop = agent(network)
        answers_late(network, loop, monkeypatch)
        go(body, network)


def test_a_failed_open_closes_no_session_of_another_task(go: Callable[..., None]) -> None:
    async def fail(connection: Connection) -> None:
        with pytest.raises(AddressUnknown):
            await ProxyEnv("nobody", connection=connection, direct="never").open()

    async def body(connection: Connection) -> None:
        env = ProxyEnv("cartpole", connection=connection, direct="never")
        async with anyio.create_task_group() as group:
            group.start_soon(fail, connection)  # it waits for the address longer
            await env.open()
        await env.reset(seed=1)
        await fail(connection)  # on the stack of a call that has ended
        await env.step(0)
        await env.close()

    with Network() as network:
        agent(network)
        go(body, network)
