"""`gymwire replay`: whether a simulator has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol import recordings
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed
from gymwire.protocol.recordings import COMPLETE
from tests.chaos.fleet import until
from tests.cli.reading import Screen, call
from tests.processes import Programs

SOURCE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

class Sim(gymnasium.Env):
    observation_space = Box(-9, 9, (2,), np.float64)
    action_space = Discrete(5)

    def __init__(self, gravity=1.0, kind=float, exception=ValueError, size=2, mass=1.0):
        self.gravity, self.exception, self.extra = gravity, exception, 0.0
        self.kind = {"float": float, "float32": np.float32}.get(kind, float)
        self.exception = {"KeyError": KeyError}.get(exception, ValueError)
        self.observation_space = Box(-9, 9, (size,), np.float64)
        self.size = size

    def push(self, by):
        self.extra += by
        return self.extra

    def lift(self, gravity):
        self.gravity = gravity

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.random(self.size) + (options or {}).get("at", 0)
        self.steps, self.extra = 0, 0.0
        return self.at.copy(), {"object": object()}

    def step(self, action):
        if action == 4:
            raise self.exception("four")
        self.steps += 1
        self.at[0] = (self.at[0] + self.np_random.random() + self.extra) % 8
        if self.steps > 2:
            self.at[0] *= self.gravity
        return self.at.copy(), self.kind(action), self.steps == 6, False, {"steps": self.steps}

class Wild(Sim):
    '''It has no generator that anybody can see.'''

    @property
    def np_random(self):
        return np.random.default_rng(0) if self.__dict__.get("_ready") else self._raise()

    def _raise(self):
        raise AttributeError("no generator")

    def reset(self, *, seed=None, options=None):
        self._ready = True
        try:
            return Sim.reset(self, options=options)
        finally:
            self._ready = False

    def step(self, action):
        self._ready = True
        try:
            return Sim.step(self, action)
        finally:
            self._ready = False
"""


def serve(programs: Programs, url: str, folder: Path, address: str, *options: str) -> Any:
    path = folder / "simulators.py"
    path.write_text(SOURCE)
    return programs.env_agent(
        url, address, f"{path}:Sim", "--expose", "push", "--expose", "lift", *options
    )


