"""Codecs compiled from a space: the compact form of the values that fit it exactly.

| space                           | form                                                          |
|---------------------------------|---------------------------------------------------------------|
| Box, MultiDiscrete, MultiBinary | raw bytes, C-ordered; from `LARGE` bytes on, offset in tail   |
| Discrete                        | int                                                           |
| Text                            | str                                                           |
| Dict, Tuple                     | list of the parts, in the space's order                       |

Bytes are in the byte order of the space's dtype, which its description states. Values of Sequence,
Graph and OneOf differ in shape, so a compact form would hardly be smaller than the self-describing
one; they are always sent in the latter. So are those of a space that is not Gymnasium's own.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces

from gymwire.protocol.arrays import ALIGNMENT, LARGE, Tail, axes_order, copy_array
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.outside_exceptions import is_from_outside

__all__ = ["NOT_COMPACT", "NotCompact", "SpaceCodec", "compile", "known_class"]


class NotCompact(enum.Enum):
    """The type of `NOT_COMPACT`."""

    NOT_COMPACT = "a value without a compact form"


NOT_COMPACT: Final = NotCompact.NOT_COMPACT
"""`SpaceCodec.encode` returns it for a value that needs the self-describing form."""

_Encode = Callable[[Any, Tail], Any]
_Decode = Callable[[Any, memoryview | None], Any]


@dataclass(frozen=True, slots=True)
class SpaceCodec:
    """Encodes and decodes the values of one space.

    Attributes:
        encode: `(value, tail) -> compact form`, which msgpack can pack. Returns `NOT_COMPACT`, and
            leaves `tail` unchanged, unless the value has exactly the types, dtypes, shapes and keys
            of the space, arrays in C order. It ignores bounds and casts nothing. Those of an env
            agent raise EncodingError if the environment has changed the space.
        decode: `(compact form, tail) -> value`, with fresh writable arrays. Raises DecodingError.
        scalar: the type of the values, if they are NumPy integers.
        array: dtype, shape and number of bytes, if the values are arrays of one size.
        tail_bytes: how many bytes the arrays of one value use in the tail, without padding.
    """

    encode: _Encode
    decode: _Decode
    tail_bytes: int = 0
    array: tuple[np.dtype[Any], tuple[int, ...], int] | None = None
    scalar: type[Any] | None = None


def compile(space: Space[Any]) -> SpaceCodec:
    """Return the codec of a space. The values of a foreign class have no compact form."""
    kind = known_class(space)
    return _NO_FORM if kind is None else _compile.registry[kind](space)


_BEHAVIOUR = ("sample", "contains", "seed", "shape", "is_np_flattenable")


def known_class(space: Space[Any]) -> type[Space[Any]] | None:
    """Return Gymnasium's class of a space; None if its own class replaces a part of the behavior.

    A subclass that inherits `sample` and `contains` has the values of its base.
    """
    kind = type(space)
    if kind in _compile.registry:
        return kind
    for base in kind.__mro__:
        if base in _compile.registry and base is not object:
            same = all(getattr(kind, name) is getattr(base, name) for name in _BEHAVIOUR)
            return base if same else None
    return None


@singledispatch
def _compile(space: Space[Any]) -> SpaceCodec:
    raise NotImplementedError(type(space))


@_compile.register(spaces.Box)
@_compile.register(spaces.MultiDiscrete)
@_compile.register(spaces.MultiBinary)
def _(space: Space[Any]) -> SpaceCodec:
    ndarray, dtype, shape = np.ndarray, space.dtype, space.shape
    assert dtype is not None
    assert shape is not None
    size = math.prod(shape) * dtype.itemsize
    if size >= LARGE:
        return _compile_large(dtype, shape, size)
    flat = len(shape) == 1 and dtype.kind != "b" and size > 0
    frombuffer, has_order = np.frombuffer, len(shape) > 1

    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is not ndarray or value.dtype != dtype or value.shape != shape:
            return NOT_COMPACT
        if has_order and axes_order(value) is not None:
            return NOT_COMPACT
        return value.tobytes()

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not bytes or len(form) != size:
            raise DecodingError(f"The compact form of an array is not {size} bytes.")
        return frombuffer(form, dtype).copy() if flat else copy_array(dtype, shape, form)

    return SpaceCodec(encode, decode, array=(dtype, shape, size))


def _compile_large(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> SpaceCodec:
    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
            return NOT_COMPACT
        return tail.add(value) if axes_order(value) is None else NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not int or tail is None or form % ALIGNMENT:
            raise DecodingError(f"An array of {size} bytes has no aligned offset in a tail.")
        if not 0 <= form <= len(tail) - size:
            raise DecodingError(
                f"An array declares {size} bytes at offset {form} of a tail of {len(tail)} bytes."
            )
        return copy_array(dtype, shape, tail, form)

    return SpaceCodec(encode, decode, size, (dtype, shape, size))


@_compile.register
def _(space: spaces.Discrete) -> SpaceCodec:
    scalar = space.dtype.type

    def encode(value: Any, tail: Tail) -> Any:
        return int(value) if type(value) is scalar else NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not int:
            raise DecodingError("The compact form of a Discrete value is not an int.")
        try:
            return scalar(form)
        except OverflowError as error:
            if is_from_outside(error):
                raise
            raise DecodingError(f"{form} is out of range for {scalar.__name__}.") from None

    return SpaceCodec(encode, decode, scalar=scalar)


@_compile.register
def _(space: spaces.Text) -> SpaceCodec:
    def encode(value: Any, tail: Tail) -> Any:
        return value if type(value) is str else NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not str:
            raise DecodingError("The compact form of a Text value is not a str.")
        return form

    return SpaceCodec(encode, decode)


def _compile_parts(parts: list[SpaceCodec]) -> SpaceCodec:
    """Return a codec between a list of values and the list of their compact forms."""
    encoders, decoders = [part.encode for part in parts], [part.decode for part in parts]
    count, tail_bytes = len(parts), sum(part.tail_bytes for part in parts)

    def encode(values: Any, tail: Tail) -> Any:
        mark = len(tail.parts)
        forms = [encode(value, tail) for encode, value in zip(encoders, values, strict=True)]
        if NOT_COMPACT in forms:
            tail.rewind(mark)
            return NOT_COMPACT
        return forms

    def decode(forms: Any, tail: memoryview | None) -> Any:
        if type(forms) is not list or len(forms) != count:
            raise DecodingError(f"The compact form of a Dict or Tuple is not a list of {count}.")
        # If arrays shared their bytes, a short tail could claim any amount of memory.
        if tail_bytes and (tail is None or len(tail) < tail_bytes):
            raise DecodingError(f"The tail is shorter than its {tail_bytes} bytes of arrays.")
        return [decode(form, tail) for decode, form in zip(decoders, forms, strict=True)]

    return SpaceCodec(encode, decode, tail_bytes)


@_compile.register
def _(space: spaces.Dict) -> SpaceCodec:
    keys, kinds = list(space.spaces), [type(key) for key in space.spaces]
    parts = _compile_parts([compile(child) for child in space.spaces.values()])
    encode_parts, decode_parts = parts.encode, parts.decode

    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is not dict or [*value] != keys or [*map(type, value)] != kinds:
            return NOT_COMPACT
        return encode_parts(value.values(), tail)

    def decode(form: Any, tail: memoryview | None) -> Any:
        return dict(zip(keys, decode_parts(form, tail), strict=True))

    return SpaceCodec(encode, decode, parts.tail_bytes)


@_compile.register(spaces.Tuple)
def _(space: spaces.Tuple[Any]) -> SpaceCodec:
    parts = _compile_parts([compile(child) for child in space.spaces])
    count, encode_parts, decode_parts = len(space.spaces), parts.encode, parts.decode

    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is not tuple or len(value) != count:
            return NOT_COMPACT
        return encode_parts(value, tail)

    def decode(form: Any, tail: memoryview | None) -> Any:
        return tuple(decode_parts(form, tail))

    return SpaceCodec(encode, decode, parts.tail_bytes)


def _encode_nothing(value: Any, tail: Tail) -> Any:
    return NOT_COMPACT


def _decode_nothing(form: Any, tail: memoryview | None) -> Any:
    raise DecodingError("The values of this space have no compact form.")


_NO_FORM = SpaceCodec(_encode_nothing, _decode_nothing)


@_compile.register(spaces.Sequence)
@_compile.register(spaces.Graph)
@_compile.register(spaces.OneOf)
def _(space: Space[Any]) -> SpaceCodec:
    return _NO_FORM
