"""numpy on the wire: which dtypes travel and under what text, and the tail for large arrays.

A dtype's text is numpy's own with the byte order spelled out: `<f4`, `|b1`, `>U7`, `<M8[ns]`. Raw
bytes are C-ordered and in that byte order.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from gymwire.protocol.errors import DecodingError

__all__ = [
    "ALIGNMENT",
    "LARGE",
    "MAX_DIMS",
    "SCALARS",
    "TIMES",
    "Tail",
    "dtype_from_text",
    "dtype_to_text",
    "take",
]

LARGE: Final = 4096
"""Arrays of at least this many bytes go to the tail, where there is one."""
MAX_DIMS: Final = 32
"""The most dimensions of an array."""
ALIGNMENT: Final = 16
"""Every buffer of a tail starts at a multiple of this many bytes."""

_SIZED_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
_SIZED_NAMES += "complex64 complex128"
_DTYPES: dict[str, np.dtype[Any]] = {
    dtype.str: dtype
    for native in map(np.dtype, _SIZED_NAMES.split())
    for dtype in (native.newbyteorder("S"), native)
}
_UNITS = "Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as"
_SIZED = re.compile(
    rf"\|S[1-9]\d{{0,7}}|[<>]U[1-9]\d{{0,7}}|[<>][mM]8(\[([1-9]\d{{0,8}})?({_UNITS})\])?"
)


# np.longlong and its like equal one of the sized types, and come back as that one.
SCALARS: dict[type, bytes] = {
    np.dtype(code).type: np.dtype(code).str.encode() + b"\0" for code in "?bhilqBHILQefdFD"
}
"""numpy's scalar types of one fixed dtype, with that dtype's text and a zero byte."""
TIMES: Final = (np.datetime64, np.timedelta64)
"""numpy's scalar types whose dtype has a unit."""


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
