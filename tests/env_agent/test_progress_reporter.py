"""Which long requests and which sessions are reported."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

from gymwire.env_agent.crew import CLOSING
from gymwire.env_agent.progress_reporter import (
    AT_ONCE,
    MAX_REPORTS,
    SLOW_S,
    choose,
    running_sessions,
)


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


def loop(sids: range) -> Any:
    """Return a serving loop with these sessions, whose learners are connected directly."""
    slots = {
        sid: SimpleNamespace(session=SimpleNamespace(steps=3), times=[], opened_at=1.0)
        for sid in sids
    }
    return SimpleNamespace(host=SimpleNamespace(slots=slots), is_direct=lambda sid: True)


def test_a_session_is_busy_with_the_request_that_its_loop_executes() -> None:
    loops = [loop(range(1, 3)), loop(range(3, 5))]
    requests = [[(2, 4, 50.0)], [(3, CLOSING, 60.0)]]
    found = list(running_sessions(cast(Any, loops), requests, lambda: None))
    assert [(one.sid, one.steps, one.busy_since, one.direct) for one in found] == [
        (1, 3, None, True),
        (2, 3, 50.0, True),
        (3, 3, None, True),
        (4, 3, None, True),
    ]


def test_others_have_the_interpreter_while_very_many_sessions_are_looked_at() -> None:
    loops = [loop(range(AT_ONCE - 1)), loop(range(AT_ONCE, 2 * AT_ONCE + 1))]
    pauses: list[None] = []
    running = running_sessions(cast(Any, loops), [[], []], lambda: pauses.append(None))
    before_each = [len(pauses) for _ in running]
    assert [before_each.count(number) for number in range(3)] == [AT_ONCE, AT_ONCE, 0]
    assert len(pauses) == 2
