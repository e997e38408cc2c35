"""An environment whose values have types of their own."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 3


@dataclasses.dataclass
class Place:
    x: Any
    name: str


Pair = namedtuple("Pair", "first second")
Wide: Any = namedtuple("Wide", [f"x{i}" for i in range(20)])  # type: ignore[misc]
Wider: Any = namedtuple("Wider", [f"x{i}" for i in range(59)])  # type: ignore[misc]


class Tensor:
    """Has the interface of a tensor of JAX: DLPack and conversion to an array."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array, self.shape = array, array.shape

    def __dlpack__(self, **_: Any) -> Any:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self._array

    def __bool__(self) -> bool:
        return bool(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __float__(self) -> float:
        return float(self._array)


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


class Varied(gymnasium.Env[Any, Any]):
    """Has infos that vary from step to step, in types of their own."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2), self._info()

    def step(self, action: Any) -> Any:
        return np.zeros(2), 0.0, bool(self.np_random.random() < 0.2), False, self._info()

    def _info(self) -> dict[str, Any]:
        numbers = [1, Level.LOW, 0.5, True, Colour.RED, Tensor(np.array(2.5))]
        dicts = [{"a": 1}, Counter("aab"), Place(1, "x"), MappingProxyType({"a": 1})]
        arrays = [np.ones(2), Tensor(np.zeros(2)), Pair(1, Level.LOW), [Place(Level.LOW, "y")]]
        info: dict[Any, list[Any]] = {
            "number": numbers,
            "dict": dicts,
            "array": arrays,
            "any": [*numbers, *dicts, *arrays],
            Colour.RED: numbers,
            Level.LOW: dicts,
            (Colour.RED, Level.LOW): dicts,
            Wide(*[Colour.RED] * 20): [{Colour.RED: 1, Path("/x"): 2}],
        }
        return {
            key: found[self.np_random.integers(len(found))]
            for key, found in info.items()
            if self.np_random.random() < 0.8
        }


class Tensors(gymnasium.Env[Any, Any]):
    """Has tensors in observations and rewards."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2, 3), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return Tensor(self.np_random.random((2, 3))), {}

    def step(self, action: Any) -> Any:
        reward = Tensor(np.array(self.np_random.random()))
        ends = Tensor(np.array(self.np_random.random() < 0.3))
        return Tensor(self.np_random.random((2, 3))), reward, False, ends, {"it": reward}