@pytest.fixture(scope="module")
def recorded(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with episodes of all kinds, of the address `sim`."""
    from tests.processes import programs

    base = tmp_path_factory.mktemp("recorded")
    folder = base / "episodes"
    with programs() as started:
        agent = serve(started, broker_url, base, "sim", "--record", str(folder))
        with ProxyEnv("sim", broker_url, wait_s=20, env_kwargs={"mass": 2.0}) as env:
            env.reset(seed=1, options={"at": 2})
            play(env, 6)
            env.reset()  # the generator goes on
            play(env, 3)
            env.push(0.5)
            play(env, 1)
            env.reset(seed=3)
            with pytest.raises(EnvironmentFailed):
                env.step(4)
        with ProxyVectorEnv("sim", 2, broker_url) as vector:
            vector.reset()  # without a seed
            for _ in range(9):  # it resets by itself
                vector.step(np.array([1, 2]))
            vector.reset(seed=5)
            vector.step(np.array([1, 2]))
        wait_for_episodes(folder, 5)
        agent.stop()
    return folder


def wait_for_episodes(folder: Path, count: int) -> None:
    """Wait for the recorder, a thread that a busy machine may not run before the process ends."""
    until(lambda: len(list(folder.glob(f"*{COMPLETE}"))) == count, "all episodes are on the disk")


def play(env: Any, steps: int) -> None:
    for number in range(steps):
        env.step(np.int64(number % 3))


def replay(url: str, folder: Path, *options: str) -> tuple[int, Any]:
    screen = Screen()
    status = call(
        screen, "replay", str(folder), "--broker", url, "--wait", "20", "--json", *options
    )
    return status, screen.json


def test_the_same_simulator_is_the_same(
    broker_url: str, programs: Programs, recorded: Path, tmp_path: Path
) -> None:
    serve(programs, broker_url, tmp_path, "sim")
    status, result = replay(broker_url, recorded)
    assert (result["same"], result["differ"], result["cannot_compare"]) == (5, 0, 0), result
    assert status == 0
    assert [one["steps"] for one in result["episodes"]] in ([6, 4, 1, 9, 1], [9, 1, 6, 4, 1])


@pytest.mark.parametrize(
    ("kwargs", "differ", "why"),
    [
        ('{"gravity": 1.0000001}', 3, "step 3: observation array"),
        ('{"kind": "float32"}', 2, "step 1: reward"),
        ('{"exception": "KeyError"}', 1, "four was recorded, now KeyError"),
        ('{"size": 3}', 5, "the observation space has changed"),
    ],
)
def test_a_changed_simulator_differs(
    broker_url: str,
    programs: Programs,
    recorded: Path,
    tmp_path: Path,
    kwargs: str,
    differ: int,
    why: str,
) -> None:
    serve(programs, broker_url, tmp_path, "changed", "--env-kwargs", kwargs)
    status, result = replay(broker_url, recorded, "--address", "changed")
    assert status == 3
    assert result["differ"] == differ, result
    assert any(why in one["why"] for one in result["episodes"]), result


def test_a_simulator_that_refuses_the_recorded_arguments_is_an_error_of_one_line(
    broker_url: str, programs: Programs, recorded: Path
) -> None:
    programs.env_agent(broker_url, "pole", "CartPole-v1")
    screen = Screen()
    with pytest.raises(EnvironmentFailed, match="no keyword argument 'mass'") as caught:
        call(screen, "replay", str(recorded), "--address", "pole", "--broker", broker_url)
    assert "\n" not in str(caught.value)
    assert screen.text.splitlines()[-1].startswith("only ")


def test_what_happened_between_two_episodes_is_repeated(
    broker_url: str, programs: Programs, tmp_path: Path
) -> None:
    folder = tmp_path / "between"
    agent = serve(programs, broker_url, tmp_path, "sim", "--record", str(folder))
    with ProxyEnv("sim", broker_url, wait_s=20) as env:
        env.lift(0.5)
        env.reset(seed=1)
        play(env, 7)  # one more than the episode has
        env.lift(0.25)
        env.push(1.0)
        with pytest.raises(EnvironmentFailed):
            env.reset(options={"at": "nowhere"})
        env.reset(seed=2)
        play(env, 5)
    wait_for_episodes(folder, 2)
    agent.stop()
    agent = serve(programs, broker_url, tmp_path, "sim")
    status, result = replay(broker_url, folder)
    assert (status, result["same"]) == (0, 2), result
    assert [one["steps"] for one in result["episodes"]] == [6, 5]
    min(folder.glob(f"*{COMPLETE}")).unlink()  # as if to save space
    status, result = replay(broker_url, folder)
    assert status == 4, result
    assert result["episodes"][0]["why"].startswith("earlier calls of its session (1)")
    agent.stop()
    arguments = (broker_url, "sim", f"{tmp_path / 'simulators.py'}:Sim")  # exposes nothing
    programs.env_agent(*arguments)
    status, result = replay(broker_url, folder)
    assert status == 4, result


def test_a_reset_of_some_environments_needs_the_episode_before(
    broker_url: str, programs: Programs, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    agent = serve(programs, broker_url, tmp_path, "sim", "--record", str(folder))
    with ProxyVectorEnv("sim", 2, broker_url, wait_s=20, autoreset_mode="Disabled") as vector:
        vector.reset(seed=1)
        vector.step(np.array([1, 2]))
        vector.reset(seed=5, options={"reset_mask": np.array([True, False])})
        vector.step(np.array([1, 2]))
    wait_for_episodes(folder, 2)
    agent.stop()
    serve(programs, broker_url, tmp_path, "sim")
    assert replay(broker_url, folder)[0] == 0
    min(folder.glob(f"*{COMPLETE}")).unlink()
    status, result = replay(broker_url, folder)
    assert status == 4, result
    assert result["episodes"][0]["why"].startswith("its reset left some environments")


def test_an_unknown_beginning_cannot_be_compared(
    broker_url: str, programs: Programs, recorded: Path, tmp_path: Path
) -> None:
    (tmp_path / "simulators.py").write_text(SOURCE)
    folder = tmp_path / "wild"
    arguments = (broker_url, "wild", f"{tmp_path / 'simulators.py'}:Wild", "--record", str(folder))
    agent = programs.env_agent(*arguments)
    with ProxyEnv("wild", broker_url, wait_s=20) as env:
        env.reset()
        play(env, 2)
    wait_for_episodes(folder, 1)
    agent.stop()
    programs.env_agent(*arguments[:3])
    status, result = replay(broker_url, folder)
    assert (status, result["cannot_compare"]) == (4, 1), result
    assert result["episodes"][0]["why"].startswith("its reset had no seed")


def test_a_missing_part_and_a_damaged_file_cannot_be_compared(
    broker_url: str, programs: Programs, recorded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    path = next(p for p in sorted(recorded.iterdir()) if recordings.read(p).header["seed"] == 1)
    part = recordings.read(path)
    header = {k: v for k, v in part.header.items() if k not in ("format", "version")}
    rest = b"".join(recordings.pack_exchange(*pair) for pair in part.frames[3:])
    (folder / "b-0002.episode").write_bytes(recordings.pack_header({**header, "part": 2}) + rest)
    (folder / "c-0001.episode").write_bytes(b"nonsense")
    (folder / "d-0001.episode").write_bytes(recordings.pack_header(header)[:50])
    serve(programs, broker_url, tmp_path, "sim")
    status, result = replay(broker_url, folder)
    assert (status, result["cannot_compare"]) == (4, 3), result
    killed = "or its env agent was killed before it had written the beginning."
    assert {one["why"].partition(":")[0] for one in result["episodes"]} == {
        f"{folder / 'c-0001.episode'} is not a recorded episode of gymwire.",
        f"{folder / 'd-0001.episode'} is not a recorded episode, {killed}",
        "its part 1 is missing",
    }


def test_a_folder_without_recordings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no recorded episodes"):
        call(Screen(), "replay", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"No folder given"):
        call(Screen(), "replay")
    assert not list(tmp_path.glob(f"*{COMPLETE}"))
