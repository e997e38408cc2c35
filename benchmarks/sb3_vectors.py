"""Steps of remote environments through Stable-Baselines3, against a local DummyVecEnv.

    python -m benchmarks.sb3_vectors [--seconds S] [--rounds N]

In one run, in turn, CartPoles with a Monitor: a DummyVecEnv, then ProxyVecEnv of the same at an env
agent. If the env agent steps single environments (`sync`), it first compares 1,000 steps of both
bit for bit; CartPole's own vector class draws other initial states.

All processes are pinned to one processor: a step never uses two at once, and waking a halted one
takes as long as the step.

The rows `floor` bound what any proxy can reach: another process steps the vectors that the env
agent makes, and only their raw bytes go over a Unix socket, with no infos and no Monitor.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from gymwire.env_agent.factory import Factory
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


def step_bare(connection: socket.socket, number: int, kwargs: dict[str, Any]) -> None:
    """Step the vector that an env agent makes, for each message with actions."""
    mode = AutoresetMode.SAME_STEP
    vector = Factory("CartPole-v1").make_vector(number, mode, None, kwargs)
    vector.reset(seed=1)
    while actions := connection.recv(1 << 16):
        results = vector.step(np.frombuffer(actions, np.int64))
        connection.send(b"".join([one.tobytes() for one in results[:4]]))


class Floor:
    """The steps of `step_bare` in another process."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.num_envs = number
        self._connection = connection

    def reset(self) -> None:
        """Wait until the process is ready."""
        self.step(np.zeros(self.num_envs, np.int64))

    def step(self, actions: Any) -> bytes:
        """Run one step, and return the bytes of its results."""
        self._connection.send(actions.tobytes())
        return self._connection.recv(1 << 16)


@contextmanager
def floor(number: int, **kwargs: Any) -> Iterator[Floor]:
    """Make a floor; `kwargs` are those of the vector."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=step_bare, args=(theirs, number, kwargs))
    with ours:
        with theirs:
            process.start()
        yield Floor(ours, number)
    process.join()


def measure(envs: Any, seconds: float) -> float:
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


def compare_speeds(number: int, url: str, options: argparse.Namespace) -> None:
    """Measure all sides with this number of environments, and print a row for each."""
    with floor(number, vectorization_mode="sync") as sync_floor, floor(number) as own_floor:
        sync = ProxyVecEnv("plain", number, url, env_kwargs={"vectorization_mode": "sync"})
        remotes: dict[str, VecEnv] = {
            "sync, Monitor at the agent": ProxyVecEnv("monitored", number, url),
            "sync, VecMonitor here": VecMonitor(sync),
            "as served, VecMonitor here": VecMonitor(ProxyVecEnv("plain", number, url)),
        }
        local = DummyVecEnv([partial(monitored)] * number)
        for name, remote in remotes.items():
            if name.startswith("sync"):
                compare(local, remote)
        sides = {
            "local": local,
            **remotes,
            "floor: sync": sync_floor,
            "floor: as served": own_floor,
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                rates[name].append(measure(side, options.seconds))
        for name, found in rates.items():
            ratio = statistics.median(
                mine / own for mine, own in zip(found, rates["local"], strict=True)
            )
            print(f"{number:3} × {name:27} {statistics.median(found):7.0f}/s  {ratio:.2f} ×")
        for remote in remotes.values():
            remote.close()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
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
            compare_speeds(number, url, options)


if __name__ == "__main__":
    main()
