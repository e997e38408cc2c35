"""An environment whose steps a test holds up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

FAILS = 9


class Gate(gymnasium.Env[Any, Any]):
    """Waits in `step` while the file `gate` exists. The reward is the number of the step."""

    def __init__(self, gate: str = "") -> None:
        self.observation_space = gymnasium.spaces.Box(0, 100, (2,), np.int64)
        self.action_space = gymnasium.spaces.MultiDiscrete([10, 10])
        self.executed: list[list[int]] = []
        self.mood = "cheerful"
        self._gate = gate
        self._number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._number = 0
        return np.zeros(2, np.int64), {}

    def step(self, action: Any) -> Any:
        while self._gate and Path(self._gate).exists():
            time.sleep(0.01)
        self.executed.append([int(one) for one in action])
        if action[0] == FAILS:
            raise ValueError("This action fails.")
        self._number += 1
        return action, float(self._number), False, False, {}
