"""The runner, which makes the calls of a session in its environment."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.description import Description, describe
from gymwire.env_agent.elsewhere import why_gone
from gymwire.env_agent.factory import Env, Vector
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.interpreter.child_env import ChildEnv
from gymwire.env_agent.runners.each_env import access_each, is_for_each
from gymwire.env_agent.space_watch import SpaceWatch
from gymwire.protocol import generators, remote_space, spaces, values, vector_infos
from gymwire.protocol.messages import MULTI_AGENT, Call, EnvKind


class Runner:
    """An environment or a vector. One thread, the executor, makes, uses and closes it.

    Every method raises what the environment raises. If the constructor raises, the environment is
    closed.

    Attributes:
        env: the environment or the vector.
        step: its `step`, without a call in between. The result is what the environment returned,
            unchecked; `wire_infos` converts the infos of a vector. It is a tuple only if these
            infos need no conversion except for their arrays of objects.
        spaces: knows the spaces as the learner gets them.
        kind: the kind of the environment, see `EnvKind`.
        is_for_watchers: whether the environment has its render mode only for watchers, so that for
            the learner it has none.
    """

    def __init__(self, env: Env | Vector, *, is_for_watchers: bool = False) -> None:
        self.env = env
        self.is_for_watchers = is_for_watchers
        self.kind = kind_of(env)
        with closed_on_error([env]):
            self.step = _without_casts(env) if isinstance(env, HostedVector) else env.step
            self.spaces = SpaceWatch(env)

    def describe(self, name: str) -> Description:
        """Describe the environment; `name` is its id if it has no spec."""
        found = describe(self.env, name)
        return replace(found, render_mode=None) if self.is_for_watchers else found

    def reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, Any]:
        """Reset; return the observation, and the infos in wire form.

        Raises RuntimeError if the environment has changed a space, and what `unpack` raises.
        """
        observation, infos = unpack(self.spaces.reset(seed=seed, options=options), "reset")
        return observation, self.wire_infos(infos)

    def wire_infos(self, infos: Any) -> Any:
        """Convert infos to wire form (docs/protocol.md): of a vector only.

        Raises TypeError if the infos of a vector are not a dict.
        """
        env = self.env
        if not isinstance(env, VectorEnv):
            return infos
        if not isinstance(infos, dict):
            raise TypeError(f"The infos of a vector must be a dict, not {type(infos).__name__}.")
        if not isinstance(env, HostedVector):
            return vector_infos.to_wire(infos)
        cast, env.cast = env.cast, {}
        return vector_infos.to_wire(infos, cast)

    def render(self) -> Any:
        """Return what the environment renders."""
        if self.is_for_watchers:
            return (None,) * len(self.env.envs) if isinstance(self.env, SyncVectorEnv) else None
        return self.env.render()

    def render_unnoticed(self, index: int = 0) -> Any:
        """Return what the environment, or one of a vector, renders for a watcher.

        Its generator has the same state afterwards, so that no later step differs.
        """
        env = self.env
        if isinstance(env, SyncVectorEnv):
            env = env.envs[index]
        before = _generators_of(env)
        try:
            frame = env.render()
        finally:
            if before is not None:
                _restore(env, *before)
        return frame[index] if isinstance(env, VectorEnv) and frame else frame

    def access(self, call: Call) -> Any:
        """Read, write or call the attribute that `call` names; return the value of RESULT."""
        if is_for_each(call):
            return access_each(self.env, call)
        if call.name == remote_space.CALL:
            return _ask_space(self.env, *call.args)
        if isinstance(self.env, VectorEnv):
            return _access_vector(self.env, call)
        name, env = call.name, self.env
        if call.mode == "set":
            value = call.args[0]
            if name == "np_random":
                found = env.get_wrapper_attr(name) if call.args[1:] == (True,) else None
                is_set = found is not None and generators.set_state(found, value)
                if is_set and env.get_wrapper_attr(name) is found:  # not a copy
                    return None
                # Setting a copy from a process sets the state of the generator there.
                value = found if is_set else generators.build(value)
            env.set_wrapper_attr(name, value)
            return None
        found = env.get_wrapper_attr(name)
        if call.mode == "call":
            return found(*call.args, **call.kwargs)
        if name == "np_random":
            return {"value": generators.describe(found)}
        if isinstance(found, Space) and self.kind in MULTI_AGENT:
            return {"space": spaces.describe(found, root=name)}
        return {"method": True} if callable(found) else {"value": found}

    def read_generator(self) -> Any:
        """Return the state of the generator, of a vector a tuple of them; None if it has none."""
        try:
            return self.access(Call("get", "np_random"))["value"]
        except Exception:  # noqa: BLE001 - the environment's: it has none, or not such a one
            return None

    @property
    def lost(self) -> str:
        """Why the environment is gone; "" if it is not."""
        return why_gone(self.env)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def kind_of(env: Env | Vector) -> str:
    """Return the kind of an environment, see `EnvKind`, whatever it says of itself."""
    if isinstance(env, VectorEnv):
        return EnvKind.VECTOR
    if isinstance(env, pettingzoo.MultiAgentEnv | ChildEnv):
        return str(env.kind)
    return EnvKind.ENV


def unpack(result: Any, method: str) -> tuple[Any, ...]:
    """Return the values that `reset` or `step` of an environment has returned.

    Raises ValueError if it has returned more or fewer values than `gymnasium.Env` prescribes, and
    TypeError if it has returned something else.
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
    if not isinstance(result, Iterable):
        raise TypeError(f"{expected} {type(result).__name__}.")
    found = tuple(islice(result, _MAX_COUNTED))
    if len(found) != len(names):
        more = " or more" if len(found) == _MAX_COUNTED else ""
        raise ValueError(f"{expected} {len(found)}{more}.")
    return found


