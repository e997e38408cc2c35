from __future__ import annotations

import itertools
import secrets

import pytest

from gymwire.learner_agent.client.patience import PING_S
from gymwire.learner_agent.client.requests import (
    BROKER_RESEND_MAX_S,
    BROKER_RESEND_S,
    FIRST_SEQ,
    MAX_SHARED_SIZE,
    BrokerRequests,
)
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN, Frame
from gymwire.protocol.messages import Found, Kind, Message, Open, Opened

NOW = 5.0


@pytest.mark.parametrize("retry_after_s", [0.25, 1.0, 3.0])
def test_a_throttled_request_is_sent_again_when_the_broker_says(retry_after_s: float) -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq, retry_after_s, NOW)
    assert requests.due(NOW + retry_after_s - 0.01) == []
    assert requests.due(NOW + retry_after_s) == [request.frame]


@pytest.mark.parametrize("retry_after_s", [-1.0, 0.0, 1e9, float("inf"), float("nan")])
def test_a_broker_cannot_stop_or_hurry_a_request(retry_after_s: float) -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq, retry_after_s, NOW)
    assert requests.due(NOW + 0.01) == []
    assert requests.due(NOW + BROKER_RESEND_MAX_S) == [request.frame]


def test_busy_for_another_request_changes_nothing() -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq + 1, 4.0, NOW)
    assert requests.due(NOW + BROKER_RESEND_S) == [request.frame]


def test_a_ping_comes_before_the_requests_and_only_while_one_has_no_answer() -> None:
    requests, sent = BrokerRequests(PING_S, secrets.randbits), list[Kind]()

    def send(frame: Frame) -> bool:
        sent.append(codec.read_header(frame).kind)
        return True

    assert not requests.send_due(NOW, send)
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    assert requests.send_due(NOW + BROKER_RESEND_S, send)
    assert sent == [Kind.PING, Kind.OPEN]  # a large request may hold up what comes after it
    assert not requests.send_due(NOW + BROKER_RESEND_S + 0.01, send)
    _answer(requests, request.seq, Found([]))
    assert not requests.send_due(NOW + 10 * BROKER_RESEND_MAX_S, send)
    assert len(sent) == 2


def test_a_full_connection_is_tried_once() -> None:
    requests, tried = BrokerRequests(PING_S, secrets.randbits), list[Frame]()

    def send(frame: Frame) -> bool:
        tried.append(frame)
        return len(tried) == 1

    for _ in range(3):
        requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    assert not requests.send_due(NOW + BROKER_RESEND_S, send)
    assert len(tried) == 2  # the PING, and the first request


def test_no_number_follows_from_those_of_other_requests() -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    seqs = [requests.add(Open("cartpole", b"n" * 16), 0, NOW).seq for _ in range(1000)]
    assert len({*seqs}) == len(seqs)
    assert min(seqs) >= FIRST_SEQ
    assert max(seqs) < 2**53  # which a JavaScript number holds exactly
    # Of random numbers, some are this large and small, except once in 2**1000 runs.
    assert max(seqs) >= FIRST_SEQ + 2**51 > min(seqs)
    steps = {after - before for before, after in itertools.pairwise(seqs)}
    assert len(steps) == len(seqs) - 1


def test_requests_under_way_have_different_numbers() -> None:
    drawn = iter([3, 3, 3, 4, 3])
    requests = BrokerRequests(PING_S, lambda _: next(drawn))
    first, second = (requests.add(Open("cartpole", b"n" * 16), 0, NOW) for _ in range(2))
    assert (first.seq, second.seq) == (FIRST_SEQ + 3, FIRST_SEQ + 4)
    requests.forget([first])
    assert requests.add(Open("cartpole", b"n" * 16), 0, NOW).seq == first.seq


def _opened(agent: str) -> Opened:
    return Opened([], [], None, None, {"id": "x"}, {}, None, 0, {}, agent)


def _answer(requests: BrokerRequests, seq: int, message: Message, sid: int = 7) -> None:
    frame = bytes(PLAIN.encode(message, sid, seq))
    assert requests.receive(codec.read_header(frame), frame)


def test_the_answered_requests_are_known_until_they_are_forgotten() -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    first, second = (requests.add(Open("cartpole", b"n" * 16), 0, NOW) for _ in range(2))
    assert not requests.answered
    for _ in range(2):  # a repeated answer changes nothing
        _answer(requests, second.seq, Found([]))
    assert requests.answered == {second.seq: second}
    requests.forget([first, second])
    assert not requests.answered


def test_sessions_that_are_opened_together_share_equal_answers() -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    pending = [requests.add(Open("cartpole", b"n" * 16), 0, NOW) for _ in range(4)]
    for sid, (request, agent) in enumerate(zip(pending, "abab", strict=True)):
        _answer(requests, request.seq, _opened(agent), sid)
    found = [one.answer for one in pending if one.answer is not None]
    assert [header.sid for header, _, _ in found] == [0, 1, 2, 3]
    assert [message for _, message, _ in found] == [_opened(agent) for agent in "abab"]
    assert found[0][1] is found[2][1]
    assert found[1][1] is found[3][1]


def test_of_large_answers_only_one_is_kept_to_be_shared_and_none_afterwards() -> None:
    requests = BrokerRequests(PING_S, secrets.randbits)
    pending = [requests.add(Open("cartpole", b"n" * 16), 0, NOW) for _ in range(4)]
    for request, letter in zip(pending, "abab", strict=True):
        _answer(requests, request.seq, _opened(letter * (MAX_SHARED_SIZE + 1)))
    found = [one.answer[1] for one in pending if one.answer is not None]
    assert found[0] is found[2]
    assert found[1] is not found[3]
    requests.forget(pending)
    assert not requests._opened


def test_sessions_that_are_opened_one_after_another_share_nothing() -> None:
    requests, answers = BrokerRequests(PING_S, secrets.randbits), []
    for _ in range(2):
        request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
        _answer(requests, request.seq, _opened("a"))
        requests.forget([request])
        assert request.answer is not None
        answers.append(request.answer[1])
    assert answers[0] == answers[1]
    assert answers[0] is not answers[1]
