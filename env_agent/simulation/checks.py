"""Check the states that a program reports, so that its mistakes are raised where they are made."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box

from gymwire.env_agent.simulation.turns import State
from gymwire.protocol import space_codecs
from gymwire.protocol.arrays import Tail
from gymwire.protocol.errors import UsageError
from gymwire.protocol.space_codecs import NOT_COMPACT

_REAL = "biuf"  # the kinds of dtypes of rewards
_MAX_BITS = 64  # of an integer reward: sums of rewards, which may be floats, stay finite


class StateCheck:
    """Checks states against the space of their observations.

    The values of an observation may be outside the bounds of a Box, as those of sensors are; its
    type, dtype, shape and keys may not differ.
    """

    def __init__(self, space: Space[Any]) -> None:
        self._space = space
        self._encode = space_codecs.compile(space).encode

    def check(self, state: State) -> None:
        """Raise UsageError if a learner could not use this state."""
        if not self._has_form(state.observation):
            form = ""
            if isinstance(state.observation, np.ndarray | np.generic):
                form = f" of shape {state.observation.shape} and dtype {state.observation.dtype}"
            raise UsageError(
                f"exchange: the observation {state.observation!r:.100}{form} is not in the "
                f"observation_space {self._space!r:.200}. Pass a value of its type, shape and "
                f"dtype."
            )
        if isinstance(state.reward, int) and state.reward.bit_length() > _MAX_BITS:
            raise UsageError(
                f"exchange: the reward is an integer of {state.reward.bit_length()} bits; the "
                f"maximum is {_MAX_BITS}. Pass a float."
            )
        if not _is_number(state.reward):
            raise UsageError(
                f"exchange: the reward {state.reward!r:.100} is not a single number. Pass a float."
            )
        if _is_nan(state.reward):
            raise UsageError("exchange: the reward is NaN. Pass a number.")
        for name, flag in (("terminated", state.terminated), ("truncated", state.truncated)):
            if not _is_flag(flag):
                raise UsageError(f"exchange: {name} must be True or False, not {flag!r:.100}.")
        if not isinstance(state.info, dict | None):
            raise UsageError(f"exchange: info must be a dict or None, not {state.info!r:.100}.")

    def _has_form(self, observation: Any) -> bool:
        if self._encode(observation, Tail()) is not NOT_COMPACT:
            return True
        is_box = isinstance(self._space, Box)
        if is_box and isinstance(observation, list | tuple | int | float):
            return False
        try:  # Gymnasium warns if a Box is given a tensor, or a NumPy scalar
            value = np.asarray(observation) if is_box else observation
            return bool(self._space.contains(value))
        except Exception:  # noqa: BLE001 - spaces compare whatever they get
            return False


def copy_state(state: State) -> State:
    """Return a copy of a state, which the program may change. Raises UsageError."""
    try:
        info = copy.deepcopy(state.info)
    except Exception as error:  # objects define how they are copied
        raise UsageError(
            f"exchange: info cannot be copied: {type(error).__name__}: {error!s:.200}. Leave out "
            f"objects that are not data, such as locks and open files."
        ) from error
    observation, reward = copy.deepcopy((state.observation, state.reward))
    return State(observation, reward, state.terminated, state.truncated, info)


def _is_number(reward: Any) -> bool:
    if isinstance(reward, int | float):
        return True
    if not hasattr(reward, "shape"):
        return False
    array = _as_array(reward)
    return array.size == 1 and array.dtype.kind in _REAL


def _is_nan(reward: Any) -> bool:
    if isinstance(reward, int | float):
        return reward != reward  # NaN does not equal itself
    return bool(np.isnan(_as_array(reward)).any())


def _is_flag(flag: Any) -> bool:
    if isinstance(flag, bool):
        return True
    return getattr(flag, "shape", None) == () and _as_array(flag).dtype.kind == "b"


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """Return a value as an array, whose dtype is object if it cannot be converted."""
    try:
        return np.asarray(value)
    except Exception:  # noqa: BLE001 - a tensor of a GPU, say
        return np.array(None)
