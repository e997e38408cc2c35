"""Calls of blocking code in a task: where the code would block, only the task waits.

The code of the learner agent exists once, and blocks. In a greenlet it can be suspended from any
depth of its stack, so that it needs no second copy with `await` in it. A cancellation is raised
where the code waits, like the exception of a signal handler, and the code handles it as such.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from gymwire.protocol.errors import MoveError
from gymwire.protocol.extras import install_line

try:
    import anyio as anyio  # which other modules take from here, where its lack is explained
    from greenlet import getcurrent as getcurrent  # as above
    from greenlet import greenlet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire.aio needs AnyIO and greenlet ({error}). Install them with: {install_line('aio')}",
        name=error.name,
    ) from error

P = ParamSpec("P")
T = TypeVar("T")


class Interrupted(BaseException):
    """Ends a call whose environment another task closes."""


class Call(greenlet):
    """A call of blocking code, on a stack of its own.

    Attributes:
        waiter: what it waits for, if that can be ended.
        is_interrupted: whether every wait raises Interrupted.
    """

    __slots__ = ("is_interrupted", "waiter")

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.waiter: Waiter | None = None
        self.is_interrupted = False

    def interrupt(self) -> None:
        """Raise Interrupted where the code waits."""
        self.is_interrupted = True
        if self.waiter is not None:
            self.waiter.wake()


class Waiter(Protocol):
    """Something that a call waits for."""

    def wake(self) -> None:
        """End the wait."""


def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
    """Run blocking code, and return its result. `suspend` in it lets other tasks run."""
    return finish(Call(function), *args, **kwargs)


async def finish(call: Call, /, *args: Any, **kwargs: Any) -> Any:
    """Run a call, and return its result."""
    call.gr_context = getcurrent().gr_context
    value = call.switch(*args, **kwargs)
    while not call.dead:
        try:
            result = await value()
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, goes to the code
            value = call.throw(error)
        else:
            value = call.switch(result)
    return value


def suspend(wait: Callable[[], Awaitable[T]], waiter: Waiter | None = None) -> T:
    """Suspend this call until the event loop has awaited `wait()`, and return its result.

    Raises what it raises, a cancellation included; MoveError outside a call; Interrupted.

    Args:
        wait: what to await.
        waiter: ends that, if it can take long.
    """
    call = getcurrent()
    if not isinstance(call, Call):
        raise MoveError(
            "This environment belongs to an event loop, and would block it here. Use the methods "
            "of gymwire.aio.ProxyEnv with `await`; `await env.run(function)` calls a function that "
            "blocks."
        )
    call.waiter = waiter
    parent: Any = call.parent
    result = None if call.is_interrupted else parent.switch(wait)
    if call.is_interrupted:
        raise Interrupted
    return cast(T, result)
