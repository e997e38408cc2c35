"""`gymwire serve --record` over real processes, wherever the environments run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol import recordings
from gymwire.protocol.messages import Act, Percept, Reset, Status
from gymwire.protocol.recordings import COMPLETE, RecordedPart
from tests.chaos.fleet import until
from tests.processes import Programs

RUNNERS = {
    "threads": (),
    "one thread": ("--threads", "1"),
    "workers": ("--workers", "2"),
    "another interpreter": ("--python", sys.executable),
    "direct": ("--direct", "host"),
}


def recorded(folder: Path) -> list[RecordedPart]:
    return [recordings.read(path) for path in sorted(folder.glob(f"*{COMPLETE}"))]


def play(env: Any, seed: int | None, steps: int) -> list[Any]:
    first = env.reset(seed=seed)[0]
    return [first, *(env.step(np.int64(number % 2))[0] for number in range(steps))]


@pytest.mark.parametrize("runner", RUNNERS)
def test_episodes_are_recorded_wherever_they_run(
    programs: Programs, tmp_path: Path, runner: str
) -> None:
    url = programs.broker()[1]
    agent = programs.env_agent(
        url, "cart", "CartPole-v1", "--record", str(tmp_path), *RUNNERS[runner]
    )
    seen = []
    with ProxyEnv("cart", url, wait_s=20) as one, ProxyEnv("cart", url, wait_s=20) as other:
        assert one.is_recorded
        for env, seed in ((one, 5), (other, 6), (one, None)):
            seen.append(play(env, seed, 5))
    with ProxyVectorEnv("cart", 3, url) as vector:
        assert vector.is_recorded
        vector.reset(seed=7)
        vector.step(np.array([0, 1, 0]))
    # The recorder is a thread, which a busy machine may not run before the end of the process.
    until(lambda: len(recorded(tmp_path)) == 4, "all episodes are on the disk")
    agent.stop()
    parts = recorded(tmp_path)
    seeds = [part.header["seed"] for part in parts]
    assert sorted(map(str, seeds)) == ["5", "6", "7", "None"]
    single = [part for part in parts if not part.header["num_envs"]]
    played = dict(zip((5, 6, None), seen, strict=True))
    for part in single:
        exchanges = list(part.exchanges())
        assert [type(one.request) for one in exchanges] == [Reset, *[Act] * 5]
        for exchange, observation in zip(exchanges, played[part.header["seed"]], strict=True):
            assert isinstance(exchange.reply, Status | Percept)
            np.testing.assert_array_equal(exchange.reply.observation, observation)
    assert {part.end for part in parts} == {"reset", "closed"}
    assert next(part for part in single if part.header["seed"] is None).header["generator"]


def test_a_session_that_is_not_recorded_says_so(broker_url: str, programs: Programs) -> None:
    programs.env_agent(broker_url, "unrecorded", "CartPole-v1")
    with ProxyEnv("unrecorded", broker_url, wait_s=20) as env:
        assert not env.is_recorded
    with ProxyVectorEnv("unrecorded", 2, broker_url) as vector:
        assert not vector.is_recorded


def test_the_episodes_of_a_killed_env_agent(programs: Programs, tmp_path: Path) -> None:
    url = programs.broker()[1]
    arguments = (url, "cart", "CartPole-v1", "--record", str(tmp_path))
    agent = programs.env_agent(*arguments)
    env = ProxyEnv("cart", url, wait_s=20)
    ended = 0
    env.reset(seed=1)
    while not ended:
        ended = env.step(1)[2]
    while not recorded(tmp_path):  # the recorder is a thread: it takes a moment
        env.reset(seed=2)
    agent.kill()
    assert recorded(tmp_path)[0].end == "ended"
    with pytest.raises(Exception, match="lost"):
        env.step(1)
    env.close()
