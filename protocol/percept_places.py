"""The values of a percept that a layout writes and reads: numbers, arrays, and lists of arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gymwire.protocol import values
from gymwire.protocol.arrays import LARGE, SCALARS

__all__ = ["Place", "array_place", "integer_place", "is_constant", "place_of"]

MAX_CONSTANT = 256  # characters of a text, or bytes, that a layout may contain

_NIL = b"\xc0"
_FLOAT = struct.Struct(">d")
_FLAGS = {b"\xc2": False, b"\xc3": True}
_FLAG_BYTES = {flag: byte for byte, flag in _FLAGS.items()}
_BOOLS = {b"\0": np.False_, b"\1": np.True_}
# The forms of an integer: the least one, the first that needs the next form, its struct code.
_INTEGERS = (
    (0, 0x80, ">B"),
    (0x80, 0x100, ">B"),
    (0x100, 0x10000, ">H"),
    (0x10000, 0x1_0000_0000, ">I"),
    (0x1_0000_0000, 1 << 64, ">Q"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number or an array is in a frame, and how it is written and read.

    Attributes:
        key: what the values of all percepts of a layout have in common here.
        size: how many bytes of the frame vary.
        examples: returns two such values that have no byte in common. A function, so that a
            layout keeps no array.
        write: returns these bytes; None: `struct` packs the value as a little-endian double.
        read: returns the value; raises KeyError if the bytes stand for no such value.
        fits: whether another value of the same type has the same form; None: always.
        array: dtype and shape of an array.
        is_large: whether it is an array that is read where it is.
        is_dense: whether the examples differ in every byte, not only in the first and the last one.
    """

    key: object
    size: int
    examples: Callable[[], tuple[Any, Any]]
    write: Callable[[Any], Any] | None
    read: Callable[[Any], Any]
    fits: Callable[[Any], bool] | None = None
    array: tuple[np.dtype[Any], tuple[int, ...]] | None = None
    is_large: bool = False
    is_dense: bool = True


def _read_float(raw: bytes) -> float:
    return _FLOAT.unpack(raw)[0]  # type: ignore[no-any-return]


_SCALAR_PLACES: dict[type, Place] = {
    float: Place(
        float,
        8,
        lambda: (_read_float(b"\1" * 8), _read_float(b"\2" * 8)),
        _FLOAT.pack,
        _read_float,
    ),
    bool: Place(bool, 1, lambda: (False, True), _FLAG_BYTES.__getitem__, _FLAGS.__getitem__),
    np.bool_: Place(
        np.bool_, 1, lambda: (np.False_, np.True_), np.bool_.tobytes, _BOOLS.__getitem__
    ),
}


def _scalar_place(kind: type[Any], dtype: np.dtype[Any]) -> Place:
    one, two = (np.frombuffer(byte * dtype.itemsize, dtype)[0] for byte in (b"\1", b"\2"))
    if kind is np.float64:
        return Place(kind, 8, lambda: (one, two), None, np.float64)

    def read(raw: bytes) -> Any:
        return np.ndarray((), dtype, raw)[()]

    return Place(kind, dtype.itemsize, lambda: (one, two), kind.tobytes, read)


for _kind, _text in SCALARS.items():
    if _kind is not np.bool_:
        _SCALAR_PLACES[_kind] = _scalar_place(_kind, np.dtype(_text[:-1].decode()))


def integer_place(value: int, kind: type[Any]) -> Place | None:
    """Return the place of an integer from 0 on; `kind` is its type."""
    form = next((one for one in _INTEGERS if one[0] <= value < one[1]), None)
    if form is None:
        return None
    least, above, code = form
    if kind is not int:
        above = min(above, int(np.iinfo(kind).max) + 1)
    packer = struct.Struct(code)
    pattern = 0x81 if least == 0x80 else 1  # of the bytes of an example: those fit any type
    one, two = (kind(packer.unpack(bytes((pattern + n,)) * packer.size)[0]) for n in (0, 1))

    def read(raw: bytes) -> Any:
        number = packer.unpack(raw)[0]
        if not least <= number < above:
            raise KeyError(number)
        return kind(number)

    def fits(other: Any) -> bool:
        return bool(least <= other < above)

    key = kind, code, least
    return Place(key, packer.size, lambda: (one, two), packer.pack, read, fits)


