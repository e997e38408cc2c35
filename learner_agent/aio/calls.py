"""Calls of blocking code in a task: where the code would block, only the task waits.

The code of the learner agent exists once, and blocks. In a greenlet it can be suspended from any
depth of its stack, so that it needs no second copy with `await` in it. A cancellation is raised
where the code waits, like the exception of a signal handler, and the code handles it as such.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar, cast

from gymwire.protocol.errors import MoveError
from gymwire.protocol.extras import install_line

try:
    import anyio as anyio  # which other modules take from here, where its lack is explained
    from greenlet import getcurrent, greenlet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire.aio needs AnyIO and greenlet ({error}). Install them with: {install_line('aio')}",
        name=error.name,
    ) from error

P = ParamSpec("P")
T = TypeVar("T")


class _Call(greenlet):
    """Blocking code on a stack of its own."""


async def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking code, and return its result. `suspend` in it lets other tasks run."""
    call = _Call(function)
    call.gr_context = getcurrent().gr_context
    value = call.switch(*args, **kwargs)
    while not call.dead:
        try:
            result = await value()
        except BaseException as error:  # noqa: BLE001 - a cancellation, too, goes to the code
            value = call.throw(error)
        else:
            value = call.switch(result)
    return cast(T, value)


def suspend(wait: Callable[[], Awaitable[T]]) -> T:
    """Suspend this call until the event loop has awaited `wait()`, and return its result.

    Raises what it raises, a cancellation included; MoveError outside a call.
    """
    call = getcurrent()
    if not isinstance(call, _Call):
        raise MoveError(
            "This environment belongs to an event loop, and would block it here. Use the methods "
            "of gymwire.aio.ProxyEnv with `await`; `await env.run(function)` calls a function that "
            "blocks."
        )
    parent: Any = call.parent
    return cast(T, parent.switch(wait))
