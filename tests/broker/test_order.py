"""What waits for its turn may be overtaken by other frames of the same peer, or by its end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gymwire.broker.agenda import Piece
from gymwire.broker.decoding import TEXT_BYTES, error_text, takes_long
from gymwire.broker.events import Sender
from gymwire.broker.turns import MAX_WAITING_BYTES
from gymwire.protocol.codec import MAX_CONTROL, PLAIN
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Bye,
    Close,
    Closed,
    Code,
    Error,
    Gone,
    Message,
    Open,
    Opened,
    Percept,
    Reset,
    Resume,
    Resumed,
    Status,
)
from tests.broker.harness import Broker, decoded, limited_broker, only, opened
from tests.broker.test_agenda import Bench, agenda, following
from tests.broker.test_long_messages import announce, nonce_of, rows, take_over
from tests.chaos.fleet import until

ENV, LEARNER = b"\x01env", b"\x01learner"
FAILED = Error(Code.ENVIRONMENT_FAILED, "it raised", {"traceback": "x" * 20_000})
PERCEPT = Percept(0, 0.0, False, False, {})


def connected() -> Broker:
    """Return a broker with an env agent and a learner."""
    broker = Broker()
    broker.env(ENV)
    broker.learner(LEARNER)
    return broker


# --- in which order the broker handles what waits -------------------------------------------------


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_message_of_a_peer_that_has_become_demanding_overtakes_none_of_it(is_idle: bool) -> None:
    waiting = agenda()
    pieces = [Piece.SHORT, Piece.SHORT, Piece.DEMANDING, Piece.SHORT, Piece.DEMANDING]
    for number, piece in enumerate(pieces):
        waiting.put(b"a", 100, str(number), piece)
    waiting.put(b"b", 100, "other", Piece.SHORT)
    handled = []
    while (due := following(waiting, waiting.due, is_idle=is_idle)) is not None:
        handled.append(waiting.take(due))
    assert [one for one in handled if one != "other"] == [str(n) for n in range(len(pieces))]
    assert "other" in handled


def test_what_waits_of_a_peer_stays_bounded_when_it_becomes_demanding() -> None:
    waiting, half = agenda(), MAX_WAITING_BYTES // 2
    assert waiting.put(b"a", half, "first", Piece.SHORT)
    assert not waiting.put(b"a", half, "second", Piece.DEMANDING)
    assert [waiting.take(Piece.DEMANDING), waiting.take(Piece.DEMANDING)] == ["first", None]
    assert not waiting
    assert waiting.put(b"a", half, "third", Piece.SHORT)


def test_what_is_not_decoded_does_not_take_long() -> None:
    large = {"x": bytes(MAX_CONTROL)}
    assert not takes_long(bytes(PLAIN.encode(FAILED, 1, 1)))
    assert takes_long(bytes(PLAIN.encode(replace(opened(), metadata=FAILED.details), 1, 1)))
    for message in (replace(FAILED, details=large), replace(opened(), metadata=large)):
        assert not takes_long(bytes(PLAIN.encode(message, 1, 1)))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FAILED, "it raised"),
        (Error(Code.OPEN_FAILED, "no"), "no"),
        (Error("c" * 500, ""), ""),
        (Error(Code.OPEN_FAILED, "x" * TEXT_BYTES), ""),
    ],
    ids=["long", "short", "empty", "without end"],
)
def test_the_text_of_an_error_is_read_without_its_details(error: Error, text: str) -> None:
    data = bytes(PLAIN.encode(error, 1, 1))
    assert error_text(data) == text
    assert error_text(memoryview(data)) == text
    for size in range(min(len(data), 40)):
        assert error_text(data[:size]) in ("", text)
    assert error_text(data[:24] + b"\x93\xa1c\x80\x80") == ""


# --- what each order leads to ---------------------------------------------------------------------


def test_an_error_that_a_later_reply_has_overtaken_changes_nothing() -> None:
    broker = connected()
    sid = broker.open(LEARNER)
    broker.say(LEARNER, Act(0), sid, 1)
    broker.say(LEARNER, Reset(None, None), sid, 2)  # it has abandoned the first
    assert only(broker.say(ENV, Status(0, {}), sid, 2), Status)
    late = broker.say(ENV, FAILED, sid, 1)
    assert [(one.rid, one.header.seq, type(one.message)) for one in late] == [(LEARNER, 1, Error)]
    assert broker.reaches(LEARNER, sid, 3) == ENV


def test_an_error_that_is_repeated_before_its_turn_is_relayed_as_often_as_requested() -> None:
    broker = connected()
    sid = broker.open(LEARNER)
    for _ in range(2):
        broker.say(LEARNER, Act(0), sid, 1)
    sent = [one for _ in range(2) for one in broker.say(ENV, FAILED, sid, 1)]
    assert {(one.rid, one.header.seq) for one in sent} == {(LEARNER, 1)}
    assert broker.reaches(LEARNER, sid, 2) == ENV
    assert only(broker.say(ENV, PERCEPT, sid, 2), Percept)


def test_an_error_that_closed_has_overtaken_ends_nothing_twice() -> None:
    broker = connected()
    sid = broker.open(LEARNER)
    broker.say(LEARNER, Act(0), sid, 1)
    broker.say(LEARNER, Close(), sid, 2)
    only(broker.say(ENV, Closed(), sid, 2), Closed)
    for late in (FAILED, Error(Code.SESSION_LOST, "it is gone"), opened()):
        [answer] = broker.say(ENV, late, sid, 1)
        assert (answer.rid, type(answer.message)) == (ENV, Gone)
    assert broker.core._journal.sessions_closed == 1


@pytest.mark.parametrize("code", [Code.ENVIRONMENT_FAILED, Code.EXPECTED])
def test_an_overtaken_error_frees_no_place_of_a_later_request(code: str) -> None:
    broker = limited_broker(ENV, LEARNER, requests_in_flight=2)
    sid = broker.open(LEARNER)
    for number in (1, 2):
        only(broker.say(LEARNER, Act(0), sid, number), Act)
    only(broker.say(ENV, PERCEPT, sid, 2), Percept)
    for number in (3, 4):
        only(broker.say(LEARNER, Act(0), sid, number), Act)
    only(broker.say(ENV, Error(code, "it is late"), sid, 1), Error)
    assert only(broker.say(LEARNER, Act(0), sid, 5), Busy).reason == BusyReason.RATE


def test_an_opened_that_its_learner_no_longer_awaits_opens_nothing() -> None:
    broker = connected()
    [forwarded] = broker.say(LEARNER, Open("cartpole", b"n" * 16), seq=1)
    only(broker.say(LEARNER, Bye()), Gone)
    [answer] = broker.say(ENV, opened(), forwarded.header.sid, 1)
    assert (answer.rid, type(answer.message)) == (ENV, Gone)
    assert not broker.core._tables.sessions


@pytest.mark.parametrize("key", [None, b"k" * 32])
@pytest.mark.parametrize("answer", [PERCEPT, FAILED], ids=lambda one: type(one).__name__)
def test_a_session_that_a_long_hello_still_announces_is_not_ended_by_a_reply(
    answer: Message, key: bytes | None
) -> None:
    broker = Broker()
    announce(broker, ENV, rows(1, 500), key)
    sender = Sender(ENV, hash(ENV), key, "")
    frame = bytes(PLAIN.encode(answer, 500, 7))

    def replied() -> list[Message]:
        sends = broker.core.receive(sender, frame, broker.now)
        return [one.message for one in decoded(sends)]

    [busy] = replied()
    assert isinstance(busy, Busy)
    assert busy.reason == BusyReason.STARTING
    take_over(broker.core, broker.now)
    assert 500 in broker.core._tables.sessions
    broker.learner(LEARNER)
    only(broker.say(LEARNER, Resume(nonce_of(500)), 500), Resumed)
    assert replied() == [answer]
    frame = bytes(PLAIN.encode(answer, 501, 7))
    assert [type(one) for one in replied()] == [Gone]  # nobody announces this one


# --- over real connections ------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [True, False], ids=["of a request", "of OPEN"])
@pytest.mark.parametrize("code", [Code.ENVIRONMENT_FAILED, Code.OPEN_FAILED, Code.SESSION_LOST])
def test_a_learner_gets_the_error_of_an_env_agent_that_leaves_right_after_it(
    bench: Bench, code: str, is_open: bool
) -> None:
    env, learner, opening = bench.opening()
    sid = opening.sid
    peers, router = bench.server.core._tables.peers, bench.server._router
    if is_open:
        env.send(PLAIN.encode(opened(), sid, 1))
        assert isinstance(bench.answer(learner)[1], Opened)
    fd, connection = peers[ENV].fd, peers[ENV].connection
    bench.steps_only()
    bench.server._agenda._patient_due = math.inf  # nothing long has a turn
    error = replace(FAILED, code=code)
    for last in (PLAIN.encode(error, sid, 1), PLAIN.encode(Bye())):
        env.send(last)
    queues = bench.server._agenda._messages.values()
    bench.serve_until(
        lambda: sum(len(queue._waiting.get(ENV, ())) for queue in queues) == 2, "both wait"
    )
    env.close(linger=0)
    until(lambda: router.connection_id(fd) != connection, "the connection has ended")
    assert bench.answer(learner)[1] == error
    if is_open and code != Code.SESSION_LOST:
        assert isinstance(bench.answer(learner)[1], Gone)
    assert not bench.server.core._tables.sessions


def test_an_opened_larger_than_all_that_may_wait_of_a_peer_is_relayed(bench: Bench) -> None:
    env, learner, opening = bench.opening()
    sid = opening.sid
    large = replace(opened(), metadata={"x": bytes(MAX_WAITING_BYTES + 1)})
    env.send(PLAIN.encode(large, sid, 1))
    header, answer = bench.answer(learner)
    assert (header.sid, answer) == (sid, large)
