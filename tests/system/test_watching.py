"""`gymwire serve --watchable` over real processes, wherever the environments run."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.errors import Refused, RequestTimeout
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe, stop_session, watch_session
from gymwire.protocol.messages import Watch, Watched
from tests.processes import Programs
from tests.sameness import assert_same
from tests.system.test_pools import eventually

RUNNERS = {
    "threads": (),
    "one thread": ("--threads", "1"),
    "workers": ("--workers", "2"),
    "another interpreter": ("--python", sys.executable),
    "direct": ("--direct", "host"),
}
PATIENCE_S = 20.0


class Drawing(gymnasium.Env[Any, Any]):
    """Steps and pictures draw from the same generator. Action 1 waits for a file to appear."""

    metadata = {"render_modes": ["human", "rgb_array", "ansi"]}  # noqa: RUF012 - Gymnasium's
    observation_space = Box(0, 1, (3,), np.float64)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None, wait_for: str = "") -> None:
        self.render_mode = render_mode
        self._wait_for = Path(wait_for)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.random(3), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if action == 1:
            eventually(lambda: self._wait_for.exists() or None, "the file")
        return self.np_random.random(3), float(self.np_random.random()), False, False, {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return f"step {self._steps}"
        picture = self.np_random.integers(0, 255, (20, 30, 3), np.uint8)
        picture[0, 0] = self._steps % 256
        return picture


class Plain(gymnasium.Env[Any, Any]):
    """An environment whose constructor knows no render mode, whatever its metadata say."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's
    observation_space = action_space = Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return 0, {}


DRAWING = f"{__name__}:Drawing"


@contextlib.contextmanager
def watcher(url: str, **keys: Any) -> Iterator[BrokerConnection]:
    connection = BrokerConnection(url, **keys)
    try:
        yield connection
    finally:
        connection.close()


def next_frame(connection: BrokerConnection, sid: int, after: int = 0) -> Watched:
    """Return the first frame that is newer than `after`."""

    def attempt() -> Watched | None:
        found = watch_session(connection, sid, after, timeout_s=PATIENCE_S)
        return found if found.media_type else None

    return eventually(attempt, "a frame")


def only_session(connection: BrokerConnection) -> int:
    [one] = observe(connection).sessions
    return one.sid


def play(env: Any, actions: Iterator[Any]) -> list[Any]:
    return [env.reset(seed=3), *(env.step(action) for action in actions)]


@pytest.mark.parametrize(
    ("runner", "num_envs"),
    [*((one, 0) for one in RUNNERS), ("threads", 3), ("another interpreter", 3)],
)
def test_a_watched_trajectory_equals_an_unwatched_one(
    programs: Programs, runner: str, num_envs: int
) -> None:
    _, url = programs.broker()
    options = ("drawing", DRAWING, "--watchable", "--max-sessions", "2")
    programs.env_agent(url, *options, *RUNNERS[runner])

    def opened() -> Any:
        if num_envs:
            return ProxyVectorEnv("drawing", num_envs, url, sessions=1, wait_s=20)
        return ProxyEnv("drawing", url, wait_s=20)

    action = np.zeros(num_envs, np.int64) if num_envs else np.int64(0)
    seen: list[Watched] = []
    enough = threading.Event()

    def watch() -> None:
        with watcher(url) as connection:
            sid = only_session(connection)
            while len(seen) < 3:
                seen.append(next_frame(connection, sid, seen[-1].request if seen else 0))
        enough.set()

    def until_enough() -> Iterator[Any]:
        while not enough.is_set():
            yield action

    with opened() as env:
        assert env.is_watchable
        assert env.render_mode is None
        env.reset(seed=1)
        thread = threading.Thread(target=watch)
        thread.start()
        watched = play(env, until_enough())
        thread.join()
    with opened() as env:
        assert_same(play(env, iter([action] * (len(watched) - 1))), watched)
    requests = [one.request for one in seen]
    assert requests == sorted(set(requests))
    for one in seen:
        assert one.media_type == "image/png"
        assert Image.open(io.BytesIO(one.data)).size == (30, 20)


