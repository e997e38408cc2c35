"""Values of spaces as JSON, and spaces as JSON Schemas, for protocols whose messages are JSON.

Arrays become nested lists. JSON has no NaN and no infinity: they become the strings "NaN",
"Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.spaces import GraphInstance
from gymnasium.vector.utils import concatenate, create_empty_array

Schema = dict[str, Any]

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MAX_SINGLE_BOUNDS = 64  # a larger array has one bound for all its elements in its schema


class JsonMismatch(ValueError):
    """A JSON value that is not in its space. The message says where and what is allowed."""


def parsed(text: str) -> Any:
    """Return the value of a JSON text. Raises JsonMismatch if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JsonMismatch(f"The request cannot be read as JSON: {error}.") from None


def to_json(value: Any) -> Any:
    """Return a value as JSON: an observation, a reward, an action or an info.

    What JSON cannot express becomes its text.
    """
    match value:
        case None | bool() | str():
            return value
        case np.ndarray() | np.generic():
            return to_json(value.tolist()) if value.dtype != object else _items(value.ravel())
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else _name_of(value)
        case GraphInstance():
            return {name: to_json(getattr(value, name)) for name in GraphInstance._fields}
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return _items(value)
        case _:
            return str(value)


def _items(values: Any) -> list[Any]:
    return [to_json(value) for value in values]


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# --- schemas --------------------------------------------------------------------------------------


def schema_of(space: Space[Any]) -> Schema:
    """Return the JSON Schema (2020-12) of the values of a space, as `to_json` writes them.

    A space that is not one of Gymnasium's has the schema `{}`, which any value fits.
    """
    match space:
        case spaces.Discrete():
            return _integer(int(space.start), int(space.start + space.n - 1))
        case spaces.Box():
            return _array(space.shape, _box_item(space), _bounds_of_box(space))
        case spaces.MultiBinary():
            return _array(space.shape, _integer(0, 1), None)
        case spaces.MultiDiscrete():
            low, high = space.start, space.start + space.nvec - 1
            single = None if len({*low.flat}) == len({*high.flat}) == 1 else _integers(low, high)
            return _array(space.shape, _integer(int(low.min()), int(high.max())), single)
        case spaces.Text():
            return {"type": "string", "minLength": space.min_length, "maxLength": space.max_length}
        case spaces.Dict():
            return {
                "type": "object",
                "properties": {str(key): schema_of(one) for key, one in space.spaces.items()},
                "required": [str(key) for key in space.spaces],
                "additionalProperties": False,
            }
        case spaces.Tuple():
            return _fixed([schema_of(one) for one in space.spaces])
        case spaces.OneOf():
            chosen = {"anyOf": [schema_of(one) for one in space.spaces]}
            return _fixed([_integer(0, len(space.spaces) - 1), chosen])
        case spaces.Sequence():
            return {"type": "array", "items": schema_of(space.feature_space)}
        case spaces.Graph():
            return _graph_schema(space)
        case _:
            return {}


