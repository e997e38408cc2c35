"""Serialize the infos of a vector of environments.

Gymnasium keeps values without a dtype (texts, None, lists, every `final_obs`) in arrays of objects.
On the wire such an array becomes the list of its items, with its place beside it:

    infos                     without arrays of objects and casts, if all keys are text
    [infos, places, casts]    otherwise

    places: [[path, shape], ...]; path is the list of keys that leads to the array
    casts:  [[path, [[index, value], ...]], ...], values that were cast to the dtype of an array:
            a vector of several sessions may need another dtype
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gymwire.protocol.arrays import MAX_DIMS, MAX_EMPTY, empty_size, object_array
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.faults import Opaque, other_than
from gymwire.protocol.outside_exceptions import is_from_outside

__all__ = ["Casts", "converted", "from_wire", "item", "to_wire"]

Casts = dict[tuple[Any, ...], list[tuple[int, Any]]]
"""Path of an array → the index of an environment and its value before the cast, for each cast."""


def to_wire(infos: Any, cast: Mapping[int, list[Any]] | None = None) -> Any:
    """Return the wire form of these infos, which has no arrays of objects.

    It leaves `infos` unchanged and copies only what it replaces. `cast`: the id of an array in
    `infos` → [[index, value], ...].
    """
    if type(infos) is not dict:
        return [infos, [], []]
    places: list[list[Any]] = []
    casts: list[list[Any]] = []
    plain = _without_objects(infos, [], places, casts, cast or {})
    is_form = places or casts or not _has_text_keys(infos)
    return [plain, places, casts] if is_form else infos


def _has_text_keys(infos: dict[Any, Any]) -> bool:
    return all(
        type(key) is str and (type(value) is not dict or _has_text_keys(value))
        for key, value in infos.items()
    )


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
            if not value.size and empty_size(value.shape) > MAX_EMPTY:
                continue  # the receiver would refuse it: the encoder says so
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


def converted(form: Any, convert: Callable[[Any], Any]) -> Any:
    """Return infos after `convert` has converted their values and keys.

    The paths of a wire form lead to the same arrays as before, and its masks belong to the same
    keys.
    """
    match form:
        case [dict() as infos, [*places], [*casts]]:
            pass
        case _:
            return convert(form)
    # At the depth at which they are in the form: there is a limit.
    copy, pairs = convert([infos, [[pairs] for _, pairs in casts]])
    names: dict[int, dict[Any, Any]] = {}
    if type(copy) is dict:
        copy = _with_masks(infos, copy, names)

    def follow(path: list[Any]) -> list[Any] | None:
        """Return the path in the copy; None: something else is in the place of the array."""
        found, old, new = [], infos, copy
        for key in path:
            if type(new) is not dict:
                return None
            found.append(names[id(old)][key])
            old, new = old[key], new[found[-1]]
        return None if type(new) is Opaque else found

    found_places = [[follow(path), shape] for path, shape in places]
    found_casts = [[follow(path), *one] for (path, _), one in zip(casts, pairs, strict=True)]
    return [copy, *([one for one in found if one[0]] for found in (found_places, found_casts))]


def _with_masks(
    infos: dict[Any, Any], copy: dict[Any, Any], names: dict[int, dict[Any, Any]]
) -> dict[Any, Any]:
    """Return converted infos whose masks are named after the converted keys.

    A key gets another name if its own, or that of its mask, belongs to another key. `names`: the id
    of each dict in `infos` → the converted keys by the original ones.
    """
    new = names[id(infos)] = dict(zip(infos, copy, strict=True))
    masks = {mask: key for key in infos if new[key] is not key and (mask := _mask(key)) in infos}
    renamed = {*masks, *masks.values()}
    taken = {name for key, name in new.items() if key not in renamed}
    known: Counter[Opaque] = Counter()
    for mask, key in masks.items():
        name = new[key]
        while name in taken or _mask(name) in taken:
            taken.add(name)
            name = other_than(taken, known, name, key)
        new[key], new[mask] = name, _mask(name)
        taken |= {name, new[mask]}
    parts = zip(infos.items(), copy.values(), strict=True)
    return {
        new[key]: _with_masks(old, value, names) if type(old) is type(value) is dict else value
        for (key, old), value in parts
    }


def _mask(key: Any) -> str | None:
    try:
        return f"_{key}"
    except Exception:  # noqa: BLE001 - the key's own code, which may raise anything
        return None


def item(values: Any, index: int) -> Any:
    """Return what one environment has of the values of a vector: Python's numbers, or a copy."""
    if isinstance(values, dict):
        return {
            key: item(value, index)
            for key, value in values.items()
            if f"_{key}" in values and values[f"_{key}"][index]
        }
    one = values[index]
    if isinstance(one, np.ndarray):
        return one.copy()
    return one.item() if isinstance(one, np.bool_ | np.int64 | np.float64) else one


