from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import pytest
from gymnasium.spaces import Discrete

from gymwire.learner_agent.client.exchange import RESEND_MAX_S, RESEND_S, Exchange
from gymwire.learner_agent.client.patience import PING_S, SETTLED_S, Contact
from gymwire.protocol import codec, spaces
from gymwire.protocol.codec import KIND_AT, PLAIN
from gymwire.protocol.errors import (
    BrokerUnreachable,
    DecodingError,
    EnvironmentFailed,
    EnvironmentLost,
    MoveError,
    ProtocolError,
    ResetNeeded,
)
from gymwire.protocol.messages import (
    CONTROL_KINDS,
    KINDS,
    Act,
    Busy,
    BusyReason,
    Close,
    Closed,
    Code,
    EndedBy,
    Error,
    Gone,
    Kind,
    Message,
    Percept,
    Ping,
    Pong,
    Progress,
    Reset,
    Resume,
    Resumed,
    Status,
)
from gymwire.protocol.step_codec import StepCodec, compile_steps

SID, NONCE = 5, b"n" * 16
PERCEPT = Percept(0, 1.0, False, False, {})
STEPS = compile_steps(spaces.compile(Discrete(9)), spaces.compile(Discrete(9)))


class Learner:
    """An exchange with a clock that only tests move."""

    def __init__(self, timeout_s: float = 60.0, steps: StepCodec | None = None) -> None:
        self.now = 100.0
        self.contact = Contact(timeout_s)
        self.exchange = Exchange(
            SID,
            NONCE,
            where="'cartpole'",
            contact=self.contact,
            rng=random.Random(0),
            steps=steps,
        )

    def ask(self, message: Message) -> bytes:
        seq = self.exchange.begin(KINDS[type(message)])
        frame = PLAIN.encode(message, SID, seq)
        self.exchange.sent(KINDS[type(message)], seq, frame)
        self.exchange.tick(self.now)  # it was not answered at once
        return bytes(frame)

    def hear(self, message: Message, seq: int | None = None) -> bool:
        """Receive a frame, by default for the last request; the caller takes a reply at once."""
        seq = self.exchange.seq if seq is None else seq
        frame = bytes(PLAIN.encode(message, SID, seq))
        if KINDS[type(message)] >= CONTROL_KINDS:
            self.contact.last = self.now  # as the connection does
        answered = self.exchange.receive(codec.read_header(frame), frame, self.now)
        if answered:
            self.exchange.mark_returned()
        return answered

    def tick(self, after_s: float = 0.0) -> tuple[bool, list[bytes]]:
        """Let time pass with frequent ticks; return what the last one sends."""
        end = self.now + after_s
        greet, frames = False, list[bytes | bytearray]()
        while self.now < end:
            self.now = min(self.now + 0.5, end)
            greet, frames = self.exchange.tick(self.now)
        if not after_s:
            greet, frames = self.exchange.tick(self.now)
        return greet, [bytes(frame) for frame in frames]

    def resent(self, after_s: float) -> list[bytes]:
        """Return the requests, without pings, that are sent again at the end of this time."""
        return [frame for frame in self.tick(after_s)[1] if frame[KIND_AT] != Kind.PING]


@pytest.fixture
def learner() -> Learner:
    made = Learner()
    made.ask(Reset())
    assert made.hear(Status(0, {}))
    return made


# --- requests -------------------------------------------------------------------------------------


def test_requests_are_numbered_from_one() -> None:
    learner = Learner()
    assert [learner.exchange.begin(Kind.RESET), learner.exchange.seq] == [1, 0]
    learner.ask(Reset())
    learner.hear(Status(0, {}))
    assert learner.exchange.begin(Kind.ACT) == 2


def test_an_illegal_request_raises_and_moves_nothing() -> None:
    learner = Learner()
    with pytest.raises(ResetNeeded):
        learner.exchange.begin(Kind.ACT)
    assert (learner.exchange.seq, learner.exchange.pending) == (0, None)


def test_after_close_nothing_is_legal(learner: Learner) -> None:
    learner.ask(Close())
    assert learner.hear(Closed())
    with pytest.raises(MoveError):
        learner.exchange.begin(Kind.RESET)


def test_an_error_answers_any_request_and_moves_nothing(learner: Learner) -> None:
    learner.ask(Act(0))
    assert learner.hear(Error(Code.ENVIRONMENT_FAILED, "no"))
    assert learner.exchange.begin(Kind.ACT) == 3


def test_a_reply_of_the_wrong_kind_is_the_other_sides_fault(learner: Learner) -> None:
    learner.ask(Act(0))
    with pytest.raises(ProtocolError, match="STATUS is not a reply to ACT"):
        learner.hear(Status(0, {}))
    assert learner.hear(PERCEPT)


