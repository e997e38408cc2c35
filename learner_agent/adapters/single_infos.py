"""Split the infos of a vector into the info of each environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_PYTHON_TYPES = {np.dtype(bool), np.dtype(int), np.dtype(float)}


def split(
    infos: Mapping[Any, Any], chosen: Iterable[int], num_envs: int
) -> dict[int, dict[Any, Any]]:
    """Return the infos of the chosen environments by their numbers, in memory of their own.

    An environment has the keys whose mask, `_key`, is true for it; without a mask all have it. A
    nested dict is split likewise. Items of arrays of bool, int64 and float64 become Python's bool,
    int and float, which most environments return.
    """
    singles: dict[int, dict[Any, Any]] = {i: {} for i in chosen}
    masks = {f"_{key}" for key in infos}
    for key, value in infos.items():
        if key in masks:
            continue
        mask = infos.get(f"_{key}")
        numbers: Iterable[int] = singles
        if mask is not None:  # often of few environments, whose episodes have ended
            numbers = [i for i in np.asarray(mask).ravel().nonzero()[0].tolist() if i in singles]
        items = (
            split(value, numbers, num_envs) if isinstance(value, dict) else _items(value, num_envs)
        )
        for i in numbers:
            singles[i][key] = items[i]
    return singles


def _items(value: Any, num_envs: int) -> Any:
    """Return what `value` holds for each environment."""
    if not isinstance(value, np.ndarray | list | tuple) or len(value) != num_envs:
        return [value] * num_envs  # an environment's own vector class may say one thing for all
    if not isinstance(value, np.ndarray) or (value.ndim == 1 and value.dtype.hasobject):
        return value
    if value.ndim > 1:
        return [one.copy() for one in value]
    return value.tolist() if value.dtype in _PYTHON_TYPES else [*value]
