"""What `reset` and `step` of an environment return, and errors about it."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete

_RETURNED = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}


class WrongResult(ValueError):
    """An environment has returned something wrong, and the text says what."""


def unpack(result: Any, method: str) -> tuple[Any, ...]:
    """Return the values that `reset` or `step` of an environment has returned.

    Raises WrongResult if it has returned a tuple or list of another length than `gymnasium.Env`
    prescribes, and TypeError if it has returned something else.
    """
    if isinstance(result, Awaitable):
        if isinstance(result, Coroutine):
            result.close()  # Python would warn later that nobody has awaited it
        raise TypeError(
            f"{method}() returned a {type(result).__name__} to await, but is not declared with "
            f"`async def`. If a decorator hides that, let the decorator return an `async def` "
            f"function."
        )
    names = _RETURNED[method]
    expected = f"{method}() must return {len(names)} values ({', '.join(names)}), not"
    if not isinstance(result, tuple | list):
        raise TypeError(f"{expected} {type(result).__name__}.")
    if len(result) != len(names):
        raise WrongResult(f"{expected} {len(result)}.")
    return tuple(result)


def check_step(result: Any, space: Space[Any]) -> None:
    """Raise WrongResult, or what `unpack` raises, if a vector cannot use what a step returned.

    `space`: the observation space.
    """
    observation, reward, terminated, truncated, _ = unpack(result, "step")
    if not _is_number(reward):
        raise WrongResult(f"step() must return a number as the reward, not {reward!r:.100}.")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_number(flag):
            raise WrongResult(f"step() must return True or False as {name}, not {flag!r:.100}.")
    check_observation(observation, space, "step")


def check_observation(observation: Any, space: Space[Any], method: str) -> None:
    """Raise WrongResult if an observation has not the shape of a space of arrays."""
    if not isinstance(space, Box | MultiBinary | MultiDiscrete):
        return
    try:
        shape = np.shape(observation)
    except ValueError:  # lists of different lengths
        shape = None
    if shape != space.shape:
        form = "" if shape is None else f" of shape {shape}"
        raise WrongResult(
            f"{method}() must return observations of shape {space.shape}, not "
            f"{observation!r:.100}{form}."
        )


def _is_number(value: Any) -> bool:
    try:
        item = np.asarray(value).item()
        float(item)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(item, str | bytes)
