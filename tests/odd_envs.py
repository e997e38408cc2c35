"""Environments that misbehave, each in one way, for an env agent to serve."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary

Result = tuple[Any, Any, bool, bool, dict[str, Any]]


class Odd(gymnasium.Env[Any, Any]):
    """Observes the number of the step; what each action does is said in `step`."""

    observation_space: gymnasium.Space[Any] = Discrete(1000)
    action_space: gymnasium.Space[Any] = Discrete(10)
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(self, render_mode: str | None = None, gravity: float = 9.8) -> None:
        self.render_mode = render_mode
        self.gravity = gravity
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.steps, {"options": options}

    def step(self, action: Any) -> Result:
        self.steps += 1
        return self.steps, 0.0, False, False, {"action": action}

    def render(self) -> Any:
        return f"step {self.steps}"

    def action_masks(self) -> Any:
        """Which actions are possible, bool (10,)."""
        return np.arange(10) > self.steps

    def scaled(self, by: float, *, offset: float = 0.0) -> float:
        """Return a value that depends on the arguments."""
        return self.steps * by + offset


class Unshowable(Odd):
    """Breaks what `step` and `render` promise: only the third frame is a picture."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as in gymnasium.Env

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.steps, None, np.array([True, False]), "no", {}

    def render(self) -> Any:
        shapes = [(0, 4, 3), (4, 4), (4, 4, 2), (4, 4, 3)]
        return np.zeros(shapes[self.steps % 4], np.uint8)


class Signalling(Odd):
    """Sets a signal handler in each step."""

    def step(self, action: Any) -> Result:
        former = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, former)
        return super().step(action)


class Patient(Odd):
    """Each step lasts until the file at `gate` exists, whose name the options of reset give."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._gate = Path((options or {})["gate"])
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Result:
        while not self._gate.exists():
            time.sleep(0.005)
        return super().step(action)


class Slow(Odd):
    """A step lasts as many seconds as its action says."""

    def step(self, action: Any) -> Result:
        time.sleep(int(action))
        return super().step(action)


class Endless(Odd):
    """A step never returns."""

    def step(self, action: Any) -> Result:
        threading.Event().wait()
        raise AssertionError


class Picky(Odd):
    """Accepts only some actions."""

    def step(self, action: Any) -> Result:
        match int(action):
            case 7:
                raise ValueError("seven is not to my taste")
            case 8:
                raise gymnasium.error.InvalidAction("neither is eight")
            case 9:
                raise Peculiar("nor nine")
        return super().step(action)


def _undeclared(method: Any) -> Any:
    """Return a function that is not declared with `async def`, as many decorators do."""
    return lambda *args: method(*args)


class Careless(Odd):
    """The action, or the option "as", chooses what is returned instead of what should be."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = super().reset(seed=seed)
        return result if options is None else self._instead(options["as"], result)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return self._instead(int(action), result)

    def _instead(self, kind: int, result: Any) -> Any:
        match kind:
            case 1:
                return None
            case 2:
                return result[:-1]
            case 3:
                return self._later(result)
            case 4:
                return [*result]
            case 5:
                return itertools.count()
            case 6:
                return np.zeros(2) if len(result) == 2 else dict.fromkeys("abcde", result)
        return result

    @_undeclared
    async def _later(self, result: Any) -> Any:
        return result


class Peculiar(Exception):
    """An exception that no learner knows."""


class Boxed(Odd):
    """Accepts any array, and returns its description."""

    action_space = Box(-1.0, 1.0, (2,), dtype=np.float32)


class Binary(Odd):
    """Accepts a MultiBinary action."""

    action_space = MultiBinary(3)


class Noise(Odd):
    """Observes a megabyte of noise, and rewards the sum of 400,000 bytes of action."""

    observation_space = Box(0, 255, (512, 512, 4), dtype=np.uint8)
    action_space = Box(-1.0, 1.0, (100_000,), dtype=np.float32)

    def _noise(self) -> Any:
        return self.np_random.integers(0, 256, (512, 512, 4), dtype=np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._noise(), {}

    def step(self, action: Any) -> Result:
        return self._noise(), float(action.sum()), False, False, {}


class Unmakeable(Odd):
    """Cannot be made, except by the env agent when it describes it."""

    made = 0

    def __init__(self, render_mode: str | None = None, *, works: bool = True) -> None:
        if not works:
            raise RuntimeError("the simulator's licence has expired")
        super().__init__(render_mode)


class Mortal(Odd):
    """Action 1 kills the process that it is in, action 2 freezes it."""

    def step(self, action: Any) -> Result:
        if action == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(action)


class Shared(Odd):
    """All instances write into one picture and return it: each changes what the others returned."""

    observation_space = Box(0, 255, (200, 200), np.uint8)
    picture = np.zeros((200, 200), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.picture, {}

    def step(self, action: Any) -> Result:
        self.picture += 1
        return self.picture, 0.0, False, False, {}


class Restless(Shared):
    """Goes on writing into its picture between two steps, then makes the file `options["done"]`."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._done = Path((options or {})["done"])
        return super().reset(seed=seed)

    def step(self, action: Any) -> Result:
        result = super().step(action)
        threading.Timer(0.2, self._write).start()
        return result

    def _write(self) -> None:
        self.picture[:] = 99
        self._done.touch()
