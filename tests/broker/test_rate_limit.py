from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from gymwire.broker import rate_limit
from gymwire.broker.auth import Policy, Rights
from gymwire.broker.rate_limit import (
    BURST,
    CUT_OFF_DEBT,
    DEBT,
    DEMANDING_SHARE,
    FREE_CPU_MS,
    RATE,
    TOKEN_BYTES,
    TOKENS_PER_CPU_MS,
    UNPAID_CPU_MS,
    Admission,
    RateLimiter,
)
from gymwire.protocol.codec import MAX_CONTROL, MAX_MESSAGE, PLAIN
from gymwire.protocol.messages import (
    Act,
    Busy,
    BusyReason,
    Bye,
    Code,
    Error,
    Find,
    Found,
    Gone,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Resume,
    Resumed,
)
from tests.broker.harness import Broker, offer, only, opened

ENV, LEARNER, OTHER = b"\x01env", b"\x01learner", b"\x01other"
NOW = 5.0


def admissions(
    limiter: RateLimiter, times: int, *, size: int = 26, now: float = NOW
) -> list[Admission]:
    """Return what happens to so many messages at once, equal results in a row only once."""
    ruled = [limiter.admit(LEARNER, size, now) for _ in range(times)]
    return [ruling for ruling, _ in itertools.groupby(ruled)]


def test_a_flood_is_throttled_then_cut_off_then_dropped() -> None:
    limiter = RateLimiter()
    assert admissions(limiter, int(BURST)) == [Admission.PASS]
    assert admissions(limiter, int(DEBT)) == [Admission.THROTTLE]
    assert admissions(limiter, 1000) == [Admission.CUT_OFF, Admission.DROP]


def test_a_second_flood_is_cut_off_sooner() -> None:
    limiter = RateLimiter()
    admissions(limiter, int(BURST + DEBT) + 1)
    later = NOW + (CUT_OFF_DEBT + 10) / RATE
    assert admissions(limiter, 20, now=later) == [
        Admission.THROTTLE,
        Admission.CUT_OFF,
        Admission.DROP,
    ]


def test_a_peer_that_waits_passes_again() -> None:
    limiter = RateLimiter()
    admissions(limiter, int(BURST + DEBT))
    assert admissions(limiter, 1, now=NOW + DEBT / RATE + 0.1) == [Admission.PASS]


def test_a_flood_does_not_affect_other_peers() -> None:
    limiter = RateLimiter()
    admissions(limiter, int(BURST + DEBT) + 1)
    assert limiter.admit(OTHER, 26, NOW) is Admission.PASS


def test_a_large_message_counts_for_more() -> None:
    limiter = RateLimiter()
    most = int(BURST) // (1024 * 1024 // TOKEN_BYTES + 1)
    assert admissions(limiter, most, size=1024 * 1024) == [Admission.PASS]
    assert admissions(limiter, 1, size=1024 * 1024) == [Admission.THROTTLE]
    assert admissions(limiter, 1) == [Admission.PASS]


@pytest.mark.parametrize("size", [26, TOKEN_BYTES, MAX_CONTROL, 2_600_000, MAX_MESSAGE])
def test_no_message_costs_more_than_a_full_bucket(size: int) -> None:
    limiter = RateLimiter()
    assert admissions(limiter, 1, size=size) == [Admission.PASS]
    assert admissions(limiter, 1, size=size, now=NOW + BURST / RATE) == [Admission.PASS]


def test_buckets_are_bounded_and_full_ones_forgotten() -> None:
    limiter = RateLimiter()
    for i in range(rate_limit.MAX_BUCKETS):
        limiter.admit(i.to_bytes(16), 26, NOW)
    assert limiter.admit(LEARNER, 26, NOW) is Admission.DROP
    limiter.sweep(NOW + 1.0)
    assert limiter.admit(LEARNER, 26, NOW) is Admission.PASS


def test_many_connections_that_have_said_little_leave_room_for_others() -> None:
    limiter = RateLimiter()
    for i in range(rate_limit.MAX_BUCKETS):
        limiter.admit(i.to_bytes(16), 26, NOW)
    assert limiter.admit(LEARNER, 26, NOW + 0.1) is Admission.PASS


