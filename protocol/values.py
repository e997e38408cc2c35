"""Serialize values as msgpack that keeps every type, with large arrays beside it.

A value is plain msgpack if msgpack has its type (None, bool, 64-bit int, float, str, bytes, list,
dict; see `protocol.value_limits` for its keys), and otherwise one of these extension types:

| code | stands for                  | data                                                       |
|------|-----------------------------|------------------------------------------------------------|
| 1    | numpy array                 | msgpack [dtype, shape, raw bytes, or offset in the tail]   |
| 2    | numpy scalar                | dtype, a zero byte, raw bytes; `S` raw, `U` as UTF-8       |
| 3    | int outside 64 bits         | two's complement, little-endian                            |
| 4    | tuple                       | msgpack array of its items                                 |
| 5    | gymnasium GraphInstance     | msgpack [nodes, edges, edge_links]                         |
| 6    | `Opaque`                    | msgpack [type, repr]                                       |
| 7    | collections.OrderedDict     | msgpack map                                                |
| 8    | named tuple                 | msgpack [name, [name of a field, ...], [item, ...]]        |
| 9    | numpy array of objects      | msgpack [shape, [item, ...]], and axes if not in C order   |
| 10   | numpy array not in C order  | msgpack [axes, the array with its axes in this order]      |

For the text of a dtype see `protocol.arrays`. A type that would be decoded as another one (an
`IntEnum`, a named tuple of the user's own type, a `bytearray`, a masked array) is refused; only
`convert` replaces such values. The types 8 to 10 need the capability `values`.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from functools import lru_cache, partial
from typing import Any

import msgpack
import numpy as np
from gymnasium.spaces import GraphInstance

from gymwire.protocol.arrays import (
    ALIGNMENT,
    LARGE,
    MAX_DIMS,
    MAX_EMPTY,
    SCALARS,
    TIMES,
    Tail,
    axes_order,
    copy_array,
    dtype_from_text,
    dtype_to_text,
    empty_size,
    object_array,
    reorder,
)
from gymwire.protocol.conversions import Converter
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.faults import CONTAINERS, MAX_DEPTH, Fault, Opaque, find_faults, is_encodable
from gymwire.protocol.named_tuples import count_type, is_rebuilt, rebuild
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.value_limits import (
    COUNT_ABOVE,
    CROWDED,
    MAX_INT_BYTES,
    check_cost,
    has_other_keys,
)

__all__ = [
    "LARGE",
    "MAX_DEPTH",
    "Opaque",
    "Tail",
    "check",
    "convert",
    "decode",
    "encode",
    "opaque",
    "pack",
    "unpack",
]

_ARRAY, _SCALAR, _INT, _TUPLE, _GRAPH, _OPAQUE, _ORDERED, _NAMED, _OBJECTS, _REORDERED = range(
    1, 11
)
# A list header may declare as many items as the message has bytes, and msgpack allocates that many
# at each level. Longer messages are therefore skimmed before anything is allocated.
_SKIM_ABOVE = 2048
_FLOAT64 = struct.Struct("<d")
_FIRST = slice(0, 8)  # bytes of an array, which say most about its dtype and shape
MAX_STARTS = 256  # of arrays that are remembered
_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, MemoryError)
_MALFORMED = (*_FAILURES, msgpack.UnpackException)

# --- encoding -----------------------------------------------------------------------------------


def _extension(code: int, data: bytes) -> msgpack.ExtType:
    """Return what `msgpack.ExtType` returns, without its checks, which take half of the time."""
    return tuple.__new__(msgpack.ExtType, (code, data))


def _pack(
    value: object, tail: Tail | None, extended: bool, types: set[Any], depth: int = 0
) -> bytes:
    """Return the bytes of a value, and add its types of named tuples to `types`."""
    extend = partial(_extend, tail, extended, types, depth)
    packer = msgpack.Packer(default=extend, strict_types=True)
    packed: bytes = packer.pack(value)
    return packed


def _extend(
    tail: Tail | None, extended: bool, types: set[Any], depth: int, value: Any
) -> msgpack.ExtType:
    """Convert a value to an extension type. Raises TypeError if there is none for its type."""
    kind = type(value)
    if kind is np.float64:  # frequent in rewards and infos, and its tobytes() is slow
        return _extension(_SCALAR, b"<f8\0" + _FLOAT64.pack(value))
    if (prefix := SCALARS.get(kind)) is not None:
        return _extension(_SCALAR, prefix + value.tobytes())
    if kind is np.ndarray and not value.dtype.hasobject:
        axes = axes_order(value) if extended else None
        if axes is None:
            return _extension(_ARRAY, _pack_array(value, tail))
        parts: Any = [axes, value.transpose(axes)]
        return _extension(_REORDERED, _pack(parts, tail, extended, types, depth + 1))
    if kind in CONTAINERS or kind is np.ndarray or is_rebuilt(kind):
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        code, parts = _parts(kind, value, MAX_DEPTH - depth, extended, tail, types)
        return _extension(code, _pack(parts, tail, extended, types, depth + 1))
    if kind is int:
        return _extension(_INT, _int_to_bytes(value))
    if kind is np.str_:
        return _extension(_SCALAR, b"U\0" + str.encode(value))
    if kind is np.bytes_:
        return _extension(_SCALAR, b"S\0" + bytes(value))
    if kind in TIMES:
        return _extension(_SCALAR, value.dtype.str.encode() + b"\0" + value.tobytes())
    if kind is Opaque:
        return _extension(_OPAQUE, msgpack.packb([value.type, value.repr]))
    raise TypeError(kind)


def _parts(
    kind: type, value: Any, depth: int, extended: bool, tail: Tail | None, types: set[Any]
) -> tuple[int, Any]:
    """Return the extension type of a container, and the value that it contains."""
    if kind is OrderedDict:
        return _ORDERED, dict(value)
    if kind in CONTAINERS:
        return _TUPLE if kind is tuple else _GRAPH, list(value)
    if not extended:
        raise TypeError(f"the other side runs a release that does not know {kind.__name__} here")
    if kind is not np.ndarray:
        count_type(types, kind.__name__, value._fields)
        return _NAMED, [kind.__name__, list(value._fields), list(value)]
    axes = axes_order(value)
    if axes is not None:
        value = value.transpose(axes)
    items = value.ravel().tolist()
    if value.dtype != object or value.ndim > MAX_DIMS or not is_encodable(items, depth):
        raise TypeError(value.dtype)
    if not items:
        _count_empty(value.shape, tail)
    return _OBJECTS, [list(value.shape), items] if axes is None else [[*value.shape], items, axes]


def _int_to_bytes(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        raise ValueError("integer too large")
    return value.to_bytes(size, "little", signed=True)


def _pack_array(array: np.ndarray[Any, Any], tail: Tail | None) -> bytes:
    if 0 < array.nbytes < LARGE:
        return _start_of_array(array.dtype, array.shape) + array.tobytes()
    if not array.size:
        _count_empty(array.shape, tail)
        return _start_of_array(array.dtype, array.shape)
    body = array.tobytes() if tail is None else tail.add(array)
    packed: bytes = msgpack.packb([_checked_text(array.dtype, array.shape), array.shape, body])
    return packed


def _count_empty(shape: tuple[int, ...], tail: Tail | None) -> None:
    """Raise ValueError if the receiver would refuse a message with one more array without items."""
    size = empty_size(shape)
    if tail is not None:
        size += tail.empty
        tail.empty = size
    if size > MAX_EMPTY:
        raise ValueError("its arrays without items have too many rows in total")


def _checked_text(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    text = dtype_to_text(dtype)
    if text is None or len(shape) > MAX_DIMS:
        raise TypeError(dtype)
    return text


@lru_cache(maxsize=256)  # an info has many arrays of few kinds
def _start_of_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what comes before the bytes of a small array."""
    body = bytes(math.prod(shape) * dtype.itemsize)
    packed: bytes = msgpack.packb([_checked_text(dtype, shape), shape, body])
    return packed[: len(packed) - len(body)]


