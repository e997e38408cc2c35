"""Environments made to be measured."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray


def envpool_cartpoles(num_envs: int) -> Any:
    """Make a vector of EnvPool's CartPoles."""
    import envpool

    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=num_envs)


class Picture(gymnasium.Env[NDArray[Any], np.int64]):
    """Returns the same observation at once, with this shape and dtype, to measure its transfer."""

    def __init__(self, shape: list[int], dtype: str) -> None:
        kind = np.dtype(dtype)
        high = 255 if kind == np.uint8 else 1
        self.observation_space = Box(0, high, tuple(shape), kind.type)
        self.action_space = Discrete(2)
        self._observation = np.ones(tuple(shape), kind)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the observation and no info."""
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Return the observation; the episode never ends."""
        return self._observation, 0.0, False, False, {}


CHEETAH_INFOS = ("x_position", "x_velocity", "reward_forward", "reward_ctrl")
CHEETAH_STEPS = 1000  # of an episode


class LikeHalfCheetah(gymnasium.Env[NDArray[Any], NDArray[Any]]):
    """Returns values like those of HalfCheetah-v5, at once: it has no physics."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (17,), np.float64)
        self.action_space = Box(-1.0, 1.0, (6,), np.float32)
        rng = np.random.default_rng(1)
        self._observations = rng.normal(size=(CHEETAH_STEPS, 17))
        self._rewards = rng.normal(size=CHEETAH_STEPS)
        self._infos = rng.normal(size=(CHEETAH_STEPS, len(CHEETAH_INFOS)))
        self._count = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return an observation and no info."""
        super().reset(seed=seed)
        self._count = 0
        return self._observations[0].copy(), {}

    def step(
        self, action: NDArray[Any]
    ) -> tuple[NDArray[Any], np.float64, bool, bool, dict[str, Any]]:
        """Return the next observation, reward and infos."""
        at = self._count
        self._count += 1
        infos = dict(zip(CHEETAH_INFOS, self._infos[at], strict=True))
        is_over = self._count == CHEETAH_STEPS
        return self._observations[at].copy(), self._rewards[at], False, is_over, infos


class _Still(gymnasium.Env[NDArray[Any], np.int64]):
    """Its observations are zeros, and its episodes never end."""

    def __init__(self) -> None:
        self.observation_space = Box(-1, 1, (4,), np.float32)
        self.action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return zeros and no info."""
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Return zeros."""
        return np.zeros(4, np.float32), 0.0, False, False, {}


class Sleeper(_Still):
    """Takes `sleep_s` for each step, as a simulator does that waits for something."""

    def __init__(self, sleep_s: float = 0.005) -> None:
        super().__init__()
        self._sleep_s = sleep_s

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Sleep, then return zeros."""
        time.sleep(self._sleep_s)
        return super().step(action)


class Worker(_Still):
    """Computes for `busy_s` in each step, as a simulator does."""

    def __init__(self, busy_s: float = 0.0) -> None:
        super().__init__()
        self._busy_s = busy_s

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Compute, then return zeros."""
        # The time of this thread: for that of the process, Linux visits each of its threads.
        began = time.thread_time()
        while time.thread_time() - began < self._busy_s:
            continue
        return super().step(action)
