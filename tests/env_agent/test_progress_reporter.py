"""Which long requests are reported."""

from __future__ import annotations

from collections import Counter

from gymwire.env_agent.progress_reporter import MAX_REPORTS, SLOW_S, choose


def test_only_long_requests_are_reported() -> None:
    requests = [(1, 5, 100.0), (2, 6, 100.0 + SLOW_S), (3, 7, 90.0)]
    assert choose(requests, 100.0 + SLOW_S, 0)[0] == [(1, 5, 100.0), (3, 7, 90.0)]
    assert choose([], 0.0, 7) == ([], 0)


def test_too_many_long_requests_take_turns() -> None:
    requests = [(sid, 1, 0.0) for sid in range(1, 5 * MAX_REPORTS // 2 + 1)]
    reported, times = 0, Counter[int]()
    for _ in range(5):
        due, reported = choose(requests, 60.0, reported)
        assert len(due) == MAX_REPORTS
        times.update(sid for sid, _, _ in due)
    assert set(times.values()) == {2}
