"""Tests of `tests/chaos/test_chaos.py` whose learners are those of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("anyio")
pytest.importorskip("greenlet")

import gymwire.aio
from tests.chaos import test_chaos
from tests.chaos.fleet import Fleet, fleet
from tests.chaos.relays import Weather


class Awaited:
    """A `gymwire.aio.ProxyEnv` whose calls are awaited in an event loop of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._runner = asyncio.Runner()
        self._env = gymwire.aio.ProxyEnv(*args, **kwargs)
        self._await(self._env.open)

    def _await(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._runner.run(call(*args, **kwargs))

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, **kwargs: Any) -> Any:
        return self._await(self._env.reset, **kwargs)

    def step(self, action: Any) -> Any:
        return self._await(self._env.step, action)

    def close(self) -> None:
        self._await(self._env.close)
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env._env, name)


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(test_chaos, "ProxyEnv", Awaited)
    with fleet(tmp_path) as made:
        yield made


def test_a_killed_env_agent(fleet: Fleet) -> None:
    test_chaos.test_a_killed_env_agent_is_noticed_in_the_middle_of_a_request(fleet, 2)


def test_restarts_of_the_broker(fleet: Fleet) -> None:
    test_chaos.test_a_broker_restarted_in_the_middle_of_a_step_and_ten_times_quickly(fleet)


def test_a_broker_that_stays_away(fleet: Fleet) -> None:
    test_chaos.test_a_broker_that_stays_away_is_given_up_after_timeout_s(fleet)


def test_an_idle_learner(fleet: Fleet) -> None:
    test_chaos.test_an_idle_learner_keeps_its_session_also_over_a_restart_of_the_broker(fleet)


@pytest.mark.parametrize("fault", ["reset", "stall"])
def test_connections(fleet: Fleet, fault: str) -> None:
    test_chaos.test_connections(fleet, fault, "learner")


def test_messages(fleet: Fleet) -> None:
    weather = Weather(drop=0.04, double=0.2, delay=0.2, delay_s=0.1)
    test_chaos.test_messages(fleet, weather)
