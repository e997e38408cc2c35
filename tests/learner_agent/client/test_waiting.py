"""The waiting loop: when it ends, and when timers run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gymwire.learner_agent.client.waiting import TICK_S, TIMERS_EVERY, timers_pause, wait


class Source:
    """A path with frames that arrive at given times, and answer requests or do not."""

    has_buffered = has_frame = False

    def __init__(self, *arrivals: float, answers: bool = True) -> None:
        self.now = 0.0
        self.arrivals = list(arrivals)
        self.received = 0
        self._answers = answers
        self.timers: list[float] = []

    @property
    def path(self) -> Source:
        return self

    def poll(self, timeout_s: float) -> bool:
        due = self.arrivals[0] if self.arrivals else float("inf")
        if due > self.now + timeout_s:
            self.now += timeout_s
            return False
        self.now = max(self.now, due)
        return True

    def receive(self) -> bytes | None:
        if not self.poll(TICK_S):
            return None
        self.arrivals.pop(0)
        return b"frame"

    def receive_frame(self, data: bytes | memoryview) -> bool:
        self.received += 1
        return self._answers

    def wait(self, until: Callable[[], bool], deadline: float | None = None) -> bool:
        return wait(
            until,
            deadline,
            sources=(self,),
            run_timers=self.timers.append,
            clock=lambda: self.now,
        )


def test_a_condition_that_holds_is_not_waited_for() -> None:
    source = Source(0.0)
    assert source.wait(lambda: True, deadline=-1.0)
    assert source.received == 0


def test_the_wait_ends_with_the_frame_that_fulfils_the_condition() -> None:
    source = Source(0.25, 0.3)
    assert source.wait(lambda: source.received == 1)
    assert source.now == 0.25


def test_the_wait_ends_at_the_deadline() -> None:
    source = Source()
    assert not source.wait(lambda: False, deadline=0.25)
    assert source.now == 0.25
    assert source.timers[-1] == 0.25  # a caller that only ever waits briefly resends, too


def test_a_frame_that_has_arrived_counts_even_after_the_deadline() -> None:
    source = Source(-1.0, -1.0, answers=False)
    assert source.wait(lambda: source.received == 2, deadline=-0.5)


def test_a_flood_of_frames_does_not_hold_up_the_deadline() -> None:
    source = Source(*[0.0] * 1000, answers=False)
    assert not source.wait(lambda: False, deadline=0.0)
    assert source.received == TIMERS_EVERY + 1


def test_timers_run_in_each_pause_and_after_each_frame_that_answers_nothing() -> None:
    pauses = Source(0.35)
    pauses.wait(lambda: pauses.received == 1)
    assert pauses.timers == pytest.approx([0.1, 0.2, 0.3])
    strays = Source(0.0, 0.0, 0.0, answers=False)
    strays.wait(lambda: strays.received == 3)
    assert len(strays.timers) == 3


def test_timers_run_although_answers_arrive_without_a_pause() -> None:
    source = Source(*[0.0] * 3 * TIMERS_EVERY)
    source.wait(lambda: source.received == 3 * TIMERS_EVERY)
    assert len(source.timers) == 3


def test_what_a_timer_raises_ends_the_wait() -> None:
    def fail(_now: float) -> None:
        raise TimeoutError

    source = Source()
    with pytest.raises(TimeoutError):
        wait(lambda: False, None, sources=(source,), run_timers=fail, clock=lambda: source.now)


@pytest.mark.parametrize(("spent_s", "pause_s"), [(0.001, 0.04), (0.1, 1.0), (60.0, 1.0)])
def test_a_long_run_of_the_timers_delays_the_next_one_by_a_second(
    spent_s: float, pause_s: float
) -> None:
    assert timers_pause(spent_s) == pytest.approx(pause_s)


class Bundle(Source):
    """A source whose frames arrive together."""

    has_buffered = has_frame = True

    def poll(self, timeout_s: float) -> bool:
        self.has_buffered = self.has_frame = len(self.arrivals) > 1
        return super().poll(timeout_s)


def test_the_condition_is_asked_once_for_frames_that_arrive_together() -> None:
    source, asked = Bundle(*[0.25] * 10, 0.3), list[int]()

    def until() -> bool:
        asked.append(source.received)
        return source.received == 11

    assert source.wait(until)
    assert set(asked) == {0, 11}


def test_what_frames_have_brought_counts_before_what_a_timer_raises() -> None:
    class Mixed(Bundle):
        def receive_frame(self, data: bytes | memoryview) -> bool:
            return super().receive_frame(data) and self.received < 2  # the last one is a stray

    def fail(_now: float) -> None:
        raise TimeoutError

    source = Mixed(0.0, 0.0)
    assert wait(
        lambda: source.received == 2,
        None,
        sources=(source,),
        run_timers=fail,
        clock=lambda: source.now,
    )


def test_the_rest_of_a_frame_that_has_arrived_in_part_is_not_waited_for() -> None:
    class Part(Source):
        has_buffered = True

    source = Part(0.25, 0.3)
    assert source.wait(lambda: source.received == 1)
    assert source.received == 1


def test_timers_run_although_frames_are_buffered_without_end() -> None:
    source = Bundle(*[0.0] * 10 * TIMERS_EVERY)
    source.wait(lambda: source.received == 10 * TIMERS_EVERY)
    assert len(source.timers) == 10
    source = Bundle(*[0.0] * 10 * TIMERS_EVERY)
    assert not source.wait(lambda: False, deadline=0.0)
    assert source.received <= 2 * TIMERS_EVERY


def test_a_frame_that_answers_nothing_moves_the_timers_also_among_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Bundle(0.0, 0.0, 0.0)
    answers = iter([True, False, True])
    monkeypatch.setattr(source, "receive_frame", lambda _: next(answers))
    source.wait(lambda: bool(source.timers))
    assert source.timers == [0.0]
