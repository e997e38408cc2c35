from __future__ import annotations

import pytest

from gymwire.learner_agent.client.requests import RESEND_MAX_S, RESEND_S, BrokerRequests
from gymwire.protocol.messages import Open

NOW = 5.0


@pytest.mark.parametrize("retry_after_s", [0.25, 1.0, 3.0])
def test_a_throttled_request_is_sent_again_when_the_broker_says(retry_after_s: float) -> None:
    requests = BrokerRequests()
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq, retry_after_s, NOW)
    assert requests.due(NOW + retry_after_s - 0.01) == []
    assert requests.due(NOW + retry_after_s) == [request.frame]


@pytest.mark.parametrize("retry_after_s", [-1.0, 0.0, 1e9, float("inf"), float("nan")])
def test_a_broker_cannot_stop_or_hurry_a_request(retry_after_s: float) -> None:
    requests = BrokerRequests()
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq, retry_after_s, NOW)
    assert requests.due(NOW + 0.01) == []
    assert requests.due(NOW + RESEND_MAX_S) == [request.frame]


def test_busy_for_another_request_changes_nothing() -> None:
    requests = BrokerRequests()
    request = requests.add(Open("cartpole", b"n" * 16), 0, NOW)
    requests.throttled(request.seq + 1, 4.0, NOW)
    assert requests.due(NOW + RESEND_S) == [request.frame]