def test_what_is_pending_is_given_up_only_when_its_successor_is_sent(learner: Learner) -> None:
    asked = learner.ask(Act(0))
    learner.exchange.begin(Kind.RESET)  # its options, say, cannot be serialized
    assert learner.resent(RESEND_S) == [asked]
    assert learner.hear(PERCEPT)


# --- the fast path of a step ----------------------------------------------------------------------


@pytest.fixture
def stepping() -> Learner:
    made = Learner(steps=STEPS)
    made.ask(Reset())
    assert made.hear(Status(0, {}))
    return made


def percept(seq: int, observation: int = 0) -> bytes:
    return bytes(PLAIN.encode(Percept(observation, 1.0, False, False, {}), SID, seq))


def test_a_step_is_pending_until_its_reply_is_read(stepping: Learner) -> None:
    exchange = stepping.exchange
    frame = exchange.begin_step(1)
    assert frame == PLAIN.encode(Act(1), SID, 2)
    assert exchange.pending == (Kind.ACT, 2, frame)
    assert exchange.finish_step(percept(2)) == (0, 1.0, False, False, {})
    assert exchange.seq == 2
    assert not exchange.pending


def test_no_other_frame_finishes_a_step(stepping: Learner) -> None:
    exchange = stepping.exchange
    exchange.begin_step(1)
    other_session = bytes(PLAIN.encode(PERCEPT, SID + 1, 2))
    error = bytes(PLAIN.encode(Error(Code.ENVIRONMENT_FAILED, "no"), SID, 2))
    for frame in (percept(1), percept(3), other_session, error, b""):
        assert exchange.finish_step(frame) is None
        assert exchange.unanswered is not None
    assert exchange.finish_step(percept(2)) is not None


def test_a_step_out_of_turn_takes_the_general_path(stepping: Learner) -> None:
    exchange = stepping.exchange
    exchange.begin_step(1)
    assert exchange.begin_step(1) is None  # one is pending
    assert Learner(steps=STEPS).exchange.begin_step(1) is None  # no episode
    assert Learner().exchange.begin_step(1) is None  # no codec
    with pytest.raises(EnvironmentLost):
        stepping.hear(Gone("the agent is gone"))
    exchange.mark_returned()
    assert exchange.begin_step(1) is None
    assert exchange.seq == 2


def test_an_exception_from_outside_leaves_the_reply_to_the_same_call(stepping: Learner) -> None:
    exchange = stepping.exchange
    exchange.begin_step(1)
    data = percept(2, observation=7)
    assert exchange.finish_step(data) is not None
    exchange.end_with(exchange.request, TimeoutError(), data)
    assert exchange.is_repeat(Kind.ACT, lambda seq: PLAIN.encode(Act(1), SID, seq))
    assert not exchange.is_repeat(Kind.ACT, lambda seq: PLAIN.encode(Act(0), SID, seq))
    with pytest.raises(MoveError, match="The previous step is still under way"):
        exchange.begin(Kind.CALL)
    assert exchange.unanswered is None  # nothing is sent again
    assert exchange.reply is not None
    assert exchange.reply[1] == data


def test_the_failure_that_a_reply_stands_for_is_the_reply(stepping: Learner) -> None:
    exchange, failure = stepping.exchange, EnvironmentFailed("no", remote_type="ValueError")
    stepping.ask(Act(0))
    frame = bytes(PLAIN.encode(Error(Code.ENVIRONMENT_FAILED, "no"), SID, 2))
    assert exchange.receive(codec.read_header(frame), frame, stepping.now)
    exchange.set_failure(failure)
    exchange.end_with(exchange.request, TimeoutError())
    assert exchange.reply is not None
    exchange.set_failure(failure)
    exchange.end_with(exchange.request, failure)
    assert exchange.pending is None


# --- matching -------------------------------------------------------------------------------------


def test_a_late_or_doubled_reply_is_dropped(learner: Learner) -> None:
    learner.ask(Act(0))
    assert not learner.hear(Status(0, {}), seq=1)
    assert learner.hear(PERCEPT)
    assert not learner.hear(PERCEPT)
    learner.ask(Act(1))
    assert not learner.hear(PERCEPT, seq=2)
    assert learner.hear(PERCEPT, seq=3)


def test_a_reply_from_the_future_is_dropped(learner: Learner) -> None:
    learner.ask(Act(0))
    assert not learner.hear(PERCEPT, seq=99)


def test_an_act_under_way_cannot_be_replaced_by_another(learner: Learner) -> None:
    learner.ask(Act(0))
    with pytest.raises(MoveError, match="still under way"):
        learner.exchange.begin(Kind.ACT)


