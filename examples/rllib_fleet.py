"""PPO of RLlib on a fleet of env agents that come and go.

gymwire broker
gymwire fleet up fleet.toml --on ray
python examples/rllib_fleet.py cartpole

Env runners know nothing of the fleet but its address. If an env agent is lost, its sessions go on
at another one: with `--on-lost replay`, which needs deterministic environments, in the middle of
the episode; with `--on-lost raise`, RLlib begins a new episode. An env runner that is lost is
started again, too.
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env

from gymwire import ProxyEnv

WAIT_S = 120.0  # for a free slot, while the fleet heals or grows


def make(config: dict[str, Any]) -> ProxyEnv:
    """Open a session; the broker is that of GYMWIRE_BROKER unless `config` names one."""
    return ProxyEnv(
        config["address"], config.get("broker"), on_lost=config["on_lost"], wait_s=WAIT_S
    )


register_env("fleet", make)


def build(**env_config: Any) -> Any:
    """Make the algorithm; each of the two env runners opens two sessions."""
    config = PPOConfig().environment("fleet", env_config=env_config, disable_env_checking=True)
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=2, rollout_fragment_length=64)
    config.fault_tolerance(restart_failed_env_runners=True, restart_failed_sub_environments=True)
    config.training(train_batch_size=256, minibatch_size=64, num_epochs=2)
    config.learners(num_learners=0).debugging(seed=1)
    return config.build_algo()


def main(address: str, on_lost: str, iterations: int) -> None:
    """Train for some iterations of 256 steps."""
    algorithm = build(address=address, on_lost=on_lost)
    for iteration in range(iterations):
        found = algorithm.train()["env_runners"]
        runners = algorithm.env_runner_group.num_healthy_remote_workers()
        print(
            f"iteration {iteration + 1}: mean return {found['episode_return_mean']:.1f}, "
            f"{runners} env runners"
        )
    algorithm.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    parser.add_argument("--on-lost", choices=("replay", "raise"), default="replay")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    main(options.address, options.on_lost, options.iterations)
