"""Environments with spaces that are not Gymnasium's own, and one with goals."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiDiscrete, Space, Text, Tuple


class Words(Space[str]):
    """As MiniGrid's MissionSpace: texts that only a function of its own can make."""

    def __init__(self, colours: tuple[str, ...] = ("red", "blue")) -> None:
        super().__init__(dtype=str)
        self.colours = colours

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a text."""
        return f"get the {self.colours[self.np_random.integers(len(self.colours))]} ball"

    def contains(self, x: Any) -> bool:
        """Return whether this is one of the texts."""
        return np.bool_(x in {f"get the {one} ball" for one in self.colours})  # type: ignore[return-value]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words) and self.colours == other.colours

    __hash__ = None  # type: ignore[assignment]


class NamedBox(Box):
    """A Box with names for its elements, and the values of a Box."""

    names = ("x", "y")


class Disc(Box):
    """A Box that contains only a part of the values."""

    def contains(self, x: Any) -> bool:
        """Return whether this is a point of the disc."""
        return super().contains(x) and float(np.linalg.norm(x)) <= 1


SPACES: dict[str, Space[Any]] = {
    "words": Dict({"image": Box(0, 255, (3, 3), np.uint8), "mission": Words()}),
    "only-words": Words(("green", "grey", "purple")),
    "pair": Tuple([Words(), Discrete(3), Words(("x",))]),
    "named": NamedBox(-1, 1, (2,), np.float32),
    "disc": Disc(-1, 1, (2,), np.float32),
    "graph": Graph(Tuple([Discrete(3), Text(4)]), MultiDiscrete([2, 3])),
    "graph-of-dicts": Graph(Dict({"at": Box(0, 1, (2,)), "kind": Discrete(2)}), None),
}


class Odd(gymnasium.Env[Any, Any]):
    """Observes samples of one of the spaces above, and takes such samples as actions."""

    def __init__(self, name: str = "words", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = copy.deepcopy(SPACES[name])
        self.action_space = copy.deepcopy(SPACES[name])

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step. The reward says whether the action is one."""
        reward = float(self.action_space.contains(action))
        return self.observation_space.sample(), reward, False, False, {"action": repr(action)}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        """Return the reward of each pair of goals."""
        return -np.linalg.norm(achieved - desired, axis=-1) + len(info)

    def compute_terminated(self, achieved: Any, desired: Any, info: Any) -> Any:
        """Return whether each goal is reached."""
        return bool((achieved == desired).all())

    def compute_truncated(self, achieved: Any, desired: Any, info: Any) -> Any:
        """Return False."""
        return False
