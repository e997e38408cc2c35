"""Use a served environment in a script.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/random_policy.py cartpole
"""

from __future__ import annotations

import argparse

import gymnasium
from gymnasium.wrappers import RecordEpisodeStatistics


def main(address: str) -> None:
    """Play five episodes with random actions."""
    # The broker is at the URL in GYMWIRE_BROKER, by default tcp://127.0.0.1:5555.
    proxy = gymnasium.make("gymwire:gymwire/Proxy-v0", address=address)
    env = RecordEpisodeStatistics(proxy)
    with env:  # closes it, which frees its slot
        env.action_space.seed(0)
        for episode in range(5):
            env.reset(seed=episode)
            done = False
            while not done:
                _, _, terminated, truncated, info = env.step(env.action_space.sample())
                done = terminated or truncated
            total, length = info["episode"]["r"], info["episode"]["l"]
            print(f"episode {episode}: return {total:.1f}, {length} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    main(parser.parse_args().address)