def test_the_answer_to_an_abandoned_request_is_dropped(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.ask(Reset())
    assert not learner.hear(PERCEPT, seq=2)
    assert learner.hear(Status(0, {}), seq=3)


def test_abandoned_requests_that_never_arrived_are_sent_again_in_order(learner: Learner) -> None:
    act, reset = learner.ask(Act(0)), learner.ask(Reset())
    assert not learner.hear(Error(Code.EXPECTED, "2 is next", {"expected": 2}))
    assert learner.resent(0.0) == [act, reset]
    assert learner.hear(Status(0, {}))


def test_a_skipped_number_that_was_not_abandoned_is_an_error(learner: Learner) -> None:
    learner.ask(Act(0))
    assert learner.hear(Error(Code.EXPECTED, "9 is next", {"expected": 9}))


# --- silence --------------------------------------------------------------------------------------


def test_nothing_is_sent_while_nothing_is_pending(learner: Learner) -> None:
    assert learner.tick(1000.0) == (False, [])


def test_a_request_is_resent_after_silence_and_then_less_and_less_often(learner: Learner) -> None:
    act = learner.ask(Act(0))
    pauses, last = [], learner.now
    for _ in range(100):
        if learner.resent(0.5):
            pauses.append(learner.now - last)
            last = learner.now
    assert pauses[:5] == [RESEND_S, 2.0, 4.0, 8.0, RESEND_MAX_S]
    assert act


def test_while_a_request_is_pending_the_broker_is_asked(learner: Learner) -> None:
    learner.ask(Act(0))
    pings = [
        PLAIN.decode(frame) for frame in learner.tick(PING_S)[1] if frame[KIND_AT] == Kind.PING
    ]
    assert pings == [Ping()]


def test_a_long_step_is_waited_for_as_long_as_the_broker_answers(learner: Learner) -> None:
    learner.ask(Act(0))
    for second in range(600):
        learner.tick(1.0)
        learner.hear(Progress(float(second)) if second % 2 else Pong())
    assert learner.exchange.in_step_s == 599.0
    assert learner.hear(PERCEPT)


def test_progress_stops_the_resending(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.hear(Progress(1.0))
    assert [learner.resent(1.0) for _ in range(10)] == [[]] * 10


def test_a_broker_that_is_silent_for_too_long_is_given_up() -> None:
    learner = Learner(timeout_s=5.0)
    learner.ask(Reset())
    learner.tick(5.0)
    with pytest.raises(BrokerUnreachable, match="silent for 5 s while a reset"):
        learner.tick(0.5)


def test_waiting_on_after_giving_up_gets_the_answer() -> None:
    learner = Learner(timeout_s=5.0)
    learner.ask(Reset())
    with pytest.raises(BrokerUnreachable):
        learner.tick(6.0)
    learner.exchange.keep_waiting(learner.now)
    learner.tick(4.0)
    assert learner.hear(Status(0, {}))


def test_contact_with_another_session_is_contact_with_the_broker(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.tick(40.0)
    learner.contact.last = learner.now
    learner.tick(59.0)
    with pytest.raises(BrokerUnreachable):
        learner.tick(3.0)


@pytest.mark.parametrize("after_s", [SETTLED_S - 0.5, SETTLED_S])
def test_contact_over_a_new_connection_counts_when_that_has_settled(
    learner: Learner, after_s: float
) -> None:
    learner.ask(Act(0))
    learner.tick(40.0)
    learner.exchange.reconnected(learner.now)
    learner.exchange.sent_again(learner.now)
    learner.tick(after_s)
    learner.contact.last = learner.now
    with pytest.raises(BrokerUnreachable) if after_s < SETTLED_S else contextlib.nullcontext():
        learner.tick(59.0)


def test_a_request_that_is_executed_has_passed_whatever_was_lost_before(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.exchange.reconnected(learner.now)
    learner.exchange.sent_again(learner.now)
    learner.exchange.reconnected(learner.now)
    learner.hear(Progress(0.0))
    with pytest.raises(BrokerUnreachable, match="silent for 60 s"):
        learner.tick(61.0)


def test_contact_before_a_connection_was_lost_counts(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.tick(40.0)
    learner.contact.last = learner.now
    learner.exchange.reconnected(learner.now)
    learner.tick(59.0)
    with pytest.raises(BrokerUnreachable):
        learner.tick(3.0)


def test_a_control_message_over_a_direct_connection_is_no_contact_with_the_broker(
    learner: Learner,
) -> None:
    learner.ask(Act(0))
    for message in (Pong(), Resumed(), Busy(BusyReason.QUEUE_FULL, 0.0)):
        learner.tick(20.0)
        frame = bytes(PLAIN.encode(message, SID, learner.exchange.seq))
        assert not learner.exchange.receive(codec.read_header(frame), frame, learner.now)
    with pytest.raises(BrokerUnreachable):
        learner.tick(1.0)


def test_silence_is_noticed_when_nothing_may_be_sent(learner: Learner) -> None:
    learner.ask(Act(0))
    learner.now += 59.0
    assert learner.exchange.tick(learner.now, may_send=False) == (False, [])
    learner.now += 2.0
    with pytest.raises(BrokerUnreachable):
        learner.exchange.tick(learner.now, may_send=False)


# --- what the broker says -------------------------------------------------------------------------


def test_busy_is_answered_with_a_resend_that_backs_off(learner: Learner) -> None:
    act = learner.ask(Act(0))
    pauses = []
    for _ in range(8):
        learner.hear(Busy(BusyReason.QUEUE_FULL, 0.05))
        start = learner.now
        while not (frames := [bytes(one) for one in learner.exchange.tick(learner.now)[1]]):
            learner.now += 0.001
        assert act in frames or frames == [bytes(PLAIN.encode(Ping(), SID, 2))]
        pauses.append(learner.now - start)
    assert pauses[0] <= 0.11
    assert max(pauses) <= 1.01
    assert pauses[-1] > pauses[0]


@pytest.mark.parametrize("retry_after_s", [math.nan, math.inf, -1.0, 2**62, 1e308])
def test_an_absurd_pause_does_not_stop_the_resending(
    learner: Learner, retry_after_s: float
) -> None:
    act = learner.ask(Act(0))
    is_possible = 0 <= retry_after_s <= math.inf
    with contextlib.nullcontext() if is_possible else pytest.raises(DecodingError):
        learner.hear(Busy(BusyReason.QUEUE_FULL, retry_after_s))
    assert act in [*learner.resent(0.5), *learner.resent(0.5), *learner.resent(0.5)]


def test_busy_hello_asks_for_hello_and_resume_before_the_request(learner: Learner) -> None:
    act = learner.ask(Act(0))
    learner.hear(Busy(BusyReason.HELLO, 0.0))
    greet, frames = learner.tick()
    assert (greet, [PLAIN.decode(frame) for frame in frames]) == (True, [Resume(NONCE)])
    learner.hear(Resumed())
    assert learner.tick() == (False, [act])


def test_a_new_connection_resumes_before_it_resends(learner: Learner) -> None:
    act = learner.ask(Act(0))
    learner.exchange.reconnected(learner.now)
    greet, frames = learner.tick()
    assert (greet, [PLAIN.decode(frame) for frame in frames]) == (True, [Resume(NONCE)])
    assert act in learner.resent(RESEND_S)  # even if RESUMED gets lost


def test_gone_is_final(learner: Learner) -> None:
    learner.ask(Act(0))
    with pytest.raises(EnvironmentLost, match="the env agent is gone"):
        learner.hear(Gone("the env agent is gone"))
    with pytest.raises(EnvironmentLost, match="at request 2"):
        learner.exchange.begin(Kind.RESET)


@pytest.mark.parametrize("seq", [0, 2])
def test_session_lost_is_final(learner: Learner, seq: int) -> None:
    learner.ask(Act(0))
    with pytest.raises(EnvironmentLost, match="unknown here"):
        learner.hear(Error(Code.SESSION_LOST, "unknown here"), seq=seq)
    assert learner.exchange.lost == "unknown here"


REMOVED = "The key k was removed from this broker's policy: ask the operator of the broker"


@pytest.mark.parametrize(
    ("reason", "why", "ended_by"),
    [
        ("the env agent on h is gone", "the env agent on h is gone", ""),
        (f"{REMOVED}.", REMOVED, EndedBy.POLICY),
        (f"{REMOVED}.", REMOVED, ""),  # from a broker of 0.1.0
        ("the env agent on policy-1 is gone", "the env agent on policy-1 is gone", "later-reason"),
        ("", "the env agent is gone", 7),
    ],
)
@pytest.mark.parametrize("kind", [Gone, Error])
def test_the_loss_of_a_session_is_one_clear_text(
    learner: Learner, kind: type, reason: str, why: str, ended_by: Any
) -> None:
    message: Any = Error(Code.SESSION_LOST, reason, {"ended_by": ended_by})
    ended_by = ended_by if isinstance(ended_by, str) else ""
    if kind is Gone:
        message = Gone(reason, ended_by)
    with pytest.raises(EnvironmentLost) as raised:
        learner.hear(message, seq=0)
    advice = " Call reset() to continue with a fresh environment."
    request = " at request 1"
    text = f"The session at 'cartpole' is lost{request}: {why}. Its episode cannot be recovered."
    assert str(raised.value) == text + ("" if ended_by == EndedBy.POLICY else advice)
    assert raised.value.ended_by == learner.exchange.ended_by == ended_by
