"""Calls of the proxies that an exception from outside may end: a signal handler's, for example.

No reply of such a call counts as returned, so that the same call again gets the same replies
(docs/reliability.md). The guard is the outermost frame of gymwire, because an exception may come
until that frame returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Undoable(Protocol):
    """What a proxy's calls use: it knows which replies the present call has used up."""

    def begin_call(self) -> None:
        """Begin a call: from now on, `undo` returns to this moment."""

    def undo(self, error: BaseException) -> None:
        """End the call with an exception. Unless it is a reply, no reply counts as returned."""


class Guarded(Protocol):
    """A proxy, or a part of one."""

    @property
    def undoable(self) -> Undoable:
        """What the calls use."""


S = TypeVar("S", bound=Any)


def keeps_replies(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """Return a method of a Guarded that makes replies available again if an exception ends it."""

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.undoable.begin_call()
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            self.undoable.undo(error)
            raise

    return guarded
