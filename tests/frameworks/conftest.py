"""An env agent for the tests with a framework."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.processes import programs

# PyTorch's threads wait for each other busily, which is slow where tests share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def serve(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Serves environments until the test ends, at the broker that proxies use by default."""
    monkeypatch.setenv("GYMWIRE_BROKER", broker_url)
    with programs() as started:

        def serve(address: str, env: str, *options: str) -> None:
            started.env_agent(broker_url, address, env, "--direct", "host", *options)

        yield serve
