"""The broker's waits end at their bound, by the clock that it is given (docs/reliability.md)."""

from __future__ import annotations

import pytest

from gymwire.broker.connections import AGENT_SILENCE_S, SILENCE_CHECK_S
from gymwire.broker.recovery import STARTING_S
from gymwire.broker.tables import PROGRESS_TTL_S
from gymwire.protocol.messages import Act, Busy, BusyReason, Code, Error, Ping, Pong, Progress, Role
from tests.broker.harness import STARTED, Broker, only


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_a_silent_env_agent_is_disconnected_at_the_bound(broker: Broker) -> None:
    env = broker.env()
    broker.expire(AGENT_SILENCE_S - 0.1)
    assert broker.core.take_hang_ups() == []
    broker.expire(SILENCE_CHECK_S + 0.1)
    assert broker.core.take_hang_ups() == [(broker.fds[env], 0)]


def test_a_suspended_broker_gives_its_env_agents_time(broker: Broker) -> None:
    env = broker.env()
    broker.now += 100.0
    broker.core.woke_up(broker.now)
    broker.expire(STARTING_S - 0.1)
    assert broker.core.take_hang_ups() == []
    broker.expire(SILENCE_CHECK_S)
    assert broker.core.take_hang_ups() == [(broker.fds[env], 0)]


def test_an_unknown_session_may_be_announced_until_the_bound() -> None:
    broker = Broker(now=STARTED)
    learner = broker.learner()
    broker.expire(STARTING_S - 0.1)
    assert only(broker.say(learner, Act(0), 77, 3), Busy).reason == BusyReason.STARTING
    broker.expire(0.2)
    assert only(broker.say(learner, Act(0), 77, 3), Error).code == Code.SESSION_LOST


def test_a_long_step_without_reports_counts_as_ended_at_the_bound(broker: Broker) -> None:
    broker.env(agent=b"a" * 16)
    learner = broker.learner()
    sid = broker.open(learner)
    broker.hello(b"\x01progress", Role.PROGRESS, agent=b"a" * 16)
    broker.say(b"\x01progress", Progress(60.0), sid, 1)
    broker.expire(PROGRESS_TTL_S - 0.1)
    assert only(broker.say(learner, Ping(), sid, 1), Pong).in_step_s is not None
    broker.expire(0.2)
    assert only(broker.say(learner, Ping(), sid, 1), Pong).in_step_s is None
