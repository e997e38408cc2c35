"""Values on the wire: msgpack that keeps every type, with large arrays beside it.

A value is plain msgpack where msgpack has the type (None, bool, 64-bit int, float, str, bytes,
list, dict with any hashable key), and one of these extension types where it has not:

| code | stands for                  | data                                                       |
|------|-----------------------------|------------------------------------------------------------|
| 1    | numpy array                 | msgpack [dtype, shape, raw bytes, or offset in the tail]   |
| 2    | numpy scalar                | dtype, a zero byte, raw bytes; `S` raw, `U` as UTF-8       |
| 3    | int outside 64 bits         | two's complement, little-endian                            |
| 4    | tuple                       | msgpack array of its items                                 |
| 5    | gymnasium GraphInstance     | msgpack [nodes, edges, edge_links]                         |
| 6    | `Opaque`                    | msgpack [type, repr]                                       |
| 7    | collections.OrderedDict     | msgpack map                                                |

dtype is numpy's own text with the byte order spelled out (`<f4`, `|b1`, `>U7`, `<M8[ns]`); raw
bytes are C-ordered and in that byte order. A type that would come back as another one (an
`IntEnum`, a named tuple, a `bytearray`, a masked array) is refused, never converted.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgpack
import numpy as np
from gymnasium.spaces import GraphInstance

from protocol.errors import DecodingError, EncodingError

__all__ = [
    "LARGE",
    "MAX_DEPTH",
    "MAX_DIMS",
    "Opaque",
    "Tail",
    "check",
    "decode",
    "dtype_from_text",
    "dtype_to_text",
    "encode",
    "opaque",
    "pack",
    "take",
    "unpack",
]

LARGE: Final = 4096
"""Arrays of at least this many bytes go to the tail, where there is one."""
MAX_DEPTH: Final = 64
"""The most containers that may sit in one another."""
MAX_DIMS: Final = 32
"""The most dimensions of an array."""
ALIGNMENT: Final = 16
"""Every buffer of a tail starts at a multiple of this many bytes."""

_ARRAY, _SCALAR, _INT, _TUPLE, _GRAPH, _OPAQUE, _ORDERED = range(1, 8)
_REPR_LENGTH = 200
# A list header may claim as many items as the message has bytes, and msgpack allocates what it
# claims, level by level; longer messages are therefore skimmed before anything is allocated.
_SKIM_ABOVE = 2048


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands in an info for a value that could not travel.

    Attributes:
        type: the value's qualified type name.
        repr: its `repr`, at most 200 characters.
    """

    type: str
    repr: str


class Tail:
    """The large buffers of one frame, in the order in which they follow its head.

    Attributes:
        parts: (offset, buffer) pairs with rising offsets; each buffer is a flat memoryview of
            bytes that shares its memory with the array it was made from, where that one is
            C-contiguous.
        size: bytes from the tail's start to the end of its last buffer.
    """

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[tuple[int, memoryview]] = []
        self.size = 0

    def add(self, array: np.ndarray[Any, Any]) -> int:
        """Append an array; return the offset of its first byte, a multiple of 16."""
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.parts.append((offset, flat.data))
        self.size = offset + flat.nbytes
        return offset

    def rewind(self, count: int) -> None:
        """Forget all but the first `count` parts."""
        del self.parts[count:]
        self.size = self.parts[-1][0] + self.parts[-1][1].nbytes if self.parts else 0


# --- dtypes -------------------------------------------------------------------------------------

_SIZED_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
_SIZED_NAMES += "complex64 complex128"
_DTYPES: dict[str, np.dtype[Any]] = {
    dtype.str: dtype
    for native in map(np.dtype, _SIZED_NAMES.split())
    for dtype in (native.newbyteorder("S"), native)
}
_UNITS = "Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as"
_SIZED = re.compile(
    rf"\|S[1-9]\d{{0,7}}|[<>]U[1-9]\d{{0,7}}|[<>][mM]8(\[[1-9]?\d{{0,8}}({_UNITS})\])?"
)


def dtype_to_text(dtype: np.dtype[Any]) -> str | None:
    """Return the dtype's text on the wire, or None if arrays of it cannot travel."""
    text = dtype.str
    return text if text in _DTYPES or _SIZED.fullmatch(text) else None


def dtype_from_text(text: object) -> np.dtype[Any]:
    """Return the dtype that a text from the wire stands for. Raises DecodingError."""
    if type(text) is str:
        if (dtype := _DTYPES.get(text)) is not None:
            return dtype
        if _SIZED.fullmatch(text):
            return np.dtype(text)
    raise DecodingError(f"{text!r:.40} is not a dtype that the protocol knows.")


