"""Environments of dm_env."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from . import libraries
from .failures import WrongTarget


class SpecSpace:
    """A spec of dm_env, or a dict or a list of specs, with the attributes of Gymnasium's spaces.

    `path`: where the spec is, for the error. Raises WrongTarget if no space has its dtype.
    """

    sort_keys = False

    def __init__(self, spec: Any, path: str) -> None:
        if isinstance(spec, Mapping):
            inside = ((key, SpecSpace(one, f"{path}[{key!r:.200}]")) for key, one in spec.items())
            self.spaces: Any = OrderedDict(inside)
        elif isinstance(spec, (list, tuple)):
            self.spaces = [SpecSpace(one, f"{path}[{i}]") for i, one in enumerate(spec)]
        else:
            self._read(spec, path)

    def _read(self, spec: Any, path: str) -> None:
        np = libraries.np
        self.dtype = dtype = np.dtype(spec.dtype)
        if hasattr(spec, "num_values"):
            self.n = int(spec.num_values)
            return
        if dtype.kind not in "biuf":
            raise WrongTarget(f"{path} has the dtype {dtype}, for which there is no space")
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
        if not isinstance(inside, list):
            return {key: space.arrays(value[key]) for key, space in inside.items()}
        if len(value) != len(inside):
            raise ValueError(
                f"The observation must have {len(inside)} parts, as its spec has, not {len(value)}."
            )
        return tuple(space.arrays(item) for space, item in zip(inside, value))


class DmEnv:
    """An environment of dm_env, such as those of dm_control, without rendering.

    The last step of an episode has terminated if its discount is 0, and is truncated otherwise.
    The info has the discount. A seed becomes the RandomState of a dm_control task.
    """

    def __init__(self, made: Any) -> None:
        self.env = made
        self.close = getattr(made, "close", None)
        self.observation_space = SpecSpace(made.observation_spec(), "observation_spec")
        self.action_space = SpecSpace(made.action_spec(), "action_spec")
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
