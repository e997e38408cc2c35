"""Steps of remote environments through Stable-Baselines3, against a local DummyVecEnv.

    python -m benchmarks.sb3_vectors [--seconds S] [--rounds N]

In one run, in turn, CartPoles with a Monitor: a DummyVecEnv, then ProxyVecEnv of the same at an env
agent. If the env agent steps single environments (`sync`), it first compares 1,000 steps of both
bit for bit; CartPole's own vector class draws other initial states.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from gymwire.sb3 import ProxyVecEnv
from tests.processes import programs


def monitored() -> Any:
    """Make a CartPole in a Monitor."""
    return Monitor(gymnasium.make("CartPole-v1"))


def compare(local: VecEnv, remote: VecEnv, steps: int = 1000) -> None:
    """Fail unless both return the same for the same seeds and actions."""
    local.seed(1)
    remote.seed(1)
    assert (local.reset() == remote.reset()).all()
    draw = np.random.default_rng(2)
    for _ in range(steps):
        actions = draw.integers(0, 2, local.num_envs)
        here, there = local.step(actions), remote.step(actions)
        for a, b in zip(here[:3], there[:3], strict=True):
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def measure(envs: VecEnv, seconds: float) -> float:
    """Return vector steps per second."""
    draw = np.random.default_rng(3)
    actions = [draw.integers(0, 2, envs.num_envs) for _ in range(64)]
    envs.reset()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        for one in actions:
            envs.step(one)
        steps += len(actions)
    return steps / (time.perf_counter() - begun)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with programs() as started:
        _, url = started.broker()
        for address, env in (
            ("monitored", "benchmarks.sb3_vectors:monitored"),
            ("plain", "CartPole-v1"),
        ):
            started.env_agent(
                url, "--address", address, "--env", env, "--max-sessions", "8", "--direct", "host"
            )
        for number in (8, 64):
            sync = ProxyVecEnv("plain", number, url, env_kwargs={"vectorization_mode": "sync"})
            remotes = {
                "sync, Monitor at the agent": ProxyVecEnv("monitored", number, url),
                "sync, VecMonitor here": VecMonitor(sync),
                "as served, VecMonitor here": VecMonitor(ProxyVecEnv("plain", number, url)),
            }
            local = DummyVecEnv([partial(monitored)] * number)
            for name, remote in remotes.items():
                if name.startswith("sync"):
                    compare(local, remote)
            rates: dict[str, list[float]] = {"local": [], **{name: [] for name in remotes}}
            for _ in range(options.rounds):
                rates["local"].append(measure(local, options.seconds))
                for name, remote in remotes.items():
                    rates[name].append(measure(remote, options.seconds))
            for name, found in rates.items():
                ratio = statistics.median(
                    mine / own for mine, own in zip(found, rates["local"], strict=True)
                )
                print(f"{number:3} × {name:27} {statistics.median(found):7.0f}/s  {ratio:.2f} ×")
            for remote in remotes.values():
                remote.close()


if __name__ == "__main__":
    main()