_MAX_COUNTED = 10  # values of an iterator, which may be endless
_RETURNED = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}


_Generators = tuple[list[np.random.Generator], list[dict[str, Any]]]


def _generators_of(env: Any) -> _Generators | None:
    """Return the generators of an environment or a vector and their states; None without any."""
    try:
        if not isinstance(env, VectorEnv):
            found = [env.get_wrapper_attr("np_random")]
        else:
            env = _vector_with(env, "np_random")
            found = [*env.get_attr("np_random")] if hasattr(env, "get_attr") else [env.np_random]
        return found, [*map(generators.describe, found)]
    except Exception:  # noqa: BLE001 - the environment's: it has none, or not such a one
        return None


def _restore(env: Any, before: list[np.random.Generator], states: list[dict[str, Any]]) -> None:
    """Set the generators to their earlier states, if rendering has changed them."""
    found = _generators_of(env)
    if found is not None and values.encode(found[1]) == values.encode(states):
        return
    for generator, state in zip(before, states, strict=True):
        generator.bit_generator.state = state
    if found is not None and all(a is b for a, b in zip(found[0], before, strict=True)):
        return
    # Those of a process are copies.
    if not isinstance(env, VectorEnv):
        env.set_wrapper_attr("np_random", before[0])
    elif hasattr(env := _vector_with(env, "np_random"), "get_attr"):
        env.set_attr("np_random", before)
    else:
        env.np_random = before[0]


def _without_casts(env: HostedVector) -> Callable[[Any], Any]:
    """Return a `step` whose result is a list if infos were cast: only `wire_infos` knows them."""
    step = env.step

    def step_and_check(actions: Any) -> Any:
        result = step(actions)
        return [*result] if env.cast else result

    return step_and_check


def _ask_space(env: Any, path: Any, method: Any, args: Any) -> Any:
    """Call a method of a space that the learner cannot build. Raises KeyError if there is none."""
    root = re.split(r"[\[.]", path, maxsplit=1)[0]
    if root not in _SPACES or method not in remote_space.METHODS:
        raise KeyError(f"There is no space {path!r:.100} with a method {method!r:.100}.")
    found = {one.path: one.space for one in spaces.foreign(getattr(env, root), root)}
    result = getattr(found[path], method)(*args)
    return bool(result) if method == "contains" else result


_SPACES = (
    "observation_space",
    "action_space",
    "single_observation_space",
    "single_action_space",
)


def _vector_with(env: Any, name: str) -> Any:
    """Return the vector itself, or the one inside Gymnasium's wrappers that has an attribute.

    The wrappers pass `np_random` on, but not `get_attr` and `set_attr`.
    """
    while isinstance(env, VectorWrapper) and (name == "np_random" or not hasattr(env, name)):
        env = env.env
    return env


def _access_vector(env: Any, call: Call) -> Any:
    name = call.name
    env = _vector_with(env, name)
    if not hasattr(env, "get_attr"):  # a vector that does not consist of single environments
        if call.mode == "call":
            return getattr(env, name)(*call.args, **call.kwargs)
        if call.mode == "set":
            value = call.args[0]
            if name == "np_random":  # a list of one state
                known = getattr(env, name) if call.args[1:] == (True,) else None
                is_set = known is not None and generators.set_state(known, value[0])
                if is_set and getattr(env, name) is known:  # not a copy
                    return None
                value = known if is_set else generators.build(value[0])
            setattr(env, name, value)
            return None
        found = getattr(env, name)
        return {"value": generators.describe(found) if name == "np_random" else found}
    if call.mode == "set":
        found = call.args[0]
        if name == "np_random":
            known, is_set = (), False
            if call.args[1:] == (True,):
                known = env.get_attr(name)
                is_set = all([*map(generators.set_state, known, found)])
                again = env.get_attr(name)
                if is_set and all(a is b for a, b in zip(known, again, strict=True)):
                    return None
            found = [*known] if is_set else [generators.build(state) for state in found]
        env.set_attr(name, found)
        return None
    if call.mode == "call":
        return tuple(env.call(name, *call.args, **call.kwargs))
    found = tuple(env.get_attr(name))
    if name == "np_random":
        found = tuple(map(generators.describe, found))
    return {"value": found}
