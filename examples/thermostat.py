"""An environment of one's own: nothing in it knows that it will be offered to others.

gymwire serve --address thermostat --env examples.thermostat:Thermostat
gymwire train thermostat
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Discrete


class Thermostat(gymnasium.Env[Any, Any]):
    """Keep a room at 21 degrees for a hundred minutes, with a heater that is on or off.

    Observes the temperature in degrees, 0 to 39. The reward is less by one for each degree away.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(self, render_mode: str | None = None, wanted: int = 21) -> None:
        self.observation_space, self.action_space = Discrete(40), Discrete(2)
        self.render_mode = render_mode
        self.wanted = wanted
        self.degrees = self.minute = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Begin with a room at any temperature."""
        super().reset(seed=seed)
        self.degrees, self.minute = int(self.np_random.integers(5, 35)), 0
        return self.degrees, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Heat for a minute, or do not; a window lets warmth out now and then."""
        change = (1 if action else -1) - int(self.np_random.random() < 0.1)
        self.degrees = min(39, max(0, self.degrees + change))
        self.minute += 1
        reward = -float(abs(self.degrees - self.wanted))
        return self.degrees, reward, False, self.minute == 100, {}

    def render(self) -> str | None:
        """Draw a thermometer."""
        if self.render_mode != "ansi":
            return None
        return f"{'▉' * self.degrees}{'·' * (39 - self.degrees)} {self.degrees} °C"
