"""Find what cannot be serialized: where it is, why, and what can replace it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gymnasium.spaces import GraphInstance

from gymwire.protocol.arrays import MAX_DIMS, MAX_EMPTY, SCALARS, TIMES, dtype_to_text, empty_size
from gymwire.protocol.conversions import Converter
from gymwire.protocol.crowding import is_crowded
from gymwire.protocol.named_tuples import MAX_TYPES, count_type, is_rebuilt
from gymwire.protocol.value_limits import (
    CROWDED,
    MAX_INT_BYTES,
    MAX_OTHER_KEY_BYTES,
    MAX_OTHER_KEYS,
)

__all__ = [
    "ATOMS",
    "CONTAINERS",
    "MAX_DEPTH",
    "Fault",
    "Opaque",
    "find_faults",
    "is_encodable",
    "other_than",
]

MAX_DEPTH: Final = 64
"""The maximum depth of nested containers."""
_REPR_LENGTH = 200
_MAX_PATH = 1_000  # characters of a path, to which keys are added


@dataclass(frozen=True, slots=True)
class Opaque:
    """Replaces a value in an info that cannot be serialized.

    Attributes:
        type: the qualified name of the value's type.
        repr: its `repr`, at most 200 characters.
    """

    type: str
    repr: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A value that cannot be serialized.

    Attributes:
        path: where it is, e.g. `info["agents"][3]`.
        text: what is wrong with it, as the rest of a sentence that begins with the path.
    """

    path: str
    text: str


ATOMS: Final = frozenset(
    {type(None), bool, int, float, str, bytes, np.ndarray, np.str_, np.bytes_, Opaque}
    | {*SCALARS, *TIMES}
)
"""The types whose values can (nearly all) be serialized."""
CONTAINERS: Final = frozenset({list, tuple, dict, OrderedDict, GraphInstance})
"""The types that can be serialized if their contents can."""


def is_encodable(value: Any, depth: int) -> bool:
    """Return whether a value has known types only, in at most `depth` nested containers.

    The success of msgpack alone is not enough: it accepts types that it decodes as others
    (bytearray, memoryview, its own ExtType and Timestamp), and it has other limits of depth.
    """
    kind = type(value)
    if kind in ATOMS:
        return True
    if depth == 0 or (kind not in CONTAINERS and not is_rebuilt(kind)):
        return False
    if kind is dict or kind is OrderedDict:
        others = 0
        for key in value:
            if type(key) is not str:
                others += type(key) is not bytes
                if not is_encodable(key, depth - 1):
                    return False
                if type(key) is not bytes and _size_of_key(key) > MAX_OTHER_KEY_BYTES:
                    return False
        if others > MAX_OTHER_KEYS and is_crowded([*map(hash, value)]):
            return False
        value = value.values()
    atoms = ATOMS
    for item in value:  # a loop is twice as fast as all() with a generator
        if type(item) not in atoms and not is_encodable(item, depth - 1):
            return False
    return True


def _size_of_key(key: Any) -> int:
    """Return an upper bound of the serialized size of a key that can be serialized."""
    kind = type(key)
    if kind is tuple:
        return 12 + sum(map(_size_of_key, key))
    if kind is str or kind is np.str_:
        return 12 + len(key.encode(errors="replace"))
    if kind is bytes or kind is np.bytes_:
        return 12 + len(key)
    return 12 + key.bit_length() // 8 if kind is int else 48


def find_faults(
    value: Any, root: str, converter: Converter | None = None
) -> tuple[Any, list[Fault]]:
    """Return a copy of a value with `Opaque` for what cannot be serialized, and all the faults.

    Each fault's path begins with `root`. A value that `converter` can convert is not a fault.
    """
    replacer = _Replacer(converter)
    copy = replacer.walk(value, root)
    return copy, replacer.faults


