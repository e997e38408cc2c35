"""CALL for some environments of a vector (docs/protocol.md §4.1.3)."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.runners.env_generators import EnvGenerators
from gymwire.env_agent.runners.holders import find_holder
from gymwire.protocol.capabilities import EACH_MODES
from gymwire.protocol.messages import Call

_GENERATOR_MODES = ("each-get", "each-set")


def is_for_each(call: Call) -> bool:
    """Return whether `call` names the environments that it is for."""
    return call.mode in EACH_MODES


def access_each(env: Any, call: Call) -> tuple[Any, ...]:
    """Apply a CALL to the environments that its first argument lists; return a result for each.

    Raises ValueError if the list is malformed or repeats a number, or does not name all
    environments of a vector that cannot be addressed singly. Raises what the environments raise.
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
    if not isinstance(env, VectorEnv):
        return tuple([_access(env, call, args) for _ in numbers])  # one or none
    env, is_each = find_holder(env, call.name)
    if isinstance(env, SyncVectorEnv):
        return tuple([_access(env.envs[one], call, args) for one in numbers])
    if is_each and call.name == GENERATOR and call.mode in _GENERATOR_MODES:
        return _access_generators(env, call, numbers, args)
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
    if name == GENERATOR and call.mode in _GENERATOR_MODES:
        return _access_generators(env, call, [0], args)[0]
    if call.mode == "each-set":
        if is_vector:
            setattr(env, name, args[0])
        else:
            env.set_wrapper_attr(name, args[0])
        return None
    found = getattr(env, name) if is_vector else env.get_wrapper_attr(name)
    if call.mode == "each-call":
        return found(*args, **call.kwargs)
    return {"method": True} if callable(found) else {"value": found}


def _access_generators(
    env: Any, call: Call, numbers: Sequence[int], args: Sequence[Any]
) -> tuple[Any, ...]:
    found = EnvGenerators(env)
    if call.mode == "each-set":
        found.replace(numbers, args[0])
        return (None,) * len(numbers)
    _, states = found.read_with_states()
    return tuple([{"value": states[one]} for one in numbers])


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
        case np.ndarray(shape=()):
            return (found,) * num_envs
        case list() | tuple() | np.ndarray() if mode in ("", "each-call"):
            return tuple(found) if len(found) == num_envs else (found,) * num_envs
        case _:
            return (found,) * num_envs
