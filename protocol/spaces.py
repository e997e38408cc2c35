"""Serialize spaces: `describe` one, `build` it again, `compile` a codec for its values.

A description is the list of the nodes of a space, parents before children. Each node is a short
list that starts with its kind:

    ["Box", dtype, shape, low, high] or [..., bounded_below, bounded_above]
    ["Discrete", dtype, n, start]        ["MultiDiscrete", dtype, shape, nvec, start]
    ["MultiBinary", n or shape]          ["Text", min_length, max_length, characters]
    ["Dict", keys, sort_keys]            then one child for each key
    ["Tuple", count]  ["OneOf", count]   then `count` children
    ["Sequence", stack]                  then the child
    ["Graph", has_edges]                 then the node space, and the edge space if there is one
    ["Remote", class, shape, dtype]      a space of another class, with None for an unknown property

The list is flat, however deep the space is. Bounds, nvec and start are one number if all elements
are equal, otherwise the raw bytes of the array. For the text of a dtype see `protocol.arrays`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces

from gymwire.protocol.arrays import MAX_DIMS, MAX_EMPTY, dtype_from_text, dtype_to_text, empty_size
from gymwire.protocol.errors import DecodingError, GymwireError, UnsupportedSpaceError
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.remote_space import RemoteSpace, SpaceCalls
from gymwire.protocol.space_codecs import compile, known_class
from gymwire.protocol.values import MAX_DEPTH

__all__ = [
    "MAX_SPACE_BYTES",
    "ForeignSpace",
    "build",
    "check_batched",
    "compile",
    "describe",
    "foreign",
    "key_step",
]

MAX_SPACE_BYTES: Final = 1 << 28
"""The maximum memory for the bounds of one described space, and for one sample of it: otherwise a
few bytes from a stranger could claim all memory."""
_NODE_BYTES = 1 << 14  # charged for each node; its random generator alone has 4 KiB
_ROW_BYTES = MAX_SPACE_BYTES // MAX_EMPTY  # charged for each row of an array without items
# What `sample` takes, for which a hostile env agent's space must not claim all memory either.
_VALUE_BYTES = 1 << 8  # of each value
_CHARACTER_BYTES = 1 << 7  # of each character of a text: Gymnasium joins NumPy's texts
_MEAN_ITEMS, _MAX_NODES, _MAX_EDGES = 4, 10, 90  # of a Sequence and of a Graph
_SHOWN_KEY = 200  # characters of a key in a path
_KEY_TYPES = frozenset({str, int, bool, float, bytes, type(None)})
_SORTS_KEYS = "sort_keys" in inspect.signature(spaces.Dict).parameters  # Gymnasium >= 1.4


@dataclass
class _Budget:
    """The memory that the nodes of a space, and one sample of it, may still use."""

    left: int = MAX_SPACE_BYTES
    sample_left: int = MAX_SPACE_BYTES


@dataclass(frozen=True)
class ForeignSpace:
    """A space that is not of one of Gymnasium's own classes.

    Attributes:
        path: its position, such as `observation_space["mission"]`.
        kind: the module and name of its class.
        sent_as: the name of the class that the learner gets.
        space: the space.
    """

    path: str
    kind: str
    sent_as: str
    space: Space[Any]


@dataclass(frozen=True)
class _NodeContext:
    """The position of a node: its path and depth, and how many copies Gymnasium makes of it.

    `drawn` is how many of its values a sample of the whole space contains. For all nodes together:
    the memory that is left, the foreign spaces found, and how spaces ask.
    """

    path: str
    depth: int = 1
    copies: int = 1
    drawn: int = 1
    budget: _Budget = field(default_factory=_Budget)
    foreign: list[ForeignSpace] = field(default_factory=list)
    calls: SpaceCalls | None = None

    def child(self, step: str, *, copied: bool = False, drawn: int = 1) -> _NodeContext:
        """Return the context of a child.

        `copied`: Gymnasium keeps a batched copy of the child. `drawn`: how many values of the child
        a sample of its parent contains.
        """
        return replace(
            self,
            path=self.path + step,
            depth=self.depth + 1,
            copies=self.copies * 2 if copied else self.copies,
            drawn=self.drawn * drawn,
        )

    def items(self, *, stack: bool) -> _NodeContext:
        """Return the context of the space of a Sequence's items."""
        return self.child(".feature_space", copied=stack, drawn=_MEAN_ITEMS)

    def graph_nodes(self) -> _NodeContext:
        """Return the context of the space of a Graph's nodes."""
        return self.child(".node_space", copied=True, drawn=_MAX_NODES)

    def graph_edges(self) -> _NodeContext:
        """Return the context of the space of a Graph's edges."""
        return self.child(".edge_space", copied=True, drawn=_MAX_EDGES)

    def charge(self, nbytes: int, error: type[UnsupportedSpaceError] | type[DecodingError]) -> None:
        """Charge for a node with arrays of `nbytes`; raise `error` if it is too deep or large."""
        if self.depth > MAX_DEPTH:
            raise error(f"{self.path} is nested deeper than {MAX_DEPTH} levels.", path=self.path)
        self.budget.left -= (nbytes + _NODE_BYTES) * self.copies
        if self.budget.left < 0:
            raise error(
                f"{self.path} makes the bounds of the space larger than "
                f"{MAX_SPACE_BYTES >> 20} MiB.",
                path=self.path,
            )
        self.charge_sample(nbytes + _VALUE_BYTES, error)

    def charge_sample(
        self, nbytes: int, error: type[UnsupportedSpaceError] | type[DecodingError]
    ) -> None:
        """Charge for a node's values in a sample of the space; raise `error` if it is too large."""
        self.budget.sample_left -= nbytes * self.drawn
        if self.budget.sample_left < 0:
            raise error(
                f"{self.path} makes a sample of the space larger than {MAX_SPACE_BYTES >> 20} MiB.",
                path=self.path,
            )