def _name_fault(value: Any) -> str | None:
    """Return why an atom cannot be serialized, or None if it can."""
    kind = type(value)
    if kind is np.ndarray:
        if value.ndim > MAX_DIMS:
            return f"is an array of {value.ndim} dimensions; the maximum is {MAX_DIMS}"
        if (fault := _name_fault_of_shape(value)) is not None:
            return fault
        if value.dtype == object:
            return "is an array of objects, which the other side's release does not know"
        if dtype_to_text(value.dtype) is None:
            return f"is an array of dtype {value.dtype}, which has no portable form"
    elif kind is int:
        if value.bit_length() // 8 >= MAX_INT_BYTES:
            return f"is an integer of {value.bit_length()} bits; the maximum is 2047"
    elif kind is str or kind is np.str_:
        try:
            value.encode()
        except UnicodeEncodeError:
            return "is text with lone surrogates, which UTF-8 cannot encode"
    elif kind not in ATOMS:
        return (
            f"is a {kind.__module__}.{kind.__qualname__}, which cannot be serialized. Use "
            "numbers, text, bytes, NumPy arrays, and lists, tuples and dicts of them"
        )
    return None


def _name_fault_of_shape(array: np.ndarray[Any, Any]) -> str | None:
    """Return why an array cannot be serialized because it has rows but no items, or None."""
    if array.size or empty_size(array.shape) <= MAX_EMPTY:
        return None
    return (
        f"is an array without items of the shape {array.shape}; the product of the sizes other "
        f"than 0 may be at most {MAX_EMPTY}"
    )


def _name_fault_of_keys(value: Mapping[Any, Any]) -> str | None:
    """Return why a mapping cannot be serialized because of its keys, or None if it can."""
    others = [key for key in value if type(key) not in (str, bytes)]
    sizes = [_size_of_key(key) for key in others if is_encodable(key, MAX_DEPTH)]
    if max(sizes, default=0) > MAX_OTHER_KEY_BYTES:
        return (
            f"has a key of about {max(sizes)} bytes that is neither text nor bytes; the maximum "
            f"is {MAX_OTHER_KEY_BYTES}"
        )
    if len(others) > MAX_OTHER_KEYS and is_crowded([*map(hash, value)]):
        return f"has {CROWDED}"
    return None


def _as_opaque(value: object) -> Opaque:
    kind = type(value)
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a foreign repr may raise anything
        text = f"<repr raised {type(error).__name__}>"
    text = text[:_REPR_LENGTH].encode("utf-8", "backslashreplace").decode()[:_REPR_LENGTH]
    return Opaque(f"{kind.__module__}.{kind.__qualname__}", text)


def _step_into(path: str, key: object) -> str:
    if len(path) > _MAX_PATH:  # each of many faults may have it
        return path
    shown = f'"{key[:_REPR_LENGTH]}"' if type(key) is str else _as_opaque(key).repr
    return f"{path}[{shown}]"


