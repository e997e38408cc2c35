"""RLlib trains on a fleet while its agents and an env runner are killed."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.fleets import ADDRESS, Shell, write
from tests.processes import ROOT

with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip(
        "ray.rllib",
        reason="RLlib is not installed; .ci/groups ray installs it",
        exc_type=ImportError,
    )
    import ray

    from examples import rllib_ppo

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(600),  # Ray starts its own processes
]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
        context = ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False)
        patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])  # for the commands
        yield
        ray.shutdown()


@pytest.mark.parametrize("on_lost", ["replay", "raise"])
def test_ppo_trains_on_while_agents_and_a_runner_are_killed(
    on_lost: str, tmp_path: Path, broker_url: str
) -> None:
    shell = Shell(write(tmp_path, broker_url, "count = 2\ncpus = 0.5", env="CartPole-v1"), "ray")
    agents = shell.run("up")["agents"]
    assert shell.status == 0
    algorithm = rllib_ppo.build(address=ADDRESS, broker=broker_url, on_lost=on_lost)
    try:
        assert algorithm.train()["env_runners"]["num_env_steps_sampled"] >= 256
        for agent in agents:
            os.kill(agent["pid"], signal.SIGKILL)
            assert algorithm.train()["env_runners"]["num_env_steps_sampled"] >= 256
        ray.kill(next(iter(algorithm.env_runner_group._worker_manager.actors().values())))
        while algorithm.env_runner_group.num_healthy_remote_workers() < 2:
            algorithm.train()
        found = algorithm.train()["env_runners"]
        assert found["num_env_steps_sampled"] >= 256
        assert found["num_episodes"] > 0
    finally:
        algorithm.stop()
        shell.run("down")