def key_step(key: Any) -> str:
    """Return what leads from the path of a Dict to that of the space under a key.

    A long key is cut: each space inside has it in its path.
    """
    return f'["{key:.{_SHOWN_KEY}}"]' if type(key) is str else f"[{key!r:.{_SHOWN_KEY}}]"


# --- describe -----------------------------------------------------------------------------------


def describe(space: Space[Any], *, root: str = "space") -> list[list[Any]]:
    """Return a description of a space, made of lists, numbers, text and bytes.

    A subclass of Gymnasium's is described as its base if it inherits its behavior, and as a space
    that asks the env agent otherwise. Raises UnsupportedSpaceError, whose `path` starts with
    `root`, for a space that is too deep or too large, or has values that cannot be sent.
    """
    return list(_describe_at(space, _NodeContext(root)))


def check_batched(space: Space[Any], count: int, *, root: str = "space") -> None:
    """Raise UnsupportedSpaceError if the space of `count` environments would be too large.

    It charges what `describe` will charge for the batched space, without making that.
    """
    context = _NodeContext(root)
    try:
        _charge_batched(space, count, context)
    except UnsupportedSpaceError as error:
        if context.budget.left >= 0 and context.budget.sample_left >= 0:
            raise
        raise UnsupportedSpaceError(
            f"{error} There are {count} environments: open fewer of them in one session.",
            path=error.path,
        ) from None


def _charge_batched(space: Space[Any], count: int, context: _NodeContext) -> None:
    """Charge for a space as Gymnasium's `batch_space` batches it."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        context.charge(0, UnsupportedSpaceError)
        inner: Any = space.spaces
        for key, child in enumerate(inner) if isinstance(inner, tuple) else inner.items():
            _charge_batched(child, count, context.child(key_step(key)))
    elif isinstance(space, (*_ARRAY_SPACES, spaces.Discrete)):
        context.charge(_bounds_of(space, count), UnsupportedSpaceError)
    else:  # a tuple of copies
        copies = replace(context, copies=count * context.copies, drawn=count * context.drawn)
        for _ in _describe_at(space, copies):
            pass


def foreign(space: Space[Any], root: str) -> list[ForeignSpace]:
    """Return the parts of a space that are not of Gymnasium's own classes. Raises as `describe`."""
    context = _NodeContext(root)
    for _ in _describe_at(space, context):
        pass
    return context.foreign


def _describe_at(space: Space[Any], context: _NodeContext) -> Iterator[list[Any]]:
    kind = known_class(space)
    if kind is not type(space):
        name = f"{type(space).__module__}.{type(space).__qualname__}"
        sent_as = "RemoteSpace" if kind is None else kind.__name__
        context.foreign.append(ForeignSpace(context.path, name, sent_as, space))
        if kind is None:
            yield _describe_remote(space, name, context)
            return
    size = _bounds_of(space) if isinstance(space, _ARRAY_SPACES) else 0
    context.charge(size, UnsupportedSpaceError)
    assert kind is not None
    yield from _describe.registry[kind](space, context)