class _Replacer:
    """Copies a value with an `Opaque` in place of each value that cannot be serialized."""

    def __init__(self, converter: Converter | None) -> None:
        self.faults: list[Fault] = []
        self._above: list[int] = []
        self._converter = converter
        self._extended = converter is None or converter.extended
        self._types: set[Any] = set() if converter is None else converter.types

    def _opaque(self, value: object, path: str, fault: str) -> Opaque:
        self.faults.append(Fault(path, fault))
        return _as_opaque(value)

    def walk(self, value: Any, path: str) -> Any:
        kind = type(value)
        has_objects = kind is np.ndarray and value.dtype == object and self._extended
        is_container = kind in CONTAINERS or has_objects or is_rebuilt(kind)
        if not is_container and (self._converter is None or kind in ATOMS):
            fault = _name_fault(value)
            return value if fault is None else self._opaque(value, path, fault)
        if id(value) in self._above:
            return self._opaque(value, path, "contains itself")
        # Of other mappings, which may raise anything, the keys are checked once they are dicts.
        fault = _name_fault_of_keys(value) if kind is dict or kind is OrderedDict else None
        if has_objects:
            fault = _name_fault_of_shape(value)
        if is_rebuilt(kind):
            fault = self._count(kind)
        if len(self._above) >= MAX_DEPTH:
            fault = f"is nested deeper than {MAX_DEPTH} levels"
        if fault is not None:
            return self._opaque(value, path, fault)
        self._above.append(id(value))
        try:
            return self._walk_items(value, path) if is_container else self._convert(value, path)
        finally:
            self._above.pop()

    def _count(self, kind: type[Any]) -> str | None:
        """Count a type of named tuples; return what is wrong if there are too many."""
        try:
            count_type(self._types, kind.__name__, kind._fields)
        except ValueError:
            return (
                f"is a {kind.__name__}, and there are more than {MAX_TYPES} types of named tuples, "
                f"the maximum of a message"
            )
        return None

    def _convert(self, value: Any, path: str) -> Any:
        assert self._converter is not None
        converted = self._converter.convert(value, path, self.walk)
        if converted is not value:
            return converted
        return self._opaque(value, path, _name_fault(value) or "cannot be serialized")

    def _walk_key(self, key: Any, path: str) -> Any:
        copy = self.walk(key, path)
        try:
            hash(copy)
        except TypeError:  # a dataclass, for example, which became a dict
            return self._opaque(key, path, "cannot be serialized as a key")
        return copy

    def _walk_items(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            copy = np.empty(value.size, object)
            for index, item in enumerate(value.ravel()):
                copy[index] = self.walk(item, f"{path}.flat[{index}]")
            ordered = np.empty_like(value)  # in the same order in memory
            ordered[...] = copy.reshape(value.shape)
            return ordered
        if is_rebuilt(kind):
            return kind(*(self.walk(getattr(value, n), f"{path}.{n}") for n in kind._fields))
        if kind is GraphInstance:
            names = GraphInstance._fields
            return GraphInstance(*map(self.walk, value, [f"{path}.{name}" for name in names]))
        if kind is list or kind is tuple:
            return kind(self.walk(item, f"{path}[{i}]") for i, item in enumerate(value))
        mapping: dict[Any, Any] = OrderedDict() if kind is OrderedDict else {}
        places = [_step_into(path, key) for key in value]
        keys = self._walk_keys(value, places)
        if keys is None:
            return self._opaque(value, path, f"has {CROWDED}")
        for key, item, place in zip(keys, value.values(), places, strict=True):
            mapping[key] = self.walk(item, place)
        return mapping

    def _walk_keys(self, value: Mapping[Any, Any], places: list[str]) -> list[Any] | None:
        """Return the copies of the keys, which remain different from each other.

        None: they are crowded, which the keys themselves are not.
        """
        keys = list(value)
        copies = [
            self._walk_key(key, f"the key {place}") for key, place in zip(keys, places, strict=True)
        ]
        others = sum(copy is not key for key, copy in zip(keys, copies, strict=True))
        hashes = [hash(copy) for copy in copies if type(copy) is not Opaque]  # those are secret
        if others > MAX_OTHER_KEYS and is_crowded(hashes):
            return None
        taken = {copy for key, copy in zip(keys, copies, strict=True) if copy is key}
        known: Counter[Opaque] = Counter()
        for index, (key, copy) in enumerate(zip(keys, copies, strict=True)):
            if copy is not key:
                copies[index] = other_than(taken, known, copy, key)
                taken.add(copies[index])
        return copies


def other_than(taken: set[Any], known: Counter[Opaque], copy: Any, key: Any) -> Any:
    """Return `copy`, or if that is taken, an `Opaque` that shows the key, perhaps with a number.

    `known`: the last number of each.
    """
    if copy not in taken:
        return copy
    found = shown = copy if type(copy) is Opaque else _as_opaque(key)
    while found in taken:
        known[shown] += 1
        found = Opaque(shown.type, f"{shown.repr} ({known[shown] + 1})")
    return found
