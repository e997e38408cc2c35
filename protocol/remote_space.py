"""A space of a class that only the env agent has: the learner asks the agent about its values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np
from gymnasium import Space
from gymnasium.spaces import utils

from gymwire.protocol.errors import EncodingError, MoveError, ProtocolError

__all__ = ["CALL", "METHODS", "RemoteSpace", "SpaceCalls"]

CALL: Final = "gymwire.space"
"""The name in the CALL that asks about a space; its arguments: path, method, arguments."""
METHODS: Final = frozenset({"sample", "contains", "seed"})


class SpaceCalls:
    """How the spaces of one session ask its env agent."""

    def __init__(self) -> None:
        self._ask: Callable[[], Callable[[str, str, Any], Any] | None] = lambda: None

    def connect(self, ask: Callable[[str, str, Any], Any]) -> None:
        """Ask by this method of an object, `(path, method, arguments)`, while it exists."""
        self._ask = weakref.WeakMethod(ask)

    def ask(self, path: str, method: str, args: tuple[Any, ...]) -> Any:
        """Return the result of a method of the space at `path`. Raises MoveError without a session.

        Raises what the session raises, too.
        """
        ask = self._ask()
        if ask is None:
            raise MoveError(
                f"{path} belongs to an environment that no longer exists, or comes from a pickle, "
                f"but only the env agent knows its values. Use the space of an open environment."
            )
        return ask(path, method, args)


class RemoteSpace(Space[Any]):
    """A space that is not Gymnasium's own. `sample`, `contains` and `seed` ask the env agent.

    Copies ask the same session, except for those from a pickle, which cannot ask.

    Args:
        kind: the module and name of its class.
        path: its position in the environment, such as `observation_space["mission"]`.
        calls: asks the env agent.
        shape, dtype: those of the space, or None.
    """

    def __init__(
        self,
        kind: str,
        path: str,
        calls: SpaceCalls | None = None,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        self.kind = kind
        self.path = path
        self._calls = calls or SpaceCalls()

    @property
    def is_np_flattenable(self) -> bool:
        """False: its values have no known form."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """Return a sample that the env agent draws. Raises what a request raises."""
        return self._calls.ask(self.path, "sample", _given(mask, probability))

    def contains(self, x: Any) -> bool:
        """Return whether the env agent's space contains `x`. Raises what a request raises."""
        try:
            found = self._calls.ask(self.path, "contains", (x,))
        except EncodingError:  # no value that an environment could send
            return False
        if type(found) is not bool:
            raise ProtocolError(f"The env agent did not say whether {self.path} contains a value.")
        return found

    def seed(self, seed: Any = None) -> Any:
        """Seed the env agent's space. Raises what a request raises."""
        return self._calls.ask(self.path, "seed", (seed,))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteSpace):
            return False
        mine = self.kind, self._shape, self.dtype
        return mine == (other.kind, other._shape, other.dtype)

    __hash__ = None  # type: ignore[assignment]  # as Gymnasium's spaces

    def __repr__(self) -> str:
        return f"RemoteSpace({self.kind})"

    def __copy__(self) -> RemoteSpace:
        return RemoteSpace(self.kind, self.path, self._calls, self._shape, self.dtype)

    def __deepcopy__(self, memo: Any) -> RemoteSpace:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteSpace, (self.kind, self.path, None, self._shape, self.dtype)


def _cannot_flatten(space: RemoteSpace, *_: Any) -> NoReturn:
    raise NotImplementedError(
        f"{space.path} is a {space.kind}, which only the env agent knows, so it cannot be "
        f"flattened here. Wrappers that need it are applied there with `gymwire serve --wrap`."
    )


for _function in (utils.flatdim, utils.flatten_space, utils.flatten):
    _function.register(RemoteSpace, _cannot_flatten)


def _given(mask: Any, probability: Any) -> tuple[Any, ...]:
    if probability is not None:
        return mask, probability
    return () if mask is None else (mask,)
