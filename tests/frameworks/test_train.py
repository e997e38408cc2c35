"""`gymwire train` with PPO of Stable-Baselines3."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gymwire.cli import policies
from gymwire.env_agent.environments import MAX_NUM_ENVS
from gymwire.learner_agent.training import ppo
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed
from tests.cli.reading import Screen, call
from tests.frameworks.envs import SPACES, Lottery
from tests.processes import PATIENCE_S, ROOT, WRITES_PROGRESS, programs
from tests.sampling import thorough

REASON = "Stable-Baselines3 is not installed; ./run pytest tests/frameworks installs it"
pytestmark = pytest.mark.skipif(find_spec("stable_baselines3") is None, reason=REASON)

if TYPE_CHECKING:
    import torch
    from stable_baselines3 import A2C, PPO


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Import PyTorch where these tests run, and not in each process that collects them."""
    global torch, A2C, PPO
    import torch
    from stable_baselines3 import A2C, PPO


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a broker, and an env agent with one slot for each address, or two."""
    offers = (
        ("ppo/pole", "CartPole-v1", 1),
        ("ppo/lottery", "tests.frameworks.envs:Lottery", 1),
        ("ppo/poles", "CartPole-v1", 2),
    )
    config = tmp_path_factory.mktemp("train") / "offers.toml"
    config.write_text(
        "\n".join(
            f'[[offer]]\naddress = "{address}"\nenv = "{env}"\nmax_sessions = {slots}'
            for address, env, slots in offers
        )
    )
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


def train(broker: str, *options: str, address: str = "ppo/lottery", **env_kwargs: str) -> Any:
    """Train, and return the JSON object."""
    screen = Screen()
    arguments = ["train", address, "--broker", broker, "--wait", "10", "--json", *options]
    if "--seed" not in options:
        arguments += ["--seed", "1"]
    assert call(screen, *arguments, "--env-kwargs", json.dumps(env_kwargs)) == 0
    return screen.json


def weights(path: Path) -> dict[str, Any]:
    return {name: one.tolist() for name, one in PPO.load(path).policy.state_dict().items()}


PAIRS = [(observations, "discrete") for observations in SPACES if observations != "discrete"] + [
    ("box", actions) for actions in ("box", "matrix", "multi-discrete", "multi-binary")
]


@pytest.mark.parametrize(("observations", "actions"), PAIRS)
def test_the_saved_model_acts_in_the_spaces_that_it_was_trained_with(
    broker: str, tmp_path: Path, observations: str, actions: str
) -> None:
    path = tmp_path / "model.zip"
    done = train(
        broker, "--steps", "60", "--save", str(path), observations=observations, actions=actions
    )
    assert (done["learner"], done["steps"], done["complete"]) == ("PPO", 64, True)
    assert done["saved"] == str(path)
    assert done["recent_return"] > 0
    env = Lottery(observations, actions)
    act = policies.load(str(path), env, None)
    for _ in range(3):
        assert env.action_space.contains(act(env.observation_space.sample(), {}))


@pytest.mark.parametrize("num_envs", ["1", "3"])
def test_the_same_seed_trains_the_same_model(broker: str, tmp_path: Path, num_envs: str) -> None:
    paths = [tmp_path / name for name in ("one.zip", "two.zip", "other.zip")]
    for path, seed in zip(paths, ("7", "7", "8"), strict=True):
        options = ("--steps", "90", "--num-envs", num_envs, "--seed", seed, "--save", str(path))
        train(broker, *options, address="ppo/pole")
    one, two, other = map(weights, paths)
    assert one == two != other


def test_more_environments_than_a_session_may_have_are_spread_over_several(
    broker: str, tmp_path: Path
) -> None:
    number = str(MAX_NUM_ENVS + 1)
    options = ("--steps", number, "--num-envs", number, "--save", str(tmp_path / "model.zip"))
    assert train(broker, *options, address="ppo/poles")["steps"] >= MAX_NUM_ENVS


@pytest.mark.parametrize(("observations", "threads"), [("box", 1), ("image", 3)])
def test_a_small_network_computes_in_one_thread(
    observations: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ppo.one_thread(SPACES[observations]):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_it_goes_on_from_a_saved_model(broker: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.zip")
    train(broker, "--steps", "60", "--save", path, address="ppo/pole")
    updates = PPO.load(path)._n_updates
    train(broker, "--steps", "60", "--load", path, "--save", path, address="ppo/pole")
    assert PPO.load(path)._n_updates == updates + 10


def test_a_training_leaves_no_temporary_folder(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train(broker, "--steps", "20", "--save", str(tmp_path / "model.zip"))
    assert [one.name for one in tmp_path.iterdir()] == ["model.zip"]


def test_without_save_a_new_file_has_the_name_of_the_address(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ppo-lottery.zip", "ppo-lottery-2.zip"):
        assert train(broker, "--steps", "20")["saved"] == name
        assert (tmp_path / name).is_file()


def test_a_time_limit_ends_the_training_which_is_saved(broker: str, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    options = ("--steps", "1000000", "--time-limit", "0.2", "--save", str(path))
    done = train(broker, *options, address="ppo/pole")
    assert done["complete"] is False
    assert 0 < done["steps"] < 1_000_000
    assert weights(path)


def test_a_file_that_is_not_a_ppo_model_of_these_spaces_is_an_error(
    broker: str, tmp_path: Path
) -> None:
    other, wrong = tmp_path / "other.zip", tmp_path / "wrong.zip"
    train(broker, "--steps", "20", "--save", str(other), observations="dict")
    wrong.write_bytes(b"PK\x05\x06" + bytes(18))
    files = [other, wrong, tmp_path / "none.zip"]
    A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "a2c.zip")
    for path in (*files, tmp_path / "a2c.zip"):
        with pytest.raises(ConfigurationError, match=f"--load: Cannot (load|read) .*{path.name}"):
            train(broker, "--load", str(path))
    assert train(broker, "--steps", "20", "--save", str(tmp_path / "x.zip"))[
        "complete"
    ]  # a free slot


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "status"), [thorough(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_training_is_saved(
    broker: str, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    path = tmp_path / "model.zip"
    options = f"train ppo/pole --steps 100000 --wait 10 --save {path} --broker {broker}"
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_PROGRESS, *options.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            while "mean_return=" not in (line := process.stderr.readline()):
                assert line or process.poll() is None
            process.send_signal(number)
            out, errors = process.communicate(timeout=3 * PATIENCE_S)  # PyTorch ends slowly
        finally:
            process.kill()
    assert process.returncode == status
    assert "PPO after only" in out
    play = f"gymwire run ppo/pole --policy {path} --broker {broker}"
    assert f"is saved in {path}, after only " in out
    assert f" steps. Play with it: {play}\n" in out
    assert "Traceback" not in errors
    assert weights(path)


def test_the_file_must_have_the_suffix_by_which_run_knows_it(broker: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--save: .*model must end with \.zip"):
        train(broker, "--save", str(tmp_path / "model"))


def test_run_plays_the_model(broker: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.zip")
    train(broker, "--steps", "60", "--save", path, address="ppo/pole")
    screen = Screen()
    arguments = ("--policy", path, "--episodes", "1", "--wait", "10", "--broker", broker)
    assert call(screen, "run", "ppo/pole", *arguments) == 0
    assert "1 episode: return" in screen.text


@pytest.mark.parametrize(
    ("place", "text"), [(0, "an observation with the number nan"), (1, "the reward nan")]
)
def test_numbers_that_spoil_the_network_are_the_environments_fault(place: int, text: str) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Spoilt(Lottery):
        def step(self, action: Any) -> Any:
            step: list[Any] = list(super().step(action))
            step[place] = step[place] * np.float32("nan")
            return tuple(step)

    task = ppo.PPOTask(DummyVecEnv([Spoilt]), steps=10, seed=1, address="ppo/spoilt")
    with pytest.raises(EnvironmentFailed) as caught:
        task.run()
    assert str(caught.value) == (
        f"The environment at 'ppo/spoilt' failed in step(): it returned {text}, from which PPO "
        f"cannot learn. Correct the environment."
    )


def test_an_exception_in_a_vector_names_the_address() -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Stuck(Lottery):
        def step(self, action: Any) -> Any:
            raise EnvironmentFailed("In environment 1 of 2: ValueError: stuck")

    task = ppo.PPOTask(DummyVecEnv([Stuck]), steps=10, seed=1, address="ppo/stuck")
    with pytest.raises(
        EnvironmentFailed, match=r"^The environment at 'ppo/stuck' failed: In env.* 1 of 2: Value"
    ):
        task.run()
