"""Collect transitions with Tianshou, from several environments at once.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/tianshou_collector.py cartpole
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net

from gymwire import ProxyEnv


def collect(make: list[Callable[[], Any]], steps: int, seed: int = 1) -> Any:
    """Step with an untrained network, and now and then at random; return the replay buffer."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    envs = DummyVectorEnv(make)
    envs.seed(seed)
    observations, actions = envs.observation_space[0], envs.action_space[0]
    net = Net(state_shape=observations.shape, action_shape=actions.n, hidden_sizes=[32])
    policy = DiscreteQLearningPolicy(
        model=net, action_space=actions, observation_space=observations, eps_training=0.3
    )
    buffer = VectorReplayBuffer(4096, len(make))
    collector = Collector(policy, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=steps)
    envs.close()
    return buffer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    found = collect([partial(ProxyEnv, parser.parse_args().address)] * 4, 400)
    print(f"{len(found)} transitions, {int(found.done.sum())} ends of episodes")