def _bounds_of(space: Space[Any], *rows: int) -> int:
    """Return what to charge for the bounds of a space, or of a batch of it with `rows` rows."""
    return 0 if space.dtype is None else _size_of_bounds((*rows, *(space.shape or ())), space.dtype)


def _size_of_bounds(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Return what to charge for the bounds of an array space, in bytes."""
    size = 2 * math.prod(shape) * dtype.itemsize
    return size or _ROW_BYTES * empty_size(shape)


def _describe_remote(space: Space[Any], name: str, context: _NodeContext) -> list[Any]:
    context.charge(0, UnsupportedSpaceError)
    if not isinstance(space, Space):
        raise _unsupported(context, f"is a {name}, which is not a gymnasium.Space")
    shape, dtype = space.shape, space.dtype
    sizes = None if shape is None or len(shape) > MAX_DIMS else [int(n) for n in shape]
    return ["Remote", name, sizes, None if dtype is None else dtype_to_text(dtype)]


_ARRAY_SPACES = (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)


def _unsupported(context: _NodeContext, fault: str) -> UnsupportedSpaceError:
    return UnsupportedSpaceError(f"{context.path} {fault}.", path=context.path)


def _dtype_text(space: Space[Any], context: _NodeContext) -> str:
    assert space.dtype is not None
    text = dtype_to_text(space.dtype)
    if text is None:
        raise _unsupported(context, f"has dtype {space.dtype}, which has no portable form")
    if len(space.shape or ()) > MAX_DIMS:
        raise _unsupported(context, f"has more than {MAX_DIMS} dimensions")
    return text


def _squeeze(array: np.ndarray[Any, Any]) -> Any:
    """Return the number that all elements equal, or else the raw bytes of the array."""
    raw = array.tobytes()
    if raw and raw == raw[: array.itemsize] * array.size:
        return array.flat[0].item()
    return raw


@singledispatch
def _describe(space: Space[Any], context: _NodeContext) -> Iterator[list[Any]]:
    raise NotImplementedError(type(space))


@_describe.register
def _(space: spaces.Box, context: _NodeContext) -> Iterator[list[Any]]:
    node = ["Box", _dtype_text(space, context), list(space.shape)]
    node += [_squeeze(space.low), _squeeze(space.high)]
    # An integer Box records only here that it was created with infinite bounds.
    below, above = space.bounded_below, space.bounded_above
    if not (
        np.array_equal(below, space.low > -np.inf) and np.array_equal(above, space.high < np.inf)
    ):
        node += [_squeeze(np.asarray(below)), _squeeze(np.asarray(above))]
    yield node


@_describe.register
def _(space: spaces.Discrete, context: _NodeContext) -> Iterator[list[Any]]:
    yield ["Discrete", _dtype_text(space, context), int(space.n), int(space.start)]


@_describe.register
def _(space: spaces.MultiDiscrete, context: _NodeContext) -> Iterator[list[Any]]:
    node = ["MultiDiscrete", _dtype_text(space, context), list(space.shape)]
    yield [*node, _squeeze(space.nvec), _squeeze(space.start)]


@_describe.register
def _(space: spaces.MultiBinary, context: _NodeContext) -> Iterator[list[Any]]:
    yield ["MultiBinary", list(space.n) if isinstance(space.n, tuple) else int(space.n)]


@_describe.register
def _(space: spaces.Text, context: _NodeContext) -> Iterator[list[Any]]:
    context.charge_sample(space.min_length * _CHARACTER_BYTES, UnsupportedSpaceError)
    if any(len(character) != 1 for character in space.character_list):
        raise _unsupported(context, "has a charset with elements longer than one character")
    characters = "".join(space.character_list)
    try:
        characters.encode()
    except UnicodeEncodeError:
        raise _unsupported(context, "has lone surrogates in its charset") from None
    yield ["Text", space.min_length, space.max_length, characters]


@_describe.register
def _(space: spaces.Dict, context: _NodeContext) -> Iterator[list[Any]]:
    keys: list[Any] = list(space.spaces)
    for key in keys:
        if type(key) not in _KEY_TYPES or (type(key) is int and not -(2**63) <= key < 2**64):
            raise _unsupported(
                context, f"has the key {key!r:.200}; keys are text or simple scalars"
            )
    yield ["Dict", keys, bool(getattr(space, "sort_keys", True))]
    for key, child in space.spaces.items():
        yield from _describe_at(child, context.child(key_step(key)))


@_describe.register(spaces.Tuple)
@_describe.register(spaces.OneOf)
def _(space: spaces.Tuple[Any] | spaces.OneOf[Any], context: _NodeContext) -> Iterator[list[Any]]:
    yield [type(space).__name__, len(space.spaces)]
    for i, child in enumerate(space.spaces):
        yield from _describe_at(child, context.child(f"[{i}]"))


@_describe.register
def _(space: spaces.Sequence, context: _NodeContext) -> Iterator[list[Any]]:
    stack = bool(space.stack)
    yield ["Sequence", stack]
    yield from _describe_at(space.feature_space, context.items(stack=stack))


@_describe.register
def _(space: spaces.Graph, context: _NodeContext) -> Iterator[list[Any]]:
    yield ["Graph", space.edge_space is not None]
    yield from _describe_at(space.node_space, context.graph_nodes())
    if space.edge_space is not None:
        yield from _describe_at(space.edge_space, context.graph_edges())


# --- build --------------------------------------------------------------------------------------


def build(description: Any, *, root: str = "space", calls: SpaceCalls | None = None) -> Space[Any]:
    """Return a fresh space that equals the one described, with the same types throughout.

    `calls`: how spaces that only the env agent knows ask it; None: they cannot be used.

    Raises DecodingError, and nothing else, for a malformed description.
    """
    if type(description) is not list:
        raise DecodingError(f"The description of {root} is not a list of nodes.", path=root)
    nodes = iter(description)
    try:
        space = _build(nodes, _NodeContext(root, calls=calls))
    except GymwireError:
        raise
    except (ValueError, TypeError, OverflowError, AssertionError, MemoryError) as error:
        if is_from_outside(error):
            raise
        raise DecodingError(f"{root} cannot be built as described ({error}).", path=root) from error
    if next(nodes, None) is not None:
        raise DecodingError(f"The description of {root} has surplus nodes.", path=root)
    return space


def _build(nodes: Iterator[Any], context: _NodeContext) -> Space[Any]:
    context.charge(0, DecodingError)
    node = next(nodes, None)
    if type(node) is list and node and type(node[0]) is str and node[0] in _BUILDERS:
        # A wrong number of items raises TypeError.
        return _BUILDERS[node[0]](context, nodes, *node[1:])
    raise DecodingError(
        f"{context.path} has an unknown space type in its description.", path=context.path
    )


def _check(ok: bool, context: _NodeContext, what: str) -> None:
    if not ok:
        raise DecodingError(
            f"{context.path} has a wrong {what} in its description.", path=context.path
        )


def _shape(value: Any, dtype: np.dtype[Any], context: _NodeContext) -> tuple[int, ...]:
    sizes = type(value) is list and all(type(n) is int and n >= 0 for n in value)
    _check(sizes and len(value) <= MAX_DIMS, context, "shape")
    context.charge(_size_of_bounds(value, dtype), DecodingError)
    return tuple(value)


def _dtype(value: Any, kinds: str, context: _NodeContext) -> np.dtype[Any]:
    dtype = dtype_from_text(value)
    _check(dtype.kind in kinds, context, "dtype")
    return dtype


def _expand(
    value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], context: _NodeContext
) -> np.ndarray[Any, Any]:
    """Undo `_squeeze`."""
    if type(value) is bytes:
        _check(len(value) == math.prod(shape) * dtype.itemsize, context, "number of bytes")
        array = np.ndarray(shape, dtype, value).copy()
        _check(dtype.kind != "b" or not array.size or array.view("u1").max() <= 1, context, "bool")
        return array
    _check(type(value) is {"b": bool, "f": float}.get(dtype.kind, int), context, "number")
    with np.errstate(over="ignore"):
        number = np.array(value, dtype)
    _check(number.item() == value, context, "number")
    return np.full(shape, number, dtype)


def _build_box(
    context: _NodeContext,
    _: Iterator[Any],
    text: Any,
    sizes: Any,
    low: Any,
    high: Any,
    *bounded: Any,
) -> Space[Any]:
    dtype = _dtype(text, "biuf", context)
    shape = _shape(sizes, dtype, context)
    bounds = [_expand(bound, dtype, shape, context) for bound in (low, high)]
    box: spaces.Box[Any] = spaces.Box(bounds[0], bounds[1], shape, dtype=dtype)
    if bounded:
        below, above = bounded
        box.bounded_below = _expand(below, np.dtype(np.bool_), shape, context)
        box.bounded_above = _expand(above, np.dtype(np.bool_), shape, context)
    return box


def _build_discrete(
    context: _NodeContext, _: Iterator[Any], text: Any, n: Any, start: Any
) -> Space[Any]:
    _check(type(n) is int and type(start) is int, context, "number")
    return spaces.Discrete(n, start=start, dtype=_dtype(text, "iu", context))


def _build_multi_discrete(
    context: _NodeContext, _: Iterator[Any], text: Any, sizes: Any, nvec: Any, start: Any
) -> Space[Any]:
    dtype = _dtype(text, "iu", context)
    shape = _shape(sizes, dtype, context)
    arrays = [_expand(numbers, dtype, shape, context) for numbers in (nvec, start)]
    return spaces.MultiDiscrete(arrays[0], dtype=dtype, start=arrays[1])


def _build_multi_binary(context: _NodeContext, _: Iterator[Any], n: Any) -> Space[Any]:
    shape = _shape([n] if type(n) is int else n, np.dtype(np.int8), context)
    return spaces.MultiBinary(n if type(n) is int else shape)


def _build_text(
    context: _NodeContext, _: Iterator[Any], shortest: Any, longest: Any, characters: Any
) -> Space[Any]:
    _check(type(shortest) is int and type(longest) is int and shortest >= 0, context, "length")
    _check(type(characters) is str, context, "charset")
    context.charge_sample(shortest * _CHARACTER_BYTES, DecodingError)
    return spaces.Text(longest, min_length=shortest, charset=characters)


def _build_dict(
    context: _NodeContext, nodes: Iterator[Any], keys: Any, sort_keys: Any
) -> Space[Any]:
    _check(type(keys) is list and {*map(type, keys)} <= _KEY_TYPES, context, "list of keys")
    _check(len({*keys}) == len(keys), context, "list of keys")
    _check(type(sort_keys) is bool, context, "sort_keys")
    children = [(key, _build(nodes, context.child(key_step(key)))) for key in keys]
    options: dict[str, Any] = {"sort_keys": sort_keys} if _SORTS_KEYS else {}
    return spaces.Dict(children, **options)  # a list of pairs keeps its order


def _build_several(
    kind: Callable[[list[Space[Any]]], Space[Any]],
) -> Callable[[_NodeContext, Iterator[Any], Any], Space[Any]]:
    def build_them(context: _NodeContext, nodes: Iterator[Any], count: Any) -> Space[Any]:
        _check(type(count) is int and count >= 0, context, "number of children")
        return kind([_build(nodes, context.child(f"[{i}]")) for i in range(count)])

    return build_them


def _build_sequence(context: _NodeContext, nodes: Iterator[Any], stack: Any) -> Space[Any]:
    _check(type(stack) is bool, context, "stack")
    return spaces.Sequence(_build(nodes, context.items(stack=stack)), stack=stack)


def _build_graph(context: _NodeContext, nodes: Iterator[Any], has_edges: Any) -> Space[Any]:
    _check(type(has_edges) is bool, context, "edge space")
    node_space = _build(nodes, context.graph_nodes())
    edge_space = _build(nodes, context.graph_edges()) if has_edges else None
    return spaces.Graph(node_space, edge_space)


def _build_remote(
    context: _NodeContext, _: Iterator[Any], kind: Any, sizes: Any, text: Any
) -> Space[Any]:
    _check(type(kind) is str, context, "class")
    dtype = None if text is None else dtype_from_text(text)
    _check(
        sizes is None
        or (type(sizes) is list and len(sizes) <= MAX_DIMS and {*map(type, sizes)} <= {int}),
        context,
        "shape",
    )
    shape = None if sizes is None else tuple(sizes)
    return RemoteSpace(kind, context.path, context.calls, shape, dtype)


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
    "Remote": _build_remote,
}
