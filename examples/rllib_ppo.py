"""PPO of RLlib with two env runners, each with environments of its own.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/rllib_ppo.py cartpole

Env agents may come and go, as those of a fleet do (docs/how-to/fleets.md). If one is lost, RLlib
begins a new episode at another one. With `--on-lost replay`, which needs deterministic
environments, the episode continues there. RLlib also restarts env runners that are lost.
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env

from gymwire import ProxyEnv

WAIT_S = 120.0  # for a free slot, while a fleet restarts or adds agents


def build(**env_config: Any) -> Any:
    """Make the algorithm; each of the two env runners opens two sessions."""
    register_env("remote", lambda config: ProxyEnv(**config, wait_s=WAIT_S))
    config = PPOConfig().environment("remote", env_config=env_config, disable_env_checking=True)
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
        print(f"iteration {iteration + 1}: mean return {found['episode_return_mean']:.1f}")
    algorithm.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    parser.add_argument("--on-lost", choices=("raise", "replay"), default="raise")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    main(options.address, options.on_lost, options.iterations)
