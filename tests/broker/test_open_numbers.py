"""An answer to OPEN counts only under the number of the session's last OPEN."""

from __future__ import annotations

import pytest

from gymwire.broker.journal import Drop
from gymwire.protocol.messages import Code, Error, Message, Open, Opened, Resume, Role
from tests.broker.harness import Broker, SentMessage, opened

ENV, LEARNER, NONCE = b"\x01env", b"\x01learner", b"n" * 16
SEQ = 2**40 + 77
REFUSAL = Error(Code.OPEN_FAILED, "no")


@pytest.fixture
def broker() -> Broker:
    """Return a broker with an env agent and a learner."""
    broker = Broker()
    broker.env(ENV)
    broker.learner(LEARNER)
    return broker


def ask(broker: Broker, seq: int) -> int:
    """Send OPEN of the session; return its sid."""
    [forwarded] = broker.say(LEARNER, Open("cartpole", NONCE), seq=seq)
    assert (forwarded.rid, forwarded.header.seq) == (ENV, seq)
    return forwarded.header.sid


def arrived(sends: list[SentMessage], message: type[Message], seq: int) -> bool:
    """Return whether exactly this answer was relayed to the learner."""
    return [(one.rid, type(one.message), one.header.seq) for one in sends] == [
        (LEARNER, message, seq)
    ]


@pytest.mark.parametrize("seq", [0, 1, SEQ - 1, SEQ + 1, 2**64 - 1])
@pytest.mark.parametrize("answer", [opened(), REFUSAL], ids=["OPENED", "ERROR"])
def test_an_answer_with_another_number_is_dropped(
    broker: Broker, answer: Message, seq: int
) -> None:
    sid = ask(broker, SEQ)
    assert broker.say(ENV, answer, sid, seq) == []
    assert broker.core._journal.dropped == {Drop.NOT_AWAITED: 1}
    assert broker.reaches(LEARNER, sid) is None  # it is not open
    assert arrived(broker.say(ENV, opened(), sid, SEQ), Opened, SEQ)
    assert broker.reaches(LEARNER, sid) == ENV


def test_repeated_opens_do_not_allow_answers_to_another_one(broker: Broker) -> None:
    sids = {ask(broker, SEQ) for _ in range(4)}
    assert len(sids) == 1
    sid = sids.pop()
    assert arrived(broker.say(ENV, opened(), sid, SEQ), Opened, SEQ)
    for seq in (SEQ + 1, SEQ + 2):
        assert broker.say(ENV, opened(), sid, seq) == []
    for _ in range(3):
        assert arrived(broker.say(ENV, opened(), sid, SEQ), Opened, SEQ)
    assert broker.say(ENV, opened(), sid, SEQ) == []


def test_an_open_with_a_new_number_is_the_one_to_answer(broker: Broker) -> None:
    sid = ask(broker, SEQ)
    assert ask(broker, SEQ + 9) == sid  # after an earlier refusal crossed with a repeated OPEN
    for late in (opened(), REFUSAL):
        assert broker.say(ENV, late, sid, SEQ) == []
    assert arrived(broker.say(ENV, opened(), sid, SEQ + 9), Opened, SEQ + 9)
    assert broker.say(ENV, opened(), sid, SEQ + 9) == []


def test_a_process_that_continues_a_session_opens_it_with_a_number_of_its_own(
    broker: Broker,
) -> None:
    sid = broker.open(LEARNER, nonce=NONCE)
    for number, epoch in ((5, 1), (6, 2)):
        if epoch == 2:  # the broker has restarted
            broker = Broker(epoch=epoch)
            broker.hello(ENV, Role.ENV, sessions=[[sid, NONCE, "cartpole", ""]])
            broker.learner(LEARNER)
        broker.say(LEARNER, Resume(NONCE, True), sid, 3)
        assert ask(broker, SEQ + number) == sid
        assert broker.say(ENV, opened(), sid, SEQ) == []
        assert arrived(broker.say(ENV, opened(), sid, SEQ + number), Opened, SEQ + number)


def test_an_open_without_a_number_is_answered_without_one(broker: Broker) -> None:
    sid = ask(broker, 0)
    assert arrived(broker.say(ENV, opened(), sid, 0), Opened, 0)
    assert broker.say(ENV, opened(), sid, 0) == []
