"""Check the description of a space without building the space, and compute an offer's digest.

A broker passes descriptions on and never needs the space itself, which may take 256 MiB.
`protocol.spaces` says what the nodes contain.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gymwire.protocol import values
from gymwire.protocol.arrays import MAX_DIMS, dtype_from_text
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.values import MAX_DEPTH

DIGEST_SIZE = 32  # bytes
MAX_NODES = 1 << 14  # what `protocol.spaces.build` accepts at most, by the memory of a node
_KEY_TYPES = frozenset({str, int, bool, float, bytes, type(None)})
_NUMBERS = {"b": bool, "f": float}  # of a dtype's kind; int for all others


def digest(env_id: str, observation_space: Any, action_space: Any) -> bytes:
    """Return the digest of an offer: equal for all env agents of a pool."""
    return hashlib.sha256(values.encode([env_id, observation_space, action_space])).digest()


def check(description: Any, root: str) -> None:
    """Raise DecodingError unless this describes a space. `root`: the name of the space."""
    if type(description) is not list:
        raise DecodingError(f"The description of {root} is not a list of nodes.", path=root)
    if len(description) > MAX_NODES:
        raise DecodingError(f"The description of {root} has too many nodes.", path=root)
    nodes = iter(description)
    _check_node(nodes, root, 1)
    if next(nodes, None) is not None:
        raise DecodingError(f"The description of {root} has surplus nodes.", path=root)


def _check_node(nodes: Iterator[Any], root: str, depth: int) -> None:
    """Check the next node and its children."""
    if depth > MAX_DEPTH:
        raise DecodingError(f"{root} is nested deeper than {MAX_DEPTH} levels.", path=root)
    node = next(nodes, None)
    if type(node) is not list or not node or type(node[0]) is not str:
        raise DecodingError(f"The description of {root} lacks a node.", path=root)
    kind, *items = node
    count = _CHILDREN.get(kind)
    if count is None:
        raise DecodingError(f"{root} contains an unknown space type, {kind[:50]!r}.", path=root)
    try:
        children = count(*items)
    except (TypeError, ValueError, OverflowError, DecodingError) as error:
        text = f"{root} contains a {kind} that is described wrongly ({error})."
        raise DecodingError(text, path=root) from None
    for _ in range(children):  # ends early, since there are no more nodes than the frame has
        _check_node(nodes, root, depth + 1)


# --- the nodes: each function returns the number of children --------------------------------------


def _require(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"wrong {what}")


def _dtype(text: Any, kinds: str) -> np.dtype[Any]:
    dtype = dtype_from_text(text)
    _require(dtype.kind in kinds, "dtype")
    return dtype


def _size(shape: Any) -> int:
    """Return the number of elements of an array of this shape."""
    is_shape = type(shape) is list and all(type(n) is int and n >= 0 for n in shape)
    _require(is_shape and len(shape) <= MAX_DIMS, "shape")
    return math.prod(shape)


def _array(value: Any, dtype: np.dtype[Any], size: int, what: str) -> None:
    if type(value) is bytes:
        _require(len(value) == size * dtype.itemsize, f"number of bytes of {what}")
        return
    _require(type(value) is _NUMBERS.get(dtype.kind, int), what)
    with np.errstate(over="ignore"):
        _require(bool(np.array(value, dtype).item() == value), what)


def _box(text: Any, shape: Any, low: Any, high: Any, *bounded: Any) -> int:
    dtype, size = _dtype(text, "biuf"), _size(shape)
    _array(low, dtype, size, "low")
    _array(high, dtype, size, "high")
    _require(len(bounded) in (0, 2), "number of items")
    for flags in bounded:
        _array(flags, np.dtype(np.bool_), size, "bounded")
    return 0


def _discrete(text: Any, n: Any, start: Any) -> int:
    _dtype(text, "iu")
    _require(type(n) is int and n > 0, "n")
    _require(type(start) is int, "start")
    return 0


def _multi_discrete(text: Any, shape: Any, nvec: Any, start: Any) -> int:
    dtype, size = _dtype(text, "iu"), _size(shape)
    _array(nvec, dtype, size, "nvec")
    _array(start, dtype, size, "start")
    return 0


def _multi_binary(n: Any) -> int:
    _size([n] if type(n) is int else n)
    return 0


def _text(shortest: Any, longest: Any, characters: Any) -> int:
    _require(type(shortest) is int and type(longest) is int, "length")
    _require(0 <= shortest <= longest, "length")
    _require(type(characters) is str, "charset")
    return 0


def _dict(keys: Any, sort_keys: Any) -> int:
    _require(type(keys) is list and {*map(type, keys)} <= _KEY_TYPES, "list of keys")
    _require(len({*keys}) == len(keys), "list of keys")
    _require(type(sort_keys) is bool, "sort_keys")
    return len(keys)


def _several(count: Any) -> int:
    _require(type(count) is int and 0 <= count <= MAX_NODES, "number of children")
    return int(count)


def _sequence(stack: Any) -> int:
    _require(type(stack) is bool, "stack")
    return 1


def _graph(has_edges: Any) -> int:
    _require(type(has_edges) is bool, "edge space")
    return 2 if has_edges else 1


def _remote(name: Any, shape: Any, text: Any) -> int:
    _require(type(name) is str, "class")
    if shape is not None:
        _size(shape)
    if text is not None:
        dtype_from_text(text)
    return 0


_CHILDREN: dict[str, Callable[..., int]] = {
    "Box": _box,
    "Discrete": _discrete,
    "MultiDiscrete": _multi_discrete,
    "MultiBinary": _multi_binary,
    "Text": _text,
    "Dict": _dict,
    "Tuple": _several,
    "OneOf": _several,
    "Sequence": _sequence,
    "Graph": _graph,
    "Remote": _remote,
}
