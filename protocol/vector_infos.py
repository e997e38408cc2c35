"""The infos of a vector of environments on the wire.

Gymnasium keeps in arrays of objects what has no dtype of its own: texts, None, lists, and every
`final_obs`. Such an array travels as the list of its items, and where it stood beside it:

    infos                           if there is none
    [infos, [[path, shape], ...]]   else, where path is the list of keys that leads to the array
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from protocol.arrays import MAX_DIMS
from protocol.errors import DecodingError

__all__ = ["from_wire", "to_wire"]


def to_wire(infos: Any) -> Any:
    """Return what `from_wire` makes these infos of; arrays of objects are gone from it.

    `infos` stays as it is. What is not an array of objects is passed on, not copied.
    """
    if type(infos) is dict:
        places: list[list[Any]] = []
        plain = _without_objects(infos, [], places)
        if not places:
            return infos
        return [plain, places]
    return [infos, []]


def _without_objects(
    infos: dict[Any, Any], path: list[Any], places: list[list[Any]]
) -> dict[Any, Any]:
    copy = infos
    for key, value in infos.items():
        if type(value) is np.ndarray and value.dtype.kind == "O":
            places.append([[*path, key], list(value.shape)])
            plain: Any = value.ravel().tolist()
        elif type(value) is dict:
            plain = _without_objects(value, [*path, key], places)
            if plain is value:
                continue
        else:
            continue
        if copy is infos:
            copy = dict(infos)
        copy[key] = plain
    return copy


def from_wire(form: Any) -> Any:
    """Return the infos that `to_wire` made `form` of. Raises DecodingError."""
    if type(form) is dict:
        return form
    if type(form) is not list or len(form) != 2 or type(form[1]) is not list:
        raise DecodingError("The infos of a vector are neither a dict nor infos and places.")
    infos, places = form
    for place in places:
        if type(place) is not list or len(place) != 2:
            raise DecodingError("The place of an array of objects is not [path, shape].")
        _restore(infos, *place)
    return infos


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
