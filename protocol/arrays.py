"""Serialize NumPy arrays: the supported dtypes, their text on the wire, and the tail of a frame.

The text of a dtype is NumPy's own with an explicit byte order: `<f4`, `|b1`, `>U7`, `<M8[ns]`. Raw
bytes are C-ordered and in that byte order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from gymwire.protocol.errors import DecodingError

__all__ = [
    "ALIGNMENT",
    "LARGE",
    "MAX_DIMS",
    "MAX_EMPTY",
    "SCALARS",
    "TIMES",
    "Tail",
    "axes_order",
    "copy_array",
    "dtype_from_text",
    "dtype_to_text",
    "empty_size",
    "object_array",
    "reorder",
]

LARGE: Final = 4096
"""Arrays of at least this many bytes go to the tail, if there is one."""
MAX_DIMS: Final = 32
"""The maximum number of dimensions of an array."""
MAX_EMPTY: Final = 1 << 18
"""The maximum of what `empty_size` returns for the arrays of a message in total: a few bytes could
otherwise declare an array over whose rows a loop takes forever."""
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


# np.longlong and similar types equal one of the sized types, and are decoded as that one.
SCALARS: dict[type, bytes] = {
    np.dtype(code).type: np.dtype(code).str.encode() + b"\0" for code in "?bhilqBHILQefdFD"
}
"""NumPy's scalar types with a fixed dtype → the text of that dtype and a zero byte."""
TIMES: Final = (np.datetime64, np.timedelta64)
"""NumPy's scalar types whose dtype has a unit."""


def dtype_to_text(dtype: np.dtype[Any]) -> str | None:
    """Return the text of a dtype on the wire, or None if its arrays cannot be serialized."""
    text = dtype.str
    return text if text in _DTYPES or _SIZED.fullmatch(text) else None


def dtype_from_text(text: object) -> np.dtype[Any]:
    """Return the dtype with this text on the wire. Raises DecodingError."""
    if type(text) is str:
        if (dtype := _DTYPES.get(text)) is not None:
            return dtype
        if _SIZED.fullmatch(text):
            return np.dtype(text)
    raise DecodingError(f"Unknown dtype {text!r:.40}.")


def empty_size(shape: Iterable[int]) -> int:
    """Return the product of the sizes other than 0 of an array without items.

    A loop over its rows, and a list of them, take time and memory for each, but it has no bytes.
    """
    return math.prod(filter(None, shape))


class Tail:
    """The large buffers of one frame, in the order in which they follow its head.

    Attributes:
        parts: (offset, buffer) pairs with increasing offsets. Each buffer is a flat memoryview of
            bytes; it shares memory with the array if that is C-contiguous.
        empty: the `empty_size` of the arrays without items in the head of the frame, in total.
        size: bytes from the start of the tail to the end of its last buffer.
    """

    __slots__ = ("empty", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[tuple[int, memoryview]] = []
        self.size = 0
        self.empty = 0

    def add(self, array: np.ndarray[Any, Any]) -> int:
        """Append an array; return the offset of its first byte, a multiple of 16."""
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.parts.append((offset, flat.data))
        self.size = offset + flat.nbytes
        return offset

    def rewind(self, count: int) -> None:
        """Remove all but the first `count` parts."""
        del self.parts[count:]
        self.size = self.parts[-1][0] + self.parts[-1][1].nbytes if self.parts else 0


def copy_array(
    dtype: np.dtype[Any], shape: tuple[int, ...], buffer: bytes | memoryview, offset: int = 0
) -> np.ndarray[Any, Any]:
    """Return a fresh, writable array that owns a copy of its bytes in `buffer`.

    The caller must have checked that the buffer is long enough. Raises DecodingError for bytes that
    are not values of the dtype: a bool is 0 or 1, a character is a Unicode code point.
    """
    array = np.ndarray(shape, dtype, buffer, offset).copy()
    if dtype.kind == "b" and array.size and _has_other_than_bools(array):
        raise DecodingError("An array of bools contains bytes other than 0 and 1.")
    if dtype.kind == "U" and array.size:
        points = array.reshape(-1).view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > 0x10FFFF:
            raise DecodingError("An array of text contains invalid Unicode code points.")
    return array


def _has_other_than_bools(array: np.ndarray[Any, Any]) -> bool:
    if array.nbytes < LARGE:  # NumPy takes ten times as long as this for a short array
        return bool(array.tobytes().translate(None, b"\0\1"))
    return bool(array.view(np.uint8).max() > 1)


def axes_order(array: np.ndarray[Any, Any]) -> list[int] | None:
    """Return the axes from the one with the largest steps in memory on; None for C order.

    A copy of the array that keeps its order, as NumPy's `order="K"`, has them in this order.
    """
    if array.ndim < 2 or array.flags.c_contiguous:
        return None
    strides = np.empty_like(array).strides
    axes = sorted(range(array.ndim), key=lambda axis: -strides[axis])
    return axes if axes != [*range(array.ndim)] else None


def reorder(axes: Any, array: Any) -> np.ndarray[Any, Any]:
    """Return the array whose `transpose(axes)` is `array`. Raises DecodingError."""
    if type(axes) is not list or type(array) is not np.ndarray:
        raise DecodingError("An array in another order than C's is not [axes, array].")
    if any(type(axis) is not int for axis in axes) or sorted(axes) != [*range(array.ndim)]:
        raise DecodingError(f"{axes!r:.100} is not an order of {array.ndim} axes.")
    return array.transpose([axes.index(axis) for axis in range(array.ndim)])


def object_array(shape: Any, items: Any, axes: Any = None) -> np.ndarray[Any, Any]:
    """Return an array of objects: with this shape, or the one whose `transpose(axes)` has it.

    Raises DecodingError.
    """
    if type(shape) is not list or type(items) is not list or len(shape) > MAX_DIMS:
        raise DecodingError("The shape of an array of objects, or its items, are not a list.")
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != len(items):
        raise DecodingError(f"{len(items)} items do not make an array of shape {shape!r:.100}.")
    if not items and empty_size(shape) > MAX_EMPTY:
        raise DecodingError(f"An array without items has the shape {shape!r:.100}.")
    # Item by item: `np.array` would make one array of a list of arrays.
    array = np.fromiter(items, object, len(items)).reshape(shape)
    return array if axes is None else reorder(axes, array)
