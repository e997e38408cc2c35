"""An environment that uses signals works in processes of its own, and says so elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gymwire import ProxyEnv
from gymwire.protocol.errors import EnvironmentFailed
from tests.processes import programs

SERVED = ("--env", "tests.odd_envs:Signalling")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with programs() as started:
        _, url = started.broker()
        started.env_agent(url, "--address", "threads", *SERVED)
        started.env_agent(url, "--address", "one", *SERVED, "--threads", "1")
        started.env_agent(url, "--address", "workers", *SERVED, "--threads", "1", "--workers", "2")
        yield url


def step_together(broker: str, address: str) -> None:
    """Step two sessions that are open at the same time."""
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            env = stack.enter_context(contextlib.closing(ProxyEnv(address, broker, wait_s=20)))
            env.reset(seed=1)
            env.step(1)


def test_a_session_in_another_thread_names_the_remedy(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="Start the env agent with --threads 1"):
        step_together(broker, "threads")


@pytest.mark.parametrize("address", ["one", "workers"])
def test_the_remedy_works(broker: str, address: str) -> None:
    step_together(broker, address)
