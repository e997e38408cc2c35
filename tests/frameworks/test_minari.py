"""Minari: datasets recorded through a proxy, of the environment that is served."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import gymnasium
import numpy as np
import pytest

from gymwire import ProxyEnv
from gymwire.cli import record
from gymwire.cli.interruption import Interrupted, handle_signals
from gymwire.protocol.errors import ConfigurationError
from tests.cli.reading import Screen, call
from tests.processes import Programs

needs_minari = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("minari", "h5py", "jax", "PIL")),
    reason="needs minari[create,hdf5]",
)
# Minari leaves its temporary folders to the garbage collector, which complains.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.*is set to None:UserWarning",
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what Minari has left within the test that left it."""
    yield
    gc.collect()


@pytest.fixture
def url(programs: Programs) -> str:
    url = programs.broker()[1]
    programs.env_agent(url, "pole", "CartPole-v1", "--env-kwargs", '{"sutton_barto_reward": true}')
    return url


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(record.FOLDER_VARIABLE, str(path.parent))
    return importlib.import_module("minari").load_dataset(path.name)


@needs_minari
def test_an_interrupted_episode_is_not_saved(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, policy = tmp_path / "pole-left-v0", tmp_path / "left.py"
    screen = Screen()
    policy.write_text(
        "import itertools\n"
        "count = itertools.count()\n"
        "def left(observation):\n"
        "    if next(count) == 22:  # in the third episode; each has 8 to 11 steps\n"
        "        raise KeyboardInterrupt\n"
        "    return 0\n"
    )
    arguments = ("--seed", "7", "--out", str(path), "--policy", f"{policy}:left")
    with contextlib.suppress(KeyboardInterrupt):
        call(screen, "record", "pole", "--broker", url, *arguments)
    episodes = [*load(path, monkeypatch).iterate_episodes()]
    assert len(episodes) == 2
    assert all(episode.terminations[-1] for episode in episodes)
    steps = sum(len(episode.actions) for episode in episodes)
    assert f"Saved 2 episodes ({steps} steps) in {path}." in screen.text


@needs_minari
def test_a_signal_while_minari_writes_loses_no_episode(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pole-random-v0"
    writes = itertools.count()

    def dump(value: object, file: IO[str], **keywords: Any) -> None:
        """Write metadata to the file, which was just emptied; interrupt that of an episode."""
        if next(writes) == 3:
            signal.raise_signal(signal.SIGINT)
        json.dump(value, file, **keywords)

    storage = importlib.import_module("minari.dataset.minari_storage")
    monkeypatch.setattr(storage, "json", SimpleNamespace(**{**vars(json), "dump": dump}))
    handle_signals()
    with pytest.raises(Interrupted):
        call(Screen(), "record", "pole", "--broker", url, "--out", str(path))
    episodes = [*load(path, monkeypatch).iterate_episodes()]
    assert episodes
    assert all(episode.terminations[-1] for episode in episodes)


@needs_minari
def test_record_writes_a_dataset_of_the_served_environment(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pole-random-v0"
    screen = Screen()
    arguments = ("--episodes", "3", "--seed", "7", "--out", str(path), "--json")
    assert call(screen, "record", "pole", "--broker", url, *arguments) == 0
    assert screen.json["episodes"] == 3
    dataset = load(path, monkeypatch)
    assert dataset.total_episodes == 3
    env = dataset.recover_environment()
    assert type(env.unwrapped).__name__ == "CartPoleEnv"
    assert (env.spec.id, env.unwrapped._sutton_barto_reward) == ("CartPole-v1", True)
    for number, episode in enumerate(dataset.iterate_episodes()):  # and it is the same locally
        observation, _ = env.reset(seed=7 + number)
        np.testing.assert_array_equal(episode.observations[0], observation)
        for step, action in enumerate(episode.actions):
            observation, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[step + 1], observation)
            assert episode.rewards[step] == reward
        assert terminated or truncated
    assert not [one for one in tmp_path.iterdir() if one != path]  # no temporary files


@needs_minari
def test_a_collector_around_a_proxy_stores_the_served_spec(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(record.FOLDER_VARIABLE, str(tmp_path))
    proxy = ProxyEnv("pole", url, wait_s=20)
    proxy.spec = proxy.served_spec
    collector = importlib.import_module("minari").DataCollector(proxy)
    collector.reset(seed=1)
    collector.step(1)
    dataset = collector.create_dataset("pole-v0")
    collector.close()
    assert type(dataset.recover_environment().unwrapped).__name__ == "CartPoleEnv"


@needs_minari
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("taken-v0", "exists"),
        ("no/where-v0", "there is no folder"),
        ("a b!", "cannot be the name"),
        ("pole", "cannot be the name"),
    ],
)
def test_a_dataset_that_cannot_be_saved(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "taken-v0").mkdir()
    with pytest.raises(ConfigurationError, match=said):
        call(Screen(), "record", "pole", "--out", str(tmp_path / name))


def test_a_dataset_needs_a_folder_and_minari(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="Nowhere to save: pass --out"):
        call(Screen(), "record", "pole")
    monkeypatch.setattr(record, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"Install it with: .*\[minari\]"):
        call(Screen(), "record", "pole", "--out", str(tmp_path / "pole-v0"))


def test_the_served_spec_is_that_of_the_environment(url: str) -> None:
    with ProxyEnv("pole", url, wait_s=20) as env:
        served = env.served_spec
        assert served is not None
        assert env.spec is not None
        assert (served.id, served.max_episode_steps) == ("CartPole-v1", 500)
        assert served.kwargs["sutton_barto_reward"] is True
        assert "address" not in served.kwargs
        assert "address" in env.spec.kwargs
        local = gymnasium.make(served)
        assert local.observation_space == env.observation_space
        local.close()


def test_an_environment_that_is_not_registered_here_is_not_imported(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(gymnasium.registry, "CartPole-v1")
    with ProxyEnv("pole", url, wait_s=20) as env:
        served = env.served_spec
        assert served is not None
        assert served.entry_point is None
        with pytest.raises(gymnasium.error.Error, match="CartPole-v1"):
            gymnasium.make(served)
