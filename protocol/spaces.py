"""Spaces on the wire: `describe` one, `build` it again, `compile` a codec for its values.

A description is the list of the space's nodes, parents before their children, each a short list
that starts with the kind:

    ["Box", dtype, shape, low, high] or [..., bounded_below, bounded_above]
    ["Discrete", dtype, n, start]        ["MultiDiscrete", dtype, shape, nvec, start]
    ["MultiBinary", n or shape]          ["Text", min_length, max_length, characters]
    ["Dict", keys, sort_keys]            then one child for each key
    ["Tuple", count]  ["OneOf", count]   then as many children
    ["Sequence", stack]                  then the child
    ["Graph", has_edges]                 then the node space, and the edge space if there is one

A list of nodes is flat however deep the space is. Bounds, nvec and start are one number if all
elements share it, else the array's raw bytes; dtypes are written as in `protocol.arrays`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces

from gymwire.protocol.arrays import MAX_DIMS, dtype_from_text, dtype_to_text
from gymwire.protocol.errors import DecodingError, GymwireError, UnsupportedSpaceError
from gymwire.protocol.space_codecs import NOT_COMPACT, SpaceCodec, compile
from gymwire.protocol.values import MAX_DEPTH

__all__ = ["MAX_SPACE_BYTES", "NOT_COMPACT", "SpaceCodec", "build", "compile", "describe"]

MAX_SPACE_BYTES: Final = 1 << 28
"""The most memory that the bounds of one described space may take, so that a few bytes from a
stranger cannot claim all there is."""
_NODE_BYTES = 1 << 14  # what one node counts as, whatever it is; its generator alone is 4 KiB
_KEY_TYPES = frozenset({str, int, bool, float, bytes, type(None)})
_SORTS_KEYS = "sort_keys" in inspect.signature(spaces.Dict).parameters  # Gymnasium >= 1.4


@dataclass
class _Bill:
    """What a space costs in memory, over all its nodes."""

    left: int = MAX_SPACE_BYTES


@dataclass(frozen=True)
class _Place:
    """Where a node sits: its path and depth, and how many copies Gymnasium makes of it."""

    path: str
    depth: int = 1
    copies: int = 1
    bill: _Bill = field(default_factory=_Bill)

    def below(self, step: str, *, copied: bool = False) -> _Place:
        """Return the place of a child; Graph and stacked Sequence keep a batched copy of theirs."""
        return replace(
            self,
            path=self.path + step,
            depth=self.depth + 1,
            copies=self.copies * 2 if copied else self.copies,
        )

    def pay(self, nbytes: int, error: type[UnsupportedSpaceError] | type[DecodingError]) -> None:
        """Charge for a node and its arrays of `nbytes`; raise `error` for too deep, too large."""
        if self.depth > MAX_DEPTH:
            raise error(f"{self.path} sits deeper than {MAX_DEPTH} levels.", path=self.path)
        self.bill.left -= (nbytes + _NODE_BYTES) * self.copies
        if self.bill.left < 0:
            raise error(
                f"{self.path} makes the space larger than {MAX_SPACE_BYTES >> 20} MiB of bounds.",
                path=self.path,
            )


# --- describe -----------------------------------------------------------------------------------


def describe(space: Space[Any], *, root: str = "space") -> list[list[Any]]:
    """Return a description of any Gymnasium space, made of lists, numbers, text and bytes only.

    Raises UnsupportedSpaceError, whose `path` starts with `root`, for a space of another class
    (subclasses included) and for one that is too deep or too large.
    """
    return list(_describe_at(space, _Place(root)))


def _describe_at(space: Space[Any], place: _Place) -> Iterator[list[Any]]:
    if type(space) not in _describe.registry:  # singledispatch would take a subclass for its base
        kind = type(space)
        raise _unsupported(
            place,
            f"is a {kind.__module__}.{kind.__qualname__}; only Gymnasium's own spaces "
            "(and none of their subclasses) can travel",
        )
    dtype = space.dtype if isinstance(space, _ARRAY_SPACES) else None
    size = 0 if dtype is None else math.prod(space.shape or ()) * dtype.itemsize
    place.pay(2 * size, UnsupportedSpaceError)
    yield from _describe(space, place)


_ARRAY_SPACES = (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)


def _unsupported(place: _Place, fault: str) -> UnsupportedSpaceError:
    return UnsupportedSpaceError(f"{place.path} {fault}.", path=place.path)


def _dtype_text(space: Space[Any], place: _Place) -> str:
    assert space.dtype is not None
    text = dtype_to_text(space.dtype)
    if text is None:
        raise _unsupported(place, f"has dtype {space.dtype}, which has no portable form")
    if len(space.shape or ()) > MAX_DIMS:
        raise _unsupported(place, f"has more than {MAX_DIMS} dimensions")
    return text


def _squeeze(array: np.ndarray[Any, Any]) -> Any:
    """Return the array's only number, or its raw bytes if it holds several."""
    raw = array.tobytes()
    if raw and raw == raw[: array.itemsize] * array.size:
        return array.flat[0].item()
    return raw


