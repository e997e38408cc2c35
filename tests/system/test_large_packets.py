"""Paths that lose large packets, over real sockets: each call ends, and the text says why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client import direct
from gymwire.learner_agent.client.direct import MAX_DIRECT_LOSSES
from gymwire.protocol.errors import BrokerUnreachable, EnvironmentLost
from gymwire.protocol.transport import dealer
from tests.chaos.relays import TcpRelay
from tests.processes import PATIENCE_S, Programs, programs

# More than HELLO, OPENED and the like have, so these pass.
LARGEST = 8 * 1024
DEAD_S = 6.0  # after how long a connection that carries nothing counts as lost
QUICK_MS = 500, 1500  # the interval and the time-out of heartbeats that notice it sooner
# tests.odd_envs:Noise observes 1 MB, and takes actions of 400 kB.
OFFER = ("--address", "noise", "--env", "tests.odd_envs:Noise", "--threads", "1")


@pytest.fixture(name="relay")
def _relay() -> Iterator[list[TcpRelay]]:
    made: list[TcpRelay] = []
    yield made
    for relay in made:
        relay.close()


@pytest.fixture(name="started")
def _started() -> Iterator[Programs]:
    with programs() as made:
        yield made


@pytest.fixture
def _quick_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner soon notices that a connection carries nothing."""
    for name, value in zip(("IVL", "TIMEOUT"), QUICK_MS, strict=True):
        monkeypatch.setattr(dealer, f"HEARTBEAT_{name}_MS", value)


def lossy(relays: list[TcpRelay], url: str) -> str:
    """Return the URL of a relay to `url` that swallows what is large."""
    relays.append(TcpRelay(int(url.rpartition(":")[2])))
    relays[-1].largest = LARGEST
    return relays[-1].url


@pytest.mark.usefixtures("_quick_to_lose")
def test_between_learner_and_broker(relay: list[TcpRelay], started: Programs) -> None:
    _, url = started.broker("tcp://127.0.0.1:*", "--no-local-channels")
    started.env_agent(url, *OFFER)
    with (
        ProxyEnv("noise", lossy(relay, url), direct="never", timeout_s=8.0) as env,
        pytest.raises(BrokerUnreachable, match="MTU"),
    ):
        env.reset(seed=1)


def test_between_broker_and_env_agent(relay: list[TcpRelay], started: Programs) -> None:
    _, url = started.broker("tcp://127.0.0.1:*", "--no-local-channels")
    agent = started.env_agent(lossy(relay, url), *OFFER)
    with (
        ProxyEnv("noise", url, direct="never", timeout_s=30.0) as env,
        pytest.raises(EnvironmentLost, match=r"env agent .* lost 2 times .* MTU"),
    ):
        env.reset(seed=1)
    relay[0].largest = None
    agent.wait_for("session lost")  # the slot is free again
    with ProxyEnv("noise", url, direct="never", wait_s=DEAD_S) as env:
        env.reset(seed=1)


@pytest.mark.usefixtures("_quick_to_lose")
def test_between_learner_and_env_agent_the_broker_relays(
    relay: list[TcpRelay], started: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def through_a_relay(offer: Mapping[str, Any]) -> list[str]:
        return [lossy(relay, next(url for url in offer["urls"] if url.startswith("tcp")))]

    monkeypatch.setattr(direct, "_urls_for_this_host", through_a_relay)
    _, url = started.broker()
    started.env_agent(url, *OFFER, "--direct", "tcp://127.0.0.1:*")
    with ProxyEnv("noise", url, direct="always") as env:
        session = env._session
        assert session.is_direct
        deadline = time.monotonic() + MAX_DIRECT_LOSSES * DEAD_S + PATIENCE_S
        env.reset(seed=1)
        while session.paths.direct is not None:
            env.step(env.action_space.sample())
            assert time.monotonic() < deadline
        env.step(env.action_space.sample())
