"""Vectors as other libraries make them: stand-ins for EnvPool and for ALE's vector class."""

from __future__ import annotations

import enum
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import RecordEpisodeStatistics

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class PoolSpec:
    """What EnvPool calls a spec."""

    reward_threshold = 7.0

    def __init__(self, num_envs: int) -> None:
        self.config = {"num_envs": num_envs}


class _Pool:
    """The part that EnvPool's old and new vectors share. A generator that is seeded once."""

    observation_space: Any = Box(-1.0, 1.0, (3,), np.float32)  # of one environment
    action_space: Any = Discrete(2)
    metadata: Any = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in Gymnasium
    render_mode: str | None = None

    def __init__(self, num_envs: int = 1, seed: int = 5) -> None:
        self.spec: Any = PoolSpec(num_envs)
        self._random = np.random.default_rng(seed)
        self._steps = np.zeros(num_envs, np.int32)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        count = len(self._steps)
        ids = np.arange(count, dtype=np.int32)
        infos = {
            "env_id": ids,
            "players": {"env_id": ids, "deeper": {"lives": np.full((count, 2), 3, np.uint8)}},
            "elapsed_step": self._steps.copy(),
        }
        return self._random.random((count, 3), np.float32), infos

    def step(self, actions: Any, env_id: Any = None) -> Step:
        """Step all; an environment that has ended is reset by the next step."""
        self._steps = np.where(self._steps >= 4, 0, self._steps + 1).astype(np.int32)
        observation, infos = self._observe()
        ended = self._steps >= 4
        return observation, np.asarray(actions, np.float32), ended, np.zeros_like(ended), infos

    def render(self) -> Any:
        """Return an image of the first environment, in an array of images."""
        return np.full((1, 2, 2, 3), self._steps[0], np.uint8)

    def close(self, **_: Any) -> None:
        """Free nothing."""


class OldPool(_Pool, gymnasium.Env[Any, Any]):
    """As EnvPool 0.8: an Env, without a declared autoreset mode, whose reset takes no seed.

    Only its `config` and its length say how many environments it has.
    """

    @property
    def config(self) -> dict[str, Any]:
        """The options that it was made with."""
        return {"num_envs": len(self), "batch_size": len(self)}

    def __len__(self) -> int:
        return len(self._steps)

    def reset(self, env_id: Any = None) -> tuple[Any, dict[str, Any]]:  # type: ignore[override]
        """Reset all."""
        self._steps[:] = 0
        return self._observe()


