"""The timers of the sessions of one connection."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client import session_timers
from gymwire.learner_agent.client.session_timers import MANY_TIMERS, SessionTimers
from tests.learner_agent.client.test_interrupted import in_memory
from tests.wire import BROKER


class Session:
    """Notes when its timers ran."""

    def __init__(self) -> None:
        self.ran: list[float] = []

    def tick(self, now: float, _: object) -> None:
        self.ran.append(now)


def test_the_timers_of_an_awaited_session_run_while_those_of_many_others_pause() -> None:
    sessions: list[Any] = [Session() for _ in range(MANY_TIMERS + 1)]
    timers = SessionTimers(60.0, clock=lambda: 0.01)  # so long takes the first run
    timers.run(sessions, 0.0, ())
    timers.run(sessions, 0.1, (sessions[0],))
    assert [one.ran for one in sessions] == [[0.0, 0.1], *([0.0],) * MANY_TIMERS]
    timers.run(sessions, 0.5, (sessions[0],))
    assert [one.ran[-1] for one in sessions] == [0.5] * (MANY_TIMERS + 1)


def test_a_step_after_a_restart_of_the_broker_waits_for_no_timers_of_other_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_timers, "MANY_TIMERS", 1)
    monkeypatch.setattr(session_timers, "timers_pause", lambda _: 1.0)
    with in_memory() as network, contextlib.ExitStack() as closing:
        envs = [closing.enter_context(ProxyEnv("moody", BROKER)) for _ in range(3)]
        for env in envs:
            env.reset(seed=1)
        network.restart_broker()
        envs[0].step(1)
        began = network.now
        envs[1].step(1)
        assert network.now - began < 0.1
