"""Steps of remote environments through Stable-Baselines3, against a local DummyVecEnv.

    python -m benchmarks.sb3_vectors [--seconds S] [--rounds N]

In one run, in turn, CartPoles with a Monitor: a DummyVecEnv, then ProxyVecEnv of the same at an env
agent. If the env agent steps single environments (`sync`), it first compares 1,000 steps of both
bit for bit; CartPole's own vector class draws other initial states.

All processes are pinned to one processor: a step never uses two at once, and waking a halted one
takes as long as the step.

The rows `floor` bound what any proxy can reach: another process steps the vectors that the env
agent makes, and only their raw bytes go over a Unix socket. The rows `bound` are these floors as a
VecEnv in a VecMonitor, without a protocol: they only make the arrays and infos of the raw bytes.
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
        observations, rewards, *flags, infos = vector.step(np.frombuffer(actions, np.int64))
        final = [one for one in infos.get("final_obs", ()) if one is not None]
        parts = [observations, rewards.astype(np.float32), *flags, *final]
        connection.send(b"".join([one.tobytes() for one in parts]))


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
        self.send(actions)
        return self.receive()

    def send(self, actions: Any) -> None:
        """Send the actions of a step."""
        self._connection.send(actions.tobytes())

    def receive(self) -> bytes:
        """Return the bytes of the results of a step."""
        return self._connection.recv(1 << 16)


class Bound(VecEnv):  # type: ignore[misc]  # of a package without types
    """The least that makes a VecEnv of a floor of CartPoles."""

    reset_infos: list[dict[str, Any]]

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        spaces = gymnasium.make("CartPole-v1")
        super().__init__(floor.num_envs, spaces.observation_space, spaces.action_space)

    def reset(self) -> Any:
        """Step, as the floor does."""
        return self.step(np.zeros(self.num_envs, np.int64))[0]

    def step_async(self, actions: Any) -> None:
        """Send the actions."""
        self._floor.send(actions)

    def step_wait(self) -> Any:
        """Make arrays and infos of the results."""
        data, number = self._floor.receive(), self.num_envs
        ends = np.cumsum([16 * number, 4 * number, number, number]).tolist()
        observations = np.frombuffer(bytearray(data[: ends[0]]), np.float32).reshape(number, 4)
        rewards = np.frombuffer(bytearray(data[ends[0] : ends[1]]), np.float32)
        terminated = np.frombuffer(data[ends[1] : ends[2]], np.bool_)
        truncated = np.frombuffer(data[ends[2] : ends[3]], np.bool_)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(number)]
        at = ends[3]
        for i in dones.nonzero()[0].tolist():
            infos[i] = {
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "terminal_observation": np.frombuffer(bytearray(data[at : at + 16]), np.float32),
            }
            self.reset_infos[i] = {}
            at += 16
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Do nothing: the floor ends by itself."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Do nothing."""

    def env_method(self, method_name: str, *_: Any, **__: Any) -> list[Any]:
        """Return None for each environment."""
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False] * self.num_envs


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
            "bound: sync, VecMonitor": VecMonitor(Bound(sync_floor)),
            "bound: as served, VecMonitor": VecMonitor(Bound(own_floor)),
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
            print(f"{number:3} × {name:28} {statistics.median(found):7.0f}/s  {ratio:.2f} ×")
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