@singledispatch
def _describe(space: Space[Any], place: _Place) -> Iterator[list[Any]]:
    raise NotImplementedError(type(space))


@_describe.register
def _(space: spaces.Box, place: _Place) -> Iterator[list[Any]]:
    node = ["Box", _dtype_text(space, place), list(space.shape)]
    node += [_squeeze(space.low), _squeeze(space.high)]
    # An integer Box keeps in these alone that it was made with infinite bounds.
    below, above = space.bounded_below, space.bounded_above
    if not (
        np.array_equal(below, space.low > -np.inf) and np.array_equal(above, space.high < np.inf)
    ):
        node += [_squeeze(np.asarray(below)), _squeeze(np.asarray(above))]
    yield node


@_describe.register
def _(space: spaces.Discrete, place: _Place) -> Iterator[list[Any]]:
    yield ["Discrete", _dtype_text(space, place), int(space.n), int(space.start)]


@_describe.register
def _(space: spaces.MultiDiscrete, place: _Place) -> Iterator[list[Any]]:
    node = ["MultiDiscrete", _dtype_text(space, place), list(space.shape)]
    yield [*node, _squeeze(space.nvec), _squeeze(space.start)]


@_describe.register
def _(space: spaces.MultiBinary, place: _Place) -> Iterator[list[Any]]:
    yield ["MultiBinary", list(space.n) if isinstance(space.n, tuple) else int(space.n)]


@_describe.register
def _(space: spaces.Text, place: _Place) -> Iterator[list[Any]]:
    if any(len(character) != 1 for character in space.character_list):
        raise _unsupported(place, "has a charset with elements longer than one character")
    characters = "".join(space.character_list)
    try:
        characters.encode()
    except UnicodeEncodeError:
        raise _unsupported(place, "has lone surrogates in its charset") from None
    yield ["Text", space.min_length, space.max_length, characters]


@_describe.register
def _(space: spaces.Dict, place: _Place) -> Iterator[list[Any]]:
    keys: list[Any] = list(space.spaces)
    for key in keys:
        if type(key) not in _KEY_TYPES or (type(key) is int and not -(2**63) <= key < 2**64):
            raise _unsupported(place, f"has the key {key!r}; keys are text or simple scalars")
    yield ["Dict", keys, bool(getattr(space, "sort_keys", True))]
    for key, child in space.spaces.items():
        step = f'["{key}"]' if type(key) is str else f"[{key!r}]"
        yield from _describe_at(child, place.below(step))


@_describe.register(spaces.Tuple)
@_describe.register(spaces.OneOf)
def _(space: spaces.Tuple[Any] | spaces.OneOf[Any], place: _Place) -> Iterator[list[Any]]:
    yield [type(space).__name__, len(space.spaces)]
    for i, child in enumerate(space.spaces):
        yield from _describe_at(child, place.below(f"[{i}]"))


@_describe.register
def _(space: spaces.Sequence, place: _Place) -> Iterator[list[Any]]:
    stack = bool(space.stack)
    yield ["Sequence", stack]
    yield from _describe_at(space.feature_space, place.below(".feature_space", copied=stack))


@_describe.register
def _(space: spaces.Graph, place: _Place) -> Iterator[list[Any]]:
    yield ["Graph", space.edge_space is not None]
    yield from _describe_at(space.node_space, place.below(".node_space", copied=True))
    if space.edge_space is not None:
        yield from _describe_at(space.edge_space, place.below(".edge_space", copied=True))


# --- build --------------------------------------------------------------------------------------


def build(description: Any, *, root: str = "space") -> Space[Any]:
    """Return a fresh space that equals the one described, with the same types throughout.

    Raises DecodingError, and nothing else, if the description is not what `describe` returns.
    """
    if type(description) is not list:
        raise DecodingError(f"{root} is not described by a list of nodes.", path=root)
    nodes = iter(description)
    try:
        space = _build(nodes, _Place(root))
    except GymwireError:
        raise
    except (ValueError, TypeError, OverflowError, AssertionError, MemoryError) as error:
        raise DecodingError(f"{root} cannot be built as described ({error}).", path=root) from error
    if next(nodes, None) is not None:
        raise DecodingError(f"{root} is described by more nodes than it has.", path=root)
    return space


def _build(nodes: Iterator[Any], place: _Place) -> Space[Any]:
    place.pay(0, DecodingError)
    node = next(nodes, None)
    if type(node) is list and node and type(node[0]) is str and node[0] in _BUILDERS:
        return _BUILDERS[node[0]](place, nodes, *node[1:])  # a wrong number is a TypeError
    raise DecodingError(f"{place.path} is described by no node that we know.", path=place.path)


def _check(ok: bool, place: _Place, what: str) -> None:
    if not ok:
        raise DecodingError(f"{place.path} is described with a wrong {what}.", path=place.path)


def _shape(value: Any, dtype: np.dtype[Any], place: _Place) -> tuple[int, ...]:
    sizes = type(value) is list and all(type(n) is int and n >= 0 for n in value)
    _check(sizes and len(value) <= MAX_DIMS, place, "shape")
    place.pay(2 * math.prod(value) * dtype.itemsize, DecodingError)
    return tuple(value)


