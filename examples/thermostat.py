"""Your own environment: a plain gymnasium.Env, which needs no changes to be served.

gymwire serve thermostat examples.thermostat:Thermostat
gymwire train thermostat
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Discrete


class Thermostat(gymnasium.Env[Any, Any]):
    """Keep a room at 21 °C for 100 minutes by switching a heater on or off.

    The observation is the temperature in °C, 0 to 39. A step is one minute. The reward is minus the
    distance from the target temperature.

    Args:
        render_mode: "ansi" or None.
        target: the target temperature in °C.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(self, render_mode: str | None = None, target: int = 21) -> None:
        self.observation_space, self.action_space = Discrete(40), Discrete(2)
        self.render_mode = render_mode
        self.target = target
        self.degrees = self.minute = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Start at a random temperature."""
        super().reset(seed=seed)
        self.degrees, self.minute = int(self.np_random.integers(5, 35)), 0
        return self.degrees, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Heat for a minute (action 1) or not (action 0). Now and then, an open window cools."""
        change = (1 if action else -1) - int(self.np_random.random() < 0.1)
        self.degrees = min(39, max(0, self.degrees + change))
        self.minute += 1
        reward = -float(abs(self.degrees - self.target))
        return self.degrees, reward, False, self.minute == 100, {}

    def render(self) -> str | None:
        """Draw a thermometer."""
        if self.render_mode != "ansi":
            return None
        return f"{'▉' * self.degrees}{'·' * (39 - self.degrees)} {self.degrees} °C"