def _encode(value: Any, tail: Tail | None, root: str, depth: int, extended: bool) -> bytes:
    mark, empty = (0, 0) if tail is None else (len(tail.parts), tail.empty)
    cause: Exception | None = None
    try:
        packed = _pack(value, tail, extended, set())
        if is_encodable(value, depth):
            if len(packed) > COUNT_ABOVE:
                check_cost(packed)  # as the receiver does
            return packed
    except (*_FAILURES, DecodingError) as error:
        cause = error
    if tail is not None:
        tail.rewind(mark)
        tail.empty = empty
    check(value, root=root)
    if cause is not None and is_from_outside(cause):
        raise cause
    raise EncodingError(f"{root} cannot be serialized: {cause}", path=root) from cause


def encode(value: Any, *, root: str = "value") -> bytes:
    """Return the bytes of a value, with nothing beside them.

    Raises EncodingError, whose `path` starts with `root`, if a part of it cannot be serialized.
    """
    return _encode(value, None, root, MAX_DEPTH, True)


def pack(
    parts: list[Any], tail: Tail | None = None, *, root: str = "value", extended: bool = True
) -> bytes:
    """Return the bytes of the parts of a message, and add their large arrays to `tail`.

    `extended`: whether the receiver has the capability `values`.

    Raises EncodingError, leaving `tail` unchanged, if a part cannot be serialized.
    """
    return _encode(parts, tail, root, MAX_DEPTH + 1, extended)


