"""What `--policy` and `--video` of `gymwire run` accept, and what they refuse."""

from __future__ import annotations

import json
import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from gymwire.cli import policies, video
from gymwire.learner_agent.training import learners
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.protocol.errors import ConfigurationError, NoLearnerFits
from tests.cli.reading import Screen, call

PROXY = "gymwire.learner_agent.proxies.proxy_env.ProxyEnv"
SOURCE = """
def right(observation):
    return 1

class Learner:
    def __init__(self, observation_space, action_space):
        self.action = action_space.n - 1
    def __call__(self, observation):
        return self.action

number = 3

def two(observation, info):
    return 1

def broken(observation):
    return 1 / 0

class Bare:
    pass

class Silent:
    def __init__(self, observation_space, action_space):
        pass
"""


class Walk(gymnasium.Env[Any, Any]):
    """A walk to the right end; action 1 takes three steps, random ones more. It draws pictures."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - as gymnasium.Env declares it
    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(2)
    picture: Any = np.zeros((33, 41, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = max(0, self._place + (1 if action else -1))
        return self._place, -1.0, self._place == 3, False, {}

    def render(self) -> Any:
        return self.picture


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Walk:
    """An environment that the commands find at every address."""
    env = Walk()
    monkeypatch.setattr(PROXY, lambda *args, **kwargs: env)
    return env


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with policies, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_policies.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    "text",
    ["my_policies:right", "my_policies:Learner", "./my_policies.py:right", "{path}:Learner"],
)
def test_run_plays_a_policy(walk: Walk, module: Path, text: str) -> None:
    screen = Screen()
    arguments = ("--policy", text.format(path=module), "--episodes", "2", "--json")
    assert call(screen, "run", "walk", *arguments) == 0
    assert [one["steps"] for one in screen.json["episodes"]] == [3, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("right", "'right' is not a policy"),
        (":right", "is not a policy"),
        ("my_policies.py", r"my_policies\.py is a file\. Also name the class or function in it"),
        ("my_policies:", "is not a policy"),
        ("my_policies:left", "no function or class 'left'"),
        ("my_policies:Silent", "Silent is not a policy, since its objects cannot be called"),
        ("my_policies:number", "no function or class 'number'"),
        ("my_policies:right.more", "no function or class 'right.more'"),
        ("no_such_module:right", "no module 'no_such_module'"),
        ("./nothing.py:right", "no file ./nothing.py"),
        ("nothing.zip", "no file nothing.zip"),
        ("nothing.npz", "Cannot read nothing.npz"),
        ("my_policies.npz", "it is not an .npz file"),
    ],
)
def test_a_policy_that_cannot_be_loaded(walk: Walk, module: Path, text: str, said: str) -> None:
    (module.parent / "my_policies.npz").write_text(SOURCE)
    with pytest.raises(ConfigurationError, match=said) as caught:
        call(Screen(), "run", "walk", "--policy", text)
    assert str(caught.value).startswith("--policy: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my_policies:two", "TypeError: two() missing 1 required positional argument: 'info'"),
        ("my_policies:Bare", "TypeError: Bare() takes no arguments"),
        ("./my_policies.py:broken", "ZeroDivisionError: division by zero"),
        ("./wrong.py:act", "SyntaxError: '(' was never closed (wrong.py, line 1)"),
        ("wrong:act", "SyntaxError: '(' was never closed (wrong.py, line 1)"),
        ("./needy.py:act", "ModuleNotFoundError: No module named 'needed_by_nobody_else'"),
    ],
)
def test_a_policy_that_raises_is_reported_with_the_users_code_only(
    walk: Walk, module: Path, text: str, said: str
) -> None:
    (module.parent / "wrong.py").write_text("def act(observation:\n")
    (module.parent / "needy.py").write_text("import needed_by_nobody_else\n")
    with pytest.raises(ConfigurationError) as caught:
        call(Screen(), "run", "walk", "--policy", text)
    assert f"{text} raised {said}" in str(caught.value)
    assert 'policies.py", line' not in str(caught.value).replace("my_policies.py", "")
    assert "importlib" not in str(caught.value)


def test_a_policy_in_a_file_may_be_a_dataclass(walk: Walk, tmp_path: Path) -> None:
    path = tmp_path / "random.py"  # the name of a module that is in use
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Walker:\n"
        "    observations: object\n"
        "    actions: object\n"
        "    def __call__(self, observation: int) -> int:\n"
        "        return 1\n"
    )
    assert policies.load(f"{path}:Walker", walk, None)(0, {}) == 1


@pytest.mark.skipif(find_spec("stable_baselines3") is not None, reason="stable_baselines3 is here")
def test_a_model_without_its_library_names_the_extra(walk: Walk, tmp_path: Path) -> None:
    policy_class = {"__module__": "stable_baselines3.dqn.policies"}
    model = settings_of(tmp_path / "model.zip", policy_class=policy_class)
    with pytest.raises(ConfigurationError, match=r"Install it with: .*\[sb3\]"):
        policies.load(str(model), walk, None)


@pytest.mark.parametrize("name", ["walk.npz", "walk.zip", "walk"])
def test_run_plays_what_train_has_saved(walk: Walk, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    arguments = ("--steps", "300", "--seed", "1", "--save", str(path))
    screen = Screen()
    assert call(screen, "train", "walk", *arguments) == 0
    assert f"gymwire run walk --policy {path}" in screen.text.replace("\n", "")
    screen = Screen()
    assert call(screen, "run", "walk", "--policy", str(path), "--episodes", "3", "--json") == 0
    assert [one["steps"] for one in screen.json["episodes"]] == [3, 3, 3]


def test_a_saved_learner_obeys_the_mask_of_an_info(tmp_path: Path) -> None:
    env = gymnasium.make("FrozenLake-v1")
    learner = QLearner(env.observation_space, env.action_space)  # type: ignore[arg-type]
    learner.values[0] = -1.0, -2.0, 0.0, 0.0  # 2 and 3 are not allowed, so nobody tried them
    learners.save(learner, tmp_path / "lake.npz", {})
    policy = policies.load(str(tmp_path / "lake.npz"), env, 0)
    assert policy(0, {"action_mask": np.array([1, 1, 0, 0], np.int8)}) == 0


def test_a_learner_of_another_environment_says_where_it_was_trained(tmp_path: Path) -> None:
    path = str(tmp_path / "lake.npz")
    learners.save(QLearner(spaces.Discrete(16), spaces.Discrete(4)), path, {"address": "lake"})
    origin = r"lake\.npz \(a QLearner trained at 'lake'\)"
    with pytest.raises(NoLearnerFits, match=rf"{origin} cannot play .* the observation space Box"):
        policies.load(path, gymnasium.make("CartPole-v1"), 0)
    with pytest.raises(ConfigurationError, match=rf"Cannot load .*{origin} into this learner"):
        policies.load(path, gymnasium.make("Taxi-v4"), 0)


def settings_of(path: Path, **settings: Any) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("module_name", "more", "name"),
    [
        ("stable_baselines3.common.policies", {"clip_range": {}}, "PPO"),
        ("stable_baselines3.common.policies", {}, "A2C"),
        ("stable_baselines3.dqn.policies", {}, "DQN"),
        ("stable_baselines3.sac.policies", {}, "SAC"),
        ("stable_baselines3.td3.policies", {}, "TD3"),
    ],
)
def test_the_class_of_a_model_follows_from_its_settings(
    tmp_path: Path, module_name: str, more: dict[str, Any], name: str
) -> None:
    path = settings_of(tmp_path / "m.zip", policy_class={"__module__": module_name}, **more)
    assert policies._algorithm(path) == name


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_not_a_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"m\.zip"):
        policies._algorithm(path)
    with pytest.raises(ConfigurationError, match=r"not a Stable-Baselines3 model"):
        policies._algorithm(settings_of(path))
    with pytest.raises(ConfigurationError, match=r"holds a policy of mine"):
        policies._algorithm(settings_of(path, policy_class={"__module__": "mine"}))


def test_the_settings_of_a_hostile_model(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", "[" * 100_000)
    with pytest.raises(ConfigurationError, match=r"m\.zip is not a Stable-Baselines3 model"):
        policies._algorithm(path)
    path.write_bytes(
        path.read_bytes().replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
        )
    )
    with pytest.raises(
        ConfigurationError, match=r"m\.zip is not a Stable-Baselines3 model: .*encrypted"
    ):
        policies._algorithm(path)


@pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="needs stable_baselines3")
@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN"])
def test_run_plays_a_saved_model(walk: Walk, tmp_path: Path, name: str) -> None:
    import stable_baselines3

    model = getattr(stable_baselines3, name)("MlpPolicy", Walk(), seed=0)
    path = tmp_path / "model.zip"
    model.save(path)
    policy = policies.load(str(path), walk, 0)
    for place in range(4):
        assert policy(place, {}) == model.predict(np.int64(place), deterministic=True)[0]
        assert walk.action_space.contains(policy(place, {}))
    other = gymnasium.make("CartPole-v1")
    with pytest.raises(ConfigurationError, match="was trained with the observation_space"):
        policies.load(str(path), other, 0)


@pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="needs stable_baselines3")
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("model.zip", "vecnormalize.pkl"),
        ("model.zip", "model_vecnormalize.pkl"),
        ("rl_model_500_steps.zip", "rl_model_vecnormalize_500_steps.pkl"),
    ],
)
def test_the_statistics_beside_a_model_normalize_its_observations(
    tmp_path: Path, name: str, beside: str
) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    pole = gymnasium.make("CartPole-v1")
    normalized = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    model = PPO("MlpPolicy", normalized, n_steps=64, seed=0).learn(64)
    normalized.obs_rms.mean[:] = 3.0, -2.0, 1.0, 0.5
    normalized.obs_rms.var[:] = 1e-4
    model.save(tmp_path / name)
    normalized.save(str(tmp_path / beside))
    drawn = [pole.observation_space.sample() for _ in range(64)]
    drawn = [np.clip(one, -3, 3).astype(np.float32) for one in drawn]

    def actions(policy: Any) -> list[int]:
        return [int(policy(one, {})) for one in drawn]

    wanted = actions(
        lambda one, info: model.predict(normalized.normalize_obs(one), deterministic=True)[0]
    )
    assert actions(policies.load(str(tmp_path / name), pole, 0)) == wanted
    assert actions(lambda one, info: model.predict(one, deterministic=True)[0]) != wanted
    (tmp_path / beside).write_bytes(b"no pickle")
    with pytest.raises(ConfigurationError, match=rf"Cannot load .*{beside}"):
        policies.load(str(tmp_path / name), pole, 0)
    (tmp_path / beside).write_bytes(pickle.dumps([]))
    with pytest.raises(ConfigurationError, match="holds no VecNormalize, but list"):
        policies.load(str(tmp_path / name), pole, 0)


@pytest.mark.skipif(find_spec("stable_baselines3") is None, reason="needs stable_baselines3")
def test_statistics_of_another_space_are_an_error(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    pole = gymnasium.make("CartPole-v1")
    PPO("MlpPolicy", pole).save(tmp_path / "model.zip")
    other = VecNormalize(DummyVecEnv([lambda: gymnasium.make("MountainCar-v0")]))
    other.save(str(tmp_path / "vecnormalize.pkl"))
    with pytest.raises(ConfigurationError, match=r"vecnormalize\.pkl has the statistics of Box"):
        policies.load(str(tmp_path / "model.zip"), pole, 0)


# --- video ----------------------------------------------------------------------------------------

needs_moviepy = pytest.mark.skipif(find_spec("moviepy") is None, reason="needs moviepy")


@needs_moviepy
def test_run_records_a_video_of_all_episodes(walk: Walk, module: Path, tmp_path: Path) -> None:
    from moviepy import VideoFileClip

    path = tmp_path / "walk.mp4"
    screen = Screen()
    arguments = ("--policy", "my_policies:right", "--episodes", "2", "--video", str(path))
    assert call(screen, "run", "walk", *arguments) == 0
    assert f"The video is in {path}." in screen.text
    with VideoFileClip(str(path)) as clip:
        decoder = clip.reader.proc
        assert clip.size == [42, 34]  # even numbers
        assert (clip.fps, clip.duration) == (5, pytest.approx(8 / 5))  # 4 pictures an episode
    for pipe in (decoder.stdout, decoder.stderr):  # moviepy closes those of a running process only
        pipe.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [("walk.gif", "must end with .mp4"), ("nowhere/walk.mp4", "no folder"), ("x.mp4", "cannot be")],
)
@needs_moviepy
def test_a_video_that_cannot_be_written(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "x.mp4").mkdir()
    with pytest.raises(ConfigurationError, match=said):
        call(Screen(), "run", "walk", "--video", str(tmp_path / name))


def test_a_video_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"Install it with: .*\[video\]"):
        video.check(Path("walk.mp4"))


@needs_moviepy
@pytest.mark.parametrize(
    "picture",
    [
        None,
        "text",
        np.zeros((4, 4)),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),  # with transparency
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_a_rendering_that_is_no_image(walk: Walk, tmp_path: Path, picture: Any) -> None:
    walk.picture = picture
    with pytest.raises(ConfigurationError, match="--video needs images of bytes"):
        call(Screen(), "run", "walk", "--video", str(tmp_path / "walk.mp4"))


@needs_moviepy
def test_a_rendering_that_changes_its_size(walk: Walk, tmp_path: Path) -> None:
    movie = video.Video(tmp_path / "walk.mp4", walk)
    movie.add_frame()
    walk.picture = np.zeros((41, 33, 3), np.uint8)
    with pytest.raises(ConfigurationError, match=r"from \(33, 41, 3\) to \(41, 33, 3\)"):
        movie.add_frame()
    movie.close()


@needs_moviepy
@pytest.mark.parametrize(("fps", "used"), [(np.int64(5), 5), (None, 30), (0, 30), (np.inf, 30)])
def test_the_rate_of_frames(
    walk: Walk, fps: Any, used: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []

    class Writer:
        def __init__(self, path: str, size: Any, fps: float, logfile: Any) -> None:
            made.append(fps)

        def write_frame(self, frame: Any) -> None:
            pass

    monkeypatch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_VideoWriter", Writer)
    walk.metadata = {**walk.metadata, "render_fps": fps}
    video.Video(Path("walk.mp4"), walk).add_frame()
    assert made == [used]


@needs_moviepy
def test_video_and_render_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="either --render or --video"):
        call(Screen(), "run", "walk", "--render", "--video", str(tmp_path / "walk.mp4"))


@needs_moviepy
def test_a_video_needs_an_environment_that_draws(walk: Walk, tmp_path: Path) -> None:
    walk.metadata = {"render_modes": ["ansi"]}
    with pytest.raises(ConfigurationError, match="render mode rgb_array; walk offers ansi"):
        call(Screen(), "run", "walk", "--video", str(tmp_path / "walk.mp4"))