def _dtype(value: Any, kinds: str, place: _Place) -> np.dtype[Any]:
    dtype = dtype_from_text(value)
    _check(dtype.kind in kinds, place, "dtype")
    return dtype


def _expand(
    value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], place: _Place
) -> np.ndarray[Any, Any]:
    """Undo `_squeeze`."""
    if type(value) is bytes:
        _check(len(value) == math.prod(shape) * dtype.itemsize, place, "number of bytes")
        array = np.ndarray(shape, dtype, value).copy()
        _check(dtype.kind != "b" or not array.size or array.view("u1").max() <= 1, place, "bool")
        return array
    _check(type(value) is {"b": bool, "f": float}.get(dtype.kind, int), place, "number")
    with np.errstate(over="ignore"):
        number = np.array(value, dtype)
    _check(number.item() == value, place, "number")
    return np.full(shape, number, dtype)


def _build_box(
    place: _Place, _: Iterator[Any], text: Any, sizes: Any, low: Any, high: Any, *bounded: Any
) -> Space[Any]:
    dtype = _dtype(text, "biuf", place)
    shape = _shape(sizes, dtype, place)
    bounds = [_expand(bound, dtype, shape, place) for bound in (low, high)]
    box: spaces.Box[Any] = spaces.Box(bounds[0], bounds[1], shape, dtype=dtype)
    if bounded:
        below, above = bounded
        box.bounded_below = _expand(below, np.dtype(np.bool_), shape, place)
        box.bounded_above = _expand(above, np.dtype(np.bool_), shape, place)
    return box


def _build_discrete(place: _Place, _: Iterator[Any], text: Any, n: Any, start: Any) -> Space[Any]:
    _check(type(n) is int and type(start) is int, place, "number")
    return spaces.Discrete(n, start=start, dtype=_dtype(text, "iu", place))


def _build_multi_discrete(
    place: _Place, _: Iterator[Any], text: Any, sizes: Any, nvec: Any, start: Any
) -> Space[Any]:
    dtype = _dtype(text, "iu", place)
    shape = _shape(sizes, dtype, place)
    arrays = [_expand(numbers, dtype, shape, place) for numbers in (nvec, start)]
    return spaces.MultiDiscrete(arrays[0], dtype=dtype, start=arrays[1])


def _build_multi_binary(place: _Place, _: Iterator[Any], n: Any) -> Space[Any]:
    shape = _shape([n] if type(n) is int else n, np.dtype(np.int8), place)
    return spaces.MultiBinary(n if type(n) is int else shape)


def _build_text(
    place: _Place, _: Iterator[Any], shortest: Any, longest: Any, characters: Any
) -> Space[Any]:
    _check(type(shortest) is int and type(longest) is int, place, "length")
    _check(type(characters) is str, place, "charset")
    return spaces.Text(longest, min_length=shortest, charset=characters)


def _build_dict(place: _Place, nodes: Iterator[Any], keys: Any, sort_keys: Any) -> Space[Any]:
    _check(type(keys) is list and {*map(type, keys)} <= _KEY_TYPES, place, "list of keys")
    _check(len({*keys}) == len(keys), place, "list of keys")
    _check(type(sort_keys) is bool, place, "sort_keys")
    children: list[tuple[Any, Space[Any]]] = []
    for key in keys:
        step = f'["{key}"]' if type(key) is str else f"[{key!r}]"
        children.append((key, _build(nodes, place.below(step))))
    options: dict[str, Any] = {"sort_keys": sort_keys} if _SORTS_KEYS else {}
    return spaces.Dict(children, **options)  # a list of pairs keeps its order


def _build_several(
    kind: Callable[[list[Space[Any]]], Space[Any]],
) -> Callable[[_Place, Iterator[Any], Any], Space[Any]]:
    def build_them(place: _Place, nodes: Iterator[Any], count: Any) -> Space[Any]:
        _check(type(count) is int and count >= 0, place, "number of children")
        return kind([_build(nodes, place.below(f"[{i}]")) for i in range(count)])

    return build_them


def _build_sequence(place: _Place, nodes: Iterator[Any], stack: Any) -> Space[Any]:
    _check(type(stack) is bool, place, "stack")
    child = _build(nodes, place.below(".feature_space", copied=stack))
    return spaces.Sequence(child, stack=stack)


def _build_graph(place: _Place, nodes: Iterator[Any], has_edges: Any) -> Space[Any]:
    _check(type(has_edges) is bool, place, "edge space")
    node_space = _build(nodes, place.below(".node_space", copied=True))
    edge_space = _build(nodes, place.below(".edge_space", copied=True)) if has_edges else None
    return spaces.Graph(node_space, edge_space)


_BUILDERS: dict[str, Callable[..., Space[Any]]] = {
    "Box": _build_box,
    "Discrete": _build_discrete,
    "MultiDiscrete": _build_multi_discrete,
    "MultiBinary": _build_multi_binary,
    "Text": _build_text,
    "Dict": _build_dict,
    "Tuple": _build_several(spaces.Tuple),
    "OneOf": _build_several(spaces.OneOf),
    "Sequence": _build_sequence,
    "Graph": _build_graph,
}
