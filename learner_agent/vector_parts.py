"""A vector in parts: actions split over sessions, their observations and infos joined again.

Every function takes the space of a single environment where it must know how values are batched:
Dict and Tuple batch each of their parts; Text, Sequence, Graph and OneOf are batched as a tuple;
everything else as an array.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from protocol.errors import BatchSizeError

_CUSTOM = (spaces.Text, spaces.Sequence, spaces.Graph, spaces.OneOf)


def slices(num_envs: int, sessions: int) -> list[slice]:
    """Which environments each session has: as even as can be, the first ones one more."""
    each, more = divmod(num_envs, sessions)
    stops = [each * i + min(i, more) for i in range(sessions + 1)]
    return [slice(start, stop) for start, stop in pairwise(stops)]


def check_size(space: Space[Any], actions: Any, num_envs: int, path: str = "actions") -> None:
    """Raise BatchSizeError unless there is one action for each environment."""
    if isinstance(space, spaces.Dict):
        if not isinstance(actions, Mapping):
            raise BatchSizeError(f"{path} must be a dict of batches, as the action space is.")
        for key, value in actions.items():
            if key in space.spaces:
                check_size(space.spaces[key], value, num_envs, f"{path}[{key!r}]")
        return
    if isinstance(space, spaces.Tuple):
        if not isinstance(actions, Sequence) or len(actions) != len(space.spaces):
            raise BatchSizeError(
                f"{path} must be a tuple of {len(space.spaces)} batches, as the action space is."
            )
        for i, (child, value) in enumerate(zip(space.spaces, actions, strict=True)):
            check_size(child, value, num_envs, f"{path}[{i}]")
        return
    try:
        size = len(actions)
    except TypeError:
        raise BatchSizeError(
            f"{path} must hold one action for each of {num_envs} environments; a "
            f"{type(actions).__name__} has no length."
        ) from None
    if size != num_envs:
        raise BatchSizeError(f"{path} holds {size} actions for {num_envs} environments.")


def take(space: Space[Any], actions: Any, part: slice | NDArray[np.intp]) -> Any:
    """The actions at these places of a batch; of arrays, for a slice, they are views."""
    if isinstance(space, spaces.Dict):
        return {
            key: take(space.spaces[key], value, part) if key in space.spaces else value
            for key, value in actions.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(take(child, a, part) for child, a in zip(space.spaces, actions, strict=True))
    if isinstance(part, slice) or isinstance(actions, np.ndarray):
        return actions[part]
    return tuple(actions[i] for i in part)


def join(space: Space[Any], parts: Sequence[Any]) -> Any:
    """The observations of several sessions as those of one vector, in fresh memory."""
    if isinstance(space, spaces.Dict):
        return {key: join(child, [p[key] for p in parts]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(join(child, [p[i] for p in parts]) for i, child in enumerate(space.spaces))
    if isinstance(space, _CUSTOM):
        return tuple(deepcopy(item) for part in parts for item in part)
    return np.concatenate(parts)


def join_infos(parts: Sequence[Mapping[Any, Any]], sizes: Sequence[int]) -> dict[Any, Any]:
    """The infos of several sessions as those of one vector of `sum(sizes)` environments.

    As `VectorEnv._add_info` would have made them: where a session lacks a key, there are zeros of
    the dtype of the first one that has it, None among objects, False in the `_key` masks. Where
    dtypes or shapes do not go together, where Gymnasium would fail, it is an array of objects.
    """
    joined: dict[Any, Any] = {}
    for part in parts:
        for key in part:
            if key not in joined:
                mask = f"_{key}"
                joined[key] = _join_values(
                    [p.get(key, _MISSING) for p in parts], [p.get(mask) for p in parts], sizes
                )
    return joined


class _Missing(enum.Enum):
    MISSING = "the session has nothing under this key"


_MISSING = _Missing.MISSING


def _join_values(values: list[Any], masks: list[Any], sizes: Sequence[int]) -> Any:
    present = [value for value in values if value is not _MISSING]
    if all(isinstance(value, dict) for value in present):
        return join_infos([{} if value is _MISSING else value for value in values], sizes)
    first = present[0]
    fits = all(
        value is _MISSING or (isinstance(value, np.ndarray) and value.shape[:1] == (size,))
        for value, size in zip(values, sizes, strict=True)
    )
    if fits and all(_go_together(first, value) for value in present):
        array = np.zeros((sum(sizes), *first.shape[1:]), first.dtype)
        if first.dtype.kind == "O":
            array.fill(None)
        start = 0
        for value, size in zip(values, sizes, strict=True):
            if value is not _MISSING:
                array[start : start + size] = value
            start += size
        return array
    return _as_objects(values, masks, sizes)


def _go_together(first: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if first.shape[1:] != other.shape[1:]:
        return False
    kinds = first.dtype.kind + other.dtype.kind
    # Among numbers, numpy casts as it does when a single environment's value is put in its place.
    return first.dtype == other.dtype or all(kind in "biufc" for kind in kinds) or kinds in _TEXTS


_TEXTS = ("UU", "SS")


def _as_objects(values: list[Any], masks: list[Any], sizes: Sequence[int]) -> Any:
    array = np.full(sum(sizes), None, object)
    start = 0
    for value, mask, size in zip(values, masks, sizes, strict=True):
        batched = isinstance(value, np.ndarray) and value.shape[:1] == (size,)
        for i in range(size):
            if value is not _MISSING and (mask is None or mask[i]):
                array[start + i] = value[i] if batched else value
        start += size
    return array
