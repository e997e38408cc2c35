"""An environment whose values have types of their own."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, namedtuple
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Place:
    x: int
    name: str


Pair = namedtuple("Pair", "first second")


class Rich(gymnasium.Env[Any, Any]):
    """Has infos of types that no wire format has, and arrays in Fortran's order."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2, 3), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        objects = np.empty(2, object)
        objects[:] = ["a", {"b": np.arange(3)}]
        return np.asfortranarray(self.np_random.random((2, 3))), {
            "enum": Colour.RED,
            "dataclass": Place(3, "here"),
            "named": Pair(1, np.float32(2)),
            "mapping": MappingProxyType({"a": 1}),
            "ordered": OrderedDict(b=1, a=2),
            "objects": objects,
            "complex": np.complex64(1 + 2j),
            "date": np.datetime64("2020-02-02", "D"),
            "structured": np.zeros(2, [("a", "i4")]),
            "unknown": Path("/x"),
            "order": np.ones((2, 2, 3), order="F"),
        }
