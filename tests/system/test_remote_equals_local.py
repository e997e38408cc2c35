"""A remote environment is the local one to the bit, over real processes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from gymwire import ProxyEnv
from tests.processes import programs
from tests.sameness import assert_same
from tests.sampling import sampled
from tests.space_zoo import ZOO, ZooEnv

FAMILIES = tuple(f"gymnasium.envs.{name}" for name in ("classic_control", "box2d", "toy_text"))
REGISTERED = [
    env_id
    for env_id, spec in gymnasium.registry.items()
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith(FAMILIES)
]


@contextlib.contextmanager
def _advice_ignored() -> Iterator[None]:
    """Gymnasium says of old versions that there are newer ones, and the like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _buildable(env_id: str) -> bool:
    try:
        with _advice_ignored():
            gymnasium.make(env_id).close()
    except gymnasium.error.DependencyNotInstalled:
        return False
    return True


def _address(env_id: str) -> str:
    return env_id.lower()


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker where every environment that can be built here is on offer, and the zoo."""
    offers = [f'[[offer]]\naddress = "{_address(i)}"\nenv = "{i}"\n' for i in _built()]
    offers.append('[[offer]]\naddress = "zoo"\nenv = "tests.space_zoo:ZooEnv"\n')
    config: Path = tmp_path_factory.mktemp("remote_equals_local") / "offers.toml"
    config.write_text("".join(offers))
    with programs() as started:
        started.env_agent(broker_url, "--threads", "2", "--config", str(config))
        yield broker_url


_BUILT: list[str] = []


def _built() -> list[str]:
    if not _BUILT:
        _BUILT.extend(env_id for env_id in REGISTERED if _buildable(env_id))
    return _BUILT


def assert_same_course(
    local: gymnasium.Env[Any, Any], remote: gymnasium.Env[Any, Any], *, steps: int, seed: int
) -> None:
    """Fail unless both say the same at every one of these steps, through several episodes."""
    assert remote.observation_space == local.observation_space
    assert remote.action_space == local.action_space
    local.action_space.seed(seed)
    with _advice_ignored():
        assert_same(local.reset(seed=seed), remote.reset(seed=seed), "reset")
        resets = 0
        for step in range(steps):
            action = local.action_space.sample()
            expected, got = local.step(action), remote.step(action)
            assert_same(expected, got, f"step {step}")
            # An episode that does not end by itself is cut now and then, to see resets, too.
            if expected[2] or expected[3] or step % 100 == 99:
                resets += 1
                again = seed + 1 if resets % 3 == 0 else None
                assert_same(
                    local.reset(seed=again), remote.reset(seed=again), f"reset after step {step}"
                )
        assert resets
    assert local.np_random.bit_generator.state == remote.np_random.bit_generator.state


@pytest.mark.parametrize("env_id", sampled(REGISTERED, 3))
def test_every_environment_of_gymnasium_is_the_same_to_the_bit(broker: str, env_id: str) -> None:
    if env_id not in _built():
        pytest.skip(f"what {env_id} needs is not installed")
    with _advice_ignored():
        local = gymnasium.make(env_id)
    with ProxyEnv(_address(env_id), broker) as remote, local:
        assert_same(dict(local.metadata), remote.metadata, "metadata")
        assert_same_course(local, remote, steps=300, seed=42)


@pytest.mark.parametrize("name", sampled(ZOO, 3))
def test_every_space_is_the_same_to_the_bit_as_observation_and_as_action(
    broker: str, name: str
) -> None:
    local = ZooEnv(name, name)
    with ProxyEnv("zoo", broker, env_kwargs={"observation": name, "action": name}) as remote:
        assert_same_course(local, remote, steps=30, seed=7)