def test_a_learner_may_open_a_thousand_sessions_at_once() -> None:
    broker = Broker()
    broker.env(capacity=2000)
    learner = broker.learner()
    sids = [broker.open(learner, nonce=i.to_bytes(16)) for i in range(1000)]
    broker.now += 1.0
    for i, sid in enumerate(sids):
        assert only(broker.say(learner, Ping(), sid, 1), Pong)
        assert only(broker.say(learner, Resume(i.to_bytes(16)), sid, 1), Resumed)


def test_a_peer_that_sends_too_much_learns_when_to_retry() -> None:
    broker = Broker()
    learner = broker.learner()
    for _ in range(int(BURST)):
        sends = broker.say(learner, Ping(), 0, 7)
    [answer] = sends
    assert answer.message == Busy(BusyReason.RATE, 1.0)
    assert (answer.rid, answer.header.sid, answer.header.seq) == (learner, 0, 7)
    broker.now += 1.0
    assert only(broker.say(learner, Ping()), Pong)


def test_listings_cost_by_their_size() -> None:
    def findings(offers: int) -> int:
        """Return how many listings of so many offers a learner may request at once."""
        broker = Broker()
        broker.env(ENV, *(f"a{i}" for i in range(offers)))
        learner = broker.learner()
        for count in itertools.count():
            if not isinstance(broker.say(learner, Find())[0].message, Found):
                return count
        raise AssertionError

    assert findings(10) > 5 * findings(100) > 0


def test_steps_and_their_replies_are_free() -> None:
    broker = Broker()
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    for _ in range(int(BURST) + 1):
        broker.say(learner, Ping())
        broker.say(env, Ping())
    assert only(broker.say(learner, Act(0), sid, 1), Act) == Act(0)
    assert only(broker.say(env, Percept(0, 0.0, False, False, {}), sid, 1), Percept)
    failed = Error(Code.ENVIRONMENT_FAILED, "it raised")
    assert only(broker.say(env, failed, sid, 2), Error) == failed
    [busy] = broker.say(learner, Open("cartpole", b"2" * 16), seq=2)
    assert isinstance(busy.message, Busy)


@pytest.mark.parametrize("size", [1_000, 2_600_000, 20_000_000])
def test_the_answer_to_open_is_free_whatever_its_size(size: int) -> None:
    broker = Broker()
    env, learner = broker.env(), broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", b"n" * 16), seq=1)
    large = replace(opened(), metadata={"bounds": bytes(size)})
    for _ in range(5):
        only(broker.say(learner, Open("cartpole", b"n" * 16), seq=1), Open)  # it repeats OPEN
        assert only(broker.say(env, large, forwarded.header.sid, 1), Opened) == large


def test_eight_sessions_with_large_arguments_open_at_once() -> None:
    broker = Broker()
    broker.env(capacity=8)
    learner = broker.learner()
    for i in range(8):
        request = Open("cartpole", i.to_bytes(16), env_kwargs={"map": bytes(900_000)})
        only(broker.say(learner, request, seq=i), Open)


QUOTAS = [
    Rights("alice", use=("*",), **{name: 10**9})  # type: ignore[arg-type]
    for name in ("message_bytes", "requests_in_flight", "steps_per_s")
]


@pytest.mark.parametrize("rights", QUOTAS, ids=str)
def test_a_quota_limits_only_what_it_names(rights: Rights) -> None:
    broker = Broker(policy=Policy(anyone=replace(rights, offer=("*",))))
    broker.env(ENV)
    learner = broker.learner()
    sid = broker.open(learner)
    for seq in range(1, 200):
        assert only(broker.say(learner, Act(bytes(100_000)), sid, seq), Act)
        assert only(
            broker.say(ENV, Percept(bytes(100_000), 0.0, False, False, {}), sid, seq), Percept
        )


def test_requests_that_a_quota_refuses_count_as_a_flood() -> None:
    rights = Rights("alice", offer=("*",), use=("*",), steps_per_s=1.0)
    broker = Broker(policy=Policy(anyone=rights))
    broker.env()
    learner = broker.learner()
    sid = broker.open(learner)
    for seq in range(int(BURST + DEBT) + 10):
        broker.say(learner, Act(0), sid, seq + 1)
    assert broker.say(learner, Act(0), sid, 2) == []


