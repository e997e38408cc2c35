"""The exactly-once rule, row by row (docs/protocol.md §7): for steps and all other requests."""

from __future__ import annotations

import copy

import pytest

from gymwire.env_agent.session import Session, Verdict
from gymwire.protocol.codec import PLAIN, Pieces
from gymwire.protocol.dialogue import State
from gymwire.protocol.errors import MoveError
from gymwire.protocol.messages import Code, Error, Kind

RESET, ACT, REPLY = b"reset", b"act", b"reply"


@pytest.fixture
def session() -> Session:
    return Session(7, b"n" * 16, "cartpole", "")


def execute(session: Session, kind: Kind, seq: int, data: bytes, reply: Kind, frame: bytes) -> None:
    assert session.judge(kind, seq, data) is Verdict.EXECUTE
    session.finish(reply, frame)


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
        assert stepped.reply == REPLY
    assert stepped.steps == 1


def test_the_last_number_with_other_content_is_refused(stepped: Session) -> None:
    assert stepped.judge(Kind.ACT, 2, b"another action") is Verdict.REFUSE
    assert refusal(stepped).code == Code.PROTOCOL
    assert stepped.reply == REPLY


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
    assert session.reply == b"error"


def test_a_refusal_does_not_displace_the_cached_reply(stepped: Session) -> None:
    stepped.judge(Kind.ACT, 9, ACT)
    assert stepped.judge(Kind.ACT, 2, ACT) is Verdict.REPEAT
    assert stepped.reply == REPLY


def test_a_reply_that_does_not_answer_the_request_raises(session: Session) -> None:
    session.judge(Kind.RESET, 1, RESET)
    with pytest.raises(MoveError, match="PERCEPT is not a reply to RESET"):
        session.finish(Kind.PERCEPT, b"")


# --- a step on the fast path ---


def test_a_step_that_is_next_begins_once_and_counts_when_it_is_finished(stepped: Session) -> None:
    assert stepped.begin_step(3)
    assert (stepped.last_seq, stepped.steps, stepped.reply) == (2, 1, b"")
    assert stepped.is_executing
    stepped.finish_step(3, b"act 3", b"percept 3")
    assert (stepped.last_seq, stepped.steps, stepped.reply) == (3, 2, b"percept 3")
    assert not stepped.is_executing
    assert not stepped.begin_step(3)
    assert stepped.judge(Kind.ACT, 3, b"act 3") is Verdict.REPEAT
    assert stepped.judge(Kind.ACT, 3, b"another") is Verdict.REFUSE


DIALOGUE = [
    (Kind.RENDER, Kind.FRAME),
    (Kind.RESET, Kind.ERROR),
    (Kind.RESET, Kind.STATUS),
    (Kind.ACT, Kind.ERROR),
    (Kind.ACT, Kind.PERCEPT),
    (Kind.CALL, Kind.RESULT),
    (Kind.CLOSE, Kind.CLOSED),
]


@pytest.mark.parametrize("length", range(len(DIALOGUE) + 1))
@pytest.mark.parametrize("seq", [0, *range(1, len(DIALOGUE) + 3), 2**64 - 1])
def test_the_fast_path_does_exactly_what_judge_and_finish_do(
    session: Session, length: int, seq: int
) -> None:
    """After any part of a dialogue: the same steps begin, and leave the same session."""
    for number, (request, reply) in enumerate(DIALOGUE[:length], 1):
        execute(session, request, number, ACT, reply, REPLY)
    before, fast = vars(copy.copy(session)), copy.copy(session)
    began = fast.begin_step(seq)
    assert began == (session.judge(Kind.ACT, seq, b"act") is Verdict.EXECUTE)
    assert fast.is_executing == session.is_executing == began
    if began:
        fast.finish_step(seq, b"act", b"percept")
        session.finish(Kind.PERCEPT, b"percept")
        assert vars(fast) == vars(session)
    else:
        assert vars(fast) == before


def test_a_failed_step_counts_and_leaves_the_episode_open(stepped: Session) -> None:
    assert stepped.begin_step(3)
    assert stepped.judge(Kind.ACT, 3, ACT) is Verdict.EXECUTE  # what has begun may be judged again
    stepped.finish(Kind.ERROR, b"error")
    assert (stepped.last_seq, stepped.steps, stepped.state) == (3, 2, State.EPISODE)


def test_a_request_that_has_not_begun_cannot_be_finished(stepped: Session) -> None:
    with pytest.raises(AssertionError):
        stepped.finish(Kind.PERCEPT, REPLY)
    with pytest.raises(AssertionError):
        stepped.finish_step(3, ACT, REPLY)
    stepped.judge(Kind.RESET, 3, RESET)
    with pytest.raises(AssertionError):
        stepped.finish_step(3, ACT, REPLY)


def test_a_request_that_was_aborted_is_executed_when_it_is_repeated(stepped: Session) -> None:
    assert stepped.judge(Kind.ACT, 3, ACT) is Verdict.EXECUTE
    stepped.abort()
    assert not stepped.is_executing
    assert stepped.begin_step(3)
    stepped.abort()
    assert not stepped.is_executing
    assert stepped.begin_step(3)
    stepped.finish_step(3, ACT, REPLY)
    stepped.abort()
    assert stepped.judge(Kind.ACT, 3, ACT) is Verdict.REPEAT
    assert stepped.reply == REPLY


# --- the reply that is kept ---


def test_a_reply_in_pieces_is_copied_when_it_is_detached(stepped: Session) -> None:
    memory = bytearray(b"cept")
    assert stepped.begin_step(3)
    stepped.finish_step(3, ACT, Pieces([b"per", memory], 7))
    assert stepped.detach_reply() == b"percept"
    memory[:] = b"next"
    assert stepped.judge(Kind.ACT, 3, ACT) is Verdict.REPEAT
    assert stepped.reply == b"percept"


def test_a_repetition_of_a_timed_step_gets_its_time_stamps(stepped: Session) -> None:
    stepped.restamp(b"reply with stamps")
    assert stepped.judge(Kind.ACT, 2, ACT) is Verdict.REPEAT
    assert stepped.reply == b"reply with stamps"
