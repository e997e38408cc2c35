"""Ended sessions whose environment is still busy are listed while the env agent reports them."""

from __future__ import annotations

import pytest

from gymwire.broker.tables import PROGRESS_TTL_S
from gymwire.protocol.messages import (
    Bye,
    Code,
    Error,
    Find,
    Found,
    Gone,
    Open,
    Ping,
    Progress,
    Role,
)
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


def test_a_process_without_stuck_sessions_is_preferred(broker: Broker) -> None:
    sid, other = abandoned(broker)
    broker.env(FREE, agent=b"b" * 16)  # the first of equals is the other one
    broker.say(b"\x01env", Ping())
    for number in range(2):
        broker.say(PROGRESS, Progress(60.0), sid, 1)
        broker.say(b"\x01env", Ping())
        broker.open(other, nonce=b"m" * 15 + bytes([number]))
        assert len(broker.core._tables.peers[FREE].sessions) == 1
    broker.expire(PROGRESS_TTL_S + 0.1)
    assert {*broker.core._tables._load.values()} == {1}


def test_a_loop_with_more_stuck_sessions_than_slots_is_the_last_choice(broker: Broker) -> None:
    broker.env(agent=AGENT, capacity=1)
    broker.hello(PROGRESS, Role.PROGRESS, agent=AGENT)
    for number in range(2):
        sid = broker.open(learner := broker.learner(), nonce=b"s" * 15 + bytes([number]))
        only(broker.say(learner, Bye("")), Gone)
        broker.say(b"\x01env", Ping())
        broker.say(PROGRESS, Progress(60.0), sid, 1)
    broker.env(FREE, agent=b"b" * 16)
    other = broker.learner(b"\x01other")
    for number in range(4):  # although its process has more sessions in the end
        last = broker.open(other, nonce=b"m" * 15 + bytes([number]))
        broker.say(FREE, Progress(60.0), last, 1)
        assert len(broker.core._tables.peers[FREE].sessions) == number + 1


FREE = b"\x01free"


def blocked(broker: Broker) -> tuple[int, bytes]:
    """Return the sid of a session that has ended during a step, and another learner.

    There are two loops of four slots, and the one with the session sends nothing in the step.
    """
    broker.env(agent=AGENT)
    broker.hello(PROGRESS, Role.PROGRESS, agent=AGENT)
    sid = broker.open(learner := broker.learner())
    broker.env(FREE, agent=AGENT)
    broker.now += 2.0
    broker.say(PROGRESS, Progress(1.9), sid, 1)
    only(broker.say(learner, Bye("")), Gone)
    return sid, broker.learner(b"\x01other")


def test_a_thread_in_an_abandoned_step_gets_no_session(broker: Broker) -> None:
    sid, other = blocked(broker)
    nonces = [b"m" * 15 + bytes([number]) for number in range(5)]
    for number, nonce in enumerate(nonces[:4]):
        if number:  # the first one comes before another report
            broker.say(PROGRESS, Progress(1.9), sid, 1)
        broker.open(other, nonce=nonce)
    assert len(broker.core._tables.peers[FREE].sessions) == 4
    refused = only(broker.say(other, Open("cartpole", nonces[4]), seq=9), Error)
    assert (refused.code, refused.details) == (Code.NO_FREE_SLOT, {"slots": 8})
    assert "4 of 8 are in use" in refused.text
    broker.say(b"\x01env", Ping())  # the step is over
    assert broker.open(other, nonce=nonces[4])


def test_a_thread_whose_abandoned_step_is_not_reported_any_more_gets_sessions(
    broker: Broker,
) -> None:
    _, other = blocked(broker)
    broker.core._tables.peers[FREE].draining.add("cartpole")
    assert only(broker.say(other, Open("cartpole", b"m" * 16), seq=9), Error)
    broker.expire(PROGRESS_TTL_S)
    assert broker.open(other, nonce=b"m" * 16)


def test_a_loop_that_need_not_have_been_heard_yet_gets_sessions(broker: Broker) -> None:
    broker.env(agent=AGENT)
    broker.hello(PROGRESS, Role.PROGRESS, agent=AGENT)
    sid = broker.open(learner := broker.learner())
    broker.now += 1.1
    broker.say(PROGRESS, Progress(1.0), sid, 1)
    only(broker.say(learner, Bye("")), Gone)
    assert broker.open(broker.learner(b"\x01other"), nonce=b"m" * 16)


def test_an_abandoned_step_of_a_loop_that_is_heard_delays_nobody(broker: Broker) -> None:
    sid, other = blocked(broker)
    broker.core._tables.peers[FREE].draining.add("cartpole")
    broker.say(b"\x01env", Ping())
    broker.say(PROGRESS, Progress(2.0), sid, 1)
    assert broker.open(other, nonce=b"m" * 16)


def test_only_the_process_of_a_session_reports_it(broker: Broker) -> None:
    sid, other = abandoned(broker)
    broker.hello(b"\x01stranger", Role.PROGRESS, agent=b"b" * 16)
    broker.say(b"\x01stranger", Progress(60.0), sid, 1)
    broker.say(PROGRESS, Progress(60.0), sid + 1, 1)
    assert stuck(broker, other) == 0
