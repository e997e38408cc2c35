"""The infos of a vector of environments on the wire.

Gymnasium keeps in arrays of objects what has no dtype of its own: texts, None, lists, and every
`final_obs`. Such an array travels as the list of its items, and where it stood beside it:

    infos                     if there is nothing else to say
    [infos, places, casts]    else

    places: [[path, shape], ...], where path is the list of keys that leads to the array
    casts:  [[path, [[index, value], ...]], ...], values that were cast when they were put into an
            array: where several sessions make one vector, the cast may have to be another one
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gymwire.protocol.arrays import MAX_DIMS
from gymwire.protocol.errors import DecodingError

__all__ = ["Casts", "from_wire", "to_wire"]

Casts = dict[tuple[Any, ...], list[tuple[int, Any]]]
"""By the path of an array: the index of an environment, and its value before it was cast."""


def to_wire(infos: Any, cast: Mapping[int, list[Any]] | None = None) -> Any:
    """Return what `from_wire` makes these infos of; arrays of objects are gone from it.

    `infos` stays as it is. What is not an array of objects is passed on, not copied. `cast`: by
    the id of an array in `infos`, [[index, value], ...].
    """
    if type(infos) is not dict:
        return [infos, [], []]
    places: list[list[Any]] = []
    casts: list[list[Any]] = []
    plain = _without_objects(infos, [], places, casts, cast or {})
    return [plain, places, casts] if places or casts else infos


def _without_objects(
    infos: dict[Any, Any],
    path: list[Any],
    places: list[list[Any]],
    casts: list[list[Any]],
    cast: Mapping[int, list[Any]],
) -> dict[Any, Any]:
    copy = infos
    for key, value in infos.items():
        if type(value) is np.ndarray and value.dtype.kind == "O":
            places.append([[*path, key], list(value.shape)])
            plain: Any = value.ravel().tolist()
        elif type(value) is dict:
            plain = _without_objects(value, [*path, key], places, casts, cast)
            if plain is value:
                continue
        else:
            if id(value) in cast:
                casts.append([[*path, key], cast[id(value)]])
            continue
        if copy is infos:
            copy = dict(infos)
        copy[key] = plain
    return copy


def from_wire(form: Any) -> tuple[Any, Casts]:
    """Return the infos that `to_wire` made `form` of, and the casts. Raises DecodingError."""
    if type(form) is dict:
        return form, {}
    if type(form) is not list or [type(part) for part in form[1:]] != [list, list]:
        raise DecodingError("The infos of a vector are neither a dict nor infos with places.")
    infos, places, casts = form
    infos = _copied(infos)
    for place in places:
        if type(place) is not list or len(place) != 2:
            raise DecodingError("The place of an array of objects is not [path, shape].")
        _restore(infos, *place)
    try:
        return infos, dict(map(_read_cast, casts))
    except TypeError:  # a path with a key that no dict could have
        raise DecodingError("A cast has no path of keys.") from None


def _copied(infos: Any) -> Any:
    """The same values in dicts of their own: to read the form twice must give the same twice."""
    if type(infos) is not dict:
        return infos
    return {key: _copied(value) for key, value in infos.items()}


def _read_cast(cast: Any) -> tuple[tuple[Any, ...], list[tuple[int, Any]]]:
    match cast:
        case [[*path], [*pairs]]:
            return tuple(path), [_read_pair(pair) for pair in pairs]
        case _:
            raise DecodingError("A cast is not [path, [[index, value], ...]].")


def _read_pair(pair: Any) -> tuple[int, Any]:
    match pair:
        case [int(index), value] if index >= 0:
            return index, value
        case _:
            raise DecodingError("A cast value is not [index, value].")


def _restore(infos: Any, path: Any, shape: Any) -> None:
    if type(path) is not list or not path or type(shape) is not list or len(shape) > MAX_DIMS:
        raise DecodingError("The place of an array of objects is not [path, shape].")
    holder, items = None, infos
    for key in path:
        holder = items
        try:
            items = holder[key] if type(holder) is dict else None
        except (KeyError, TypeError):
            items = None
    if type(items) is not list or holder is None:
        raise DecodingError(f"There is no list of items at {path!r:.100}.")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != len(items):
        raise DecodingError(f"{len(items)} items do not make an array of shape {shape!r:.100}.")
    array = np.empty(len(items), object)
    # One by one: numpy would make one array of a list of arrays.
    for index, item in enumerate(items):
        array[index] = item
    holder[path[-1]] = array.reshape(shape)
