"""Sessions that an env agent announces, but nobody has."""

from __future__ import annotations

import pytest

from gymwire.broker import recovery, sessions
from gymwire.broker.auth import Policy, Rights
from gymwire.broker.events import Send, Sender
from gymwire.broker.shares import Shares
from gymwire.protocol.messages import Code, Error, Gone, Open, Resume, Resumed, Role
from tests.broker.harness import STARTED, Broker, only

ENV, ENV2, LEARNER = b"\x01env", b"\x01env2", b"\x01learner"
HONEST, HOSTILE, ALICE = b"h" * 40, b"x" * 40, b"a" * 40
POLICY = Policy(
    {
        HONEST: Rights("lab", offer=("*",), vouched=True),
        HOSTILE: Rights("other", offer=("*",), vouched=True),
        ALICE: Rights("alice", use=("*",), sessions=2),
    },
    anyone=None,
)


def rows(first: int, count: int, learner: str = "") -> list[object]:
    return [[sid, sid.to_bytes(16), "cartpole", learner] for sid in range(first, first + count)]


def kept(broker: Broker, rid: bytes, hello_rows: list[object], key: bytes | None = None) -> int:
    """Announce sessions; return how many of them the broker takes."""
    sends = broker.hello(rid, Role.ENV, sessions=hello_rows, key=key)
    return len(hello_rows) - sum(isinstance(one.message, Gone) for one in sends)


def test_invented_sessions_leave_room_for_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 50)
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED", 100)
    broker = Broker()
    for number in range(7):
        kept(broker, b"\x01x%d" % number, rows(1 + 50 * number, 50))
    assert len(broker.core._tables.sessions) == 100
    broker.env(ENV, "taxi", capacity=100)
    learner = broker.learner()
    for number in range(50):
        broker.open(learner, "taxi", nonce=b"n" * 15 + bytes([number]))
    refused = only(broker.say(learner, Open("taxi", b"m" * 16), seq=1), Error)
    assert refused.code == Code.LIMIT


def test_the_sessions_that_a_loop_announces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_ANNOUNCED", 10)
    broker = Broker()
    assert kept(broker, ENV, rows(1, 15)) == 10
    assert kept(broker, ENV, rows(100, 5)) == 0
    assert kept(broker, ENV, rows(1, 10)) == 10  # the same again
    assert kept(broker, ENV2, rows(200, 15)) == 10


def test_the_sessions_that_a_key_announces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED_OF_KEY", 10)
    broker = Broker(policy=POLICY)
    assert kept(broker, ENV, rows(1, 6), HOSTILE) == 6
    assert kept(broker, ENV2, rows(100, 6), HOSTILE) == 4
    assert kept(broker, b"\x01lab", rows(200, 6), HONEST) == 6


def test_a_session_that_its_learner_resumes_makes_room_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED", 1)
    broker = Broker()
    assert kept(broker, ENV, rows(1, 2)) == 1
    only(broker.say(broker.learner(), Resume((1).to_bytes(16)), 1, 1), Resumed)
    assert kept(broker, ENV, rows(2, 2)) == 1
    tables = broker.core._tables
    for session in list(tables.sessions.values()):
        tables.drop_session(session)
    assert not any((tables.claimed, tables.unclaimed, tables.sessions_of, tables._load))
    assert not tables.peers[ENV].used


def test_invented_sessions_do_not_use_up_the_limit_of_a_learner() -> None:
    broker = Broker(policy=POLICY)
    kept(broker, ENV, rows(1, 5, ALICE.decode()), HOSTILE)
    broker.env(ENV2, "taxi", key=HONEST)
    broker.learner(LEARNER, key=ALICE)
    for number in range(2):
        nonce = b"n" * 15 + bytes([number])
        broker.open(LEARNER, "taxi", nonce=nonce, key=ALICE, env_key=HONEST)
    # Resumed sessions count towards the limit, too.
    for message, sid in ((Resume((1).to_bytes(16)), 1), (Open("cartpole", (2).to_bytes(16)), 0)):
        refused = only(broker.say(LEARNER, message, sid, 1, key=ALICE), Error)
        assert refused.code == Code.LIMIT


