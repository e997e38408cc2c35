"""Environments that are asynchronous in other ways than by `async def step`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from typing import Any

import gymnasium
from gymnasium.spaces import Discrete


async def echo(env: Any, action: Any) -> Any:
    """Return the results of a step that observes its action."""
    await asyncio.sleep(0)
    return action, 1.0, False, False, {}


def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns what the method returns."""

    def passes_on(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return passes_on


class Decorator:
    """A decorator that is a class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def __call__(self, action: Any) -> Any:
        return self.method(None, action)


class Step:
    """A step that is an object."""

    async def __call__(self, action: Any) -> Any:
        return await echo(None, action)


class Base(gymnasium.Env[Any, Any]):
    observation_space = action_space = Discrete(10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        return 3, {}


class Wrapped(Base):
    step: Any = wraps(echo)(decorated(echo))


class DecoratedTwice(Base):
    step: Any = decorated(decorated(echo))


class DecoratedByObject(Base):
    step: Any = Decorator(echo)


class OfObject(Base):
    step: Any = Step()


class ReturnsCoroutine(Base):
    def step(self, action: Any) -> Any:
        return self._step(action)

    async def _step(self, action: Any) -> Any:
        return await echo(self, action)


class RunsItself(ReturnsCoroutine):
    """Not asynchronous: its step runs an event loop of its own."""

    def step(self, action: Any) -> Any:
        return asyncio.run(self._step(action))


class Awaits(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that awaits."""

    async def step(self, action: Any) -> Any:  # type: ignore[override]
        result: Any = self.env.step(action)
        return await result


def make_awaited() -> Any:
    """Return an asynchronous environment in a wrapper that awaits."""
    return Awaits(ReturnsCoroutine())


def make_wrapped() -> Any:
    """Return an asynchronous environment in a wrapper that does not await."""
    return gymnasium.wrappers.TimeLimit(make_awaited(), 2)


NAMES = [
    "Wrapped",
    "DecoratedTwice",
    "DecoratedByObject",
    "OfObject",
    "ReturnsCoroutine",
    "RunsItself",
    "make_awaited",
    "make_wrapped",
]
for name in NAMES:
    gymnasium.register(f"{name}-v7", f"{__name__}:{name}", max_episode_steps=2)
