"""CALL for some environments of a vector (docs/protocol.md §4.1.3)."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from gymwire.protocol import generators
from gymwire.protocol.capabilities import EACH_MODES
from gymwire.protocol.messages import Call


def is_for_each(call: Call) -> bool:
    """Return whether `call` names the environments that it is for."""
    return call.mode in EACH_MODES


def access_each(env: Any, call: Call) -> tuple[Any, ...]:
    """Apply a CALL to the environments that its first argument lists; return a result for each.

    Raises ValueError if the list is not one of numbers of environments, or has a number twice, or
    names only some of the environments of a vector that does not consist of single environments.
    Raises what the environments raise.
    """
    numbers, *args = call.args
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 1
    if (
        type(numbers) not in (list, tuple)
        or len(numbers) > num_envs  # before all that takes longer for a longer list
        or not all(type(one) is int and 0 <= one < num_envs for one in numbers)
        or len({*numbers}) < len(numbers)
    ):
        raise ValueError(
            f"The environments of a call must be numbers from 0 to {num_envs - 1}, each at most "
            f"once, not {reprlib.repr(numbers)}."
        )
    if isinstance(env, SyncVectorEnv):
        return tuple([_access(env.envs[one], call, args) for one in numbers])
    if not isinstance(env, VectorEnv):
        return tuple([_access(env, call, args) for _ in numbers])  # one or none
    if call.mode != "each-wrapped" and [*numbers] != [*range(num_envs)]:
        raise ValueError(
            f"This vector of {num_envs} environments is a {type(env).__name__}, which does not "
            f"consist of single environments. Name all of them, in order."
        )
    return _of_all(_access(env, call, args), call.mode, len(numbers))


def _access(env: Any, call: Call, args: Sequence[Any]) -> Any:
    name, is_vector = call.name, isinstance(env, VectorEnv)
    if call.mode == "each-wrapped":
        return _is_wrapped(env, name)
    if call.mode == "each-has":
        return hasattr(env, name) if is_vector else env.has_wrapper_attr(name)
    if call.mode == "each-set":
        value = generators.build(args[0]) if name == "np_random" else args[0]
        if is_vector:
            setattr(env, name, value)
        else:
            env.set_wrapper_attr(name, value)
        return None
    found = getattr(env, name) if is_vector else env.get_wrapper_attr(name)
    if call.mode == "each-call":
        return found(*args, **call.kwargs)
    if name == "np_random":
        return {"value": generators.describe(found)}
    return {"method": True} if callable(found) else {"value": found}


def _is_wrapped(env: Any, name: str) -> bool:
    """Return whether a wrapper of `env` is of the class `module:name`, or of a subclass."""
    while isinstance(env, gymnasium.Wrapper):
        if any(f"{one.__module__}:{one.__qualname__}" == name for one in type(env).__mro__):
            return True
        env = env.env
    return False


def _of_all(found: Any, mode: str, num_envs: int) -> tuple[Any, ...]:
    """Return what a vector as a whole answered as one result for each environment."""
    match found:
        case {"value": value} if mode == "each-get":
            return tuple([{"value": one} for one in _of_all(value, "", num_envs)])
        case list() | tuple() | np.ndarray() if mode in ("", "each-call"):
            return tuple(found) if len(found) == num_envs else (found,) * num_envs
        case _:
            return (found,) * num_envs
