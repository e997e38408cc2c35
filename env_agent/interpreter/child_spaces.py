"""Gymnasium's spaces for what a process says about the spaces of its environment.

It reads them by their attributes (`child.read_space`), so they may be Gymnasium's, those of old
gym, or anything else with these attributes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space

from gymwire.protocol import spaces
from gymwire.protocol.arrays import MAX_DIMS, dtype_to_text
from gymwire.protocol.errors import DecodingError

_FAULTS = (LookupError, TypeError, ValueError, OverflowError, AttributeError)


def build(found: Any, root: str) -> Space[Any]:
    """Return the space with these attributes. Raises DecodingError."""
    try:
        return spaces.build([_node(one) for one in found], root=root)
    except _FAULTS as error:
        raise DecodingError(f"{root} {error}.", path=root) from None


def _node(found: dict[str, Any]) -> list[Any]:
    """Return a node of the description of a space (`protocol.spaces`)."""
    inside = found["inside"]
    if "keys" in found:
        return ["Dict", found["keys"], bool(found.get("sort_keys", True))]
    if "feature_space" in found:
        return ["Sequence", bool(found.get("stack"))]
    if "node_space" in found:
        return ["Graph", inside == 2]
    if inside or found["class"].endswith((".Tuple", ".OneOf")):
        return ["OneOf" if found["class"].endswith(".OneOf") else "Tuple", inside]
    return _leaf(found)


def _leaf(found: dict[str, Any]) -> list[Any]:
    shape = found.get("shape")
    if "nvec" in found:
        text, shape = _dtype(found, "int64"), _shape(shape, found["nvec"])
        numbers = [_numbers(one, text, shape) for one in (found["nvec"], found.get("start", 0))]
        return ["MultiDiscrete", text, shape, *numbers]
    if "low" in found and "high" in found:
        text, shape = _dtype(found, "float32"), _shape(shape, found["low"])
        node = ["Box", text, shape, *(_numbers(found[one], text, shape) for one in ("low", "high"))]
        bounded = [found[one] for one in ("bounded_below", "bounded_above") if one in found]
        if len(bounded) == 2:
            node += [_numbers(one, "|b1", shape) for one in bounded]
        return node
    if "n" in found:
        n = found["n"]
        if shape or found["class"].endswith(".MultiBinary"):
            return ["MultiBinary", _shape(n, ()) if np.ndim(n) else int(n)]
        return ["Discrete", _dtype(found, "int64"), int(n), int(found.get("start", 0))]
    if "max_length" in found:
        characters = "".join(found["character_list" if "character_list" in found else "characters"])
        return ["Text", int(found.get("min_length", 1)), int(found["max_length"]), characters]
    if found["class"].endswith(".NoneType"):
        raise TypeError("is missing, or None")
    raise TypeError(f"is a {found['class']}, whose attributes are those of no known space")


def _dtype(found: dict[str, Any], default: str) -> str:
    name = found.get("dtype") or default
    text = dtype_to_text(np.dtype(name)) if type(name) is str else None
    if text is None:
        raise TypeError(f"has the dtype {name!r:.100}, which is not supported")
    return text


def _shape(shape: Any, values: Any) -> list[int]:
    sizes = np.shape(values) if shape is None else shape
    if len(sizes) > MAX_DIMS:
        raise ValueError(f"has {len(sizes)} dimensions; the maximum is {MAX_DIMS}")
    return [int(size) for size in sizes]


def _numbers(values: Any, text: str, shape: list[int]) -> Any:
    """Return one number for all elements, or else the raw bytes of the array."""
    array = np.asarray(values, np.dtype(text))
    if array.ndim == 0:
        return array.item()
    if list(array.shape) != shape:
        raise ValueError(f"has bounds of shape {array.shape} and the shape {tuple(shape)}")
    return array.tobytes()