class Pool(_Pool, VectorEnv[Any, Any, Any], gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """As EnvPool 1.2: a VectorEnv and an Env; both spaces are those of one environment."""

    metadata: Any = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as in Gymnasium

    @property
    def num_envs(self) -> int:  # type: ignore[override]
        """The number of environments."""
        return len(self._steps)

    @property
    def single_observation_space(self) -> Space[Any]:  # type: ignore[override]
        """The space of one environment."""
        return self.observation_space  # type: ignore[no-any-return]

    @property
    def single_action_space(self) -> Space[Any]:  # type: ignore[override]
        """The space of one environment."""
        return self.action_space  # type: ignore[no-any-return]

    def reset(
        self, env_id: Any = None, *, seed: Any = None, options: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all."""
        self._steps[:] = 0
        return self._observe()


def make_pool(num_envs: int) -> Pool:
    """Make as many as are requested."""
    return Pool(num_envs)


def make_any_pool(**kwargs: Any) -> Pool:
    """Make as many as are requested."""
    return Pool(**kwargs)


def make_slow_pool(num_envs: int = 2) -> Pool:
    """Make an asynchronous pool."""
    pool: Any = Pool(num_envs)
    pool.config = {"num_envs": num_envs, "batch_size": 1}
    return pool  # type: ignore[no-any-return]


def make_two() -> Pool:
    """Make two, whatever is requested."""
    return Pool(2)


def make_old_pool(num_envs: int = 1) -> OldPool:
    """Make as many as are requested."""
    return OldPool(num_envs)


class Mood(enum.Enum):
    """Something that infos hold, and that is converted."""

    GOOD = "good"


class Walkers(VectorEnv[Any, Any, Any]):
    """A hand-written vector with every autoreset mode. Episodes have lengths of chance."""

    metadata: Any = {"render_modes": ["ansi"]}  # noqa: RUF012 - as in Gymnasium

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        gravity: float = 1.0,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.num_envs, self.render_mode, self.gravity = num_envs, render_mode, gravity
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = Box(-np.inf, np.inf, (3,), np.float64)
        self.single_action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._places = np.zeros((num_envs, 3))
        self._ended = np.zeros(num_envs, np.bool_)

    def _restart(self, which: Any) -> None:
        self._places[which] = self.np_random.normal(size=(int(which.sum()), 3))
        self._ended = self._ended & ~which

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start all, or those of `reset_mask`; a list of seeds has one for each environment."""
        super().reset(seed=seed[0] if isinstance(seed, list) else seed)
        options = options or {}
        self._restart(options.get("reset_mask", np.ones(self.num_envs, np.bool_)))
        if isinstance(seed, list):
            self._places[:, 0] = seed
        return self._places, {"height": np.full(self.num_envs, options.get("height", 0.25))}

    def step(self, actions: Any) -> Step:
        """Step all, whatever an ended environment's action is."""
        restarted = self._ended.copy()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._restart(restarted)
        moves = ~restarted
        self._places[moves, :2] += actions[moves]
        terminated, truncated = (self.np_random.random((2, self.num_envs)) < 0.25) & moves
        rewards = (self.gravity * self._places[:, 1]).astype(np.float32)
        numbers = np.arange(self.num_envs, dtype=np.int32)
        infos: dict[str, Any] = {
            "deep": {"numbers": numbers, "_numbers": moves, "deeper": {"place": self._places * 2}},
            "mixed": np.array([Mood.GOOD, *[None] * (self.num_envs - 1)], object),
            "transposed": np.asfortranarray(self._places),
        }
        self._ended = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(self._ended):
                final[i] = self._places[i].copy()
            infos.update(final_obs=final, _final_obs=self._ended.copy())
            self._restart(self._ended.copy())
        return self._places, rewards, terminated, truncated, infos

    def lift(self, by: float, *, which: int = 0) -> Any:
        """Change a place; return all places."""
        self._places[which, 2] += by
        return self._places.copy()

    def render(self) -> Any:
        """Return texts."""
        return tuple(f"{place[0]:.3f}" for place in self._places)


def make_walkers(num_envs: int, **kwargs: Any) -> Walkers:
    """Make as many as are requested, with gravity if it is given."""
    return Walkers(num_envs, **kwargs)


def make_mode_walkers(
    num_envs: int, autoreset_mode: Any = AutoresetMode.NEXT_STEP, **kwargs: Any
) -> Walkers:
    """Make them in the requested mode, which is one of Gymnasium's."""
    assert isinstance(autoreset_mode, AutoresetMode)
    return Walkers(num_envs, autoreset_mode=autoreset_mode, **kwargs)


def make_sync(num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Make Gymnasium's own vector of single environments."""
    return SyncVectorEnv([partial(gymnasium.make, "CartPole-v1")] * num_envs)


class Keeping(gymnasium.Env[Any, Any]):
    """Draws, also when it renders, from the generator that it had in its last reset."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in Gymnasium
    observation_space = Box(0.0, 1.0, (2,), np.float64)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        self.random = self.np_random
        return self.random.random(2), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step."""
        return self.random.random(2), 0.0, False, False, {}

    def render(self) -> Any:
        """Return a picture."""
        return self.random.integers(0, 256, (4, 4, 3), np.uint8)


def make_keeping(num_envs: int, render_mode: str | None = None) -> VectorEnv[Any, Any, Any]:
    """Make Gymnasium's own vector of them."""
    return SyncVectorEnv([partial(Keeping, render_mode)] * num_envs)


def make_wrapped_keeping(num_envs: int, render_mode: str | None = None) -> Any:
    """Make this vector, in two of Gymnasium's wrappers."""
    return Counting(RecordEpisodeStatistics(make_keeping(num_envs, render_mode)))


class Counting(VectorWrapper):  # type: ignore[type-arg, unused-ignore]
    """A wrapper with attributes of its own."""

    count = 0

    def add(self, number: int) -> int:
        """Add a number to the count."""
        self.count += number
        return self.count


class KeepingFrames(VectorEnv[Any, Any, Any]):
    """A hand-written vector that does the same."""

    metadata: Any = {"autoreset_mode": "next-step", "render_modes": ["rgb_array"]}  # noqa: RUF012 - as in Gymnasium

    def __init__(self, num_envs: int, render_mode: str | None = None) -> None:
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = Keeping.observation_space
        self.single_action_space = Keeping.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        self.random = self.np_random
        return self.random.random((self.num_envs, 2)), {}

    def step(self, actions: Any) -> Step:
        """Step."""
        no = np.zeros(self.num_envs, np.bool_)
        return self.random.random((self.num_envs, 2)), np.zeros(self.num_envs), no, no, {}

    def render(self) -> Any:
        """Return pictures."""
        return tuple(self.random.integers(0, 256, (self.num_envs, 4, 4, 3), np.uint8))


class Single(gymnasium.Env[Any, Any]):
    """The environment of the registered vectors below, which observe something else."""

    observation_space = Box(0, 255, (6, 6, 3), np.uint8)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step."""
        return self.observation_space.low, 0.0, False, False, {}


class Frames(VectorEnv[Any, Any, Any]):
    """As ale_py's AtariVectorEnv: it writes its mode into the metadata of all vectors."""

    def __init__(
        self, num_envs: int, *, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 255, (4, 3, 3), np.uint8)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata["autoreset_mode"] = self.autoreset_mode

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        return self._observe(), {"lives": np.full(self.num_envs, 3)}

    def step(self, actions: Any) -> Step:
        """Step."""
        no = np.zeros(self.num_envs, np.bool_)
        rewards = np.asarray(actions, np.float64)
        return self._observe(), rewards, no, no, {"lives": np.full(self.num_envs, 3)}

    def _observe(self) -> Any:
        return self.np_random.integers(0, 256, self.observation_space.shape, np.uint8)


class NextStepFrames(Frames):
    """A vector class without a choice of autoreset modes; it declares its own by a text."""

    metadata: Any = {"autoreset_mode": "next-step"}  # noqa: RUF012 - as in Gymnasium

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        del self.autoreset_mode
        self.metadata = {"autoreset_mode": "next-step"}


class SizedFrames(Frames):
    """A vector class with keyword arguments that its environment does not have."""

    def __init__(
        self, num_envs: int, size: int = 3, stack: int = 4, *, autoreset_mode: Any = "NextStep"
    ) -> None:
        super().__init__(num_envs, autoreset_mode=autoreset_mode)


class TextFrames(Frames):
    """A vector class that takes its mode as a text of its own."""

    def __init__(self, num_envs: int, *, autoreset_mode: str = "next") -> None:
        modes = {"next": AutoresetMode.NEXT_STEP, "same": AutoresetMode.SAME_STEP}
        super().__init__(num_envs, autoreset_mode=modes[autoreset_mode])


def make_frames(num_envs: int, **kwargs: Any) -> Frames:
    """Make a vector, with the autoreset mode among other keyword arguments."""
    return Frames(num_envs, **kwargs)


def make_undeclared(num_envs: int) -> Frames:
    """Make a vector without a mode, but another one has written its own into their metadata."""
    made = Frames(num_envs)
    del made.autoreset_mode
    Frames(num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    return made


def make_next_step_frames(num_envs: int, **kwargs: Any) -> NextStepFrames:
    """Make a vector of a class that does not know all keyword arguments."""
    return NextStepFrames(num_envs, **kwargs)


def make_seven_frames(num_envs: int, **kwargs: Any) -> Frames:
    """Make another number of environments than requested."""
    return Frames(7, **kwargs)


_VECTORS: dict[str, Any] = {
    "Frames": Frames,
    "MadeFrames": make_frames,
    "TextFrames": TextFrames,
    "SizedFrames": SizedFrames,
    "NextStepFrames": NextStepFrames,
    "MadeNextStepFrames": make_next_step_frames,
    "SevenFrames": make_seven_frames,
}
_SINGLE: Any = Single
for _name, _vector in _VECTORS.items():
    gymnasium.register(f"tests/{_name}-v0", _SINGLE, vector_entry_point=_vector)