# --- encoding -----------------------------------------------------------------------------------

# np.longlong and its like equal one of the sized types, and come back as that one.
_SCALARS: dict[type, bytes] = {
    np.dtype(code).type: np.dtype(code).str.encode() + b"\0" for code in "?bhilqBHILQefdFD"
}
_TIMES = (np.datetime64, np.timedelta64)
_ATOMS = frozenset(
    {type(None), bool, int, float, str, bytes, np.ndarray, np.str_, np.bytes_, Opaque}
    | {*_SCALARS, *_TIMES}
)
_CONTAINERS = frozenset({list, tuple, dict, OrderedDict, GraphInstance})
_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, MemoryError)


def _pack(value: object, tail: Tail | None, depth: int = 0) -> bytes:
    packer = msgpack.Packer(default=partial(_extend, tail, depth), strict_types=True)
    packed: bytes = packer.pack(value)
    return packed


def _extend(tail: Tail | None, depth: int, value: Any) -> msgpack.ExtType:
    """Turn what msgpack has no type for into an extension type; TypeError where there is none."""
    kind = type(value)
    if (prefix := _SCALARS.get(kind)) is not None:
        return msgpack.ExtType(_SCALAR, prefix + value.tobytes())
    if kind is np.ndarray:
        return msgpack.ExtType(_ARRAY, _pack_array(value, tail))
    if kind in _CONTAINERS:
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        if kind is OrderedDict:
            return msgpack.ExtType(_ORDERED, _pack(dict(value), tail, depth + 1))
        code = _TUPLE if kind is tuple else _GRAPH
        return msgpack.ExtType(code, _pack(list(value), tail, depth + 1))
    if kind is int:
        size = value.bit_length() // 8 + 1
        return msgpack.ExtType(_INT, value.to_bytes(size, "little", signed=True))
    if kind is np.str_:
        return msgpack.ExtType(_SCALAR, b"U\0" + str(value).encode())
    if kind is np.bytes_:
        return msgpack.ExtType(_SCALAR, b"S\0" + bytes(value))
    if kind in _TIMES:
        return msgpack.ExtType(_SCALAR, value.dtype.str.encode() + b"\0" + value.tobytes())
    if kind is Opaque:
        return msgpack.ExtType(_OPAQUE, msgpack.packb([value.type, value.repr]))
    raise TypeError(kind)


def _pack_array(array: np.ndarray[Any, Any], tail: Tail | None) -> bytes:
    text = dtype_to_text(array.dtype)
    if text is None or array.ndim > MAX_DIMS:
        raise TypeError(array.dtype)
    large = tail is not None and array.nbytes >= LARGE
    body = tail.add(array) if tail is not None and large else array.tobytes()
    packed: bytes = msgpack.packb([text, array.shape, body])
    return packed


def _travels(value: object, depth: int) -> bool:
    """Whether only known types sit in a value, in at most `depth` containers in one another.

    msgpack takes some types that come back as others (bytearray, memoryview, its own ExtType and
    Timestamp) and nests to other depths than ours, so its success alone says too little.
    """
    atoms = _ATOMS
    if type(value) in atoms:
        return True
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    travels = bool(level)
    for _ in range(depth):
        deeper: list[Any] = []
        for container in level:
            parts = [container]
            if type(container) is dict or type(container) is OrderedDict:
                parts = [container, container.values()]
            for part in parts:
                if atoms.issuperset(map(type, part)):
                    continue
                for item in part:
                    if type(item) in _CONTAINERS:
                        deeper.append(item)
                    elif type(item) not in atoms:
                        return False
        if not deeper:
            return travels
        level = deeper
    return False


def _name_fault(value: Any) -> str | None:
    """Say why an atom cannot travel, or None if it can."""
    kind = type(value)
    if kind is np.ndarray:
        if value.ndim > MAX_DIMS:
            return f"is an array of {value.ndim} dimensions; {MAX_DIMS} are the most that travel"
        if dtype_to_text(value.dtype) is None:
            return f"is an array of dtype {value.dtype}, which has no portable form"
    elif kind is str or kind is np.str_:
        try:
            value.encode()
        except UnicodeEncodeError:
            return "is text with lone surrogates, which no valid UTF-8 can hold"
    elif kind not in _ATOMS:
        return (
            f"is a {kind.__module__}.{kind.__qualname__}, which cannot travel; numbers, text, "
            "bytes, numpy arrays and lists, tuples and dicts of them can"
        )
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
    return f'{path}["{key}"]' if type(key) is str else f"{path}[{_as_opaque(key).repr}]"


