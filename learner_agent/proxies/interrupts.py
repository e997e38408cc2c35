"""Calls of the proxies that an exception from outside may end: a signal handler's, for example.

No reply of such a call counts as returned, so that the same call again gets the same replies
(docs/reliability.md). The guard is the outermost frame of gymwire, because an exception may come
until that frame returns. It also notices calls of another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import CodeType, FrameType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.threads import is_elsewhere, wait_while
from gymwire.protocol import logs
from gymwire.protocol.errors import MoveError

P = ParamSpec("P")
R = TypeVar("R")


class Undoable(Protocol):
    """The replies that the current call of a proxy has used up.

    Attributes:
        in_call: true while a call is under way, of whichever thread.
    """

    in_call: object

    def begin_call(self) -> None:
        """Begin a call: from now on, `undo` returns to this moment."""

    def undo(self, error: BaseException) -> None:
        """End the call with an exception. Unless it is a reply, no reply counts as returned."""

    @property
    def shared(self) -> object:
        """The same for all that the calls of one proxy use."""


class Guarded(Protocol):
    """A proxy, or a part of one."""

    @property
    def undoable(self) -> Undoable:
        """What the calls use."""


S = TypeVar("S", bound=Guarded)


def keeps_replies(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """Return a method of a Guarded that makes replies available again if an exception ends it."""

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.undoable.begin_call()
        try:
            result = method(self, *args, **kwargs)
            self.undoable.in_call = False
            return result
        except BaseException as error:
            self.undoable.undo(error)
            raise

    return keeps_replies_itself(guarded)


def keeps_replies_itself(method: Callable[P, R]) -> Callable[P, R]:
    """Register a method that calls `begin_call` and `undo` itself, or that closes the proxy."""
    _CALLS.add(method.__code__)
    return method


_CALLS: set[CodeType] = set()


def is_used_elsewhere(calls: Undoable) -> bool:
    """Return whether another thread is in a call of this proxy."""

    def is_such(frame: FrameType) -> bool:
        return frame.f_code in _CALLS and frame.f_locals["self"].undoable.shared is calls.shared

    return is_elsewhere(is_such)


def check_alone(calls: Undoable) -> None:
    """Raise MoveError if another thread is in a call of this proxy.

    `calls.in_call` may also be set because a call contains another, or because an exception from
    outside came before the call could handle it.
    """
    if is_used_elsewhere(calls):
        raise MoveError(
            "Another thread is in a call of this environment. Use it from one thread at a time, or "
            "make one for each thread."
        )


def close_alone(calls: Undoable, connection: BrokerConnection, close: Callable[[], None]) -> None:
    """Close a proxy. A call of another thread ends first, with EnvironmentClosed.

    If that thread does not leave its call soon, the connection stays open until the process ends.
    """
    mine = object()

    def is_used() -> bool:
        calls.in_call = mine  # so that no other call begins, unless one has ended in the meantime
        return is_used_elsewhere(calls) or calls.in_call is not mine

    if calls.in_call and is_used():
        connection.ends_waits = True
        if not wait_while(is_used):
            logs.logger().warning("not closed, because another thread is in a call")
            return
        connection.ends_waits = False
    calls.in_call = True
    try:
        close()
    finally:
        calls.in_call = False
