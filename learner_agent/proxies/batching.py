"""Split batches over the sessions of a vector, and join observations and infos again.

Functions that need to know how values are batched take the space of a single environment, or what
`layout` returns. As in Gymnasium, Dict and Tuple batch each of their parts; Text, Sequence, Graph,
OneOf and spaces that are not Gymnasium's own are batched as a tuple; every other space is batched
as an array.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from gymwire.protocol import vector_infos
from gymwire.protocol.errors import BatchSizeError
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.remote_space import RemoteSpace
from gymwire.protocol.spaces import build
from gymwire.protocol.vector_infos import Casts

_CUSTOM = (spaces.Text, spaces.Sequence, spaces.Graph, spaces.OneOf, RemoteSpace)


def slices(num_envs: int, sessions: int) -> list[slice]:
    """Return the environments of each session, spread evenly; the first sessions have one more."""
    each, more = divmod(num_envs, sessions)
    stops = [each * i + min(i, more) for i in range(sessions + 1)]
    return [slice(start, stop) for start, stop in pairwise(stops)]


def layout(single: Space[Any], batch: Sequence[Any]) -> Space[Any]:
    """Return a space that batches as `single` does: itself, if the learner knows its parts.

    The parts of a class derived from Dict show only in `batch`, the description of its batch.
    """
    return _unbatched(build(batch)) if isinstance(single, RemoteSpace) else single


def _unbatched(batch: Space[Any]) -> Space[Any]:
    if isinstance(batch, spaces.Dict):
        return spaces.Dict({key: _unbatched(part) for key, part in batch.items()})
    return RemoteSpace("", "") if isinstance(batch, spaces.Tuple) else batch


def check_size(space: Space[Any], actions: Any, num_envs: int, path: str = "actions") -> None:
    """Raise BatchSizeError unless `actions` has one action for each environment."""
    if isinstance(space, spaces.Dict):
        if not isinstance(actions, Mapping):
            raise BatchSizeError(
                f"{path} must be a dict of batches, like the action space, not a "
                f"{type(actions).__name__}."
            )
        for key, value in actions.items():
            if key in space.spaces:
                check_size(space.spaces[key], value, num_envs, f"{path}[{key!r}]")
        return
    if isinstance(space, spaces.Tuple):
        if not isinstance(actions, Sequence) or len(actions) != len(space.spaces):
            raise BatchSizeError(
                f"{path} must be a tuple of {len(space.spaces)} batches, like the action space."
            )
        for i, (child, value) in enumerate(zip(space.spaces, actions, strict=True)):
            check_size(child, value, num_envs, f"{path}[{i}]")
        return
    try:
        size = len(actions)
    except TypeError as error:
        if is_from_outside(error):
            raise
        raise BatchSizeError(
            f"{path} must have one action for each of {num_envs} environments; a value of type "
            f"{type(actions).__name__} has no length."
        ) from None
    if size != num_envs:
        raise BatchSizeError(
            f"{path} has a length of {size}, but there are {num_envs} environments."
        )


def take(space: Space[Any], actions: Any, part: slice | NDArray[np.intp]) -> Any:
    """Return the actions at these places of a batch. A slice of an array is a view."""
    if isinstance(actions, np.ndarray):
        return actions[part]
    if isinstance(space, spaces.Dict):
        return {
            key: take(space.spaces[key], value, part) if key in space.spaces else value
            for key, value in actions.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(take(child, a, part) for child, a in zip(space.spaces, actions, strict=True))
    if isinstance(part, slice):
        return actions[part]
    return tuple(actions[i] for i in part)


def join(space: Space[Any], parts: Sequence[Any]) -> Any:
    """Join the observations of several sessions to those of one vector, in fresh memory."""
    if isinstance(space, spaces.Dict):
        return {key: join(child, [p[key] for p in parts]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(join(child, [p[i] for p in parts]) for i, child in enumerate(space.spaces))
    if isinstance(space, _CUSTOM) and not isinstance(parts[0], np.ndarray):
        return tuple(deepcopy(item) for part in parts for item in part)
    return np.concatenate(parts, dtype=parts[0].dtype)  # keeps a foreign byte order


def join_infos(
    parts: Sequence[Mapping[Any, Any]],
    sizes: Sequence[int],
    casts: Sequence[Casts] | None = None,
    path: tuple[Any, ...] = (),
    *,
    exact: bool = False,
    firsts: Sequence[int] | None = None,
) -> dict[Any, Any]:
    """Join the infos of several sessions to those of one vector.

    The result is what `VectorEnv._add_info` would have made: an array has the dtype of the first
    value under its key, and other values are cast to it. A session without the key contributes
    zeros, None among single objects, or False in the `_key` masks. If dtypes or shapes do not
    match, so that Gymnasium would fail, the result is an array of objects.

    Under the key `env_id`, vectors of EnvPool and ALE have the numbers of their environments, which
    become those in the whole vector. A mask `_env_id` says that the environments themselves return
    these values; then they stay as they are.

    Args:
        parts: the infos of each session.
        sizes: the number of environments of each session.
        casts: the casts of each session, from `vector_infos.from_wire`.
        path: the keys that lead to `parts` in the infos of the vector.
        exact: cast nothing: if dtypes differ, the result is an array of objects.
        firsts: the number of the first environment of each session in the whole vector, if `parts`
            are not those of all sessions.
    """
    casts = casts or [{}] * len(parts)
    firsts = firsts or _starts(sizes)
    joined: dict[Any, Any] = {}
    for part in parts:
        for key in part:
            if key not in joined:
                values = [p.get(key, _MISSING) for p in parts]
                place = (*path, key)
                present = [value for value in values if value is not _MISSING]
                if all(isinstance(value, dict) for value in present):
                    dicts = [{} if value is _MISSING else value for value in values]
                    joined[key] = join_infos(dicts, sizes, casts, place, exact=exact, firsts=firsts)
                    continue
                array = _join_arrays(values, sizes, exact=exact)
                if array is None:
                    masks = [p.get(f"_{key}") for p in parts]
                    array = _as_objects(values, masks, sizes)
                elif key == "env_id" and not any("_env_id" in part for part in parts):
                    _renumber(array, values, sizes, firsts)
                for start, size, cast in zip(_starts(sizes), sizes, casts, strict=True):
                    for index, value in cast.get(place, ()):
                        if index < size:
                            # A value that does not fit stays as the session's own cast left it.
                            with contextlib.suppress(TypeError, ValueError, OverflowError):
                                array[start + index] = value
                joined[key] = array
    return joined


class _Missing(enum.Enum):
    MISSING = "the session does not have this key"


_MISSING = _Missing.MISSING


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)][:-1]


def _join_arrays(
    values: list[Any], sizes: Sequence[int], *, exact: bool
) -> np.ndarray[Any, Any] | None:
    """Join the values of one key to an array; return None if they do not match."""
    first = next(value for value in values if value is not _MISSING)
    for value, size in zip(values, sizes, strict=True):
        if value is not _MISSING and not (
            isinstance(value, np.ndarray)
            and value.shape[:1] == (size,)
            and (value.dtype == first.dtype or not exact)
            and _matches(first, value)
        ):
            return None
    array = np.zeros((sum(sizes), *first.shape[1:]), first.dtype)
    if first.dtype.kind == "O" and first.ndim == 1:  # Gymnasium has zeros in place of arrays
        array.fill(None)
    for start, value, size in zip(_starts(sizes), values, sizes, strict=True):
        if value is not _MISSING:
            array[start : start + size] = value
    return array


def _renumber(
    ids: np.ndarray[Any, Any], values: list[Any], sizes: Sequence[int], firsts: Sequence[int]
) -> None:
    """Add to the ids of each session, if they are integers, the number of its first environment."""
    if ids.dtype.kind in "iu" and ids.ndim == 1:
        for start, value, size, first in zip(_starts(sizes), values, sizes, firsts, strict=True):
            if value is not _MISSING:
                own = ids[start : start + size]
                np.add(own, np.int64(first), out=own, casting="unsafe")  # keeps the dtype


def _matches(first: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if first.shape[1:] != other.shape[1:]:
        return False
    kinds = first.dtype.kind + other.dtype.kind
    # NumPy casts numbers as it would on assigning the value of a single environment.
    return first.dtype == other.dtype or all(kind in "biufc" for kind in kinds) or kinds in _TEXTS


_TEXTS = ("UU", "SS")


def _as_objects(values: list[Any], masks: list[Any], sizes: Sequence[int]) -> Any:
    array = np.full(sum(sizes), None, object)
    for start, value, mask, size in zip(_starts(sizes), values, masks, sizes, strict=True):
        batched = isinstance(value, np.ndarray) and value.shape[:1] == (size,)
        for i in range(size):
            if value is not _MISSING and (mask is None or mask[i]):
                is_whole = not (batched or isinstance(value, dict))
                array[start + i] = value if is_whole else vector_infos.item(value, i)
    return array


def split_ids(ids: Any, parts: Sequence[slice]) -> dict[int, NDArray[np.intp]]:
    """Return, for each part that `ids` name, the positions of its environments in `ids`, in order.

    Raises:
        BatchSizeError: the ids are not distinct numbers of environments, or they name some but not
            all environments of a part.
    """
    num_envs, numbers = parts[-1].stop, np.asarray(ids)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not numbers.size:
        raise BatchSizeError(
            "env_ids must be a list or a one-dimensional array of one or more integers."
        )
    order = np.argsort(numbers)
    ordered = numbers[order]
    if ordered[0] < 0 or ordered[-1] >= num_envs or (ordered[1:] == ordered[:-1]).any():
        raise BatchSizeError(
            f"env_ids must be distinct numbers from 0 to {num_envs - 1}, not {numbers.tolist()}."
        )
    places: dict[int, NDArray[np.intp]] = {}
    for i, part in enumerate(parts):
        begin, end = np.searchsorted(ordered, (part.start, part.stop))
        if end - begin == part.stop - part.start:
            places[i] = order[begin:end]
        elif begin != end:
            raise BatchSizeError(
                f"Environments {part.start} to {part.stop - 1} share a session and step together: "
                f"env_ids must name all of them or none. With sessions={num_envs} each environment "
                f"has its own."
            )
    return places


def split_seed(seed: Any, parts: Sequence[slice]) -> list[Any]:
    """Return the seed of each part, such that environment i gets `seed + i` or `seed[i]`.

    Raises:
        TypeError: the seed has another type.
        BatchSizeError: the list does not have one seed for each environment.
    """
    if seed is None:
        return [None] * len(parts)
    if isinstance(seed, int):
        return [seed + part.start for part in parts]
    num_envs = parts[-1].stop
    if not isinstance(seed, Sequence | np.ndarray):
        raise TypeError(
            f"seed must be None, an int, or a list with one of these for each environment, not "
            f"{seed!r:.100}."
        )
    if len(seed) != num_envs:
        raise BatchSizeError(
            f"{len(seed)} seeds for {num_envs} environments: pass one for each, or an int."
        )
    return [list(seed[part]) for part in parts]


def split_options(options: dict[str, Any] | None, parts: Sequence[slice]) -> dict[int, Any]:
    """Return the options of each part to reset: all, or those with a True in the mask.

    Raises:
        TypeError: the mask is not an array of bools.
        BatchSizeError: the mask has another shape, or no True.
    """
    if options is None or "reset_mask" not in options:
        return dict.fromkeys(range(len(parts)), options)
    mask, num_envs = options["reset_mask"], parts[-1].stop
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError("options['reset_mask'] must be a numpy array of bools.")
    if mask.shape != (num_envs,) or not mask.any():
        raise BatchSizeError(
            f"options['reset_mask'] must have the shape ({num_envs},) and at least one True; it "
            f"has the shape {mask.shape} and {mask.sum()} of them."
        )
    return {
        i: {**options, "reset_mask": mask[part]} for i, part in enumerate(parts) if mask[part].any()
    }


def seeded(seed: Any, options: dict[str, Any] | None, num_envs: int) -> list[int]:
    """Return the numbers of the environments that a reset with these arguments seeds."""
    mask = (options or {}).get("reset_mask", [True] * num_envs)
    seeds = [seed] * num_envs if isinstance(seed, int) else seed
    return [i for i in range(num_envs) if mask[i] and seeds[i] is not None]


def generator_parts(count: int, parts: Sequence[slice]) -> Sequence[slice]:
    """Return which of `count` random generators belong to the environments of each part.

    An environment's own vector class has one generator for all; other vectors have one for each.
    """
    return parts if count == parts[-1].stop else [slice(i, i + 1) for i in range(len(parts))]


def generators_of(env_ids: Iterable[int], count: int, parts: Sequence[slice]) -> set[int]:
    """Return the numbers of the generators, of `count`, that these environments use."""
    numbers = set(env_ids)
    if count == parts[-1].stop:
        return numbers
    return {i for i, part in enumerate(parts) if numbers & {*range(part.start, part.stop)}}
