"""PettingZoo environments in which agents come and go, with spaces and states of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseParallelWrapper, parallel_to_aec

AGENTS = ["zoe", "adam", "mia"]  # not in the order of the alphabet


class Visitors(ParallelEnv[str, Any, Any]):  # type: ignore[misc]
    """Agents join and leave; each has spaces of its own."""

    metadata = {"name": "visitors", "render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self, render_mode: str | None = None, length: int = 12) -> None:
        self.possible_agents = AGENTS[:]
        self.render_mode = render_mode
        self.length = length
        self.observation_spaces = {
            "zoe": Box(-1.0, 1.0, (3,), np.float32),
            "adam": Discrete(1000),
            "mia": Dict({"at": Box(0, 255, (2, 2), np.uint8), "left": Discrete(100)}),
        }
        self.action_spaces = {
            "zoe": Discrete(3),
            "adam": Box(-1.0, 1.0, (2,), np.float32),
            "mia": MultiDiscrete([2, 5]),
        }
        self.state_space = Box(-1.0, 1.0, (4,), np.float64)
        self.closed = False

    def observation_space(self, agent: str) -> Any:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.np_random = np.random.default_rng(seed)
        self.count = (options or {}).get("skip", 0)
        self.agents = AGENTS[:2]
        return self._observations(self.agents), self._infos(self.agents)

    def _observations(self, agents: list[str]) -> dict[str, Any]:
        made = {
            "zoe": self.np_random.random(3).astype(np.float32),
            "adam": np.int64(self.count),
            "mia": {
                "at": self.np_random.integers(0, 255, (2, 2)).astype(np.uint8),
                "left": np.int64(7),
            },
        }
        return {agent: made[agent] for agent in agents}

    def _infos(self, agents: list[str]) -> dict[str, Any]:
        return {agent: {"count": self.count, "p": np.float64(0.5)} for agent in agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.count += 1
        acted = [agent for agent in AGENTS if agent in self.agents]
        if self.count == 3:
            acted.append("mia")
        told = repr(sorted((k, np.asarray(v).tolist()) for k, v in actions.items()))
        rewards = {agent: float(len(told)) for agent in acted}
        terminated = {agent: agent == "adam" and self.count >= 8 for agent in acted}
        truncated = dict.fromkeys(acted, self.count >= self.length)
        self.agents = [one for one in acted if not terminated[one] and not truncated[one]]
        return self._observations(acted), rewards, terminated, truncated, self._infos(acted)

    def state(self) -> Any:
        return np.full(4, self.count / 100)

    def greet(self, agent: str, *, times: int = 1) -> str:
        return f"{agent} " * times + str(self.length)

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return f"{self.count}: {self.agents}"
        return np.full((2, 3, 3), self.count, np.uint8)

    def close(self) -> None:
        self.closed = True


class Countdown(AECEnv[str, Any, Any]):  # type: ignore[misc]
    """The agents count down in turn, and leave one after another."""

    metadata = {"name": "countdown", "render_modes": []}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.possible_agents = AGENTS[:]
        self.render_mode = render_mode
        self._spaces = {agent: Discrete(50 + i) for i, agent in enumerate(AGENTS)}
        self._action = Discrete(4)

    def observation_space(self, agent: str) -> Any:
        return self._spaces[agent]

    def action_space(self, agent: str) -> Any:
        return self._action

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.agents = AGENTS[:]
        self.left = {agent: 5 + i + (seed or 0) for i, agent in enumerate(AGENTS)}
        self.rewards = dict.fromkeys(AGENTS, 0.0)
        self._cumulative_rewards = dict.fromkeys(AGENTS, 0.0)
        self.terminations = dict.fromkeys(AGENTS, False)
        self.truncations = dict.fromkeys(AGENTS, False)
        self.infos = {agent: {"left": self.left[agent]} for agent in AGENTS}
        self.agent_selection = AGENTS[0]

    def observe(self, agent: str) -> Any:
        return np.int64(max(self.left[agent], 0))

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0
        self.left[agent] -= int(action)
        self.rewards = {one: float(self.left[agent]) for one in self.agents}
        self.terminations[agent] = self.left[agent] <= 0
        self.infos[agent] = {"left": self.left[agent], "by": action}
        self._accumulate_rewards()
        after = AGENTS.index(agent) + 1
        in_turn = AGENTS[after:] + AGENTS[:after]
        self.agent_selection = next(one for one in in_turn if one in self.agents)
        self._deads_step_first()


class Bare(Visitors):
    """An environment as PettingZoo's tutorial writes them: without a render mode."""

    metadata = {"name": "bare"}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self) -> None:
        super().__init__()
        del self.render_mode


def turns(**kwargs: Any) -> Any:
    """Return Visitors as an AECEnv."""
    return parallel_to_aec(Visitors(**kwargs))


class Hurried(BaseParallelWrapper[str, Any, Any]):  # type: ignore[misc]
    """A wrapper of PettingZoo: its agents get less for each step."""

    def __init__(self, env: Any, cost: float) -> None:
        super().__init__(env)
        self.cost = cost

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {agent: it - self.cost for agent, it in rewards.items()}, *rest
