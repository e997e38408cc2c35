"""Calls of blocking code in a task: where the code would block, only the task waits.

The code of the learner agent exists once, and blocks. In a greenlet it can be suspended from any
depth of its stack, so that it needs no second copy with `await` in it. A cancellation is raised
where the code waits, like the exception of a signal handler, and the code handles it as such.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from itertools import count
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

MAX_IDLE = 4096  # stacks that are kept for later calls

P = ParamSpec("P")
T = TypeVar("T")


class Interrupted(BaseException):
    """Ends a call whose environment another task closes."""


class Call(greenlet):
    """A stack of its own for calls of blocking code, one after the other.

    Attributes:
        number: which call of this thread it runs.
        waiter: what that waits for, if it can be ended.
        is_interrupted: whether every wait raises Interrupted.
        has_returned: whether the call has returned `result`.
    """

    __slots__ = ("has_returned", "is_interrupted", "number", "result", "waiter")

    number: int
    waiter: Waiter | None
    is_interrupted: bool
    has_returned: bool
    result: Any

    def run(self) -> None:
        """Run one call after the other. One that raises is the last."""
        while True:
            function, args, kwargs = self.parent.switch()
            self.result = function(*args, **kwargs)
            function = args = kwargs = None
            self.has_returned = True

    def interrupt(self) -> None:
        """Raise Interrupted where the code waits."""
        self.is_interrupted = True
        if self.waiter is not None:
            self.waiter.wake()


class _Idle(threading.local):
    """The stacks of this thread without a call: to make one takes longer than most calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.numbers = count()


_idle = _Idle()


class Waiter(Protocol):
    """Something that a call waits for."""

    def wake(self) -> None:
        """End the wait."""


def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
    """Run blocking code, and return its result. `suspend` in it lets other tasks run."""
    return finish(new_call(), function, args, kwargs)


def new_call() -> Call:
    """Return a stack for one call."""
    if _idle.calls:
        call = _idle.calls.pop()
    else:
        call = Call()
        call.switch()  # to where it waits for a call
    call.number = next(_idle.numbers)
    call.waiter = None
    call.is_interrupted = call.has_returned = False
    return call


def current_number() -> int:
    """Return the number of this call; -1 outside a call."""
    call = getcurrent()
    return call.number if isinstance(call, Call) else -1


async def finish(call: Call, function: Any, args: Any, kwargs: Any) -> Any:
    """Run a call, and return its result."""
    current = getcurrent()
    call.parent, call.gr_context = current, current.gr_context
    value = call.switch(function, args, kwargs)
    while not call.has_returned:
        try:
            result = await value
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, goes to the code
            value = call.throw(error)
        else:
            value = call.switch(result)
    result = call.result
    call.result = call.waiter = call.gr_context = None
    if len(_idle.calls) < MAX_IDLE:
        _idle.calls.append(call)
    return result


def suspend(awaitable: Awaitable[T], waiter: Waiter | None = None) -> T:
    """Suspend this call until the event loop has awaited something, and return its result.

    Raises what it raises, a cancellation included; MoveError outside a call; Interrupted.

    Args:
        awaitable: what to await.
        waiter: ends that, if it can take long.
    """
    call = getcurrent()
    if not isinstance(call, Call) or call.is_interrupted:
        if isinstance(awaitable, Coroutine):
            awaitable.close()  # nobody will await it
        if isinstance(call, Call):
            raise Interrupted
        raise MoveError(
            "This environment belongs to an event loop, and would block it here. Use the methods "
            "of gymwire.aio.ProxyEnv with `await`; `await env.run(function)` calls a function that "
            "blocks."
        )
    call.waiter = waiter
    parent: Any = call.parent
    result = parent.switch(awaitable)
    if call.is_interrupted:
        raise Interrupted
    return cast(T, result)


class Event:
    """An event of AnyIO with the interface of an asyncio future."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def done(self) -> bool:
        """Return whether `set_result` was called."""
        return bool(self._event.is_set())

    def set_result(self, _result: None) -> None:
        """Let the task that awaits this go on."""
        self._event.set()

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._event.wait().__await__()


def future_type() -> Callable[[], Any]:
    """Return what makes a future in the current event loop.

    Those of asyncio itself take less time than events of AnyIO, and fewer objects to collect.
    """
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return asyncio.get_running_loop().create_future
    return Event
