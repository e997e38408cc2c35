"""RLlib trains on remote environments in two env runners, also with several agents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

REASON = "RLlib is not installed; .ci/groups ray installs it"
with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip("ray.rllib", reason=REASON, exc_type=ImportError)
    import ray

    from examples import rllib_agents, rllib_ppo


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(600),  # Ray starts its own processes
]


@pytest.fixture(scope="module", autouse=True)
def _cluster(broker_url: str) -> Iterator[None]:
    """Start Ray on this machine once: that takes long. Its workers use the broker of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GYMWIRE_BROKER", broker_url)
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def assert_it_trained(algorithm: Any) -> None:
    before = algorithm.get_weights()
    result = algorithm.train()
    assert algorithm.env_runner_group.num_healthy_remote_workers() == 2
    found = result["env_runners"]
    assert found["num_env_steps_sampled"] >= 128
    assert found["num_episodes"] > 0
    after = algorithm.get_weights()
    changed = [
        (before[policy][name] != after[policy][name]).any()
        for policy in before
        for name in before[policy]
    ]
    assert any(changed)


def test_ppo_trains_over_two_env_runners(serve: Callable[..., None]) -> None:
    serve("rllib-cartpole", "CartPole-v1")
    algorithm = rllib_ppo.build(address="rllib-cartpole")
    assert_it_trained(algorithm)
    algorithm.stop()


def test_ppo_trains_several_agents(serve: Callable[..., None]) -> None:
    serve("rllib-game", "tests.frameworks.agent_envs:Pursuit")
    algorithm = rllib_agents.build(address="rllib-game")
    assert_it_trained(algorithm)
    algorithm.stop()