def _integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _integers(low: np.ndarray[Any, Any], high: np.ndarray[Any, Any]) -> list[Schema] | None:
    if low.ndim != 1 or low.size > MAX_SINGLE_BOUNDS:
        return None
    return [_integer(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def _box_item(space: spaces.Box) -> Schema:
    """Return the schema of one element, with the lowest and the highest of all bounds."""
    if space.low.size == 0:
        return {"type": "number"}
    return _number(space.low.min(), space.high.max(), space.dtype)


def _bounds_of_box(space: spaces.Box) -> list[Schema] | None:
    """Return a schema for each element of a short vector whose bounds differ."""
    low, high = space.low, space.high
    if low.ndim != 1 or low.size > MAX_SINGLE_BOUNDS or len({*low.flat}) == len({*high.flat}) == 1:
        return None
    return [_number(a, b, space.dtype) for a, b in zip(low, high, strict=True)]


def _number(low: Any, high: Any, dtype: Any) -> Schema:
    if not np.issubdtype(dtype, np.floating):
        return _integer(int(low), int(high))
    number: Schema = {"type": "number"}
    number |= {"minimum": float(low)} if math.isfinite(low) else {}
    number |= {"maximum": float(high)} if math.isfinite(high) else {}
    if len(number) == 3:
        return number
    return {"anyOf": [number, {"enum": list(NOT_FINITE)}]}


def _array(shape: Sequence[int], item: Schema, single: list[Schema] | None) -> Schema:
    if single is not None:
        return _fixed(single)
    for length in reversed(shape):
        item = {"type": "array", "items": item, "minItems": length, "maxItems": length}
    return item


def _graph_schema(space: spaces.Graph) -> Schema:
    link = _array((2,), {"type": "integer", "minimum": 0}, None)
    parts: Schema = {"nodes": {"type": "array", "items": schema_of(space.node_space)}}
    for name, item in (
        ("edges", schema_of(space.edge_space or spaces.Tuple(()))),
        ("edge_links", link),
    ):
        parts[name] = {"anyOf": [{"type": "array", "items": item}, {"type": "null"}]}
    return {"type": "object", "properties": parts, "required": [*parts]}


def _fixed(items: list[Schema]) -> Schema:
    length = len(items)
    return {"type": "array", "prefixItems": items, "minItems": length, "maxItems": length}


# --- values of a space from JSON ------------------------------------------------------------------


def from_json(space: Space[Any], given: Any, where: str) -> Any:
    """Return the value of a space that a JSON value stands for.

    Args:
        space: one of Gymnasium's spaces.
        given: what `json.loads` returned.
        where: what the value is, for the message of an error, such as "action".

    Raises:
        JsonMismatch: the value is not in the space.
    """
    try:
        return _value(space, given, where)
    except JsonMismatch:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # such as int(inf)
        raise JsonMismatch(f"{where} is not a value of {space!r:.80}: {error}.") from None
    except RecursionError:
        raise JsonMismatch(f"{where} is nested too deeply.") from None


def _value(space: Space[Any], given: Any, where: str) -> Any:
    match space:
        case spaces.Dict():
            _check_keys(space, given, where)
            value: Any = {
                key: _value(one, given[str(key)], f"{where}.{key}")
                for key, one in space.spaces.items()
            }
        case spaces.Tuple():
            _check_length(given, len(space.spaces), where)
            value = tuple(
                _value(one, item, f"{where}[{i}]")
                for i, (one, item) in enumerate(zip(space.spaces, given, strict=True))
            )
        case spaces.OneOf():
            _check_length(given, 2, where)
            index = _whole(given[0], f"{where}[0]")
            if not 0 <= index < len(space.spaces):
                raise JsonMismatch(f"{where}[0] must be in 0…{len(space.spaces) - 1}, not {index}.")
            value = (index, _value(space.spaces[index], given[1], f"{where}[1]"))
        case spaces.Sequence():
            if not isinstance(given, list):
                raise JsonMismatch(f"{where} must be a list, not {given!r:.80}.")
            items = tuple(
                _value(space.feature_space, item, f"{where}[{i}]") for i, item in enumerate(given)
            )
            return _stack(space.feature_space, items) if space.stack else items
        case spaces.Graph():
            value = _graph(space, given, where)
        case spaces.Discrete():
            value = space.dtype.type(_whole(given, where))
        case spaces.Text():
            value = given
        case spaces.Box() | spaces.MultiBinary() | spaces.MultiDiscrete():
            value = _numbers(space, given, where)
        case _:
            raise JsonMismatch(f"{where}: values of {space} cannot be written as JSON.")
    if not space.contains(value):
        raise JsonMismatch(f"{where} must be in {space!r:.80}, not {given!r:.80}.")
    return value


def _check_keys(space: spaces.Dict, given: Any, where: str) -> None:
    names = [str(key) for key in space.spaces]
    if not isinstance(given, Mapping) or {*given} != {*names}:
        found = sorted(given) if isinstance(given, Mapping) else given
        raise JsonMismatch(f"{where} must be an object with the keys {names}, not {found!r:.80}.")


def _check_length(given: Any, length: int, where: str) -> None:
    if not isinstance(given, list) or len(given) != length:
        raise JsonMismatch(f"{where} must be a list of {length}, not {given!r:.80}.")


def _whole(given: Any, where: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int | float) or given != int(given):
        raise JsonMismatch(f"{where} must be a whole number, not {given!r:.80}.")
    return int(given)


def _numbers(space: Any, given: Any, where: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(_finite_or_not(given))
        if array.dtype.kind not in "biuf":
            raise ValueError
        with np.errstate(invalid="ignore", over="ignore"):  # what changes is refused below
            value = array.astype(space.dtype)
    except (ValueError, TypeError, OverflowError):
        raise JsonMismatch(f"{where} must be numbers, not {given!r:.80}.") from None
    if value.shape != space.shape:
        shape = list(space.shape)
        raise JsonMismatch(f"{where} must have the shape {shape}, not {list(value.shape)}.")
    exact = space.dtype.kind == "f" or bool((value == array).all())
    if not exact:
        raise JsonMismatch(f"{where} must be whole numbers of {space.dtype}, not {given!r:.80}.")
    return value


def _finite_or_not(given: Any) -> Any:
    if isinstance(given, list):
        return [_finite_or_not(item) for item in given]
    return NOT_FINITE[given] if isinstance(given, str) and given in NOT_FINITE else given


def _stack(feature: Space[Any], items: tuple[Any, ...]) -> Any:
    out = create_empty_array(feature, len(items))
    return concatenate(feature, items, out) if items else out  # type: ignore[arg-type]


def _graph(space: spaces.Graph, given: Any, where: str) -> GraphInstance:
    names = GraphInstance._fields
    if not isinstance(given, Mapping) or {*given} != {*names}:
        raise JsonMismatch(f"{where} must be an object with the keys {list(names)}.")
    nodes = _of_each(space.node_space, given["nodes"], f"{where}.nodes")
    if given["edges"] is None:
        return GraphInstance(nodes, None, None)
    edges = _of_each(space.edge_space, given["edges"], f"{where}.edges")
    links = np.asarray(given["edge_links"], np.int32).reshape(-1, 2)
    return GraphInstance(nodes, edges, links)


def _of_each(space: Any, given: Any, where: str) -> Any:
    if not isinstance(given, list):
        raise JsonMismatch(f"{where} must be a list, not {given!r:.80}.")
    items = tuple(_value(space, item, f"{where}[{i}]") for i, item in enumerate(given))
    return _stack(space, items)
