"""What `reset` and `step` of an environment return, and errors about it."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from gymwire.env_agent.interpreter.child.results import WrongResult
from gymwire.protocol import spaces

_RETURNED = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}


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


def check_step(result: Any) -> None:
    """Raise WrongResult, or what `unpack` raises, if a vector cannot use what a step returned.

    Observations are checked when they are batched, see `check_observation`.
    """
    _, reward, terminated, truncated, info = unpack(result, "step")
    if not _is_number(reward):
        raise WrongResult(f"step() must return a number as the reward, not {reward!r:.100}.")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_number(flag):
            raise WrongResult(f"step() must return True or False as {name}, not {flag!r:.100}.")
    _check_info(info, "step")


def check_reset(result: Any, space: Space[Any]) -> None:
    """Raise WrongResult, or what `unpack` raises, if a vector cannot use what `reset` returned.

    `space`: the observation space.
    """
    observation, info = unpack(result, "reset")
    _check_info(info, "reset")
    check_observation(observation, space, "reset")


def _check_info(info: Any, method: str) -> None:
    if not hasattr(info, "items"):
        raise WrongResult(f"{method}() must return a dict as the info, not {info!r:.100}.")


def check_observation(
    observation: Any, space: Space[Any], method: str, name: str = "observations"
) -> None:
    """Raise WrongResult if NumPy cannot put an observation into an array of its space.

    `name`: what the text calls the observation.
    """
    if isinstance(space, Dict | Tuple):
        keys: list[Any] = list(space if isinstance(space, Dict) else range(len(space)))
        try:
            parts = [observation[key] for key in keys]
        except Exception:  # noqa: BLE001 - the observation may be an object of any class
            kind = "a dict with the keys" if isinstance(space, Dict) else "a tuple with the indices"
            raise WrongResult(
                f"{method}() must return {kind} {keys!r:.200} as {name}, not {observation!r:.100}."
            ) from None
        for key, part in zip(keys, parts, strict=True):
            check_observation(part, space[key], method, name + spaces.key_step(key))
    elif isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
        _check_array(observation, space, f"{method}() must return {name} of")


def _check_array(observation: Any, space: Space[Any], expected: str) -> None:
    try:
        array = np.asarray(observation)
    except Exception:  # noqa: BLE001 - lists of different lengths, or an object of any class
        raise WrongResult(f"{expected} shape {space.shape}, not {observation!r:.100}.") from None
    if array.shape != space.shape:
        form = f" of shape {array.shape}" if array.shape else ""
        raise WrongResult(f"{expected} shape {space.shape}, not {observation!r:.100}{form}.")
    # As `numpy.stack` does:
    if not np.can_cast(array.dtype, space.dtype or object, "same_kind"):
        raise WrongResult(
            f"{expected} dtype {space.dtype}, not {observation!r:.100} of dtype {array.dtype}."
        )


def _is_number(value: Any) -> bool:
    """Return whether NumPy can put a value into an array, and would not read it from None or text.

    NumPy's releases differ in what they accept, such as arrays with one element.
    """
    try:
        np.zeros(1)[0] = value
        item = np.asarray(value).item()
    except Exception:  # noqa: BLE001 - the value may be an object of any class
        return False
    return not (item is None or isinstance(item, str | bytes))
