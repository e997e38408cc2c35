"""The loss of a peer with many sessions keeps the broker from nobody else for long."""

from __future__ import annotations

import itertools

import pytest

from gymwire.broker.peers import GRACE_S
from gymwire.broker.sessions import ENDED_PER_TICK
from gymwire.broker.tables import Session
from gymwire.protocol.messages import Find, Found, Gone, Role
from tests.broker.harness import LEASE_S, Broker, decoded, only

ENV, ENV2, LEARNER = b"\x01env", b"\x01env2", b"\x01learner"
MANY = 2 * ENDED_PER_TICK + 7


def with_sessions(count: int, loops: tuple[bytes, ...] = (ENV,)) -> Broker:
    """Return a broker with so many sessions of one learner, in turn in these loops."""
    broker = Broker()
    broker.learner(LEARNER)
    tables = broker.core._tables
    for rid in loops:
        broker.env(rid, capacity=2**20)
    for sid in range(1, count + 1):
        loop, nonce = tables.peers[loops[sid % len(loops)]], sid.to_bytes(16)
        one = Session(sid, nonce, "cartpole", "", loop, is_open=True, created=broker.now)
        tables.add_session(one)
        tables.bind_learner(one, tables.peers[LEARNER])
    return broker


def gone(broker: Broker) -> list[int]:
    """Return the sessions of which a tick reports the end."""
    sent = decoded(broker.core.expire(broker.now))
    return [one.header.sid for one in sent if isinstance(one.message, Gone)]


@pytest.mark.parametrize("loops", [(ENV,), (ENV, ENV2)], ids=len)
def test_the_sessions_of_lost_loops_end_a_bounded_number_per_tick(loops: tuple[bytes, ...]) -> None:
    broker = with_sessions(MANY, loops)
    for rid in loops:
        broker.core.unreachable(rid, broker.now)
    broker.now += GRACE_S
    ticks = [gone(broker) for _ in range(4)]
    assert [len(tick) for tick in ticks] == [ENDED_PER_TICK, ENDED_PER_TICK, 7, 0]
    assert sorted(itertools.chain(*ticks)) == list(range(1, MANY + 1))
    assert not broker.core._tables.sessions
    assert not broker.core._tables.lost
    assert only(broker.say(LEARNER, Find()), Found).offers == []


def test_the_sessions_of_a_lost_learner_end_a_bounded_number_per_tick() -> None:
    broker = with_sessions(MANY)
    broker.core.unreachable(LEARNER, broker.now)
    broker.now += LEASE_S
    ticks = [gone(broker) for _ in range(4)]
    assert [len(tick) for tick in ticks] == [ENDED_PER_TICK, ENDED_PER_TICK, 7, 0]
    assert not broker.core._tables.sessions


def test_a_loop_that_returns_meanwhile_keeps_the_sessions_that_are_left() -> None:
    broker = with_sessions(MANY)
    broker.core.unreachable(ENV, broker.now)
    broker.now += GRACE_S
    ended = gone(broker)
    rows = [[sid, sid.to_bytes(16), "cartpole", ""] for sid in range(1, MANY + 1)]
    refused = broker.hello(ENV, Role.ENV, sessions=rows)
    told = {one.header.sid for one in refused if isinstance(one.message, Gone)}
    assert told == set(ended)
    assert gone(broker) == []
    assert len(broker.core._tables.sessions) == MANY - ENDED_PER_TICK
