"""Frames for watchers at the env agent, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gymwire.env_agent.crew import Crew, Executor, Job
from gymwire.env_agent.environments import MAX_WATCH_RATE, WATCH_RATE, Service
from gymwire.env_agent.factory import resolve
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.watching import FORGET_S, MAX_WATCHERS, Watching
from gymwire.protocol.codec import PLAIN, Header, read_header
from gymwire.protocol.messages import Kind, Open, Opened, Reset, Watch, Watched

SID = 9


class Site:
    """A serving loop's sessions, a watcher, and a clock that only tests move."""

    def __init__(self, num_envs: int = 0, watch_rate: int = WATCH_RATE) -> None:
        self.now = 100.0
        self.sent: list[tuple[int, Watched]] = []
        factory = resolve("CartPole-v1", {"vectorization_mode": "sync"} if num_envs else {})
        service = Service("draw", factory, watchable=True, watch_rate=watch_rate)
        self.host = SessionHost([service])
        self.host.environments.describe(service, 4, None)
        self.crew = Crew(lambda me: None, grows=False)
        self.watching = Watching(self.host, self.crew, self._keep, lambda: self.now)
        opened = PLAIN.decode(
            self.host.open(
                SID, 1, Open("draw", bytes(16), num_envs=num_envs, autoreset_mode="NextStep"), None
            )
        )
        assert isinstance(opened, Opened)
        self.opened = opened
        self.slot.executor = self.crew.own
        self.rendered: int = 0
        runner = self.slot.runner
        render = runner.render_unnoticed

        def count(index: int = 0) -> Any:
            self.rendered += 1
            return render(index)

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

    def watch(self, number: int = 1, after: int = 0, env: int = 0) -> list[tuple[int, Watched]]:
        """Deliver WATCH; return what is sent."""
        self.sent = []
        self.watching.watch(self.crew.own, Header(Kind.WATCH, 0, 0, SID, number), Watch(after, env))
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
    site.now += 0.9 / WATCH_RATE
    assert site.watch(2, after=1) == [(2, Watched(1))]
    site.now += 0.2 / WATCH_RATE
    [(_, frame)] = site.watch(3, after=1)
    assert frame.request == 2
    assert site.rendered == 2


@pytest.mark.parametrize("rate", [1, MAX_WATCH_RATE])
def test_the_operator_chooses_the_rate(rate: int) -> None:
    site = Site(watch_rate=rate)
    for number in range(1, 513):
        site.now += 1 / 256  # for two seconds
        site.reset()
        site.watch(number, after=number)
    assert rate * 2 - 1 <= site.rendered <= rate * 2 + 1


def test_each_environment_of_a_vector_can_be_watched() -> None:
    site = Site(num_envs=3)
    site.reset()
    frames = [site.watch(number, env=number)[0][1] for number in range(3)]
    assert [(frame.request, frame.envs) for frame in frames] == [(1, 3)] * 3
    assert len({frame.data for frame in frames}) == 3
    assert site.watch(9, env=1) == [(9, frames[1])]
    assert site.rendered == 3


@pytest.mark.parametrize("env", [-1, 3])
def test_an_environment_that_does_not_exist_is_not_watched(env: int) -> None:
    site = Site(num_envs=3)
    site.reset()
    why = f"It has no environment {env}: they have the numbers 0 to 2."
    assert site.watch(env=env) == [(1, Watched(0, why=why))]
    assert Site().watch(env=1)[0][1].why == (
        "It has no environment 1: they have the numbers 0 to 0."
    )


def test_the_environments_of_a_vector_share_the_rate() -> None:
    site = Site(num_envs=4)
    shown = [0] * 4
    for number in range(1, 101):
        site.now += 1 / 25  # for four seconds
        site.reset()
        for env in range(4):
            [(_, frame)] = site.watch(number, after=number - 1, env=env)
            shown[env] += bool(frame.data)
    assert site.rendered <= WATCH_RATE * 4 + 4
    assert min(shown) >= WATCH_RATE - 2
    # Whoever remains has all of it again.
    site.now += FORGET_S
    before = site.rendered
    for number in range(1, 26):
        site.now += 1 / 25
        site.reset()
        site.watch(number, env=2)
    assert WATCH_RATE - 3 <= site.rendered - before <= WATCH_RATE + 1


def test_an_exception_of_the_environment_is_the_reason(site: Site) -> None:
    def fail(index: int = 0) -> Any:
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
