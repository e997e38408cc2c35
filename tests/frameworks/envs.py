"""Environments for the tests with frameworks; they need none of them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class Reach(gymnasium.Env[Any, Any]):
    """Move a point to a goal. The reward of a goal depends on the info of the step, too."""

    observation_space = Dict({key: Box(-4, 4, (2,), np.float32) for key in
                              ("observation", "achieved_goal", "desired_goal")})  # fmt: skip
    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self) -> None:
        self._at = self._goal = np.zeros(2, np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at, self._goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self._steps = 0
        return self._observe(), {"weight": float(self.np_random.random())}

    def step(self, action: Any) -> Step:
        self._at = np.clip(self._at + action / 4, -4, 4, dtype=np.float32)
        self._steps += 1
        info = {"weight": float(self.np_random.random()), "nested": {"steps": self._steps}}
        reward = float(self.compute_reward(self._at[None], self._goal[None], [info])[0])
        return self._observe(), reward, bool(reward > -0.1), self._steps == 12, info

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        """Return the rewards of a batch."""
        weights = [1 + info.get("weight", 0.0) for info in infos]
        return -np.linalg.norm(achieved - desired, axis=-1) * np.array(weights)

    def _observe(self) -> dict[str, Any]:
        return {"observation": self._at, "achieved_goal": self._at, "desired_goal": self._goal}


class Masked(gymnasium.Env[Any, Any]):
    """Repeat the number that you see; two of the five actions are forbidden at each step."""

    observation_space = Discrete(5)
    action_space = Discrete(5)

    def __init__(self) -> None:
        self._order = np.arange(5)
        self._steps = 0
        self.asked = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._order, self._steps = self.np_random.permutation(5), 0
        return int(self._order[0]), {"options": options}

    def step(self, action: Any) -> Step:
        assert self.action_masks()[action]
        reward, self._steps = float(action == self._order[0]), self._steps + 1
        self._order = self.np_random.permutation(5)
        return int(self._order[0]), reward, False, self._steps == 9, {}

    def action_masks(self) -> Any:
        """Which actions are allowed, bool (5,)."""
        self.asked += 1
        masks = np.ones(5, np.bool_)
        masks[self._order[3:]] = False
        return masks


ANY = [1, 0.25, False, 2**70, np.float32(0.5), None, "x", np.arange(2), np.ones(2), [3], {"a": 1}]


class Mixed(gymnasium.Env[Any, Any]):
    """Infos of many types, which come and go; an attribute to set, and a picture."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space: gymnasium.Space[Any] = Discrete(3)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012 - as Env's

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.level = 1
        self.calls = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {"began": True, "options": options, **self._info()}

    def step(self, action: Any) -> Step:
        terminated, truncated = self.np_random.random(2) < (0.2, 0.2)
        reward = float(action) / 3
        return self._observe(), reward, bool(terminated), bool(truncated), self._info()

    def render(self) -> Any:
        return np.full((2, 3, 3), self.level, np.uint8) if self.render_mode == "rgb_array" else "x"

    def scaled(self, by: int, *, plus: int = 0) -> int:
        """Return the level times `by`, plus `plus`, and count the calls."""
        self.calls += 1
        return self.level * by + plus

    def _observe(self) -> Any:
        return self.np_random.normal(size=2).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        draw = float(self.np_random.normal())
        info = {
            "int": int(100 * draw),
            "float": draw,
            "bool": draw > 0,
            "float32": np.float32(draw),
            "array": np.full((2, 3), draw, np.float16),
            "text": f"{draw:.2f}",
            "none": None,
            "list": [draw, "x"],
            "any": ANY[int(100 * abs(draw)) % len(ANY)],
            "nested": {
                "any": ANY[int(1000 * abs(draw)) % len(ANY)],
                "deeper": {"uint8": np.uint8(7), "tuple": (1, None)},
                "empty": {},
            },
        }
        return {key: value for key, value in info.items() if self.np_random.random() < 0.5}


SPACES: dict[str, gymnasium.Space[Any]] = {
    "box": Box(-1, 1, (3,), np.float32),
    "matrix": Box(-1, 1, (2, 3), np.float64),
    "small image": Box(0, 255, (8, 8, 3), np.uint8),
    "image": Box(0, 255, (3, 40, 44), np.uint8),
    "discrete": Discrete(5),
    "multi-discrete": MultiDiscrete([3, 2]),
    "multi-binary": MultiBinary(4),
    "dict": Dict({"place": Box(-1, 1, (2,)), "room": Discrete(3), "lamps": MultiBinary(2)}),
}


class Lottery(gymnasium.Env[Any, Any]):
    """Observations of a space, whatever the actions, which must be of another."""

    def __init__(self, observations: str = "box", actions: str = "discrete") -> None:
        self.observation_space, self.action_space = SPACES[observations], SPACES[actions]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: Any) -> Step:
        assert self.action_space.contains(action)
        return (
            self._draw(),
            float(self.np_random.random()),
            self.np_random.random() < 0.1,
            False,
            {},
        )

    def _draw(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(1000)))
        return self.observation_space.sample()


class Choices(Mixed):
    """Actions that are dicts."""

    action_space = Dict({"number": Discrete(3), "vector": Box(-1, 1, (2,), np.float32)})

    def step(self, action: Any) -> Step:
        observation, _, *rest = super().step(action["number"])
        return observation, float(action["vector"].sum()), *rest


def timed(**kwargs: Any) -> Any:
    """Make a Mixed in a wrapper."""
    return gymnasium.wrappers.TimeLimit(Mixed(**kwargs), 7)
