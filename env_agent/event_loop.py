"""Environments with asynchronous methods, used like any other: they all run in one event loop."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from gymwire.env_agent.interpreter.child import METHODS, may_be_asynchronous

_starting = threading.Lock()


def is_coroutine_function(value: object) -> bool:
    """Return whether a function, or an object that is called like one, is asynchronous."""
    called = type(value).__call__ if callable(value) else None
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(called)


def is_asynchronous(env: object) -> bool:
    """Return whether a method of an environment, or of a class of environments, is asynchronous."""
    return any(is_coroutine_function(getattr(env, name, None)) for name in METHODS)


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in the thread of the event loop, await its result, and return it.

    Raises what the function raises, whatever that is.
    """

    async def settle() -> tuple[Any, BaseException | None]:
        try:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result, None
        except BaseException as error:  # noqa: BLE001 - asyncio would end the loop, or this task
            return None, error

    result, error = asyncio.run_coroutine_threadsafe(settle(), _event_loop()).result()
    if error is not None:
        raise error
    return result


def create(make: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what `make` makes: an environment, in a `Bridge` if it may be asynchronous.

    A class of asynchronous environments is called in the event loop, a function in this thread.
    """
    return bridge(call(make, **kwargs) if is_asynchronous(make) else make(**kwargs))


def bridge(made: Any) -> Any:
    """Put a `Bridge` around the environment, or the outermost wrapper, that may be asynchronous.

    The wrappers around it, such as Gymnasium's own, do not await.
    """
    above: Any = None
    layer = made
    while isinstance(layer, gymnasium.Env) and not isinstance(layer, Bridge):
        if may_be_asynchronous(layer):
            if above is None:
                return Bridge(layer)
            above.env = Bridge(layer)
            break
        above, layer = layer, vars(layer).get("env")
    return made


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs in a thread of its own."""
    with _starting:
        return _started_loop()


@functools.cache
def _started_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run, args=(loop,), name="event loop", daemon=True).start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop, also after one of the environments that share it has stopped it."""
    while True:
        loop.run_forever()


class Bridge(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose methods are called in the event loop, while the caller waits.

    So the environments of all sessions share one thread, and the rest of the env agent need not
    know that their methods are asynchronous. If only the results of its methods show that they
    are, as behind a decorator, they are called in the event loop from the first such result on.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._is_asynchronous = is_asynchronous(env)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_asynchronous:
            return call(function, *args, **kwargs)
        result = function(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        self._is_asynchronous = True
        return call(lambda: result)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment."""
        return self._call(self.env.reset, seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Step the environment."""
        return self._call(self.env.step, action)

    def render(self) -> Any:
        """Render the environment."""
        return self._call(self.env.render)

    def close(self) -> None:
        """Close the environment."""
        self._call(self.env.close)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute of the environment; a method is called as `step` is, too."""
        found = super().get_wrapper_attr(name)
        is_method = inspect.isroutine(found) or is_coroutine_function(found)
        return functools.partial(self._call, found) if is_method else found
