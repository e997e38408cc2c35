"""An environment to which every check applies."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

WAIT = "wait"  # an option of `reset`: the seconds that it takes
PICTURE = (64, 64, 3)


class Rich(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """Episodes end at random. Actions are arrays, and observations are large ones."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - as Gymnasium's own
    observation_space = gymnasium.spaces.Box(0, 255, PICTURE, np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    level = 3

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.lock = threading.Lock()  # cannot be encoded
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        if options and "array" in options:
            threading.Event().wait(2.5)  # long enough for PROGRESS, also on a busy machine
        return self._observation(), {"name": "start"}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(action.sum())
        ended = self.np_random.random() < 0.2
        return self._observation(), reward, bool(ended), False, {"steps": self.steps}

    def _observation(self) -> NDArray[np.uint8]:
        return self.np_random.integers(0, 255, PICTURE, np.uint8)

    def render(self) -> str:
        return f"step {self.steps}"

    def add(self, one: int, other: int = 2) -> int:
        return one + other