def check(value: Any, *, root: str = "value") -> None:
    """Raise EncodingError, whose `path` starts with `root`, if `value` cannot be serialized.

    This is slower than packing; use it to find the faulty part of a message.
    """
    for fault in find_faults(value, root)[1]:
        raise EncodingError(f"{fault.path} {fault.text}.", path=fault.path)


def opaque(value: Any, *, root: str = "info") -> tuple[Any, list[str]]:
    """Return a copy of `value` that can be serialized, and the paths that are now `Opaque`.

    Values of other types are converted as in `convert`.
    """
    copy, faults, _ = convert(value, root=root)
    return copy, [fault.path for fault in faults]


def convert(
    value: Any, *, root: str, only_tensors: bool = False, extended: bool = True
) -> tuple[Any, list[Fault], list[tuple[str, str, str]]]:
    """Return a copy of `value` that can be serialized, its faults, and its conversions.

    An enum becomes its value, a dataclass a dict of its fields, a named tuple one with the same
    names, any mapping a dict, a tensor a NumPy array (docs/protocol.md §10). `Opaque` replaces
    what has a fault.

    Args:
        value: any value.
        root: with which the paths begin.
        only_tensors: whether nothing but tensors is converted.
        extended: whether the receiver has the capability `values`. Otherwise a named tuple becomes
            a tuple, and an array of objects has a fault.
    """
    converter = Converter(only_tensors=only_tensors, extended=extended)
    copy, faults = find_faults(value, root, converter)
    return copy, faults, converter.conversions


# --- decoding -----------------------------------------------------------------------------------


# (length of a small array, its first bytes) → what comes before its raw bytes; its dtype and shape.
_starts: dict[tuple[int, bytes], tuple[bytes, np.dtype[Any], tuple[int, ...]]] = {}