def test_nothing_is_rendered_for_a_learner_without_a_render_mode(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", DRAWING, "--watchable")
    with ProxyEnv("drawing", url) as env:
        env.reset(seed=1)
        assert env.render() is None
    with ProxyEnv("drawing", url, render_mode="rgb_array") as env:
        env.reset(seed=1)
        assert env.render().shape == (20, 30, 3)
    with ProxyVectorEnv("drawing", 2, url, sessions=1) as vector:
        vector.reset(seed=1)
        assert vector.render() == (None, None)


def test_gymwire_run_says_that_it_can_be_watched(programs: Programs) -> None:
    _, url = programs.broker()
    options = ("--broker", url, "--episodes", "1", "--seed", "1")
    programs.env_agent(url, "cart", "CartPole-v1", "--watchable")
    run = programs.start("gymwire", "run", "cart", *options)
    assert run.wait() == 0
    assert "The operator of cart lets others watch this session." in "".join(run.output)


def test_a_learner_that_renders_text_is_watched_as_text(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", DRAWING, "--watchable")
    with ProxyEnv("drawing", url, render_mode="ansi") as env, watcher(url) as connection:
        env.reset(seed=1)
        env.step(0)
        frame = next_frame(connection, only_session(connection))
        assert frame == Watched(2, "text/plain", b"step 1")
        # There is nothing new as long as nothing happens.
        assert watch_session(connection, only_session(connection), 2) == Watched(2)


def test_there_is_nothing_to_see_before_the_first_episode(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", DRAWING, "--watchable")
    with ProxyEnv("drawing", url), watcher(url) as connection:
        assert watch_session(connection, only_session(connection)) == Watched(0)


@pytest.mark.parametrize(
    ("options", "render_mode", "why"),
    [
        ((DRAWING,), None, "--watchable"),
        ((DRAWING, "--watchable"), "rgb_array_list", "the render mode 'rgb_array_list'"),
        ((f"{__name__}:Plain", "--watchable"), None, "cannot be rendered as rgb_array or ansi"),
    ],
)
def test_a_session_that_cannot_be_watched_says_why(
    programs: Programs, options: tuple[str, ...], render_mode: str | None, why: str
) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", *options)
    with ProxyEnv("drawing", url, render_mode=render_mode) as env, watcher(url) as connection:
        assert not env.is_watchable
        env.reset(seed=1)
        with pytest.raises(Refused, match="cannot be watched") as refused:
            watch_session(connection, only_session(connection))
        assert why in str(refused.value)


def test_an_unknown_session_is_not_watched(programs: Programs) -> None:
    _, url = programs.broker()
    with watcher(url) as connection, pytest.raises(Refused, match="no session 0000000000000007"):
        watch_session(connection, 7)


@pytest.mark.parametrize("direct", ["never", "always"])
def test_a_long_step_is_not_interrupted_and_is_seen_after_it(
    programs: Programs, tmp_path: Path, direct: str
) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", DRAWING, "--watchable", "--direct", "host")
    file = tmp_path / "file"
    env = ProxyEnv("drawing", url, direct=direct, env_kwargs={"wait_for": str(file)})
    with env, watcher(url) as connection:
        env.reset(seed=1)
        sid = only_session(connection)
        step = threading.Thread(target=env.step, args=(1,))
        step.start()
        eventually(lambda: observe(connection).sessions[0].in_step_s, "the long step")
        with pytest.raises(RequestTimeout):
            watch_session(connection, sid, timeout_s=1.0)
        file.touch()
        step.join()
        assert next_frame(connection, sid).request == 2
        stop_session(connection, sid)
        with pytest.raises(Refused):
            watch_session(connection, sid)


def test_a_watcher_that_does_not_read_holds_nobody_up(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "drawing", DRAWING, "--watchable")
    with ProxyEnv("drawing", url) as env, watcher(url) as slow, watcher(url) as other:
        env.reset(seed=1)
        sid = only_session(other)
        seen = 0
        for _ in range(3):
            slow.send_request(Watch(), sid)  # and never reads
            env.step(0)
            seen = next_frame(other, sid, seen).request
        assert seen == 4
