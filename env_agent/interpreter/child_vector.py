"""Vectors that a class or factory makes in a process with its own interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space

from gymwire.env_agent.adapters import vectors
from gymwire.env_agent.elsewhere import RunsElsewhere
from gymwire.env_agent.interpreter import child_values
from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.interpreter.child.spaces import SPACES
from gymwire.env_agent.interpreter.child.vectors import VECTOR
from gymwire.env_agent.interpreter.child_env import ChildEnv, CopiedGenerator, built
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_process import ChildProcess
from gymwire.protocol import generators, values

Request = tuple[int, str | None, bool]
"""The number of environments, the autoreset mode (None: any), and whether the class or factory is
known to make vectors."""
ONE: Request = (1, None, False)
MAX_NUM_ENVS = 1 << 20  # that a process may name: the batched spaces take memory for each
_NUMBERS = (np.float64, np.bool_, np.bool_)  # of rewards, terminations and truncations
_PER_ENV = ("has_each", "get_attr", "set_attr")


class OwnVector(ChildEnv):
    """A vector in another process. `vectors.adapt` makes Gymnasium's of it, as of others'.

    `request`: what the learner requests, followed by the arguments of ChildEnv. Raises
    ConfigurationError if it has another number of environments.

    Attributes:
        num_envs: the number of its environments.
        single_observation_space: the space of one of them.
        single_action_space: the space of one of them.
        autoreset_mode: its mode as it declares it by an attribute, or None.
        config: the part of EnvPool's `config` that matters.
        is_registered: whether it is of the class that is registered with an id.
        refused: what its maker raised when it got the mode, as the process reports it.
    """

    kinds: ClassVar[tuple[str, ...]] = (VECTOR,)

    def __init__(self, request: Request, *described: Any) -> None:
        self._request = request
        super().__init__(*described)

    def _read(self, facts: Any, name: str, given: Mapping[str, Space[Any]]) -> None:
        super()._read(facts, name, given)
        self.num_envs = facts["num_envs"]
        if type(self.num_envs) is not int or not 0 < self.num_envs <= MAX_NUM_ENVS:
            raise ValueError(f"it has {self.num_envs!r:.100} environments")
        self.is_registered = bool(facts.get("is_registered"))
        if self._request is not ONE:  # before the spaces are batched for as many as it names
            sized = bool(facts.get("takes_num_envs"))
            vectors.check_number(name, self.num_envs, self._request[0], takes_num_envs=sized)
        for one in SPACES:
            root = f"single_{one}"
            single = given[one] if one in given else built(root, facts[root], name)
            vars(self)[root] = single
        self.autoreset_mode = facts["autoreset_mode"]
        self.config = {"batch_size": facts["batch_size"]}
        self.refused = facts.get("refused")
        _, self._batched = vectors.spaces_of(self, "observation_space")

    def _coerced(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        seen, *rest = result
        for i, dtype in enumerate(_NUMBERS[: max(0, len(rest) - 1)]):
            if isinstance(rest[i], list | tuple):
                rest[i] = np.asarray(rest[i], dtype)
        return (child_values.coerce(self._batched, seen), *rest)

    def has_each(self, name: str) -> bool:
        """Return whether `get_attr` and `set_attr` give access to an attribute.

        They do in vectors of single environments, unless a wrapper around the vector has it.
        """
        return bool(self._call("has_each", name))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each environment."""
        found = self._call("get_attr", name)
        if type(found) is not list:
            self._process.violation(f"{found!r:.100} as attributes")
        return tuple([self._restored(name, one) for one in found])

    def set_attr(self, name: str, found: Any) -> None:
        """Set an attribute of each environment."""
        kept: list[bool] = []
        if name == GENERATOR and isinstance(found, list | tuple):
            kept = [isinstance(one, CopiedGenerator) for one in found]
            found = list(map(generators.describe, found))
        self._call("set_attr", name, found, kept)


class AdaptedOwnVector(RunsElsewhere, vectors.AdaptedVector):
    """An `OwnVector`, whose attributes are those of the vector in the process."""

    _env: OwnVector

    @property
    def lost(self) -> str:
        """Why the process is lost; "" if it is not."""
        return self._env.lost

    def __getattr__(self, name: str) -> Any:
        if name == "_env":
            raise AttributeError(name)
        if name in _PER_ENV:
            return getattr(self._env, name)
        try:
            return self._env.get_wrapper_attr(name)
        except RaisedInChild as error:
            if type(error).__name__ == AttributeError.__name__:
                raise AttributeError(str(error)) from error
            raise

    def _set(self, name: str, value: Any) -> None:
        self._env.set_wrapper_attr(name, value)


def make_in(
    process: ChildProcess,
    index: int,
    name: str,
    render_mode: str | None,
    kwargs: Mapping[str, Any],
    given: Mapping[str, Space[Any]],
    kind: str,
    request: Request,
) -> ChildEnv:
    """Make an environment in a process, or an `OwnVector` if that is what `name` makes.

    An id makes one only if `request` has an autoreset mode. `given` and `kind` are those of
    `ChildEnv`. Raises what the constructor raises there.
    """
    packed = values.encode(dict(kwargs))
    facts = process.make(index, name, render_mode, packed, kind, list(given), list(request))
    is_vector = type(facts) is dict and facts.get("kind") == VECTOR
    described = process, index, facts, name, given
    return OwnVector(request, *described) if is_vector else ChildEnv(*described)