@pytest.mark.parametrize(
    "sid", [0, -1, 2**64, 2**16_000, "1", None, 1.0, [1]], ids=lambda sid: type(sid).__name__
)
def test_a_progress_connection_names_sessions_by_their_numbers_only(sid: object) -> None:
    broker = Broker(now=STARTED)
    broker.hello(ENV, Role.PROGRESS)
    peer = broker.core._tables.peers[ENV]
    expected = broker.core._peers._recovery
    expected.expect(peer, [[sid], [], [7]])
    assert len(expected._expected_sessions) == 1


def test_a_progress_connection_displaces_no_sessions_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "MAX_EXPECTED", 10)
    broker = Broker()
    broker.hello(ENV, Role.PROGRESS, sessions=[[1], [2], [3]])
    broker.hello(ENV2, Role.PROGRESS, sessions=[[sid] for sid in range(100, 200)])
    recover = broker.core._peers._recovery
    assert all(recover.may_come(sid, broker.now) for sid in (1, 2, 3))
    assert len(recover._expected_sessions) == 10
    broker.core._peers.bye(broker.core._tables.peers[ENV2])
    assert len(recover._expected_sessions) == 3


def test_a_loop_that_does_not_read_delays_no_notice_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "MAX_PENDING_GONE", 200)
    broker = Broker()
    broker.hello(ENV, Role.ENV)
    broker.hello(ENV2, Role.ENV)
    broker.core.queue_full(Send.message(ENV2, Gone("x"), 5000))
    for sid in range(1, 1000):
        broker.core.queue_full(Send.message(ENV, Gone("x"), sid))
    to_other = [one for one in broker.expire() if one.rid == ENV2 and isinstance(one.message, Gone)]
    assert [one.header.sid for one in to_other] == [5000]


def test_shares_are_fair_whoever_comes_first() -> None:
    shares: Shares[int] = Shares(10)
    for sid in range(8):
        shares.put(b"a", sid, sid)
    for sid in range(100, 120):
        shares.put(b"b", sid, sid)
    assert len(shares) == 10
    owned = [sid for sid in range(200) if shares.get(sid) is not None]
    assert owned == [3, 4, 5, 6, 7, 115, 116, 117, 118, 119]
    assert shares.take(4) == [3, 4, 115, 116]
    shares.forget(b"a")
    assert len(shares) == 3
    assert shares.take(100) == [117, 118, 119]
    assert shares.take(100) == []


def test_a_liveness_connection_counts_while_its_agent_has_no_progress_connection() -> None:
    broker = Broker(now=STARTED)
    agent = b"a" * 16
    recover = broker.core._peers._recovery

    def is_awaited() -> bool:
        broker.core.receive(Sender(b"\x02" + agent[:15], 7, None, ""), b"", broker.now)
        awaited = bool(recover._silent_agents)
        recover._silent_agents.clear()
        return awaited

    assert is_awaited()
    for _ in range(2):  # a repeated HELLO counts once
        broker.hello(ENV, Role.PROGRESS, agent=agent)
    assert not is_awaited()
    broker.core._peers.bye(broker.core._tables.peers[ENV])
    assert is_awaited()


def test_a_key_displaces_sessions_of_those_that_have_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED", 100)
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED_OF_KEY", 50)
    hostile = [bytes([number]) * 40 for number in b"wxyz"]
    rights = {key: Rights(key.decode(), offer=("*",), vouched=True) for key in [*hostile, HONEST]}
    broker = Broker(policy=Policy(rights, anyone=None))
    for number, key in enumerate(hostile):
        kept(broker, b"\x01x%d" % number, rows(1 + 100 * number, 100), key)
    sends = broker.hello(ENV, Role.ENV, sessions=rows(1000, 30), key=HONEST)
    gone = [one for one in sends if isinstance(one.message, Gone)]
    assert sum(one.rid == ENV for one in gone) == 10  # 20 of 100 are its share beside four others
    assert len(gone) == 30
    displaced = {one.message for one in gone if one.rid != ENV}
    assert displaced == {Gone(sessions.DISPLACED)}
    tables = broker.core._tables
    assert {key: len(found) for key, found in tables.unclaimed.items()} == dict.fromkeys(
        [*hostile, HONEST], 20
    )
    for number, key in enumerate(hostile):  # these take nothing from it
        kept(broker, b"\x01y%d" % number, rows(2000 + 100 * number, 100), key)
    assert len(tables.unclaimed[HONEST]) == 20
    assert len(tables.sessions) == 100
