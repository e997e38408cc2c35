"""Environments without any wire of ours: in this process, and in Gymnasium's own subprocesses."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from benchmarks.environments import Sleeper, envpool_cartpoles
from benchmarks.harness import Running, Side

ENV_ID = "CartPole-v1"


@dataclass(frozen=True, slots=True)
class Kind:
    """An environment to be compared with others.

    Attributes:
        name: what the tables call it.
        env: a registered id, or a class as MODULE:NAME.
        stepper: returns a call that does one step, and a reset where an episode ended.
    """

    name: str
    env: str
    stepper: Callable[[Any], Callable[[], object]]

    def make(self) -> Any:
        """Make one in this process."""
        module, _, name = self.env.rpartition(":")
        if not module:
            return gymnasium.make(name)
        return getattr(importlib.import_module(module), name)()


def one(kind: Kind) -> Side:
    """One environment in the learner's own process."""
    return Side(f"{kind.name}, in process", partial(_open_one, kind))


def in_process() -> Side:
    """CartPole in the learner's own process."""
    return Side("in process", partial(_open_one, Kind("CartPole", ENV_ID, cartpole_steps)))


def sync_vector(num_envs: int) -> Side:
    """Gymnasium's SyncVectorEnv of CartPoles."""
    return Side(f"SyncVectorEnv({num_envs})", partial(_open_vector, "sync", num_envs), num_envs)


def async_vector(num_envs: int) -> Side:
    """Gymnasium's AsyncVectorEnv of CartPoles, a process for each."""
    return Side(f"AsyncVectorEnv({num_envs})", partial(_open_vector, "async", num_envs), num_envs)


def cartpole_steps(env: gymnasium.Env[Any, Any]) -> Callable[[], object]:
    """Return a call that does one step in a CartPole, and a reset where an episode ended.

    It pushes to where the pole leans, which keeps it up for hundreds of steps: resets are so few
    that they show in no percentile.
    """
    observation, _ = env.reset(seed=1)
    step = env.step

    def one_step() -> object:
        nonlocal observation
        action = 1 if observation[2] + 0.5 * observation[3] > 0 else 0
        observation, _, terminated, truncated, _ = step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        return observation

    return one_step


def sampled_steps(env: gymnasium.Env[Any, Any]) -> Callable[[], object]:
    """Return a call that does one step with a random action, and a reset where an episode ended."""
    env.action_space.seed(1)
    actions = itertools.cycle([env.action_space.sample() for _ in range(64)])
    env.reset(seed=1)
    step = env.step

    def one_step() -> object:
        observation, _, terminated, truncated, _ = step(next(actions))
        if terminated or truncated:
            observation, _ = env.reset()
        return observation

    return one_step


def vector_steps(envs: VectorEnv[Any, Any, Any]) -> Callable[[], object]:
    """Return a call that does one step in a vector of CartPoles, which resets by itself."""
    observations, _ = envs.reset(seed=1)
    step = envs.step

    def one_step() -> object:
        nonlocal observations
        actions = (observations[:, 2] + 0.5 * observations[:, 3] > 0).astype(np.int64)
        observations = step(actions)[0]
        return observations

    return one_step


def vector_zeros(envs: VectorEnv[Any, Any, Any]) -> Callable[[], object]:
    """Return a call that does one step with action 0 everywhere."""
    envs.reset(seed=1)
    actions = np.zeros(envs.num_envs, np.int64)
    step = envs.step
    return lambda: step(actions)


def sleepers(num_envs: int) -> Side:
    """Return a side that steps a SyncVectorEnv of slow environments."""
    return Side(f"SyncVectorEnv({num_envs}) of 5 ms", partial(_open_sleepers, num_envs), num_envs)


@contextlib.contextmanager
def _open_sleepers(num_envs: int) -> Iterator[Running]:
    with contextlib.closing(SyncVectorEnv([Sleeper] * num_envs)) as envs:
        yield Running(vector_zeros(envs))


def envpool_vector(num_envs: int) -> Side:
    """Return a side that steps EnvPool's CartPoles in the learner's own process."""
    return Side(f"EnvPool({num_envs})", partial(_open_envpool, num_envs), num_envs)


@contextlib.contextmanager
def _open_envpool(num_envs: int) -> Iterator[Running]:
    with contextlib.closing(envpool_cartpoles(num_envs)) as envs:
        yield Running(vector_steps(envs))


@contextlib.contextmanager
def _open_one(kind: Kind) -> Iterator[Running]:
    with contextlib.closing(kind.make()) as env:
        yield Running(kind.stepper(env))


@contextlib.contextmanager
def _open_vector(kind: str, num_envs: int) -> Iterator[Running]:
    makers = [partial(gymnasium.make, ENV_ID)] * num_envs
    envs = SyncVectorEnv(makers) if kind == "sync" else AsyncVectorEnv(makers)
    with contextlib.closing(envs):
        yield Running(vector_steps(envs))