def from_wire(form: Any, *, exact: bool = False) -> tuple[Any, Casts]:
    """Return the infos of a wire form, and the casts. Raises DecodingError.

    With `exact`, the casts are undone: an array with such values becomes one of objects.
    """
    if type(form) is dict:
        return form, {}
    if type(form) is not list or [type(part) for part in form[1:]] != [list, list]:
        raise DecodingError("The infos of a vector are neither a dict nor infos with places.")
    infos, places, casts = form
    infos = _copied(infos) if type(infos) is dict else infos
    empty = 0
    for place in places:
        if type(place) is not list or len(place) != 2:
            raise DecodingError("The place of an array of objects is not [path, shape].")
        array = _restore(infos, *place)
        empty += 0 if array.size else empty_size(array.shape)
        if empty > MAX_EMPTY:
            raise DecodingError("Arrays of objects without items have too many rows in total.")
    try:
        read = dict(map(_read_cast, casts))
        if exact:
            for path, pairs in read.items():
                _undo_casts(infos, path, pairs)
            return infos, {}
        return infos, read
    except TypeError as error:  # an unhashable key in a path
        if is_from_outside(error):
            raise
        raise DecodingError("The path of a cast is not a list of keys.") from None


def _undo_casts(infos: Any, path: tuple[Any, ...], pairs: list[tuple[int, Any]]) -> None:
    """Replace an array by one of objects, in which the values are what they were before a cast."""
    holder, array = None, infos
    for key in path:
        holder = array
        array = holder.get(key) if type(holder) is dict else None
    if type(array) is not np.ndarray or holder is None:
        raise DecodingError(f"No array at {path!r:.100}, where values were cast.")
    mask = holder.get(f"_{path[-1]}")
    has_mask = type(mask) is np.ndarray and mask.shape == array.shape[:1]
    objects = np.full(len(array), None, object)
    for i in range(len(array)):
        if not has_mask or mask[i]:
            objects[i] = item(array, i)
    for i, value in pairs:
        if i < len(array):
            objects[i] = value
    holder[path[-1]] = objects


def _copied(infos: dict[Any, Any]) -> dict[Any, Any]:
    """Copy the dicts but not the values, so that reading a form leaves it unchanged."""
    return {key: _copied(value) if type(value) is dict else value for key, value in infos.items()}


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


def _restore(infos: Any, path: Any, shape: Any) -> np.ndarray[Any, Any]:
    if type(path) is not list or not path or type(shape) is not list or len(shape) > MAX_DIMS:
        raise DecodingError("The place of an array of objects is not [path, shape].")
    holder, items = None, infos
    for key in path:
        holder = items
        try:
            items = holder[key] if type(holder) is dict else None
        except (KeyError, TypeError) as error:
            if is_from_outside(error):
                raise
            items = None
    if type(items) is not list or holder is None:
        raise DecodingError(f"No list of items at {path!r:.100}.")
    array = object_array(shape, items)
    holder[path[-1]] = array
    return array
