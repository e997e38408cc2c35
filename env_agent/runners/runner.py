"""The runner, which makes the calls of a session in its environment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gymnasium import Space
from gymnasium.vector import SyncVectorEnv, VectorEnv

from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.description import Description, describe
from gymwire.env_agent.elsewhere import why_gone
from gymwire.env_agent.factory import Env, Vector
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.interpreter.child_env import ChildEnv
from gymwire.env_agent.results import unpack
from gymwire.env_agent.runners.each_env import access_each, is_for_each
from gymwire.env_agent.runners.env_generators import EnvGenerators, generators_kept
from gymwire.env_agent.runners.holders import find_holder
from gymwire.env_agent.space_watch import SpaceWatch
from gymwire.protocol import remote_space, spaces, vector_infos
from gymwire.protocol.messages import MULTI_AGENT, Call, EnvKind

RunStep = Callable[[Any], Any]
"""Executes a step: takes the action, and returns what `Env.step` returned."""


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

    def raw_step(self, size: int) -> RunStep | None:
        """Return a `step` that may return a RawPercept of `size` bytes; None: there is none."""
        env = self.env
        return env.step_raw if isinstance(env, ChildEnv) and env.raw_size == size else None

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
        env: Any = self.env
        if isinstance(env, SyncVectorEnv):
            env = env.envs[index]
        with generators_kept(env):
            found = env.render()
        is_batch = isinstance(env, VectorEnv) and found is not None and len(found) > 0
        return found[index] if is_batch else found

    def access(self, call: Call) -> Any:
        """Read, write or call the attribute that `call` names; return the value of RESULT."""
        if is_for_each(call):
            return access_each(self.env, call)
        if call.name == remote_space.CALL:
            return _ask_space(self.env, *call.args)
        if call.name == GENERATOR and call.mode != "call":
            return self._access_generators(call)
        if isinstance(self.env, VectorEnv):
            return _access_vector(self.env, call)
        name, env = call.name, self.env
        if call.mode == "set":
            env.set_wrapper_attr(name, call.args[0])
            return None
        found = env.get_wrapper_attr(name)
        if call.mode == "call":
            return found(*call.args, **call.kwargs)
        if isinstance(found, Space) and self.kind in MULTI_AGENT:
            return {"space": spaces.describe(found, root=name)}
        return {"method": True} if callable(found) else {"value": found}

    def _access_generators(self, call: Call) -> Any:
        found = EnvGenerators(self.env)
        if call.mode == "set":
            state, *more = call.args
            states = state if isinstance(self.env, VectorEnv) else [state]
            found.set(states, kept=range(found.num_envs) if more == [True] else ())
            return None
        _, states = found.read_with_states()
        return {"value": tuple(states) if found.is_each else states[0]}

    def read_generator(self) -> Any:
        """Return the state of the generator, of a vector a tuple of them; None if it has none."""
        try:
            return self.access(Call("get", GENERATOR))["value"]
        except Exception:  # noqa: BLE001 - the environment's: it may have none, or another object
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


def _access_vector(env: Any, call: Call) -> Any:
    name = call.name
    env, is_each = find_holder(env, name)
    if call.mode == "set":
        if is_each:
            env.set_attr(name, call.args[0])
        else:
            setattr(env, name, call.args[0])
        return None
    if call.mode == "call":
        if is_each:
            return tuple(env.call(name, *call.args, **call.kwargs))
        return getattr(env, name)(*call.args, **call.kwargs)
    return {"value": tuple(env.get_attr(name)) if is_each else getattr(env, name)}
