"""What waits for a side of a session that does not read is bounded, whatever the other side sends.

Frames that the receiver has not answered may all be waiting in its memory.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gymwire.broker.session_messages import UNANSWERED_S
from gymwire.broker.tables import LARGE, MAX_UNANSWERED
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Closed,
    Code,
    Error,
    Message,
    Open,
    Opened,
    Percept,
    Progress,
    Resume,
    Resumed,
)
from tests.broker.harness import Broker, limited_broker, only, opened

ENV, LEARNER, NONCE = b"\x01env", b"\x01learner", b"n" * 16
LIMITS: list[dict[str, float]] = [{}, {"steps_per_s": 1e6}, {"requests_in_flight": 10**6}]


def act(size: int) -> Act:
    return Act(bytes(size))


def percept(size: int = 0) -> Percept:
    return Percept(bytes(size), 0.0, False, False, {})


class Site:
    """A session of a learner, whose key may have limits, and an env agent."""

    def __init__(self, **limits: float) -> None:
        self.broker = limited_broker(ENV, LEARNER, **limits)
        self.sid = self.broker.open(LEARNER, nonce=NONCE)
        self.seq = 0

    def request(self, message: Message, seq: int | None = None) -> bool:
        """Send a request, by default with a new number; return whether the env agent gets it."""
        if seq is None:
            self.seq += 1
        sent = self.broker.say(LEARNER, message, self.sid, self.seq if seq is None else seq)
        if sent and sent[0].rid == ENV:
            return True
        if sent:
            assert only(sent, Busy).reason in (BusyReason.QUEUE_FULL, BusyReason.RATE)
        return False

    def reply(self, message: Message) -> bool:
        """Send a reply; return whether the learner gets it."""
        return [one.rid for one in self.broker.say(ENV, message, self.sid, self.seq)] == [LEARNER]

    def let_step(self, for_s: float) -> None:
        """Let time pass while the env agent reports a long step."""
        for since_s in range(int(for_s)):
            self.broker.now += 1.0
            self.broker.say(ENV, Progress(float(since_s)), self.sid, self.seq)


@pytest.fixture(params=LIMITS, ids=str)
def site(request: pytest.FixtureRequest) -> Site:
    return Site(**request.param)


def test_steps_that_are_answered_pass_whatever_their_size(site: Site) -> None:
    for size in (0, LARGE, 10 * LARGE, 1) * 200:
        assert site.request(act(size))
        assert site.reply(percept(size))


@pytest.mark.parametrize("new_numbers", [True, False])
def test_one_large_request_may_wait(site: Site, new_numbers: bool) -> None:
    seq = None if new_numbers else 1
    passed = [site.request(act(LARGE), seq) for _ in range(50)]
    assert passed == [True] + 49 * [False]
    assert site.request(act(0))  # small ones still pass


def test_small_requests_may_wait_up_to_a_number(site: Site) -> None:
    passed = sum(site.request(act(LARGE // 2)) for _ in range(10 * MAX_UNANSWERED))
    assert 0 < passed < 2 * MAX_UNANSWERED


@pytest.mark.parametrize(
    "answer",
    [percept(), percept(LARGE), Error(Code.ENVIRONMENT_FAILED, "it raised")],
    ids=lambda answer: type(answer).__name__,
)
def test_any_answer_lets_the_next_large_request_pass(site: Site, answer: Message) -> None:
    for _ in range(10):
        assert site.request(act(LARGE))
        assert not site.request(act(LARGE))
        assert site.reply(answer)


@pytest.mark.parametrize("large", [True, False])
def test_what_waits_stays_bounded_for_random_floods(site: Site, large: bool) -> None:
    rng = random.Random(1)
    waiting = 0
    for _ in range(4000):
        site.broker.now += 0.002
        size = rng.choice([0, LARGE // 2, *([LARGE, 4 * LARGE] if large else [])])
        if site.request(act(size), rng.choice([None, 1, 2])):
            waiting += size
        if rng.random() < 0.01:
            only(site.broker.say(LEARNER, Resume(NONCE), site.sid, 1), Resumed)
        assert waiting <= 2 * MAX_UNANSWERED * LARGE + 4 * LARGE


def test_a_large_request_waits_for_as_long_as_a_step_lasts(site: Site) -> None:
    assert site.request(act(LARGE))
    for _ in range(10):
        site.let_step(UNANSWERED_S)
        assert not site.request(act(LARGE))


def test_a_large_request_that_was_not_answered_blocks_others_for_a_while_only(site: Site) -> None:
    assert site.request(act(LARGE))
    assert not site.request(act(LARGE))
    site.broker.now += UNANSWERED_S - 1
    assert not site.request(act(LARGE))
    site.broker.now += 1
    assert site.request(act(LARGE))
    assert not site.request(act(LARGE))


def test_a_large_request_may_be_repeated_after_its_env_agent_reconnected(site: Site) -> None:
    assert site.request(act(LARGE))
    site.broker.hello(ENV, "env", sessions=[[site.sid, NONCE, "cartpole", ""]])
    assert site.request(act(LARGE), site.seq)


def test_a_large_request_that_was_not_delivered_may_be_repeated(site: Site) -> None:
    frame = bytes(PLAIN.encode(act(LARGE), site.sid, 1))
    for full in (True, False):
        assert site.request(act(LARGE), 1)
        site.broker.core.undelivered(ENV, frame, LEARNER, full, site.broker.now)
    assert site.request(act(LARGE), 1)


@pytest.mark.parametrize(
    "reply", [percept(LARGE), Error(Code.ENCODING, "x" * LARGE)], ids=["PERCEPT", "ERROR"]
)
def test_one_large_reply_passes_for_each_request(site: Site, reply: Message) -> None:
    for _ in range(5):
        assert site.request(act(0))
        assert [site.reply(reply) for _ in range(20)] == [True] + 19 * [False]
    assert site.request(act(0), site.seq)  # it may ask again
    assert site.reply(reply)


def test_small_replies_may_wait_up_to_a_number(site: Site) -> None:
    passed = sum(site.reply(percept()) for _ in range(10 * MAX_UNANSWERED))
    assert 0 < passed < 2 * MAX_UNANSWERED


def test_a_session_that_was_flooded_can_be_closed(site: Site) -> None:
    while site.request(act(0)):
        pass
    assert site.reply(Closed())
    assert site.sid not in site.broker.core._tables.sessions


def test_one_answer_passes_for_each_open() -> None:
    broker = Broker()
    env, learner = broker.env(), broker.learner()
    large = replace(opened(), metadata={"bounds": bytes(LARGE)})
    for _ in range(3):
        [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=1)
        sid = forwarded.header.sid
        assert only(broker.say(env, large, sid, 1), Opened) == large
        assert broker.say(env, large, sid, 1) == []
