"""A package that registers environments, with a vector that takes the autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class Walk(gymnasium.Env[Any, Any]):
    """Walks to 3."""

    observation_space = Box(-9.0, 9.0, (1,), np.float64)
    action_space = Discrete(3)

    def __init__(self, speed: float = 1.0, render_mode: str | None = None) -> None:
        self.speed = speed
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.random()
        return np.array([self.at]), {}

    def step(self, action: Any) -> Any:
        self.at += self.speed * (int(action) - 1)
        return np.array([self.at]), float(self.at), abs(self.at) >= 3, False, {"at": self.at}

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        """Return a reward for each goal, as environments with goals do."""
        assert infos.dtype == object
        return np.array([info.get("bonus", 0.0) for info in infos]) + achieved - desired


class Walks(VectorEnv[Any, Any, Any]):
    """A vector of its own kind: its observations have another shape than those of Walk."""

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.single_observation_space = Box(-9.0, 9.0, (4, 2), np.float32)
        self.single_action_space = Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.rng = np.random.default_rng(seed)
        return self._observe(), {}

    def _observe(self) -> Any:
        return self.rng.random((self.num_envs, 4, 2)).astype(np.float32)

    def step(self, actions: Any) -> Any:
        n = self.num_envs
        infos = {"players": {"env_id": np.arange(n, dtype=np.int32)}, "elapsed": np.ones(n)}
        rewards = np.asarray(actions, np.float64)
        return self._observe(), rewards, np.zeros(n, bool), np.zeros(n, bool), infos


class PoolSpec:
    """A spec that is not Gymnasium's."""

    id = "Pool"


class Pool(Walks):
    """A vector like those of EnvPool: spaces of one environment, and a spec of its own kind."""

    def __init__(self, num_envs: int = 1) -> None:
        super().__init__(num_envs)
        self.metadata = {"autoreset_mode": "NextStep"}
        self.observation_space = self.single_observation_space
        self.action_space = self.single_action_space

    @property
    def spec(self) -> Any:
        return PoolSpec()

    @spec.setter
    def spec(self, value: Any) -> None:
        raise AttributeError("spec")


def pool(num_envs: int) -> Any:
    """Return a vector, as a factory file with nothing but `envpool.make` does."""
    return Pool(num_envs)


def broken() -> Any:
    """Raise, as a constructor without its licence does."""
    raise RuntimeError("no licence server")


class Sized(Walk):
    """Has no size unless it is given one."""

    def __init__(self, size: int, render_mode: str | None = None) -> None:
        super().__init__(size, render_mode)


gymnasium.register("tests/Walk-v0", f"{__name__}:Walk", max_episode_steps=9)
gymnasium.register("tests/Walks-v0", f"{__name__}:Walk", vector_entry_point=f"{__name__}:Walks")
