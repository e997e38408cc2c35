"""Ended sessions whose environment is still busy are listed while the env agent reports them."""

from __future__ import annotations

import pytest

from gymwire.broker.tables import PROGRESS_TTL_S
from gymwire.protocol.messages import Bye, Find, Found, Gone, Progress, Role
from tests.broker.harness import Broker, only

PROGRESS = b"\x01progress"
AGENT = b"a" * 16


@pytest.fixture
def broker() -> Broker:
    return Broker()


def stuck(broker: Broker, learner: bytes) -> int:
    (entry,) = only(broker.say(learner, Find("")), Found).offers
    return int(entry["stuck"])


def abandoned(broker: Broker) -> tuple[int, bytes]:
    """Return the sid of a session that has ended, and another learner."""
    broker.env(agent=AGENT)
    broker.hello(PROGRESS, Role.PROGRESS, agent=AGENT)
    learner = broker.learner()
    sid = broker.open(learner)
    only(broker.say(learner, Bye("")), Gone)
    return sid, broker.learner(b"\x01other")


def test_an_ended_session_that_is_reported_is_stuck_until_the_bound(broker: Broker) -> None:
    sid, other = abandoned(broker)
    assert stuck(broker, other) == 0
    for _ in range(3):
        broker.say(PROGRESS, Progress(60.0), sid, 1)
        assert stuck(broker, other) == 1
        broker.expire(PROGRESS_TTL_S - 0.1)
    assert stuck(broker, other) == 1
    broker.expire(0.2)
    assert stuck(broker, other) == 0


def test_a_stuck_session_does_not_take_a_slot(broker: Broker) -> None:
    sid, other = abandoned(broker)
    broker.say(PROGRESS, Progress(60.0), sid, 1)
    assert broker.open(other)


def test_only_the_process_of_a_session_reports_it(broker: Broker) -> None:
    sid, other = abandoned(broker)
    broker.hello(b"\x01stranger", Role.PROGRESS, agent=b"b" * 16)
    broker.say(b"\x01stranger", Progress(60.0), sid, 1)
    broker.say(PROGRESS, Progress(60.0), sid + 1, 1)
    assert stuck(broker, other) == 0
