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
from gymnasium import Space

from gymwire.env_agent.interpreter import child_spaces
from gymwire.env_agent.interpreter.child import dm_envs, libraries
from gymwire.env_agent.interpreter.child.failures import WrongTarget
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
        self._has_warned = False
        self.render_mode = getattr(made, "render_mode", None) or render_mode

    def __getattr__(self, name: str) -> Any:
        if name == "_made":
            raise AttributeError(name)
        return getattr(self._made, name)

    def _seed(self, env: Any, seed: int) -> None:
        if hasattr(env, "seed"):
            env.seed(seed)
        elif not self._has_warned:
            self._has_warned = True
            logs.logger().warning(
                "seed ignored", env=_name(self._made), why="the environment takes none"
            )

    def close(self) -> None:
        """Close the environment."""
        self._made.close()


class OldGym(_Adapter):
    """An environment of gym, from 0.21 to 0.26.

    A step of four values has ended by truncation if its info has `TimeLimit.truncated`, which is
    removed. A seed goes to `reset` if that takes one, else to `seed()` if there is one.
    """

    def __init__(self, made: Any, render_mode: str | None) -> None:
        super().__init__(made, render_mode)
        self.observation_space = _read(made.observation_space, "observation_space")
        self.action_space = _read(made.action_space, "action_space")
        self.metadata = {"render_modes": [], **renamed(made.metadata)}
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
            self._seed(self._made, seed)
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
    """An environment of dm_env, with what `child/dm_envs.py` makes of it, and rendering."""

    def __init__(self, made: Any, render_mode: str | None) -> None:
        super().__init__(made, render_mode)
        libraries.use_numpy()
        try:
            self._converted = dm_envs.DmEnv(made)
        except WrongTarget as error:
            raise ConfigurationError(f"{_name(made)}: {error}.") from None
        self.observation_space = _read(self._converted.observation_space, "observation_spec")
        self.action_space = _read(self._converted.action_space, "action_spec")
        self.metadata = {"render_modes": ["rgb_array"] if hasattr(made, "physics") else []}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; return its first observation."""
        if seed is not None:
            self._seed(self._converted, seed)
        return self._converted.reset(options=options), {}

    def step(self, action: Any) -> Any:
        """Run one step."""
        return self._converted.step(action)

    def render(self) -> Any:
        """Return an image of the physics of dm_control."""
        return self._made.physics.render()


def renamed(metadata: Any) -> dict[str, Any]:
    """Return metadata with Gymnasium's keys in the place of those of old gym."""
    names = {"render.modes": "render_modes", "video.frames_per_second": "render_fps"}
    return {names.get(key, key): value for key, value in metadata.items()}


def _name(made: Any) -> str:
    return type(made).__name__


def _read(space: Any, root: str) -> Space[Any]:
    """Return a space of Gymnasium with the attributes of another one."""
    return child_spaces.build(read_space(space), root)
