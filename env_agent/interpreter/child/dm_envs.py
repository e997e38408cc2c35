"""Environments of dm_env."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from . import libraries


class SpecSpace:
    """A spec of dm_env, or a dict or a list of specs, with the attributes of Gymnasium's spaces."""

    sort_keys = False

    def __init__(self, spec: Any) -> None:
        if isinstance(spec, Mapping):
            self.spaces: Any = OrderedDict((key, SpecSpace(one)) for key, one in spec.items())
        elif isinstance(spec, (list, tuple)):
            self.spaces = [SpecSpace(one) for one in spec]
        else:
            self._read(spec)

    def _read(self, spec: Any) -> None:
        np = libraries.np
        self.dtype = dtype = np.dtype(spec.dtype)
        if hasattr(spec, "num_values"):
            self.n = int(spec.num_values)
            return
        if hasattr(spec, "minimum"):
            bounds = spec.minimum, spec.maximum
        elif dtype.kind == "f":
            bounds = -np.inf, np.inf
        elif dtype.kind == "b":
            bounds = False, True
        else:
            bounds = np.iinfo(dtype).min, np.iinfo(dtype).max
        self.shape = tuple(spec.shape)
        self.low, self.high = (np.full(self.shape, one, dtype) for one in bounds)

    def arrays(self, value: Any) -> Any:
        """Return an observation as this space has it: numbers become arrays."""
        inside = getattr(self, "spaces", None)
        if inside is None:
            return libraries.np.asarray(value, self.dtype) if hasattr(self, "low") else value
        if isinstance(inside, list):
            return tuple(space.arrays(item) for space, item in zip(inside, value))
        return {key: space.arrays(value[key]) for key, space in inside.items()}


class DmEnv:
    """An environment of dm_env, as in `adapters/foreign.py`, but without rendering."""

    def __init__(self, made: Any) -> None:
        self.env = made
        self.close = getattr(made, "close", None)
        self.observation_space = SpecSpace(made.observation_spec())
        self.action_space = SpecSpace(made.action_spec())
        if hasattr(getattr(made, "task", None), "_random"):
            self.seed: Any = self._seed_task
        elif hasattr(made, "seed"):
            self.seed = made.seed

    def _seed_task(self, seed: Any) -> None:
        self.env.task._random = libraries.np.random.RandomState(seed)  # noqa: SLF001 - dm_control has no other way

    def reset(self, *, options: Any = None) -> Any:
        """Start an episode, and return its first observation."""
        if options:
            raise TypeError(f"The reset of {type(self.env).__name__} takes no options.")
        return self.observation_space.arrays(self.env.reset().observation)

    def step(self, action: Any) -> Any:
        """Run one step; the info has the discount."""
        made = self.env.step(action)
        is_last = bool(made.last())
        terminated = is_last and bool(made.discount == 0)
        observation = self.observation_space.arrays(made.observation)
        info = {"discount": made.discount}
        return observation, made.reward, terminated, is_last and not terminated, info
