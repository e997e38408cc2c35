"""The random generators of an environment or a vector: read, set and keep them."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.vector import VectorEnv

from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.runners.holders import find_holder
from gymwire.protocol import generators, values


class EnvGenerators:
    """The generator of an environment, or those of a vector, whatever wrappers are around it.

    Every method raises what the environment raises.

    Attributes:
        is_each: whether each environment of a vector has one.
        num_envs: the number of environments.
    """

    def __init__(self, env: Any) -> None:
        is_vector = isinstance(env, VectorEnv)
        self._env, self.is_each = find_holder(env, GENERATOR) if is_vector else (env, False)
        self.num_envs = env.num_envs if is_vector else 1

    def read(self) -> list[Any]:
        """Return the generators. Those in another process are copies."""
        return [*self._env.get_attr(GENERATOR)] if self.is_each else [self._env.np_random]

    def read_with_states(self) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the generators and their states. Raises AttributeError for anything else."""
        known = self.read()
        return known, [*map(generators.describe, known)]

    def set(self, states: Any, kept: Collection[int]) -> None:
        """Set the generators to states.

        Args:
            states: one for each environment. A vector with a single generator uses the first.
            kept: the numbers of the environments that keep their generators, unless these are of
                another kind.

        Raises:
            ValueError: there are fewer or more states.
            DecodingError: a state is malformed.
            AttributeError: an environment to keep its generator has another object in its place.
        """
        count = self.num_envs if self.is_each else 1
        if type(states) not in (list, tuple) or len(states) not in (count, self.num_envs):
            raise ValueError(
                f"np_random of this vector takes a list of {self.num_envs} states, one for each "
                f"environment, not {reprlib.repr(states)}."
            )
        new = [*map(generators.build, states)][:count]  # all of them, before anything changes
        if not kept:
            self._write(new)
            return
        old = [one if i in kept else None for i, one in enumerate(self.read())]
        for one in old:
            if one is not None:
                generators.check(one)
        self.use([*map(generators.continued, old, new)])

    def replace(self, numbers: Collection[int], state: Any) -> None:
        """Give each of these environments another generator, in this state.

        Raises DecodingError if the state is malformed.
        """
        self._write(
            [generators.build(state) if i in numbers else one for i, one in enumerate(self.read())]
        )

    def use(self, wanted: list[Any]) -> None:
        """Make these the environments' generators, unless they are already."""
        if not all(a is b for a, b in zip(self.read(), wanted, strict=True)):
            self._write(wanted)

    def _write(self, wanted: list[Any]) -> None:
        if self.is_each:
            self._env.set_attr(GENERATOR, wanted)
        else:
            self._env.np_random = wanted[0]


@contextmanager
def generators_kept(env: Any) -> Iterator[None]:
    """After the block, restore the generators of an environment or vector, and their states."""
    known, states = _found_in(env)
    try:
        yield
    finally:
        if known and values.encode(_found_in(env)[1]) != values.encode(states):
            for generator, state in zip(known, states, strict=True):
                generator.bit_generator.state = state
            EnvGenerators(env).use(known)


def _found_in(env: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the generators and their states, or nothing."""
    try:
        return EnvGenerators(env).read_with_states()
    except Exception:  # noqa: BLE001 - the environment's: it may have none, or another object
        return [], []
