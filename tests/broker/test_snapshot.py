"""What a snapshot of the broker shows."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from gymwire.broker.auth import Policy, Rights
from gymwire.broker.connections import SETTLED_S
from gymwire.broker.journal import Loss
from gymwire.broker.peers import GRACE_S
from gymwire.broker.rate_limit import BURST
from gymwire.broker.snapshot import Snapshot
from gymwire.protocol import values
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import (
    Act,
    BusyReason,
    Bye,
    Closed,
    Code,
    Error,
    Open,
    Opened,
    Percept,
    Ping,
    Progress,
    Resume,
    Resumed,
    Role,
    Stop,
    Withdraw,
)
from gymwire.protocol.observations import BrokerTotals
from tests.broker.harness import LEASE_S, STARTED, Broker, only

ENV, ENV2, LEARNER = b"\x01env", b"\x01env2", b"\x01learner"
NONCE = b"n" * 16


@pytest.fixture
def broker() -> Broker:
    return Broker()


def snapshot(broker: Broker) -> Snapshot:
    return broker.core.snapshot(broker.now)


def counters(broker: Broker) -> BrokerTotals:
    return snapshot(broker).broker


def balanced(broker: Broker) -> bool:
    """Whether every session that was opened or recovered is open, was closed or was lost."""
    state = snapshot(broker)
    count = state.broker
    live = sum(session.state != "opening" for session in state.sessions)
    lost = sum(count.sessions_lost.values())
    return count.sessions_opened + count.sessions_recovered == count.sessions_closed + lost + live


def test_an_idle_broker_shows_its_run_and_nothing_else(broker: Broker) -> None:
    state = snapshot(broker)
    assert not any((state.offers, state.peers, state.sessions))
    assert state.broker == BrokerTotals(
        1, "gymwire test", broker.now - STARTED, 0, 0, 0, 0, 0, 0, 0, {}, {}, {}, {}
    )


def test_the_loops_of_a_process_are_one_offer(broker: Broker) -> None:
    broker.env(ENV, agent=b"process")
    broker.env(ENV2, agent=b"process")
    broker.open(broker.learner())
    [offer] = snapshot(broker).offers
    assert (offer.address, offer.host) == ("cartpole", "host")
    assert (offer.slots, offer.used, offer.state) == (8, 1, "ready")


def test_an_offer_shows_that_its_agent_is_leaving_or_silent(broker: Broker) -> None:
    broker.env()
    broker.say(ENV, Withdraw("cartpole"))
    assert [offer.state for offer in snapshot(broker).offers] == ["draining"]
    broker.core.unreachable(ENV, broker.now)
    assert [offer.state for offer in snapshot(broker).offers] == ["silent"]


def test_a_peer_shows_its_silence_and_whether_it_is_connected(broker: Broker) -> None:
    broker.learner()
    broker.now += 3.0
    broker.core.unreachable(LEARNER, broker.now)
    [peer] = snapshot(broker).peers
    assert (peer.role, peer.host, peer.name) == (Role.LEARNER, "host", "anyone")
    assert (peer.connected, peer.silent_s, peer.sessions, peer.local) == (False, 3.0, 0, False)


def test_a_session_goes_from_opening_to_open_to_waiting(broker: Broker) -> None:
    broker.env()
    broker.learner()
    [forwarded] = broker.say(LEARNER, Open("cartpole", b"o" * 16), seq=1)
    [session] = snapshot(broker).sessions
    assert (session.sid, session.state) == (forwarded.header.sid, "opening")
    sid = broker.open(LEARNER)
    broker.now += 7.0
    broker.say(ENV, Progress(60.0), sid, 1)
    _, session = snapshot(broker).sessions
    assert (session.sid, session.address) == (sid, "cartpole")
    assert (session.state, session.learner_host, session.age_s) == ("open", "host", 7.0)
    assert session.in_step_s == 60.0
    broker.core.unreachable(LEARNER, broker.now)
    assert [one.state for one in snapshot(broker).sessions] == ["waiting", "waiting"]


def test_a_session_is_relayed_if_no_direct_connection_is_allowed(broker: Broker) -> None:
    broker.env()
    broker.learner()
    broker.say(LEARNER, Open("cartpole", b"1" * 16, direct=False), seq=1)
    broker.say(LEARNER, Open("cartpole", b"2" * 16, direct=True), seq=2)
    assert [one.direct for one in snapshot(broker).sessions] == [False, None]


def test_a_session_is_relayed_once_a_frame_was(broker: Broker) -> None:
    broker.env()
    broker.hello(ENV2, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    broker.learner()
    only(broker.say(LEARNER, Resume(NONCE), 77, 1), Resumed)
    assert [one.direct for one in snapshot(broker).sessions] == [None]
    broker.say(LEARNER, Act(0), 77, 1)
    broker.say(ENV2, Percept(0, 0.0, False, False, {}), 77, 1)
    [session] = snapshot(broker).sessions
    assert (session.direct, session.frames) == (False, 2)


def test_frames_are_counted_in_live_and_ended_sessions(broker: Broker) -> None:
    broker.env()
    broker.learner()
    for i in range(2):
        sid = broker.open(LEARNER, nonce=bytes([i]) * 16)
        for seq in range(3):
            broker.say(LEARNER, Act(0), sid, seq)
    assert counters(broker).frames == 6
    size = len(PLAIN.encode(Act(0), sid, 1))
    assert counters(broker).bytes == 6 * size
    broker.say(ENV, Closed(), sid, 4)
    assert counters(broker).frames == 7
    assert (counters(broker).sessions_opened, counters(broker).sessions_closed) == (2, 1)


def test_sessions_are_lost_for_a_reason() -> None:
    key, other = b"a" * 40, b"b" * 40
    named = Rights("lab", offer=("*",), vouched=True)
    user = Rights("alice", use=("*",), stop=("*",), vouched=True)
    broker = Broker(policy=Policy({key: named, other: user}, anyone=None))
    env = broker.env(key=key)

    nonces = itertools.count()

    def opened() -> int:
        broker.learner(key=other)
        nonce = next(nonces).to_bytes(16)
        return broker.open(LEARNER, key=other, env_key=key, nonce=nonce)

    opened()
    broker.say(LEARNER, Bye(), key=other)
    opened()
    broker.core.unreachable(LEARNER, broker.now)
    broker.expire(LEASE_S + 1.0)
    broker.say(env, Error(Code.SESSION_LOST, "unknown"), opened(), 1, key=key)
    opened()
    broker.core.apply_policy(Policy({key: named, other: Rights("alice")}, anyone=None))
    broker.core.apply_policy(Policy({key: named, other: user}, anyone=None))
    opened()
    broker.core.unreachable(env, broker.now)
    broker.expire(GRACE_S)
    broker.env(key=key)
    sid = opened()
    for fd in range(3):  # each connection of the env agent ends before it answers
        broker.hello(env, Role.ENV, key=key, fd=fd)
        broker.say(LEARNER, Ping(), sid, 1, key=other)
        broker.now += SETTLED_S
    broker.say(LEARNER, Stop(), opened(), 1, key=other)
    nonce = b"o" * 16
    broker.open(LEARNER, key=other, env_key=key, nonce=nonce)
    [again] = broker.say(LEARNER, Open("cartpole", nonce), seq=1, key=other)
    malformed = Opened(None, None, None, None, {}, {}, None, 0, {}, "")
    broker.say(env, malformed, again.header.sid, 1, key=key)
    opened()
    broker.say(env, Bye(), key=key)
    losses = [value for name, value in vars(Loss).items() if name.isupper()]
    assert counters(broker).sessions_lost == dict.fromkeys(losses, 1)
    assert balanced(broker)


def test_a_session_that_an_agent_announces_is_recovered(broker: Broker) -> None:
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    assert counters(broker).sessions_recovered == 1
    assert balanced(broker)


def test_a_session_that_never_opened_is_neither_closed_nor_lost(broker: Broker) -> None:
    broker.env()
    broker.learner()
    [forwarded] = broker.say(LEARNER, Open("cartpole", NONCE), seq=1)
    broker.say(ENV, Error(Code.OPEN_FAILED, "no"), forwarded.header.sid, 1)
    count = counters(broker)
    assert (count.frames, count.sessions_opened, count.sessions_lost, count.refusals) == (
        1,
        0,
        {},
        {},
    )
    assert balanced(broker)


def test_refusals_are_counted_by_code_and_busy_by_reason(broker: Broker) -> None:
    broker.say(LEARNER, Ping())
    broker.learner()
    broker.say(LEARNER, Open("nowhere", NONCE), seq=1)
    broker.say(LEARNER, Open("Not An Address", NONCE), seq=1)
    for _ in range(int(BURST)):
        broker.say(LEARNER, Ping())
    count = counters(broker)
    assert count.refusals == {Code.ADDRESS_UNKNOWN: 1, Code.ADDRESS_INVALID: 1}
    assert count.busy.keys() == {BusyReason.HELLO, BusyReason.RATE}
    assert count.busy[BusyReason.HELLO] == 1


def test_a_snapshot_is_a_frozen_copy_that_can_be_sent(broker: Broker) -> None:
    broker.env()
    broker.open(broker.learner())
    state = snapshot(broker)
    before = dataclasses.asdict(state)
    broker.say(LEARNER, Bye())
    assert dataclasses.asdict(state) == before
    assert values.encode(before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.offers = ()  # type: ignore[misc]
