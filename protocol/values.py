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

dtype is as in `protocol.arrays`. A type that would come back as another one (an
`IntEnum`, a named tuple, a `bytearray`, a masked array) is refused, never converted.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from functools import partial
from typing import Any

import msgpack
import numpy as np
from gymnasium.spaces import GraphInstance

from gymwire.protocol.arrays import (
    ALIGNMENT,
    LARGE,
    MAX_DIMS,
    SCALARS,
    TIMES,
    Tail,
    dtype_from_text,
    dtype_to_text,
    take,
)
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.faults import CONTAINERS, MAX_DEPTH, Opaque, find_faults, travels

__all__ = [
    "LARGE",
    "MAX_DEPTH",
    "Opaque",
    "Tail",
    "check",
    "decode",
    "encode",
    "opaque",
    "pack",
    "unpack",
]

_ARRAY, _SCALAR, _INT, _TUPLE, _GRAPH, _OPAQUE, _ORDERED = range(1, 8)
# A list header may claim as many items as the message has bytes, and msgpack allocates what it
# claims, level by level; longer messages are therefore skimmed before anything is allocated.
_SKIM_ABOVE = 2048
_FLOAT64 = struct.Struct("<d")
_FAILURES = (TypeError, ValueError, OverflowError, RecursionError, MemoryError)
_MALFORMED = (*_FAILURES, msgpack.UnpackException)

# --- encoding -----------------------------------------------------------------------------------


def _pack(value: object, tail: Tail | None, depth: int = 0) -> bytes:
    packer = msgpack.Packer(default=partial(_extend, tail, depth), strict_types=True)
    packed: bytes = packer.pack(value)
    return packed


def _extend(tail: Tail | None, depth: int, value: Any) -> msgpack.ExtType:
    """Turn what msgpack has no type for into an extension type; TypeError where there is none."""
    kind = type(value)
    if kind is np.float64:  # rewards and infos are full of them, and its tobytes() takes its time
        return msgpack.ExtType(_SCALAR, b"<f8\0" + _FLOAT64.pack(value))
    if (prefix := SCALARS.get(kind)) is not None:
        return msgpack.ExtType(_SCALAR, prefix + value.tobytes())
    if kind is np.ndarray:
        return msgpack.ExtType(_ARRAY, _pack_array(value, tail))
    if kind in CONTAINERS:
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
        return msgpack.ExtType(_SCALAR, b"U\0" + str.encode(value))
    if kind is np.bytes_:
        return msgpack.ExtType(_SCALAR, b"S\0" + bytes(value))
    if kind in TIMES:
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


def _encode(value: Any, tail: Tail | None, root: str, depth: int) -> bytes:
    mark = 0 if tail is None else len(tail.parts)
    cause: Exception | None = None
    try:
        packed = _pack(value, tail)
        if travels(value, depth):
            return packed
    except _FAILURES as error:
        cause = error
    if tail is not None:
        tail.rewind(mark)
    check(value, root=root)
    raise EncodingError(f"{root} cannot travel ({cause}).", path=root) from cause


def encode(value: Any, *, root: str = "value") -> bytes:
    """Return the self-contained bytes of any value that can travel.

    Raises EncodingError, whose `path` starts with `root`, if something in it cannot.
    """
    return _encode(value, None, root, MAX_DEPTH)


def pack(parts: list[Any], tail: Tail | None = None, *, root: str = "value") -> bytes:
    """Return the bytes of the parts of a message; their large arrays are added to `tail`.

    Raises EncodingError, having left `tail` as it was, if something in the parts cannot travel.
    """
    return _encode(parts, tail, root, MAX_DEPTH + 1)


def check(value: Any, *, root: str = "value") -> None:
    """Raise EncodingError, whose `path` starts with `root`, if something in `value` cannot travel.

    Slower than packing: for saying which part of a message that failed is to blame.
    """
    for fault in find_faults(value, root)[1]:
        raise EncodingError(f"{fault.path} {fault.text}.", path=fault.path)


def opaque(value: Any, *, root: str = "info") -> tuple[Any, list[str]]:
    """Return a copy of `value` that can travel, and the paths where an `Opaque` now stands."""
    copy, faults = find_faults(value, root)
    return copy, [fault.path for fault in faults]


# --- decoding -----------------------------------------------------------------------------------


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
    if text == b"<f8" and len(raw) == 8:
        return np.float64(_FLOAT64.unpack(raw)[0])
    if text == b"U":
        return np.str_(raw.decode())
    if text == b"S":
        return np.bytes_(raw)
    dtype = dtype_from_text(text.decode("ascii"))
    if dtype.kind in "SU" or len(raw) != dtype.itemsize:
        raise DecodingError("A numpy scalar has not as many bytes as its dtype.")
    return take(dtype, (), raw)[()]


class _Reader:
    """Decodes one message and its extension types.

    The arrays taken from the tail may together be no larger than it: many that point at the same
    bytes would let a small message claim any amount of memory.
    """

    __slots__ = ("budget", "depth", "tail")

    def __init__(self, tail: memoryview | None) -> None:
        self.tail = tail
        self.budget = 0 if tail is None else len(tail)
        self.depth = 0

    def read(self, data: bytes) -> Any:
        # unpackb bounds every length in a header by len(data), as long as no max_* is given.
        if len(data) > _SKIM_ABOVE:
            skimmer = msgpack.Unpacker(max_buffer_size=len(data), strict_map_key=False)
            skimmer.feed(data)
            skimmer.skip()  # raises if the data end before what they claim
        return msgpack.unpackb(data, strict_map_key=False, ext_hook=self.extension)

    def extension(self, code: int, data: bytes) -> Any:
        if code == _SCALAR:
            return _read_scalar(data)
        if code == _ARRAY:
            array = _read_array(data, self.tail)
            if array.nbytes > len(data):  # its bytes came from the tail
                self.budget -= array.nbytes
                if self.budget < 0:
                    raise DecodingError("Several arrays claim the same bytes of a tail.")
            return array
        if code == _INT:
            return int.from_bytes(data, "little", signed=True)
        if code not in (_TUPLE, _GRAPH, _OPAQUE, _ORDERED):
            raise DecodingError(f"The protocol has no extension type {code}.")
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
        raise DecodingError(f"Extension type {code} holds something else than it should.")


def _decode(data: bytes | memoryview, tail: memoryview | None, depth: int) -> Any:
    data = bytes(data)
    try:
        value = _Reader(tail).read(data)
        # 0xFF is the code of msgpack's own timestamps, which it decodes without asking.
        fine = (len(data) <= depth and b"\xff" not in data) or travels(value, depth)
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