def array_place(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Place | None:
    """Return the place of an array; None if it has no bytes, or not any bytes are valid."""
    size = math.prod(shape) * dtype.itemsize
    if not size or dtype.kind not in "biufc":
        return None
    is_bool = dtype.kind == "b"

    def examples() -> tuple[Any, Any]:
        one, two = (
            np.frombuffer(bytes((byte,)) * size, dtype).reshape(shape)
            for byte in ((0, 1) if is_bool else (1, 2))
        )
        return one, two

    def read(raw: bytes | memoryview) -> Any:
        return np.ndarray(shape, dtype, bytearray(raw))

    def read_bools(raw: bytes | memoryview) -> Any:
        if bytes(raw).translate(None, b"\0\1"):
            raise KeyError(raw)
        return read(raw)

    return Place(
        (dtype.str, shape),
        size,
        examples,
        np.ndarray.tobytes,
        read_bools if is_bool else read,
        array=(dtype, shape),
        is_large=size >= LARGE,
    )


def _sparse_place(items: list[Any]) -> Place | None:
    """Return the place of a list in which some items are None and the others equal small arrays.

    So are the last observations of the episodes of a vector that have ended in a step.
    """
    count, arrays = len(items), [one for one in items if one is not None]
    ended, first = len(arrays), arrays[0] if arrays else None
    if type(first) is not np.ndarray or ended == count or not 0 < first.nbytes < LARGE:
        return None
    dtype, shape, n_bytes = first.dtype, first.shape, first.nbytes
    place = array_place(dtype, shape)
    if place is None:
        return None
    start = values.encode(np.zeros(shape, dtype))[:-n_bytes]
    size = count - ended + ended * (len(start) + n_bytes)

    def fits(others: Any) -> bool:
        found = [one for one in others if one is not None]
        return len(others) == count and len(found) == ended and all(map(is_alike, found))

    def is_alike(one: Any) -> bool:
        return (
            type(one) is np.ndarray
            and one.dtype == dtype
            and one.shape == shape
            and one.flags.c_contiguous
        )

    def write(others: Any) -> bytes:
        return b"".join([_NIL if one is None else start + one.tobytes() for one in others])

    def read(raw: bytes) -> Any:
        made: list[Any] = []
        end = 0
        for _ in range(ended):
            begin = raw.find(start, end)
            if begin < 0 or begin + len(start) + n_bytes > size:
                raise KeyError(raw)
            made += [None] * _count_nils(raw[end:begin])
            end = begin + len(start) + n_bytes
            made.append(place.read(raw[end - n_bytes : end]))
        return made + [None] * _count_nils(raw[end:])

    if not fits(items):
        return None

    def examples() -> tuple[Any, Any]:
        arrays: list[Any] = [place.examples()[0]] * ended
        nils = [None] * (count - ended)
        return arrays + nils, nils + arrays

    key = "sparse", count, ended, dtype.str, shape
    return Place(key, size, examples, write, read, fits, is_dense=False)


def _count_nils(raw: bytes) -> int:
    if raw.strip(_NIL):
        raise KeyError(raw)
    return len(raw)


def place_of(value: Any) -> Place | None:
    """Return the place of a value of the info, or of a reward or flag; None: it has none."""
    kind = type(value)
    if kind is list:
        return _sparse_place(value)
    if kind is int:
        return integer_place(value, int)
    if kind is np.ndarray:
        return array_place(value.dtype, value.shape)
    return _SCALAR_PLACES.get(kind)


def is_constant(value: Any) -> bool:
    """Return whether a value of an info may be the same in all percepts of a layout."""
    if value is None:
        return True
    return type(value) in (str, bytes) and len(value) <= MAX_CONSTANT
