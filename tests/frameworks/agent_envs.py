"""An environment with several agents that have the same spaces, as most frameworks require."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Pursuit(ParallelEnv[str, Any, Any]):  # type: ignore[misc]
    """Each of two agents moves along a line, towards its goal and away from the other."""

    metadata = {"name": "pursuit", "render_modes": []}  # noqa: RUF012 - as PettingZoo declares it
    render_mode = None

    def __init__(self) -> None:
        self.possible_agents = ["left", "right"]
        self.rng = np.random.default_rng(0)
        self.at = self.goals = np.zeros(2)
        self.count = 0

    def observation_space(self, agent: str) -> Any:
        return SPACES[0]

    def action_space(self, agent: str) -> Any:
        return SPACES[1]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.count = self.possible_agents[:], 0
        self.at, self.goals = self.rng.uniform(-1, 1, (2, 2))
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        moves = np.array([int(actions[agent]) - 1 for agent in self.agents])
        self.at = np.clip(self.at + moves / 4 + self.rng.normal(0, 0.01, 2), -2, 2)
        self.count += 1
        far = np.abs(self.at - self.goals)
        apart = abs(float(self.at[0] - self.at[1]))
        rewards = {agent: apart - float(far[i]) for i, agent in enumerate(self.agents)}
        ended = dict.fromkeys(self.agents, bool((far < 0.1).all()))
        cut = dict.fromkeys(self.agents, self.count == 20)
        observations = self._observations()
        infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.agents}
        if all(ended.values()) or all(cut.values()):
            self.agents = []
        return observations, rewards, ended, cut, infos

    def _observations(self) -> dict[str, Any]:
        rows = zip(self.at, self.goals, self.at[::-1], strict=True)
        return {
            agent: np.array(row, np.float32)
            for agent, row in zip(self.possible_agents, rows, strict=True)
        }


SPACES = Box(-2, 2, (3,), np.float32), Discrete(3)
