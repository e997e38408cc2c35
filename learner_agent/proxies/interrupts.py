"""Calls of the proxies that an exception from outside may end: a signal handler's, for example.

No reply of such a call counts as returned, so that the same call again gets the same replies
(docs/reliability.md). The guard is the outermost frame of gymwire, because an exception may come
until that frame returns. It also notices calls of another thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import CodeType, FrameType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.threads import is_elsewhere, is_on_stack, is_ours, wait_while
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

    def end_call(self) -> None:
        """End a call."""

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
            self.undoable.end_call()
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


def kept_for_getattr(getter: Callable[[S], R]) -> Callable[[S], R]:
    """Return the getter of a property whose AttributeError `raise_kept` raises again.

    Python drops an AttributeError of a property and calls `__getattr__` if the class has one. But
    the error may come from outside.
    """

    @wraps(getter)
    def get(self: S) -> R:
        try:
            return getter(self)
        except AttributeError as error:
            vars(self)[_KEPT] = error
            raise

    return get


def raise_kept(owner: object, name: str) -> None:
    """Raise AttributeError if Python called `__getattr__` because the property `name` raised it."""
    if hasattr(type(owner), name):
        kept = vars(owner).pop(_KEPT, None)
        raise kept or AttributeError(f"The property {name!r} raised AttributeError.")


_KEPT = "_attribute_error"


def is_used_elsewhere(calls: Undoable) -> bool:
    """Return whether another thread is in a call of this proxy."""
    return is_elsewhere(lambda frame: _is_call(frame, calls.shared))


def is_in_call(owner: object) -> bool:
    """Return whether this thread is in a call of a proxy, or in a method of its owner."""
    last = sys._getframe(1)  # noqa: SLF001 - public but for its name
    return is_on_stack(last, lambda frame: _is_method(frame, owner) or _is_call(frame, owner))


def _is_method(frame: FrameType, owner: object) -> bool:
    """Return whether a frame is a method of an owner.

    Python keeps the variables of a frame that it was asked for: the caller's may be a last
    reference to a proxy.
    """
    return is_ours(frame) and frame.f_locals.get("self") is owner


def _is_call(frame: FrameType, shared: object) -> bool:
    """Return whether a frame is a call of the proxy whose calls use `shared`."""
    return frame.f_code in _CALLS and frame.f_locals["self"].undoable.shared is shared


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


def close_alone(
    calls: Undoable,
    connection: BrokerConnection,
    close: Callable[[], None],
    ended: object = True,
) -> None:
    """Close a proxy. A call of another thread ends first, with EnvironmentClosed.

    If that thread does not leave its call soon, the connection stays open until the process ends.

    Args:
        calls: those of the proxy.
        connection: the connection that the calls use.
        close: closes the proxy.
        ended: the caller whose wait must end, as `ConnectionUse` has it.
    """
    mine = object()

    def is_used() -> bool:
        calls.in_call = mine  # so that no other call begins, unless one has ended in the meantime
        return is_used_elsewhere(calls) or calls.in_call is not mine

    if calls.in_call and is_used():
        connection.use.ended = ended
        if not wait_while(is_used):
            logs.logger().warning("environment not closed, another thread is in a call")
            return
        connection.use.ended = None
    calls.in_call = True
    try:
        close()
    finally:
        calls.in_call = False
