"""Frames for watchers at the env agent, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gymwire.env_agent.crew import Crew, Executor, Job
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.watching import FRAME_S, MAX_WATCHERS, Watching
from gymwire.protocol.codec import PLAIN, Header, read_header
from gymwire.protocol.messages import Kind, Open, Opened, Reset, Watch, Watched

SID = 9


class Site:
    """A serving loop's sessions, a watcher, and a clock that only tests move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[tuple[int, Watched]] = []
        service = Service("draw", Factory("CartPole-v1"), watchable=True)
        self.host = SessionHost([service])
        self.host.environments.describe(service, 4, None)
        self.crew = Crew(lambda me: None, grows=False)
        self.watching = Watching(self.host, self.crew, self._keep, lambda: self.now)
        opened = PLAIN.decode(self.host.open(SID, 1, Open("draw", bytes(16)), None))
        assert isinstance(opened, Opened)
        self.opened = opened
        self.slot.executor = self.crew.own
        self.rendered: int = 0
        runner = self.slot.runner
        render = runner.render_unnoticed

        def count() -> Any:
            self.rendered += 1
            return render()

        runner.render_unnoticed = count  # type: ignore[method-assign]

    @property
    def slot(self) -> Slot:
        return self.host.slots[SID]

    def _keep(self, frame: Any) -> None:
        header, message = read_header(frame), PLAIN.decode(frame)
        assert isinstance(message, Watched)
        assert header.sid == SID
        self.sent.append((header.seq, message))

    def reset(self) -> None:
        """Execute a request."""
        seq = self.slot.session.last_seq + 1
        frame = self.slot.codec.encode(Reset(1), SID, seq)
        assert self.host.requests.handle(self.slot, read_header(frame), frame)

    def watch(self, number: int = 1, after: int = 0) -> list[tuple[int, Watched]]:
        """Deliver WATCH; return what is sent."""
        self.sent = []
        self.watching.watch(self.crew.own, Header(Kind.WATCH, 0, 0, SID, number), Watch(after))
        return self.sent


@pytest.fixture
def site() -> Site:
    return Site()


def test_learners_see_that_they_can_be_watched(site: Site) -> None:
    assert site.opened.limits["watchable"] is True
    assert site.opened.render_mode is None
    assert site.slot.runner.env.render_mode == "rgb_array"


def test_a_frame_is_rendered_once_per_request_of_the_learner(site: Site) -> None:
    assert site.watch() == [(1, Watched(0))]  # no episode yet
    site.reset()
    [(number, first)] = site.watch(2)
    assert (number, first.request, first.media_type) == (2, 1, "image/png")
    site.now += 10
    assert site.watch(3) == [(3, first)]  # for another watcher
    assert site.watch(4, after=1) == [(4, Watched(1))]
    assert site.rendered == 1


def test_frames_are_limited_in_rate(site: Site) -> None:
    site.reset()
    site.watch()
    site.reset()
    site.now += FRAME_S * 0.9
    assert site.watch(2, after=1) == [(2, Watched(1))]
    site.now += FRAME_S * 0.2
    [(_, frame)] = site.watch(3, after=1)
    assert frame.request == 2
    assert site.rendered == 2


def test_an_exception_of_the_environment_is_the_reason(site: Site) -> None:
    def fail() -> Any:
        raise ImportError("no display")

    site.slot.runner.render_unnoticed = fail  # type: ignore[method-assign]
    site.reset()
    assert site.watch() == [(1, Watched(1, why="ImportError: no display"))]
    assert site.slot.executor.current_request is None


def test_an_ended_session_says_so(site: Site) -> None:
    site.host.remove(site.slot)
    assert site.watch() == [(1, Watched(0, why="The session has ended."))]


def test_watchers_wait_for_a_long_step_together(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def give(me: Executor, executor: Executor, job: Job, *, alone: bool) -> None:
        jobs.append(job)

    monkeypatch.setattr(site.crew, "execute", give)
    site.reset()
    for number in range(1, 2 * MAX_WATCHERS):
        assert site.watch(number, after=0) == []
        assert site.watch(number, after=0) == []  # repeated
    [job] = jobs
    sequel: Callable[[Executor], None] | None = job()
    assert sequel is not None
    sequel(site.crew.own)
    assert [number for number, _ in site.sent] == [*range(1, MAX_WATCHERS + 1)]
    assert site.rendered == 1


def test_a_busy_session_gets_no_further_jobs(site: Site) -> None:
    site.reset()
    site.slot.executor.jobs = 100
    assert site.watch() == []
    site.slot.executor.jobs = 0
    assert len(site.watch()) == 1


def test_what_rendering_draws_is_drawn_again(site: Site) -> None:
    site.reset()
    env: Any = site.slot.runner.env
    env.unwrapped.render = lambda: env.unwrapped.np_random.integers(0, 9, (2, 2, 3), np.uint8)
    before = env.unwrapped.np_random.bit_generator.state
    assert site.watch()[0][1].media_type == "image/png"
    assert env.unwrapped.np_random.bit_generator.state == before
