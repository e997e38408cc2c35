"""Gymnasium's spaces for what a process says about the spaces of its environment.

It reads them by their attributes (`child/spaces.py`), so they may be Gymnasium's, those of old
gym, or anything else with these attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import Space

from gymwire.protocol import spaces
from gymwire.protocol.arrays import MAX_DIMS, dtype_to_text
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.named_tuples import MAX_NAME
from gymwire.protocol.values import MAX_DEPTH

_MAX_REASON = 400  # characters: it may repeat what the process sent
_FAULTS = (LookupError, TypeError, ValueError, OverflowError, AttributeError)


def build(found: Any, root: str) -> Space[Any]:
    """Return the space with these attributes. Raises DecodingError."""
    return spaces.build([node for _, _, node in _described(found, root)], root=root)


def foreign(found: Any, root: str) -> list[tuple[str, str, str]]:
    """Return (path, class, type it is sent as) for each space that is not Gymnasium's or gym's.

    `found`: what `build` has accepted.
    """
    if not any(_is_foreign(str(one["class"])) for one in found):  # as nearly always
        return []
    return [
        (path, kind[:MAX_NAME], node[0])
        for path, kind, node in _described(found, root)
        if _is_foreign(kind)
    ]


def _is_foreign(kind: str) -> bool:
    return kind.partition(".")[0] not in _LIBRARIES and kind not in _OF_CHILD


_LIBRARIES = ("gymnasium", "gym")
_OF_CHILD = ("gymwire_child.agents.DictSpace", "gymwire_child.dm_envs.SpecSpace")


def _described(found: Any, root: str) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield path, class and node of each space, parents before children."""
    paths: list[Iterator[str]] = [iter((root,))]
    path = root
    try:
        for one in found:
            while paths and (path := next(paths[-1], "")) == "":
                paths.pop()
            path = path or root  # of surplus nodes
            yield path, str(one["class"]), _node(one)
            paths.append(_paths_inside(one, path))
            if len(paths) > MAX_DEPTH:
                raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
    except _FAULTS as error:
        raise DecodingError(f"{path} {error!s:.{_MAX_REASON}}.", path=path) from None


def _paths_inside(found: dict[str, Any], path: str) -> Iterator[str]:
    if "keys" in found:
        return (f"{path}{spaces.key_step(key)}" for key in found["keys"])
    names = [name for name in ("feature_space", "node_space", "edge_space") if name in found]
    steps = [f".{name}" for name in names] or (f"[{i}]" for i in range(found["inside"]))
    return (path + step for step in steps)


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
    name = str(found["class"])[:MAX_NAME]
    raise TypeError(f"is a {name}, whose attributes are those of no known space")


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
