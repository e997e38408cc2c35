"""Collect transitions with TorchRL, from one environment or from a vector.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/torchrl_collector.py cartpole
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper

from gymwire import ProxyEnv


def collect(env: Any, frames: int, seed: int = 1) -> list[Any]:
    """Step with random actions; return batches of 64 transitions."""
    wrapped = GymWrapper(env)
    wrapped.set_seed(seed)
    torch.manual_seed(seed)
    collector = Collector(wrapped, policy=None, frames_per_batch=64, total_frames=frames)
    batches = list(collector)
    collector.shutdown()  # closes the environment, which frees its slot
    return batches


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    for batch in collect(ProxyEnv(parser.parse_args().address), 256):
        print(f"{batch.numel()} transitions, {int(batch['next', 'done'].sum())} ends of episodes")
