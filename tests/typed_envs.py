"""Environments with values of many types, which draw random numbers, for an env agent to serve."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Weather(enum.Enum):
    SUN = "sun"
    RAIN = "rain"


class Place(NamedTuple):
    x: float
    y: float


@dataclass
class Report:
    weather: Weather
    place: Place


class Tensor:
    """Has the interface of a tensor of PyTorch or JAX: DLPack and conversion to an array."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    def __dlpack__(self, **_: Any) -> Any:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._array


class Typed(gymnasium.Env[Any, Any]):
    """Its info holds values of many types; the observation is a tensor if `tensors` is true."""

    observation_space = Box(0, 1, (2,), np.float32)
    action_space = Discrete(10)

    def __init__(self, tensors: bool = False) -> None:
        self._tensors = tensors

    def _result(self) -> tuple[Any, dict[str, Any]]:
        values = self.np_random.random(2, np.float32)
        items = np.empty(2, object)
        items[:] = [Weather.SUN, [1, None]]
        info = {
            "weather": Weather.RAIN,
            "report": Report(Weather.SUN, Place(1.0, 2.0)),
            "items": items,
            "draw": float(values[0]),
        }
        return (Tensor(values) if self._tensors else values), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._result()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, info = self._result()
        return observation, self.np_random.normal(), False, False, info


class Fortran(gymnasium.Env[Any, Any]):
    """Observes images whose axes have Fortran's order in memory."""

    observation_space = Box(0, 1, (30, 20, 3), np.float64)
    action_space = Discrete(10)

    def _observe(self) -> Any:
        return np.asfortranarray(self.np_random.random((30, 20, 3)))

    def _info(self, value: Any) -> dict[str, Any]:
        return {"mask": np.ones((2, 3), order="F"), "objects": np.full((2, 3), value, object, "F")}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), self._info(None)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._observe(), 1.0, False, False, self._info("x")


class Mixed(gymnasium.Env[Any, Any]):
    """Has an integer in its info with an even seed, and a fraction with an odd one."""

    observation_space = action_space = Discrete(10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {"value": 0.5 if self.np_random_seed % 2 else 1}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return 0, 0.0, False, False, {}
