"""Notice that an environment changes a space that its learner knows already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gymnasium import Env, Space
from gymnasium.vector import VectorEnv

from gymwire.env_agent import known_spaces
from gymwire.env_agent.known_spaces import KnownSpace
from gymwire.protocol import spaces
from gymwire.protocol.errors import EncodingError, GymwireError
from gymwire.protocol.space_codecs import NOT_COMPACT, SpaceCodec


class ChangedSpaceError(EncodingError):
    """The environment has changed a space, so its values cannot be serialized as agreed."""


class SpaceWatch:
    """Compares the spaces of an environment with what they were when this object was made.

    A check first compares what takes microseconds at most, and only if that differs the
    descriptions of the spaces.

    Args:
        env: the environment or the vector.
    """

    def __init__(self, env: Env[Any, Any] | VectorEnv[Any, Any, Any]) -> None:
        self._env = env
        self._reset = env.reset
        self._known: dict[str, tuple[Space[Any], KnownSpace, Callable[[], bool]]] = {}
        for name in ("observation_space", "action_space"):
            space = getattr(env, name)
            self._known[name] = space, *known_spaces.watch(space, name)

    def known(self, name: str) -> KnownSpace:
        """Return what is known about the space with this name."""
        return self._known[name][1]

    def reset(self, **kwargs: Any) -> Any:
        """Reset the environment, then check its spaces. Raises RuntimeError."""
        result = self._reset(**kwargs)
        self.check()
        return result

    def check(self) -> None:
        """Raise RuntimeError if a space was replaced by a different one, or changed in place."""
        for name, (before, known, is_unchanged) in self._known.items():
            space = getattr(self._env, name)
            if space is before and is_unchanged():
                continue
            try:
                is_same = spaces.describe(space) == known.description
            except GymwireError:  # now of a class that is not supported
                is_same = False
            if not is_same:
                raise RuntimeError(
                    f"The {name} has changed to {space!r:.200}, but this session was opened with "
                    f"{known.text}. The environment must set its spaces in the constructor."
                )

    def guard(self, codec: SpaceCodec) -> SpaceCodec:
        """Return the codec of the observations, which checks the spaces if a value does not fit.

        Its `encode` raises ChangedSpaceError then, after a change.
        """
        inner = codec.encode

        def encode(value: Any, tail: Any) -> Any:
            form = inner(value, tail)
            if form is NOT_COMPACT and self.is_replaced:
                try:
                    self.check()
                except RuntimeError as error:
                    raise ChangedSpaceError(str(error), path="observation_space") from None
            return form

        return replace(codec, encode=encode)

    @property
    def is_replaced(self) -> bool:
        """Whether a space is another object than it was."""
        env = self._env
        return any(getattr(env, name) is not one[0] for name, one in self._known.items())
