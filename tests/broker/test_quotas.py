"""A quota counts what an env agent has to handle, and frees what nobody waits for anymore."""

from __future__ import annotations

import random

import pytest

from gymwire.broker.auth import Rights
from gymwire.broker.quotas import PLACE_S, REPEAT_S, Usage
from gymwire.protocol.messages import Act, Busy, Code, Error, Percept, Progress
from tests.broker.harness import limited_broker, only

ENV, LEARNER = b"\x01env", b"\x01learner"
STEPPED = Percept(0, 0.0, False, False, {})


class Site:
    """A learner with limits, its session, and the env agent."""

    def __init__(self, **limits: float) -> None:
        self.broker = limited_broker(ENV, LEARNER, **limits)
        self.sid = self.broker.open(LEARNER)

    def act(self, seq: int) -> bool:
        """Send an ACT; return whether the env agent gets it."""
        [sent] = self.broker.say(LEARNER, Act(0), self.sid, seq)
        assert isinstance(sent.message, Act | Busy)
        return isinstance(sent.message, Act)

    def reply(self, seq: int) -> None:
        """Let the env agent reply to an ACT."""
        only(self.broker.say(ENV, STEPPED, self.sid, seq), Percept)

    def step(self, seq: int) -> None:
        """Send an ACT, which must pass, and reply to it."""
        assert self.act(seq)
        self.reply(seq)


LIMITS = [{"steps_per_s": 10.0}, {"steps_per_s": 10.0, "requests_in_flight": 4}]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize(
    "numbers", [[1], [3], [4], [1, 2, 3], [2, 4], [5, 9]], ids=lambda numbers: f"{numbers}"
)
def test_repeated_numbers_do_not_bypass_the_rate(
    limits: dict[str, float], numbers: list[int]
) -> None:
    site = Site(**limits)
    for seq in (1, 2, 3):
        site.step(seq)
        site.broker.now += 1.0
    site.act(4)  # never answered
    passed = 0
    for i in range(1000):  # for 10 s
        passed += site.act(numbers[i % len(numbers)])
        site.broker.now += 0.01
    assert passed <= 10 * 10 + 10 / REPEAT_S + 2


def test_the_last_request_may_be_repeated_without_a_token() -> None:
    site = Site(steps_per_s=0.01)
    assert site.act(1)
    for pause_s in (1.0, 2.0, 4.0):  # as a learner that gets no reply does
        site.broker.now += pause_s
        assert site.act(1)
    site.reply(1)
    site.broker.now += 1.0
    assert not site.act(1)
    site.broker.now += 92.0
    site.step(2)


@pytest.mark.parametrize("most", [1, 2, 8])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_late_duplicates_do_not_use_up_the_requests_in_flight(most: int, after: int) -> None:
    site = Site(requests_in_flight=most)
    for seq in range(1, 40):
        site.step(seq)
        if seq > after:
            site.act(seq - after)  # the env agent ignores it
            site.act(seq)  # the env agent repeats its reply, which is lost


def test_a_duplicate_that_arrives_at_a_new_broker_frees_its_place() -> None:
    site = Site(requests_in_flight=1)
    assert site.act(6)  # the broker does not know that the env agent has executed it
    assert not site.act(8)
    site.broker.now += PLACE_S
    site.step(8)
    site.step(9)


def test_a_long_step_keeps_its_place() -> None:
    site = Site(requests_in_flight=1)
    assert site.act(1)
    for _ in range(int(2 * PLACE_S)):
        site.broker.now += 1.0
        only(site.broker.say(ENV, Progress(1.0), site.sid, 1), Progress)
    assert not site.act(2)


@pytest.mark.parametrize("code", [Code.EXPECTED, Code.PROTOCOL, Code.ENVIRONMENT_FAILED])
def test_a_refused_number_does_not_count_as_executed(code: str) -> None:
    site = Site(requests_in_flight=1)
    assert site.act(2**63)
    only(site.broker.say(ENV, Error(code, "no"), site.sid, 2**63), Error)
    assert site.act(1)
    assert not site.act(2)


@pytest.mark.parametrize("seed", range(20))
def test_the_places_add_up_whatever_happens(seed: int) -> None:
    rng, now = random.Random(seed), 0.0
    rights, usage = Rights("x", requests_in_flight=5, steps_per_s=20.0), Usage(now)
    for _ in range(2000):
        now += rng.random() / 20
        sid, seq = rng.randrange(4), rng.randrange(12)
        match rng.randrange(5):
            case 0 | 1:
                usage.admit(rights, sid, seq, now)
            case 2:
                usage.end_request(sid, seq, executed=rng.random() < 0.1)
            case 3:
                usage.progress(sid, seq, now)
            case 4 if rng.random() < 0.05:
                usage.end_session(sid)
        places = sum(len(session.places) for session in usage._sessions.values())
        assert places == usage._in_flight
    for sid in range(4):
        usage.end_session(sid)
    assert usage.is_idle(now + 1.0)
