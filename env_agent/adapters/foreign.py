"""Environments of old gym and of dm_env, made environments of Gymnasium.

Their packages are not imported here: an environment of one of them exists only if its own package
has imported it. docs/how-to/own-environment.md has the rules for users.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces

from gymwire.env_agent.interpreter import child_spaces
from gymwire.env_agent.interpreter.child.hosted import five_results
from gymwire.env_agent.interpreter.child.spaces import read_space
from gymwire.protocol import generators, logs
from gymwire.protocol.errors import ConfigurationError


def adapt(made: Any, render_mode: str | None = None) -> Any:
    """Return an environment of old gym or dm_env as one of Gymnasium; anything else as it is.

    `render_mode`: what the learner asked for, if the constructor does not take it.
    """
    if isinstance(made, gymnasium.Env):
        return made
    for module, base, adapter in (("gym", "Env", OldGym), ("dm_env", "Environment", DmEnv)):
        known = getattr(sys.modules.get(module), base, None)
        if known is not None and isinstance(made, known):
            return adapter(made, render_mode)
    return made


class _Adapter(gymnasium.Env[Any, Any]):
    """Wraps an environment that is not Gymnasium's, whose other attributes it has, too."""

    def __init__(self, made: Any, render_mode: str | None) -> None:
        self._made = made
        self.render_mode = getattr(made, "render_mode", None) or render_mode

    def __getattr__(self, name: str) -> Any:
        if name == "_made":
            raise AttributeError(name)
        return getattr(self._made, name)

    def close(self) -> None:
        """Close the environment."""
        self._made.close()


class OldGym(_Adapter):
    """An environment of gym, from 0.21 to 0.26.

    A step of four values has ended by truncation if its info has `TimeLimit.truncated`, which is
    removed. A seed goes to `reset` if that takes one, else to `seed()`.
    """

    def __init__(self, made: Any, render_mode: str | None) -> None:
        super().__init__(made, render_mode)
        self.observation_space = _read(made.observation_space, "observation_space")
        self.action_space = _read(made.action_space, "action_space")
        metadata = dict(made.metadata)
        for old, name in (
            ("render.modes", "render_modes"),
            ("video.frames_per_second", "render_fps"),
        ):
            if old in metadata:
                metadata[name] = metadata.pop(old)
        self.metadata = {"render_modes": [], **metadata}
        parameters = inspect.signature(made.reset).parameters
        self._reset_takes = {
            name
            for name in ("seed", "options")
            if name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        }
        self._asks_for_info = "return_info" in parameters  # gym 0.22 to 0.25

    @property
    def np_random(self) -> np.random.Generator:
        """The environment's own generator, which is a RandomState before gym 0.22."""
        if not hasattr(self._made, "np_random"):
            return super().np_random
        found: np.random.Generator = self._made.np_random
        return found

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        if hasattr(self._made, "np_random"):
            generators.check(self._made.np_random)
            self._made.unwrapped.np_random = value
        else:
            base: Any = gymnasium.Env.np_random
            base.__set__(self, value)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; return the observation, and the info if there is one."""
        given = {"seed": seed, "options": options}
        if seed is not None and "seed" not in self._reset_takes:
            self._made.seed(seed)
        if options and "options" not in self._reset_takes:
            raise TypeError(f"The reset of {_name(self._made)} takes no options.")
        taken = {k: v for k, v in given.items() if k in self._reset_takes and v is not None}
        if self._asks_for_info:
            taken["return_info"] = True
        found = self._made.reset(**taken)
        if type(found) is tuple and len(found) == 2 and isinstance(found[1], dict):
            return found
        return found, {}

    def step(self, action: Any) -> Any:
        """Run one step; return five values, also if the environment returns four."""
        return five_results(self._made.step(action))

    def render(self) -> Any:
        """Return what the environment renders in the render mode."""
        if "mode" in inspect.signature(self._made.render).parameters:
            return self._made.render(mode=self.render_mode)
        return self._made.render()


class DmEnv(_Adapter):
    """An environment of dm_env, such as those of dm_control.

    The last step of an episode has terminated if its discount is 0, and is truncated otherwise.
    The info has the discount. A seed becomes the RandomState of a dm_control task.
    """

    def __init__(self, made: Any, render_mode: str | None) -> None:
        super().__init__(made, render_mode)
        self.observation_space = _from_spec(made.observation_spec(), "observation_spec")
        self.action_space = _from_spec(made.action_spec(), "action_spec")
        self.metadata = {"render_modes": ["rgb_array"] if hasattr(made, "physics") else []}
        self._has_warned = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; return its first observation."""
        if options:
            raise TypeError(f"The reset of {_name(self._made)} takes no options.")
        if seed is not None:
            self._seed(seed)
        first = self._made.reset()
        return _arrays(first.observation, self.observation_space), {}

    def _seed(self, seed: int) -> None:
        task: Any = getattr(self._made, "task", None)
        if hasattr(task, "_random"):
            task._random = np.random.RandomState(seed)  # noqa: SLF001 - dm_control has no other way
        elif hasattr(self._made, "seed"):
            self._made.seed(seed)
        elif not self._has_warned:
            self._has_warned = True
            logs.logger().warning(
                "seed ignored", env=_name(self._made), why="the environment takes none"
            )

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Run one step."""
        made = self._made.step(action)
        is_last = bool(made.last())
        terminated = is_last and made.discount == 0
        observation = _arrays(made.observation, self.observation_space)
        truncated = is_last and not terminated
        return observation, made.reward, bool(terminated), truncated, {"discount": made.discount}

    def render(self) -> Any:
        """Return an image of the physics of dm_control."""
        return self._made.physics.render()


def _name(made: Any) -> str:
    return type(made).__name__


def _read(space: Any, root: str) -> Space[Any]:
    """Return a space of Gymnasium with the attributes of another one."""
    return child_spaces.build(read_space(space), root)


def _from_spec(spec: Any, root: str) -> Space[Any]:
    """Return the space of a spec of dm_env, or of a dict or a list of specs."""
    if isinstance(spec, dict):
        return spaces.Dict([(key, _from_spec(one, f"{root}.{key}")) for key, one in spec.items()])
    if isinstance(spec, (list, tuple)):
        return spaces.Tuple([_from_spec(one, f"{root}[{i}]") for i, one in enumerate(spec)])
    dtype = np.dtype(spec.dtype)
    if hasattr(spec, "num_values"):
        return spaces.Discrete(int(spec.num_values), dtype=dtype.type)
    if dtype.kind not in "biuf":
        raise ConfigurationError(f"{root} has the dtype {dtype}, for which there is no space.")
    if hasattr(spec, "minimum"):
        least, most = spec.minimum, spec.maximum
    elif dtype.kind == "f":
        least, most = -np.inf, np.inf
    elif dtype.kind == "b":
        least, most = False, True
    else:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    low, high = (np.broadcast_to(np.asarray(one, dtype), spec.shape) for one in (least, most))
    return spaces.Box(low, high, spec.shape, dtype.type)


def _arrays(value: Any, space: Space[Any]) -> Any:
    """Return an observation of dm_env as its space has it: numbers of a Box become arrays."""
    if isinstance(space, spaces.Dict):
        return {key: _arrays(value[key], one) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_arrays(v, one) for v, one in zip(value, space.spaces, strict=True))
    return np.asarray(value, space.dtype) if isinstance(space, spaces.Box) else value
