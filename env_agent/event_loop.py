"""Environments with asynchronous methods, used like any other: they all run in one event loop."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from gymwire.env_agent import failure_reports
from gymwire.env_agent.forks import end_if_forked
from gymwire.protocol import logs

METHODS = ("reset", "step", "render", "close")
_starting = threading.Lock()


def is_asynchronous(env: object) -> bool:
    """Return whether a method of an environment, or of a class of environments, is asynchronous."""
    return any(_is_coroutine_function(getattr(env, name, None)) for name in METHODS)


def _is_coroutine_function(found: object) -> bool:
    function = getattr(found, "__func__", found)
    if type(function) is types.FunctionType and not function.__dict__:  # it has no mark
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(found)  # which takes three times as long


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the thread of the event loop, await its result, and return it.

    Raises what the function raises, whatever that is.
    """
    pid = os.getpid()

    async def settle() -> tuple[Any, BaseException | None]:
        try:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result, None
        except BaseException as error:  # noqa: BLE001 - asyncio would end the loop, or this task
            end_if_forked(pid, error)
            return None, error

    result, error = asyncio.run_coroutine_threadsafe(settle(), _event_loop()).result()
    if error is not None:
        raise error
    return result


def create(make: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what `make` makes: an environment, in a `Bridge` if it is asynchronous.

    A class of such environments is called in the event loop, a function in this thread.
    """
    made = call(make, **kwargs) if is_asynchronous(make) else make(**kwargs)
    return Bridge(made) if isinstance(made, gymnasium.Env) and is_asynchronous(made) else made


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs in a thread of its own."""
    with _starting:
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if hasattr(os, "register_at_fork"):
        # The loop of a copy would read the messages to the loop of this process. Nothing undoes the
        # registration, but a process makes only one such loop.
        os.register_at_fork(after_in_child=loop.stop)
    threading.Thread(target=_run, args=(loop,), name="event loop", daemon=True).start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop, also after one of the environments that share it has ended it.

    It may call `stop`, or raise SystemExit or KeyboardInterrupt in a task that nobody awaits: these
    two, asyncio raises from the loop itself.
    """
    pid = os.getpid()
    while True:
        try:
            loop.run_forever()
            if os.getpid() != pid:  # asyncio has handled the exception of a copy's task
                os._exit(1)
        except (SystemExit, KeyboardInterrupt) as error:
            end_if_forked(pid, error)
            logs.logger().error(
                "background task raised",
                error=failure_reports.summary(error),
                traceback=failure_reports.trace_of(error),
            )


class Bridge(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose methods are called in the event loop, while the caller waits.

    So the environments of all sessions share one thread, and the rest of the env agent need not
    know that their methods are asynchronous.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment."""
        return call(self.env.reset, seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Step the environment."""
        return call(self.env.step, action)

    def render(self) -> Any:
        """Render the environment."""
        return call(self.env.render)

    def close(self) -> None:
        """Close the environment."""
        call(self.env.close)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute of the environment; a method runs in the event loop, too."""
        found = super().get_wrapper_attr(name)
        return functools.partial(call, found) if inspect.ismethod(found) else found