def _read_array(data: bytes, tail: memoryview | None) -> np.ndarray[Any, Any]:
    known = _starts.get((len(data), data[_FIRST]))
    if known is not None and data.startswith(known[0]):
        return copy_array(known[1], known[2], data, len(known[0]))
    parts = msgpack.unpackb(data)
    if type(parts) is not list or len(parts) != 3 or type(parts[1]) is not list:
        raise DecodingError("An array is not [dtype, shape, bytes or offset].")
    text, shape, body = parts
    dtype = dtype_from_text(text)
    fits = len(shape) <= MAX_DIMS
    for n in shape:  # a loop is twice as fast as any() with a generator
        fits = fits and type(n) is int and n >= 0
    if not fits:
        raise DecodingError(f"An array's shape is not a list of at most {MAX_DIMS} sizes.")
    size = math.prod(shape) * dtype.itemsize
    if type(body) is bytes:
        if len(body) != size:
            raise DecodingError(f"An array must have {size} bytes, not {len(body)}.")
        if size < LARGE:
            if len(_starts) >= MAX_STARTS:
                _starts.clear()
            start = data[: len(data) - size]
            _starts[len(data), data[_FIRST]] = start, dtype, tuple(shape)
        return copy_array(dtype, tuple(shape), body)
    if type(body) is not int or tail is None:
        raise DecodingError("An array has neither bytes nor an offset in a tail.")
    if body < 0 or body % ALIGNMENT or body + size > len(tail):
        raise DecodingError(
            f"An array declares {size} bytes at offset {body} of a tail of {len(tail)} bytes."
        )
    return copy_array(dtype, tuple(shape), tail, body)


def _read_scalar(data: bytes) -> Any:
    text, _, raw = data.partition(b"\0")
    if text == b"<f8" and len(raw) == 8:
        return np.float64(_FLOAT64.unpack(raw)[0])
    if text == b"U":
        return np.str_(raw.decode())
    if text == b"S":
        return np.bytes_(raw)
    dtype = dtype_from_text(text.decode("ascii"))
    if dtype.kind in "SU" or len(raw) != dtype.itemsize:
        raise DecodingError("A NumPy scalar has the wrong number of bytes for its dtype.")
    return copy_array(dtype, (), raw)[()]


def _skim(data: bytes) -> None:
    """Raise if the data are shorter than declared."""
    skimmer = msgpack.Unpacker(max_buffer_size=len(data), strict_map_key=False)
    skimmer.feed(data)
    skimmer.skip()


class _Reader:
    """Decodes one message and its extension types.

    The arrays in the tail may not be larger together than the tail: if many of them pointed at the
    same bytes, a small message could claim any amount of memory. Arrays without items have a bound
    of their own, since loops over their rows cost time and memory.
    """

    __slots__ = ("budget", "depth", "empty", "makes_types", "tail", "text_keys", "types")

    def __init__(self, tail: memoryview | None, *, text_keys: bool, makes_types: bool) -> None:
        self.text_keys = text_keys
        self.makes_types = makes_types
        self.tail = tail
        self.budget = 0 if tail is None else len(tail)
        self.depth = 0
        self.empty = 0
        self.types: set[Any] = set()  # of named tuples

    def read(self, data: bytes) -> Any:
        # Without max_* arguments, unpackb limits every declared length by len(data).
        if len(data) > _SKIM_ABOVE:
            _skim(data)
        return msgpack.unpackb(data, strict_map_key=self.text_keys, ext_hook=self.extension)

    def extension(self, code: int, data: bytes) -> Any:
        if code == _SCALAR:
            return _read_scalar(data)
        if code == _ARRAY:
            array = _read_array(data, self.tail)
            if not 0 < array.nbytes <= len(data):
                self._charge(array)
            return array
        if code == _INT:
            if len(data) > MAX_INT_BYTES:
                raise DecodingError(
                    f"An integer has {len(data)} bytes; the maximum is {MAX_INT_BYTES}."
                )
            return int.from_bytes(data, "little", signed=True)
        if not _TUPLE <= code <= _REORDERED:
            raise DecodingError(f"Unknown extension type {code}.")
        return self._container(code, data)

    def _charge(self, array: np.ndarray[Any, Any]) -> None:
        """Count an array without items, or one whose bytes came from the tail."""
        if array.size:
            self.budget -= array.nbytes
            if self.budget < 0:
                raise DecodingError("Several arrays use the same bytes of a tail.")
            return
        self.empty += empty_size(array.shape)
        if self.empty > MAX_EMPTY:
            raise DecodingError(
                f"The products of the sizes other than 0 of the arrays without items are more than "
                f"{MAX_EMPTY} in total."
            )

    def _container(self, code: int, data: bytes) -> Any:
        if self.depth > MAX_DEPTH:
            raise DecodingError(f"A value is nested deeper than {MAX_DEPTH} levels.")
        self.depth += 1
        items = self.read(data)
        self.depth -= 1
        if code == _ORDERED:
            if type(items) is dict:
                return OrderedDict(items)
        elif type(items) is list:
            if code == _TUPLE:
                return tuple(items)
            if code == _GRAPH and len(items) == 3:
                return GraphInstance(*items)
            if code == _OPAQUE and [type(item) for item in items] == [str, str]:
                return Opaque(*items)
            if code == _NAMED:
                return self._named(*items)
            depth = MAX_DEPTH - self.depth
            if code == _OBJECTS and all(is_encodable(item, depth) for item in items):
                array = object_array(*items)
                if not array.size:
                    self._charge(array)
                return array
            if code == _REORDERED:
                return reorder(*items)
        raise DecodingError(f"Extension type {code} has malformed contents.")

    def _named(self, name: Any, fields: Any, items: Any) -> Any:
        if type(fields) is not list or type(items) is not list or len(fields) != len(items):
            raise DecodingError("A named tuple is not [name, fields, items].")
        if not all(type(one) is str for one in (name, *fields)):
            raise DecodingError("The names of a named tuple are not text.")
        count_type(self.types, name, fields)
        if not self.makes_types:
            return tuple(items)
        return rebuild(name, tuple(fields), items)


