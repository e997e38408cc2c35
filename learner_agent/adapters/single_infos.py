"""Split the infos of a vector into the info of each environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_PYTHON_TYPES = {np.dtype(bool), np.dtype(int), np.dtype(float)}


def split(infos: Mapping[Any, Any], num_envs: int) -> list[dict[Any, Any]]:
    """Return the info of each environment, in memory of its own.

    An environment has the keys whose mask, `_key`, is true for it; without a mask all have it. A
    nested dict is split likewise. Items of arrays of bool, int64 and float64 become Python's bool,
    int and float, which most environments return.
    """
    singles: list[dict[Any, Any]] = [{} for _ in range(num_envs)]
    _fill(dict(enumerate(singles)), infos, num_envs)
    return singles


def _fill(singles: Mapping[int, dict[Any, Any]], infos: Mapping[Any, Any], num_envs: int) -> None:
    """Add what `infos` holds for the environments with these numbers to their infos."""
    masks = {f"_{key}" for key in infos}
    for key, value in infos.items():
        if key in masks:
            continue
        mask = infos.get(f"_{key}")
        numbers: Iterable[int] = singles
        if mask is not None:  # often of few environments, whose episodes have ended
            numbers = [i for i in np.flatnonzero(mask).tolist() if i in singles]
        if isinstance(value, dict):
            nested: dict[int, dict[Any, Any]] = {i: {} for i in numbers}
            for i, one in nested.items():
                singles[i][key] = one
            _fill(nested, value, num_envs)
            continue
        items = _items(value, num_envs)
        for i in numbers:
            singles[i][key] = items[i]


def _items(value: Any, num_envs: int) -> Any:
    """Return what `value` holds for each environment."""
    if not isinstance(value, np.ndarray | list | tuple) or len(value) != num_envs:
        return [value] * num_envs  # an environment's own vector class may say one thing for all
    if not isinstance(value, np.ndarray) or (value.ndim == 1 and value.dtype.hasobject):
        return value
    if value.ndim > 1:
        return [one.copy() for one in value]
    return value.tolist() if value.dtype in _PYTHON_TYPES else [*value]
