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

MAX_IDLE = 2048  # stacks of about 15 KiB that a thread keeps for later calls

P = ParamSpec("P")
T = TypeVar("T")


class Interrupted(BaseException):
    """Ends a call whose environment another task closes."""


class Stack(greenlet):
    """A greenlet that runs calls of blocking code, one after the other.

    Attributes:
        number: the number of its call, among those of this thread.
        waiter: what the call waits for, if that can be ended.
        is_interrupted: whether every wait of the call raises Interrupted.
        has_returned: whether the call has returned `result`.
    """

    __slots__ = ("has_returned", "is_interrupted", "number", "result", "waiter")

    number: int
    waiter: Waiter | None
    is_interrupted: bool
    has_returned: bool
    result: Any

    def run(self) -> None:
        """Run one call after the other, until one raises."""
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
    """The idle stacks of this thread. To make a stack takes longer than most calls."""

    def __init__(self) -> None:
        self.stacks: list[Stack] = []
        self.numbers = count()


_idle = _Idle()


class Waiter(Protocol):
    """Something that a call waits for."""

    def wake(self) -> None:
        """End the wait."""


def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
    """Run blocking code, and return its result. `suspend` in it lets other tasks run."""
    return run_on(take_stack(), function, args, kwargs)


def take_stack() -> Stack:
    """Return a stack for one call."""
    if _idle.stacks:
        stack = _idle.stacks.pop()
    else:
        stack = Stack()
        stack.switch()  # to where it waits for a call
    stack.number = next(_idle.numbers)
    stack.waiter = None
    stack.is_interrupted = stack.has_returned = False
    return stack


def current_number() -> int:
    """Return the number of this call; -1 outside a call."""
    stack = getcurrent()
    return stack.number if isinstance(stack, Stack) else -1


async def run_on(stack: Stack, function: Any, args: Any, kwargs: Any) -> Any:
    """Run blocking code on a stack, and return its result."""
    current = getcurrent()
    stack.parent, stack.gr_context = current, current.gr_context
    value = stack.switch(function, args, kwargs)
    while not stack.has_returned:
        try:
            result = await value
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, goes to the code
            value = stack.throw(error)
        else:
            value = stack.switch(result)
    result = stack.result
    stack.result = stack.waiter = stack.gr_context = None
    if len(_idle.stacks) < MAX_IDLE:
        _idle.stacks.append(stack)
    return result


def suspend(awaitable: Awaitable[T], waiter: Waiter | None = None) -> T:
    """Suspend this call until the event loop has awaited something, and return its result.

    Raises what it raises, a cancellation included; MoveError outside a call; Interrupted.

    Args:
        awaitable: what to await.
        waiter: can end the wait early; None if the wait is short.
    """
    stack = getcurrent()
    if not isinstance(stack, Stack) or stack.is_interrupted:
        if isinstance(awaitable, Coroutine):
            awaitable.close()  # nobody will await it
        if isinstance(stack, Stack):
            raise Interrupted
        raise MoveError(
            "This environment belongs to an event loop, and would block it here. Use the methods "
            "of gymwire.aio.ProxyEnv with `await`; `await env.run(function)` calls a function that "
            "blocks."
        )
    stack.waiter = waiter
    parent: Any = stack.parent
    result = parent.switch(awaitable)
    if stack.is_interrupted:
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


def future_factory() -> Callable[[], Any]:
    """Return what makes a future in the current event loop.

    Those of asyncio itself take less time than events of AnyIO, and fewer objects to collect.
    """
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return asyncio.get_running_loop().create_future
    return Event