def _read(data: bytes, tail: memoryview | None, depth: int, makes_types: bool) -> Any:
    """Build a value after its cost has been bounded.

    A short value cannot cost much. In a longer one, keys that are text or bytes are harmless,
    because their hashes in Python are secret: only other keys are examined.
    """
    if len(data) > COUNT_ABOVE:
        check_cost(data)
    if len(data) > _SKIM_ABOVE:
        try:
            return _Reader(tail, text_keys=True, makes_types=makes_types).read(data)
        except ValueError as error:  # other keys, or malformed
            keys = _Reader(None, text_keys=True, makes_types=makes_types)
            if is_from_outside(error) or not has_other_keys(data, depth, keys.read):
                raise
    return _Reader(tail, text_keys=False, makes_types=makes_types).read(data)


def _decode(
    data: bytes | memoryview, tail: memoryview | None, depth: int, makes_types: bool
) -> Any:
    data = bytes(data)
    try:
        value = _read(data, tail, depth, makes_types)
        # 0xFF is the code of msgpack's own timestamps, which it decodes without `ext_hook`.
        fine = (len(data) <= depth and b"\xff" not in data) or is_encodable(value, depth)
    except _MALFORMED as error:
        if is_from_outside(error):
            raise
        why = str(error) or type(error).__name__
        raise DecodingError(f"A message contains a malformed value ({why}).") from error
    if not fine:
        raise DecodingError(
            f"A value is nested deeper than {MAX_DEPTH} levels, has an unknown type, or has a map "
            f"with {CROWDED}."
        )
    return value


def decode(data: bytes | memoryview, *, makes_types: bool = True) -> Any:
    """Return the value that `encode` serialized; its arrays are fresh and writable.

    `makes_types`: whether a named tuple gets a type of its own. Otherwise it becomes a tuple, and
    its names are not checked.

    Raises DecodingError, and nothing else, for malformed bytes.
    """
    return _decode(data, None, MAX_DEPTH, makes_types)


def unpack(
    data: bytes | memoryview, tail: memoryview | None = None, *, makes_types: bool = True
) -> Any:
    """Return the parts that `pack` serialized; their arrays are fresh and writable.

    `makes_types`: as in `decode`. Raises DecodingError, and nothing else, for malformed bytes.
    """
    return _decode(data, tail, MAX_DEPTH + 1, makes_types)
