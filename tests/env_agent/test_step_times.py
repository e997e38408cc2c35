"""How an env agent measures steps, and which rows it reports to the broker."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymwire.env_agent.step_times import (
    HALF_LIFE,
    MAX_ROWS,
    Running,
    StepReports,
    index_of,
    percentiles,
    seconds_at,
)


@given(st.floats(1e-9, 5e8))
def test_a_duration_is_kept_to_an_eighth(seconds: float) -> None:
    assert seconds_at(index_of(seconds)) == pytest.approx(seconds, rel=0.125)


@given(st.floats(1e-9, 1e6), st.floats(1e-9, 1e6))
def test_longer_steps_have_later_places(one: float, other: float) -> None:
    short, long = sorted((one, other))
    assert index_of(short) <= index_of(long)


@given(st.lists(st.floats(2e-6, 1e3), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_durations(durations: list[float]) -> None:
    weights = dict(Counter(map(index_of, durations)))
    for share, found in zip((0.5, 0.99), percentiles(weights, (0.5, 0.99)), strict=True):
        exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
        assert found == pytest.approx(exact, rel=0.125)


def test_without_steps_the_percentiles_are_zero() -> None:
    assert percentiles({}, (0.5, 0.99)) == [0.0, 0.0]


class Sessions:
    """Sessions of an env agent that step as they are told."""

    def __init__(self, count: int) -> None:
        self.steps = [0] * count
        self.times: list[list[float]] = [[] for _ in range(count)]
        self.busy_since: dict[int, float] = {}

    def step(self, sid: int, seconds: float, count: int = 1) -> None:
        self.steps[sid] += count
        self.times[sid] += [seconds] * count

    def running(self) -> list[Running]:
        return [
            Running(sid, steps, self.times[sid], self.busy_since.get(sid), 100.0, False)
            for sid, steps in enumerate(self.steps)
        ]


def test_a_row_has_the_steps_their_rate_and_their_times() -> None:
    sessions, reports = Sessions(1), StepReports()
    sessions.step(0, 0.001, 90)
    sessions.step(0, 0.5, 10)
    [[sid, steps, rate, p50, p99, busy_s, direct]] = reports.rows(sessions.running(), 110.0)
    assert (sid, steps, rate, busy_s, direct) == (0, 100, 10.0, 0.0, False)
    assert [p50, p99] == pytest.approx([0.001, 0.5], rel=0.125)


def test_of_very_many_steps_a_part_is_sorted_and_counts_for_all() -> None:
    sessions, reports = Sessions(1), StepReports()
    sessions.step(0, 0.00005, 24_500)
    sessions.step(0, 0.01, 500)
    [[_, steps, _, p50, p99, *_]] = reports.rows(sessions.running(), 101.0)
    assert (steps, sessions.times[0]) == (25_000, [])
    assert [p50, p99] == pytest.approx([0.00005, 0.01], rel=0.125)
    assert sum(reports._reported[0].weights.values()) == pytest.approx(25_000, rel=0.01)


def test_an_idle_session_is_reported_once_more_and_then_not() -> None:
    sessions, reports = Sessions(1), StepReports()
    sessions.step(0, 0.1)
    rates = [[row[2] for row in reports.rows(sessions.running(), now)] for now in (101, 102, 103)]
    assert rates == [[1.0], [0.0], []]
    sessions.step(0, 0.1)
    assert len(reports.rows(sessions.running(), 104.0)) == 1


def test_a_session_that_executes_a_request_is_reported_with_its_time() -> None:
    sessions, reports = Sessions(1), StepReports()
    sessions.busy_since[0] = 100.5
    found = [reports.rows(sessions.running(), now)[0][5] for now in (101.0, 102.0, 103.0)]
    assert found == [0.5, 1.5, 2.5]


def test_the_percentiles_follow_a_change_of_the_environment() -> None:
    sessions, reports = Sessions(1), StepReports()
    sessions.step(0, 0.001, 1000)
    reports.rows(sessions.running(), 101.0)
    now = 101.0
    for _ in range(4):
        now += HALF_LIFE
        sessions.step(0, 0.1, 200)
        [row] = reports.rows(sessions.running(), now)
    assert row[3] == pytest.approx(0.1, rel=0.125)


def test_many_sessions_take_turns() -> None:
    sessions, reports = Sessions(5 * MAX_ROWS // 2), StepReports()
    seen: Counter[int] = Counter()
    for second in range(3):
        for sid in range(len(sessions.steps)):
            sessions.step(sid, 0.01)
        rows = reports.rows(sessions.running(), 101.0 + second)
        assert len(rows) == MAX_ROWS
        seen.update(row[0] for row in rows)
    assert len(seen) == len(sessions.steps)


def test_ended_sessions_are_forgotten() -> None:
    sessions, reports = Sessions(3), StepReports()
    reports.rows(sessions.running(), 101.0)
    assert reports.rows([], 102.0) == []
    assert not reports._reported


def test_everything_is_reported_again_to_a_new_broker() -> None:
    sessions, reports = Sessions(1), StepReports()
    for now in (101.0, 102.0):
        reports.rows(sessions.running(), now)
    assert reports.rows(sessions.running(), 103.0) == []
    reports.forget()
    assert len(reports.rows(sessions.running(), 104.0)) == 1
