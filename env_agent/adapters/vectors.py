"""Vectors of other libraries, made what Gymnasium's vectors are."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

Vector = VectorEnv[Any, Any, Any]


def autoreset_mode(made: Vector) -> AutoresetMode | None:
    """Return the autoreset mode that a vector declares, also as a text; None: it declares none."""
    metadata = made.metadata if isinstance(made.metadata, dict) else {}
    value = metadata.get("autoreset_mode", getattr(made, "autoreset_mode", None))
    if isinstance(value, AutoresetMode):
        return value
    try:
        return AutoresetMode(value)
    except ValueError:
        return None


def batched(made: Vector) -> Vector:
    """Return a vector whose spaces are batched: EnvPool's are those of one environment."""
    single = made.single_observation_space, made.single_action_space
    if single == (made.observation_space, made.action_space):
        return BatchedVector(made)
    return made


class BatchedVector(VectorEnv[Any, Any, Any]):
    """A vector with batched spaces around one that describes a single environment."""

    def __init__(self, made: Vector) -> None:
        self._made = made
        self.num_envs = made.num_envs
        self.single_observation_space = made.single_observation_space
        self.single_action_space = made.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**made.metadata, "autoreset_mode": autoreset_mode(made)}
        self.render_mode = made.render_mode
        self.spec = made.spec

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments."""
        return self._made.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        return self._made.step(actions)

    def render(self) -> Any:
        """Return what the vector renders."""
        return self._made.render()

    def close(self, **kwargs: Any) -> None:
        """Close the vector."""
        self._made.close(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_made":
            raise AttributeError(name)
        return getattr(self._made, name)
