"""Check what an environment returns before a command computes with it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymwire.protocol.errors import EnvironmentFailed


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose faults are raised as EnvironmentFailed, with its address and the method.

    Args:
        env: the environment.
        address: its address, for the text of errors.
        observations: also check that observations fit the observation space. The bounds of a Box
            are not checked.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], address: str, *, observations: bool = True
    ) -> None:
        super().__init__(env)
        self._address, self._checks_observations = address, observations
        self._cached_spec = env.spec  # without this wrapper, which changes nothing

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Raises EnvironmentFailed."""
        with naming_method(self._address, "reset"):
            observation, info = self.env.reset(seed=seed, options=options)
        self._check_observation(observation, "reset")
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Run a step. Raises EnvironmentFailed."""
        with naming_method(self._address, "step"):
            observation, reward, terminated, truncated, info = self.env.step(action)
        self._check_observation(observation, "step")
        number = _as_number(reward)
        if number is None:
            raise self._fault(f"the reward {_short(reward)}, which is not a number", "step")
        return (
            observation,
            number,
            self._flag(terminated, "terminated"),
            self._flag(truncated, "truncated"),
            info,
        )

    def render(self) -> Any:
        """Render the environment. Raises EnvironmentFailed."""
        with naming_method(self._address, "render"):
            return self.env.render()

    def _check_observation(self, observation: Any, method: str) -> None:
        if self._checks_observations and not _fits(observation, self.observation_space):
            form = ""
            if isinstance(observation, np.ndarray):
                form = f" of shape {observation.shape} and dtype {observation.dtype}"
            raise self._fault(
                f"the observation {_short(observation)}{form}, which does not fit its space "
                f"{self.observation_space!r:.200}",
                method,
            )

    def _flag(self, value: Any, name: str) -> bool:
        number = _as_number(value)
        if number is not None:
            return bool(number)
        what = f"{_short(value)} as {name}, which is neither true nor false"
        raise self._fault(what, "step")

    def _fault(self, what: str, method: str) -> EnvironmentFailed:
        return fault(self._address, what, method)


@contextmanager
def naming_method(address: str, method: str) -> Iterator[None]:
    """Let an exception of the environment name its address and the method."""
    try:
        yield
    except EnvironmentFailed as error:
        error.args = (_failed(address, method, error.args[0]), *error.args[1:])
        raise


def fault(address: str, what: str, method: str) -> EnvironmentFailed:
    """Return the error for an environment that returned something wrong."""
    # Not "Correct its step()": a Simulation has no such method.
    return EnvironmentFailed(
        _failed(address, method, f"it returned {what}. Correct the environment.")
    )


def _failed(address: str, method: str, why: str) -> str:
    return f"The environment at {address!r} failed in {method}(): {why}"


def _as_number(value: Any) -> Any:
    """Return a value that is a number, or an array of one, as a number; None if it is not."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.flat[0]  # newer releases of NumPy refuse `float` of an array
    if isinstance(value, str | bytes):
        return None
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value


def _fits(value: Any, space: gymnasium.Space[Any]) -> bool:
    """Return whether a value has the structure and shapes of a space, and its integers."""
    match space:
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            array = _numbers(value)
            if array is None or array.shape != space.shape:
                return False
            integers = array.astype(space.dtype)
            return bool(np.array_equal(integers, array)) and space.contains(integers[()])
        case spaces.Box():
            array = _numbers(value)
            return array is not None and array.shape == space.shape
        case spaces.Dict():
            return isinstance(value, Mapping) and all(
                key in value and _fits(value[key], part) for key, part in space.items()
            )
        case spaces.Tuple():
            return (
                isinstance(value, list | tuple)
                and len(value) == len(space)
                and all(map(_fits, value, space))
            )
    return True


def _numbers(value: Any) -> NDArray[Any] | None:
    """Return a value as an array; None if it consists of something else than numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "biuf" else None


def _short(value: object) -> str:
    return reprlib.repr(value)