class _Replacer:
    """Walks a value and copies it with an `Opaque` wherever something cannot travel."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.faults: list[tuple[str, str]] = []
        self._above: list[int] = []

    def _opaque(self, value: object, path: str, fault: str) -> Opaque:
        self.faults.append((path, fault))
        return _as_opaque(value)

    def walk(self, value: Any, path: str) -> Any:
        if type(value) not in _CONTAINERS:
            fault = _name_fault(value)
            return value if fault is None else self._opaque(value, path, fault)
        if id(value) in self._above:
            return self._opaque(value, path, "contains itself")
        if len(self._above) >= self.depth:
            return self._opaque(value, path, f"sits deeper than {MAX_DEPTH} levels")
        self._above.append(id(value))
        try:
            return self._walk_items(value, path)
        finally:
            self._above.pop()

    def _walk_items(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind is GraphInstance:
            names = GraphInstance._fields
            return GraphInstance(*map(self.walk, value, [f"{path}.{name}" for name in names]))
        if kind is list or kind is tuple:
            return kind(self.walk(item, f"{path}[{i}]") for i, item in enumerate(value))
        copy = kind()
        for key, item in value.items():
            place = _step_into(path, key)
            new_key = self.walk(key, f"the key {place}")
            while new_key is not key and new_key in copy:  # two keys that look the same
                new_key = Opaque(new_key.type, new_key.repr + "'")
            copy[new_key] = self.walk(item, place)
        return copy


def _find_faults(value: Any, root: str | tuple[str, ...], depth: int) -> tuple[Any, _Replacer]:
    replacer = _Replacer(depth)
    if isinstance(root, str):
        return replacer.walk(value, root), replacer
    replacer.depth -= 1
    return [replacer.walk(part, name) for name, part in zip(root, value, strict=True)], replacer


def _encode(value: Any, tail: Tail | None, root: str | tuple[str, ...], depth: int) -> bytes:
    mark = 0 if tail is None else len(tail.parts)
    cause: Exception | None = None
    try:
        packed = _pack(value, tail)
        if _travels(value, depth):
            return packed
    except _FAILURES as error:
        cause = error
    if tail is not None:
        tail.rewind(mark)
    _, replacer = _find_faults(value, root, depth)
    word = root if isinstance(root, str) else ", ".join(root)
    path, fault = (replacer.faults or [(word, f"cannot travel ({cause})")])[0]
    raise EncodingError(f"{path} {fault}.", path=path) from cause


def encode(value: Any, *, root: str = "value") -> bytes:
    """Return the self-contained bytes of any value that can travel.

    Raises EncodingError, whose `path` starts with `root`, if something in it cannot.
    """
    return _encode(value, None, root, MAX_DEPTH)


def pack(
    parts: list[Any], tail: Tail | None = None, *, root: str | tuple[str, ...] = "value"
) -> bytes:
    """Return the bytes of the parts of a message; their large arrays are added to `tail`.

    `root` is the first word of an error's path, or one such word for each part. Raises
    EncodingError, having left `tail` as it was.
    """
    return _encode(parts, tail, root, MAX_DEPTH + 1)


def check(value: Any, *, root: str = "value") -> None:
    """Raise EncodingError, whose `path` starts with `root`, if something in `value` cannot travel.

    Slower than packing: for saying which part of a message that failed is to blame.
    """
    _, replacer = _find_faults(value, root, MAX_DEPTH)
    for path, fault in replacer.faults:
        raise EncodingError(f"{path} {fault}.", path=path)


def opaque(value: Any, *, root: str = "info") -> tuple[Any, list[str]]:
    """Return a copy of `value` that can travel, and the paths where an `Opaque` now stands."""
    copy, replacer = _find_faults(value, root, MAX_DEPTH)
    return copy, [path for path, _ in replacer.faults]


# --- decoding -----------------------------------------------------------------------------------

_ExtHook = Callable[[int, bytes], Any]
_MALFORMED = (*_FAILURES, msgpack.UnpackException)


def take(
    dtype: np.dtype[Any], shape: tuple[int, ...], buffer: bytes | memoryview, offset: int = 0
) -> np.ndarray[Any, Any]:
    """Return a fresh, writable array that owns a copy of its bytes in `buffer`.

    The caller has checked that the bytes are there. Raises DecodingError if they are no values of
    the dtype: a bool is 0 or 1, a character a Unicode code point.
    """
    array = np.ndarray(shape, dtype, buffer, offset).copy()
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise DecodingError("An array of bools holds bytes other than 0 and 1.")
    if dtype.kind == "U" and array.size:
        points = array.reshape(-1).view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > 0x10FFFF:
            raise DecodingError("An array of text holds numbers that are no Unicode characters.")
    return array


def _read_array(data: bytes, tail: memoryview | None) -> np.ndarray[Any, Any]:
    parts = msgpack.unpackb(data)
    if type(parts) is not list or len(parts) != 3 or type(parts[1]) is not list:
        raise DecodingError("An array is not [dtype, shape, bytes or offset].")
    text, shape, body = parts
    dtype = dtype_from_text(text)
    if len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise DecodingError("An array's shape is not a list of at most 32 sizes.")
    size = math.prod(shape) * dtype.itemsize
    if type(body) is bytes:
        if len(body) != size:
            raise DecodingError(f"An array should have {size} bytes and has {len(body)}.")
        return take(dtype, tuple(shape), body)
    if type(body) is not int or tail is None:
        raise DecodingError("An array has neither bytes nor a place in a tail.")
    if body < 0 or body % ALIGNMENT or body + size > len(tail):
        raise DecodingError(f"An array claims {size} bytes at {body} in a tail of {len(tail)}.")
    return take(dtype, tuple(shape), tail, body)


def _read_scalar(data: bytes) -> Any:
    text, _, raw = data.partition(b"\0")
    if text == b"U":
        return np.str_(raw.decode())
    if text == b"S":
        return np.bytes_(raw)
    dtype = dtype_from_text(text.decode("ascii"))
    if dtype.kind in "SU" or len(raw) != dtype.itemsize:
        raise DecodingError("A numpy scalar has not as many bytes as its dtype.")
    return take(dtype, (), raw)[()]


class _Reader:
    """Decodes the extension types of one message.

    The arrays taken from the tail may together be no larger than it: many that point at the same
    bytes would let a small message claim any amount of memory.
    """

    __slots__ = ("_budget", "_tail")

    def __init__(self, tail: memoryview | None) -> None:
        self._tail = tail
        self._budget = 0 if tail is None else len(tail)

    def read(self, data: bytes, depth: int = 0) -> Any:
        if depth > MAX_DEPTH + 1:
            raise DecodingError(f"A value is nested deeper than {MAX_DEPTH} levels.")
        return _unpackb(data, partial(self.extension, depth + 1))

    def extension(self, depth: int, code: int, data: bytes) -> Any:
        if code == _SCALAR:
            return _read_scalar(data)
        if code == _ARRAY:
            array = _read_array(data, self._tail)
            if array.nbytes > len(data):  # its bytes came from the tail
                self._budget -= array.nbytes
                if self._budget < 0:
                    raise DecodingError("Several arrays claim the same bytes of a tail.")
            return array
        if code == _INT:
            return int.from_bytes(data, "little", signed=True)
        if code not in (_TUPLE, _GRAPH, _OPAQUE, _ORDERED):
            raise DecodingError(f"The protocol has no extension type {code}.")
        items = self.read(data, depth)
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
        raise DecodingError(f"Extension type {code} holds something else than it should.")


def _unpackb(data: bytes, hook: _ExtHook) -> Any:
    if len(data) > _SKIM_ABOVE:
        skimmer = msgpack.Unpacker(max_buffer_size=len(data), strict_map_key=False)
        skimmer.feed(data)
        skimmer.skip()  # raises if the data end before what they claim
    size = len(data)
    return msgpack.unpackb(
        data,
        strict_map_key=False,
        ext_hook=hook,
        max_str_len=size,
        max_bin_len=size,
        max_array_len=size,
        max_map_len=size,
        max_ext_len=size,
    )


def _decode(data: bytes | memoryview, tail: memoryview | None, depth: int) -> Any:
    data = bytes(data)
    try:
        value = _Reader(tail).read(data)
        # 0xFF is the code of msgpack's own timestamps, which it decodes without asking.
        fine = (len(data) <= depth and b"\xff" not in data) or _travels(value, depth)
    except _MALFORMED as error:
        raise DecodingError(f"A message holds a malformed value ({error}).") from error
    if not fine:
        raise DecodingError(f"A value is nested deeper than {MAX_DEPTH} levels, or has no type.")
    return value


def decode(data: bytes | memoryview) -> Any:
    """Return the value that `encode` made `data` of; its arrays are fresh and writable.

    Raises DecodingError, and nothing else, if the bytes are no such value.
    """
    return _decode(data, None, MAX_DEPTH)


def unpack(data: bytes | memoryview, tail: memoryview | None = None) -> Any:
    """Return the parts that `pack` made `data` and `tail` of; arrays are fresh and writable.

    Raises DecodingError, and nothing else, if the bytes are no such parts.
    """
    return _decode(data, tail, MAX_DEPTH + 1)
