"""Environments and vectors as other packages make them, remote and local."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FlattenObservation, FrameStackObservation

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.factory import resolve_wrapper
from gymwire.env_agent.wrappers import Wrapper, wrap
from gymwire.errors import AttributeDenied, ConfigurationError, EnvironmentFailed
from tests.processes import programs
from tests.registering_envs import Pool, Walk, Walks
from tests.sameness import assert_same

STACK = 'gymnasium.wrappers:FrameStackObservation{"stack_size":4}'
FLATTEN = "gymnasium.wrappers:FlattenObservation"
OFFERS = f"""
[[offer]]
address = "walk-offered"
env = "tests.registering_envs:tests/Walk-v0"

[[offer]]
address = "no-licence"
env = "tests.registering_envs:broken"

[[offer]]
address = "no-licence-either"
env = "tests.registering_envs:broken"

[[offer]]
address = "walks-offered"
env = "tests.registering_envs:tests/Walks-v0"

[[offer]]
address = "not-installed"
env = "package_that_is_not_installed:Env"

[[offer]]
address = "pool-offered"
env = "tests.registering_envs:pool"

[[offer]]
address = "stacked"
env = "tests.registering_envs:tests/Walk-v0"
wrap = ['{STACK}', '{FLATTEN}']
"""


@pytest.fixture(scope="module")
def url(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with an env agent that was given these offers, three of which are bad."""
    config = tmp_path_factory.mktemp("offers") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        agent = started.env_agent(broker_url, "--config", str(config))
        left_out = agent.wait_for("offer left out")
        assert left_out["address"] == "not-installed"
        assert "no module 'package_that_is_not_installed'" in left_out["why"]
        for address in ("no-licence", "no-licence-either"):
            (row,) = [line for line in agent.output if f'"address": "{address}"' in line]
            assert "no licence server" in row
            assert "registering_envs.py" in row  # the traceback
        yield broker_url


def play(local: Any, remote: Any, steps: int = 30) -> None:
    """Play both with the same actions, and compare all results."""
    local.action_space.seed(4)
    assert_same(local.reset(seed=3), remote.reset(seed=3))
    for _ in range(steps):
        action = local.action_space.sample()
        step = local.step(action)
        assert_same(step, remote.step(action))
        if not isinstance(local, VectorEnv) and (step[2] or step[3]):
            assert_same(local.reset(), remote.reset())


def test_a_vector_of_an_id_that_a_module_registers_is_that_of_gymnasium(url: str) -> None:
    local = SyncVectorEnv([lambda: gymnasium.make("tests/Walk-v0")] * 3)
    remote = ProxyVectorEnv("walk-offered", 3, url)
    play(local, remote)
    remote.close()


def test_an_unknown_keyword_of_such_an_id_is_named_with_the_known_ones(url: str) -> None:
    kwargs, text = {"sped": 2.0}, "no keyword argument 'sped'; it takes speed"
    with pytest.raises(EnvironmentFailed, match=text):
        ProxyEnv("walk-offered", url, env_kwargs=kwargs)
    with pytest.raises(EnvironmentFailed, match=text):
        ProxyVectorEnv("walk-offered", 2, url, env_kwargs=kwargs)


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.value)
def test_a_registered_vector_gets_the_autoreset_mode_that_was_asked_for(
    url: str, mode: AutoresetMode
) -> None:
    local = gymnasium.make_vec("tests/Walks-v0", num_envs=2, autoreset_mode=mode)
    assert isinstance(local.unwrapped, Walks)
    remote = ProxyVectorEnv("walks-offered", 2, url, autoreset_mode=mode)
    assert remote.metadata["autoreset_mode"] is mode
    assert remote.single_observation_space == local.single_observation_space
    play(local, remote)
    remote.close()


def test_a_vector_that_describes_one_environment_is_batched(url: str) -> None:
    local, remote = Pool(4), ProxyVectorEnv("pool-offered", 4, url)
    assert remote.single_observation_space == local.single_observation_space
    assert remote.observation_space.shape == (4, 4, 2)
    assert remote.action_space.shape == (4,)
    assert_same(local.reset(seed=3), remote.reset(seed=3))
    for number in range(20):
        actions = np.full(4, number % 3)
        assert_same(local.step(actions), remote.step(actions))
    remote.close()


def test_the_infos_of_compute_reward_may_be_an_array_of_objects(url: str) -> None:
    goals = np.arange(2.0), np.ones(2), np.array([{"bonus": 0.5}, {}], object)
    with ProxyEnv("walk-offered", url) as env:
        assert_same(env.compute_reward(*goals), Walk().compute_reward(*goals))


def test_wrappers_are_applied_at_the_env_agent(url: str) -> None:
    def make() -> Any:
        return FlattenObservation(FrameStackObservation(gymnasium.make("tests/Walk-v0"), 4))

    remote = ProxyEnv("stacked", url)
    assert remote.observation_space.shape == (4,)
    play(make(), remote)
    remote.close()
    vector = ProxyVectorEnv("stacked", 2, url)
    play(SyncVectorEnv([make] * 2), vector)
    vector.close()


def test_a_wrapper_that_needs_the_environment_itself_is_pointed_to_the_env_agent(url: str) -> None:
    with ProxyEnv("walk-offered", url) as env, pytest.raises(AttributeDenied, match="--wrap"):
        getattr(env.unwrapped, "ale")  # noqa: B009 - for mypy


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("FlattenObservation", "write module:Wrapper"),
        ("gymnasium.wrappers:NoSuchWrapper", "no such class or function"),
        ("package_that_is_not_installed:Wrapper", "no module"),
        ('gymnasium.wrappers:FrameStackObservation{"stack_size":', "is not JSON"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_named(text: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        resolve_wrapper(text)


def test_a_wrapper_with_an_unknown_keyword_is_named() -> None:
    wrapper = resolve_wrapper(' gymnasium.wrappers:FrameStackObservation {"size":4}')
    with pytest.raises(ConfigurationError, match=r"FrameStackObservation does not .* 'size'"):
        wrap(Walk(), [wrapper])


def test_a_type_error_of_a_wrapper_itself_is_raised_as_it_is() -> None:
    def add(env: object) -> object:
        return len(env)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        wrap(Walk(), [Wrapper("x:y", add, {})])


def test_a_wrapper_that_returns_no_environment_is_named() -> None:
    with pytest.raises(ConfigurationError, match="--wrap x:y returned int"):
        wrap(Walk(), [Wrapper("x:y", lambda env: 3, {})])
