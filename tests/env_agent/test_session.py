"""The table of a request that arrives at the env agent, row by row (docs/protocol.md)."""

from __future__ import annotations

import pytest

from gymwire.env_agent.session import Session, Verdict
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.dialogue import State
from gymwire.protocol.messages import Code, Error, Kind

RESET, ACT, REPLY = b"reset", b"act", b"reply"


@pytest.fixture
def session() -> Session:
    return Session(7, b"n" * 16, "cartpole", "")


def execute(session: Session, kind: Kind, seq: int, data: bytes, reply: Kind, frame: bytes) -> None:
    assert session.judge(kind, seq, data) is Verdict.EXECUTE
    session.executed(reply, frame)


@pytest.fixture
def stepped(session: Session) -> Session:
    """A session whose requests 1 (RESET) and 2 (ACT) were executed."""
    execute(session, Kind.RESET, 1, RESET, Kind.STATUS, b"status")
    execute(session, Kind.ACT, 2, ACT, Kind.PERCEPT, REPLY)
    return session


def refusal(session: Session) -> Error:
    error = PLAIN.decode(session.refusal)
    assert isinstance(error, Error)
    return error


def test_the_next_request_is_executed(stepped: Session) -> None:
    assert stepped.judge(Kind.ACT, 3, ACT) is Verdict.EXECUTE
    assert (stepped.last_seq, stepped.state, stepped.steps) == (2, State.EPISODE, 1)


def test_the_last_request_again_gets_its_reply_again(stepped: Session) -> None:
    for _ in range(3):
        assert stepped.judge(Kind.ACT, 2, memoryview(ACT)) is Verdict.REPEAT
        assert stepped.answer == REPLY
    assert stepped.steps == 1


def test_the_last_number_with_other_content_is_refused(stepped: Session) -> None:
    assert stepped.judge(Kind.ACT, 2, b"another action") is Verdict.REFUSE
    assert refusal(stepped).code == Code.PROTOCOL
    assert stepped.answer == REPLY


def test_older_requests_are_dropped(stepped: Session) -> None:
    assert stepped.judge(Kind.RESET, 1, RESET) is Verdict.DROP


@pytest.mark.parametrize("seq", [4, 5, 2**64 - 1])
def test_a_skipped_number_is_refused_naming_the_expected_one(stepped: Session, seq: int) -> None:
    assert stepped.judge(Kind.ACT, seq, ACT) is Verdict.REFUSE
    error = refusal(stepped)
    assert (error.code, error.details) == (Code.EXPECTED, {"expected": 3})
    assert stepped.last_seq == 2


def test_an_illegal_request_is_refused_and_takes_no_number(session: Session) -> None:
    assert session.judge(Kind.ACT, 1, ACT) is Verdict.REFUSE
    assert refusal(session).code == Code.PROTOCOL
    execute(session, Kind.RESET, 1, RESET, Kind.STATUS, b"status")


def test_an_error_is_a_reply_and_takes_a_number(session: Session) -> None:
    execute(session, Kind.RESET, 1, RESET, Kind.ERROR, b"error")
    assert (session.state, session.last_seq) == (State.READY, 1)
    assert session.judge(Kind.RESET, 1, RESET) is Verdict.REPEAT
    assert session.answer == b"error"


def test_a_refusal_does_not_displace_the_cached_reply(stepped: Session) -> None:
    stepped.judge(Kind.ACT, 9, ACT)
    assert stepped.judge(Kind.ACT, 2, ACT) is Verdict.REPEAT
    assert stepped.answer == REPLY


def test_a_reply_that_does_not_belong_to_its_request_is_a_bug_here(session: Session) -> None:
    session.judge(Kind.RESET, 1, RESET)
    with pytest.raises(Exception, match="PERCEPT does not answer RESET"):
        session.executed(Kind.PERCEPT, b"")