def test_a_reused_descriptor_is_left_alone() -> None:
    broker = Broker()
    learner, other = broker.learner(), broker.learner(OTHER)
    assert broker.core.may_cut_off(learner, broker.fds[learner], broker.now)
    assert not broker.core.may_cut_off(learner, broker.fds[other], broker.now)


def test_the_log_notes_a_flood_now_and_then() -> None:
    broker = Broker()
    learner = broker.learner()
    for _ in range(100):
        broker.core.may_cut_off(learner, broker.fds[learner], broker.now)
    assert [note.event for note in broker.core.take_notes()] == ["flood cut off"]


def test_a_flood_of_requests_in_sessions_of_others_counts() -> None:
    broker = Broker()
    broker.env()
    sid = broker.open(broker.learner())
    thief = broker.learner(OTHER)
    for _ in range(int(BURST + DEBT) + 1):
        broker.say(thief, Act(0), sid, 1)
    assert broker.say(thief, Act(0), sid, 1) == []


def test_an_agent_may_offer_all_that_it_may_have_at_once() -> None:
    broker = Broker()
    env = broker.env()
    for i in range(255):
        broker.say(env, offer(f"a{i}"))
    assert len(broker.core._tables.peers[env].offers) == 256


def test_one_learner_may_use_ten_thousand_sessions_of_one_serving_loop() -> None:
    broker, count = Broker(), 10_000
    env = broker.env(ENV, capacity=count)
    learner = broker.learner()
    sids = []
    for number in range(count):
        broker.now += 0.001
        sids.append(broker.open(learner, nonce=number.to_bytes(16)))
    for seq in range(1, 4):  # all of them at once
        assert {broker.reaches(learner, sid, seq) for sid in sids} == {env}
        reply = [PLAIN.encode(Percept(0, 0.0, False, False, {}), sid, seq) for sid in sids]
        assert {broker.core.relay(env, bytes(frame), None) for frame in reply} == {learner}
    ended = broker.say(learner, Bye("done"))
    assert {one.header.sid for one in ended if isinstance(one.message, Gone)} == {*sids}


def test_the_time_that_a_message_takes_counts() -> None:
    limiter = RateLimiter()
    limiter.charge_time(LEARNER, FREE_CPU_MS / 1000, NOW)
    assert limiter.admit(LEARNER, int(TOKEN_BYTES * (BURST - 2)), NOW) is Admission.PASS
    limiter.charge_time(LEARNER, 10.0, NOW)  # makes no debt
    assert limiter.admit(LEARNER, 0, NOW) is Admission.THROTTLE
    assert limiter.admit(LEARNER, 0, NOW + 0.01) is Admission.PASS
    limiter.charge_time(OTHER, (FREE_CPU_MS + 10) / 1000, NOW)
    size = int(TOKEN_BYTES * (BURST - 10 * TOKENS_PER_CPU_MS))
    assert limiter.admit(OTHER, size, NOW) is Admission.THROTTLE
    assert limiter.admit(OTHER, size - TOKEN_BYTES, NOW + 0.01) is Admission.PASS


def test_a_message_that_has_cost_no_token_is_charged_for_its_time() -> None:
    limiter = RateLimiter()
    half_s = (1 - DEMANDING_SHARE) * BURST / TOKENS_PER_CPU_MS / 1000
    for now in (NOW, NOW + BURST / RATE):  # time passes for a peer that sends nothing else
        limiter.charge_time(LEARNER, UNPAID_CPU_MS / 1000, now, paid=False)
        assert not limiter.is_demanding(LEARNER, now)
        limiter.charge_time(LEARNER, half_s + (UNPAID_CPU_MS + 1) / 1000, now, paid=False)
        assert limiter.is_demanding(LEARNER, now)


def test_a_message_that_takes_long_ends_no_debt() -> None:
    limiter = RateLimiter()
    admissions(limiter, int(BURST + DEBT) + 1)
    limiter.charge_time(LEARNER, 1.0, NOW, paid=False)
    assert admissions(limiter, 1) == [Admission.DROP]
