"""An env agent for the tests with a framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.processes import programs


@pytest.fixture
def serve(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Serves environments until the test ends, at the broker that proxies use by default."""
    monkeypatch.setenv("GYMWIRE_BROKER", broker_url)
    with programs() as started:

        def serve(address: str, env: str, *options: str) -> None:
            started.env_agent(broker_url, address, env, "--direct", "host", *options)

        yield serve
