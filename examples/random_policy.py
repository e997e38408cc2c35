"""Use an environment that somebody offers, from a script of one's own.

python examples/random_policy.py cartpole
"""

from __future__ import annotations

import argparse

import gymnasium
from gymnasium.wrappers import RecordEpisodeStatistics


def main(address: str) -> None:
    """Play five episodes with random actions."""
    # The broker's URL comes from GYMWIRE_BROKER, or is tcp://127.0.0.1:5555.
    proxy = gymnasium.make("gymwire:gymwire/Proxy-v0", address=address)
    env = RecordEpisodeStatistics(proxy)
    env.action_space.seed(0)
    for episode in range(5):
        env.reset(seed=episode)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            over = terminated or truncated
        print(f"episode {episode}: return {info['episode']['r']:.1f}, {info['episode']['l']} steps")
    env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    main(parser.parse_args().address)
