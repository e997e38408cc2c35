"""PPO of RLlib for an environment with several agents, which share one policy.

gymwire broker
gymwire serve game ./my_game.py:MyParallelEnv
python examples/rllib_agents.py game
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune import register_env

from gymwire import ProxyParallelEnv


def build(**env_config: Any) -> Any:
    """Make the algorithm; each of the two env runners opens one environment."""
    register_env(
        "remote", lambda config: ParallelPettingZooEnv(ProxyParallelEnv(config["address"]))
    )
    config = PPOConfig().environment("remote", env_config=env_config, disable_env_checking=True)
    config.env_runners(num_env_runners=2, rollout_fragment_length=64)
    config.multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, *_, **__: "shared")
    config.training(train_batch_size=128, minibatch_size=64, num_epochs=2)
    config.learners(num_learners=0).debugging(seed=1)
    return config.build_algo()


def main(address: str, iterations: int) -> None:
    """Train for some iterations of 128 steps."""
    algorithm = build(address=address)
    for iteration in range(iterations):
        found = algorithm.train()["env_runners"]
        print(f"iteration {iteration + 1}: mean return {found['episode_return_mean']:.1f}")
    algorithm.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="game")
    parser.add_argument("--iterations", type=int, default=20)
    options = parser.parse_args()
    main(options.address, options.iterations)
