"""Codecs compiled from a space: values that fit it exactly travel without describing themselves.

| space                           | form                                                          |
|---------------------------------|---------------------------------------------------------------|
| Box, MultiDiscrete, MultiBinary | raw bytes, C-ordered; from `LARGE` bytes on, offset in tail   |
| Discrete                        | int                                                           |
| Text                            | str                                                           |
| Dict, Tuple                     | list of the parts, in the space's order                       |

Bytes are in the byte order of the space's dtype, which its description spells out. Values of
Sequence, Graph and OneOf vary in shape from one to the next, so the form would hardly be smaller
than the self-describing one: they always misfit.
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

from gymwire.protocol.arrays import ALIGNMENT, LARGE, Tail, take
from gymwire.protocol.errors import DecodingError, UnsupportedSpaceError

__all__ = ["NOT_COMPACT", "NotCompact", "SpaceCodec", "compile"]


class NotCompact(enum.Enum):
    """The type of `NOT_COMPACT`."""

    NOT_COMPACT = "a value that does not fit its space exactly"


NOT_COMPACT: Final = NotCompact.NOT_COMPACT
"""What `SpaceCodec.encode` returns for a value that must go in the self-describing form."""

_Encode = Callable[[Any, Tail], Any]
_Decode = Callable[[Any, memoryview | None], Any]


@dataclass(frozen=True, slots=True)
class SpaceCodec:
    """Encodes and decodes the values of one space.

    Attributes:
        encode: `(value, tail) -> form`, where the form is something msgpack packs as it is; or
            `NOT_COMPACT`, with `tail` as it was, if the value does not have exactly the space's types,
            dtypes, shapes and keys. Bounds are not looked at, and nothing is cast.
        decode: `(form, tail) -> value`, with fresh writable arrays. Raises DecodingError.
        scalar: the type of the values, if they are NumPy integers.
        array: dtype, shape and bytes of the array, if the values are arrays of one size.
        tail_bytes: how many bytes of tail the arrays of one value take, without padding.
    """

    encode: _Encode
    decode: _Decode
    tail_bytes: int = 0
    array: tuple[np.dtype[Any], tuple[int, ...], int] | None = None
    scalar: type[Any] | None = None


def compile(space: Space[Any]) -> SpaceCodec:
    """Return the codec of a space. Raises UnsupportedSpaceError as `describe` does."""
    if type(space) not in _compile.registry:
        kind = type(space)
        raise UnsupportedSpaceError(f"{kind.__module__}.{kind.__qualname__} cannot travel.")
    return _compile(space)


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
    frombuffer = np.frombuffer

    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is ndarray and value.dtype == dtype and value.shape == shape:
            return value.tobytes()
        return NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not bytes or len(form) != size:
            raise DecodingError(f"An array of {size} bytes came as something else.")
        return frombuffer(form, dtype).copy() if flat else take(dtype, shape, form)

    return SpaceCodec(encode, decode, array=(dtype, shape, size))


def _compile_large(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> SpaceCodec:
    def encode(value: Any, tail: Tail) -> Any:
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return tail.add(value)
        return NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not int or tail is None or form % ALIGNMENT:
            raise DecodingError(f"An array of {size} bytes came without its place in a tail.")
        if not 0 <= form <= len(tail) - size:
            raise DecodingError(f"An array claims {size} bytes at {form} in {len(tail)}.")
        return take(dtype, shape, tail, form)

    return SpaceCodec(encode, decode, size, (dtype, shape, size))


@_compile.register
def _(space: spaces.Discrete) -> SpaceCodec:
    scalar = space.dtype.type

    def encode(value: Any, tail: Tail) -> Any:
        return int(value) if type(value) is scalar else NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not int:
            raise DecodingError("A number of a Discrete space came as something else.")
        try:
            return scalar(form)
        except OverflowError:
            raise DecodingError(f"{form} is out of range for {scalar.__name__}.") from None

    return SpaceCodec(encode, decode, scalar=scalar)


@_compile.register
def _(space: spaces.Text) -> SpaceCodec:
    def encode(value: Any, tail: Tail) -> Any:
        return value if type(value) is str else NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        if type(form) is not str:
            raise DecodingError("The text of a Text space came as something else.")
        return form

    return SpaceCodec(encode, decode)


def _compile_parts(parts: list[SpaceCodec]) -> SpaceCodec:
    """Return a codec between a list of values and the list of their forms."""
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
            raise DecodingError(f"{count} parts of a Dict or Tuple came as something else.")
        # Arrays that shared their bytes would let a short tail claim any amount of memory.
        if tail_bytes and (tail is None or len(tail) < tail_bytes):
            raise DecodingError(f"{tail_bytes} bytes of arrays came in a shorter tail.")
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


@_compile.register(spaces.Sequence)
@_compile.register(spaces.Graph)
@_compile.register(spaces.OneOf)
def _(space: Space[Any]) -> SpaceCodec:
    def encode(value: Any, tail: Tail) -> Any:
        return NOT_COMPACT

    def decode(form: Any, tail: memoryview | None) -> Any:
        raise DecodingError("A value that always describes itself came as one that does not.")

    return SpaceCodec(encode, decode)
