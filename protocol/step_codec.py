"""Fast encoding and decoding of the two frames of a step, by functions compiled from the spaces.

The bytes are the same as those of `Codec`. The code of a step runs with cold caches, because other
processes used the processor since the last step, so every instruction saved counts. Therefore all
that is constant in a session is computed once, a frame is checked by comparing its constant bytes,
and no message object is created.

The most frequent values have functions of their own:

ACT:     an array, or an integer below 128, as the whole action.
PERCEPT: an array as the observation, a float as reward, two bools and an empty info.

Percepts with infos, and those of vectors, use `percept_layouts`.

Values that cannot be serialized and malformed frames are left to `Codec`, which explains the fault.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gymwire.protocol import values
from gymwire.protocol.arrays import ALIGNMENT, LARGE, copy_array
from gymwire.protocol.codec import (
    COMPACT,
    FLAGS_AT,
    HEAD_LEN,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    MAX_MESSAGE,
    NAME,
    UP_TO_FLAGS,
    UP_TO_NAME,
    Frame,
    Pieces,
    join,
    split,
)
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.layout_functions import IN_PLACE, Data, Step, in_place
from gymwire.protocol.messages import VERSION, Kind
from gymwire.protocol.percept_layouts import APART, PerceptLayouts
from gymwire.protocol.space_codecs import NOT_COMPACT, NotCompact, SpaceCodec

__all__ = ["RawPercept", "Step", "StepCodec", "compile_steps"]

_ONE_FIELD, _FIVE_FIELDS = b"\x91", b"\x95"
_REST = struct.Struct(">sd3s")  # a float 64, two bools and an empty map, as msgpack has them
_FLOAT = b"\xcb"
_ENDS = {
    (terminated, truncated): bytes((0xC2 + terminated, 0xC2 + truncated, 0x80))
    for terminated in (False, True)
    for truncated in (False, True)
}
_FLAGS = {end: flags for flags, end in _ENDS.items()}


class RawPercept(bytes):
    """A percept with a small array, a float, two flags and no info, as its frame contains them.

    It has the array's bytes and the rest of the head. An environment in another process sends it,
    so that nothing needs to be decoded and encoded again.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StepCodec:
    """Encodes and decodes steps. After None or NOT_COMPACT, use `Codec`.

    `name` names a request: the sid and the request number, as they are in the header. Sessions with
    the same spaces can share one, also in several threads: thousands of sessions would have 80
    objects each otherwise, which take the garbage collector long, and the processor's caches.

    Attributes:
        encode_act: `(action, name) -> frame`, or None; also None for a frame that is too large.
        decode_act: `(frame) -> action`, or NOT_COMPACT. It ignores the name.
        encode_percept: `(what Env.step returned, name) -> frame`, or None.
        decode_percept: `(frame, name) -> what Env.step returned`, fresh and writable; None if
            the frame does not answer this request.
        encode_raw: `(raw percept, name) -> frame`.
        raw_size: the bytes of a raw percept of this space; 0: it has none.
        renew: called when another session begins to use it, whose percepts may look different.
    """

    encode_act: Callable[[Any, bytes], Frame | None]
    decode_act: Callable[[Data], Any | NotCompact]
    encode_percept: Callable[[Step, bytes], Frame | Pieces | None]
    decode_percept: Callable[[Data, bytes], Step | None]
    renew: Callable[[], None]
    encode_raw: Callable[[RawPercept, bytes], Frame]
    raw_size: int


def compile_steps(
    observation: SpaceCodec,
    action: SpaceCodec,
    num_envs: int = 0,
    largest_act: int = MAX_MESSAGE,
    *,
    extended: bool = True,
) -> StepCodec:
    """Return the codec of all sessions with these spaces.

    Args:
        observation: the space of the observations.
        action: the space of the actions.
        num_envs: 0 for a single environment.
        largest_act: the largest frame that `encode_act` returns, in bytes.
        extended: whether the other side has the capability `values`.
    """
    act = _any_act(action, largest_act, extended)
    if action.array is not None:
        act = _array_act(action, act, largest_act)
    else:
        act = _number_act(action.scalar, act)
    any_percept = _any_percept(observation, extended)
    layouts = PerceptLayouts(observation, *any_percept, is_vector=num_envs > 0)
    percept: _Percept = layouts.encode, layouts.decode
    raw: tuple[Callable[[RawPercept, bytes], Frame], int] = _no_raw_percept, 0
    if observation.array is not None and observation.array[2] and not num_envs:
        percept = _array_percept(observation, percept)
        raw = _raw_percept(observation)
    return StepCodec(*act, *percept, layouts.renew, *raw)


_Act = tuple[Callable[[Any, bytes], Frame | None], Callable[[Data], Any | NotCompact]]
_Percept = tuple[
    Callable[[Step, bytes], Frame | Pieces | None], Callable[[Data, bytes], Step | None]
]
_Fields = tuple[
    Callable[[list[Any], bytes], Frame | None], Callable[[Data, bytes], list[Any] | None]
]


def _any_act(space: SpaceCodec, largest: int, extended: bool) -> _Act:
    """Return the functions for any action that can be serialized."""
    encode_fields, decode_fields = _any(Kind.ACT, space, 1, extended)

    def encode(action: Any, name: bytes) -> Frame | None:
        frame = encode_fields([action], name)
        return None if frame is None or len(frame) > largest else frame

    def decode(data: Data) -> Any | NotCompact:
        fields = decode_fields(data, bytes(data[NAME]))
        return NOT_COMPACT if fields is None else fields[0]

    return encode, decode


def _any_percept(space: SpaceCodec, extended: bool) -> _Percept:
    """Return the functions for any percept. The infos of a vector are in wire form."""
    encode_fields, decode_fields = _any(Kind.PERCEPT, space, 5, extended)

    def encode(step: Step, name: bytes) -> Frame | None:
        return encode_fields([*step], name)

    def decode(data: Data, name: bytes) -> Step | None:
        fields = decode_fields(data, name)
        return None if fields is None else (fields[0], fields[1], fields[2], fields[3], fields[4])

    return encode, decode


def _any(kind: Kind, space: SpaceCodec, count: int, extended: bool) -> _Fields:
    """Return the functions for `count` fields; the first may be a value of this space."""
    starts = [bytes((MAGIC, VERSION, kind, flags)) for flags in (0, COMPACT)]

    def encode(fields: list[Any], name: bytes) -> Frame | None:
        tail = values.Tail()
        flags = 0
        try:
            form = space.encode(fields[0], tail)
            if form is not NOT_COMPACT:
                fields[0], flags = form, COMPACT
            head = values.pack(fields, tail, extended=extended)
        except EncodingError:
            return None
        sid, seq = int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")
        return join(kind, flags, head, tail, sid, seq)

    def decode(data: Data, name: bytes) -> list[Any] | None:
        start = bytes(data[UP_TO_FLAGS])
        if start not in starts or data[NAME] != name:
            return None
        head_len = int.from_bytes(data[HEAD_LEN], "little")
        if HEADER_SIZE + head_len > len(data):
            return None
        try:
            fields, tail = split(data, head_len)
            if type(fields) is not list or len(fields) != count:
                return None
            if start[FLAGS_AT]:
                fields[0] = space.decode(fields[0], tail)
        except DecodingError:
            return None
        return fields

    return encode, decode


def _number_act(scalar: type[Any] | None, other: _Act) -> _Act:
    """Return the functions for small integers, NumPy ones of a Discrete space and Python's."""
    compact, plain = _prefix(Kind.ACT, COMPACT, 2), _prefix(Kind.ACT, 0, 2)
    bodies, numbers, scalars = _numbers(cast(Hashable, scalar))

    encode_other, decode_other = other

    def encode(action: Any, name: bytes) -> Frame | None:
        kind = type(action)
        index: int
        if kind is int:
            prefix, index = plain, action
        elif kind is scalar:
            prefix, index = compact, int(action)
        else:
            return encode_other(action, name)
        if 0 <= index < 128:
            return prefix + name + bodies[index]
        return encode_other(action, name)

    def decode(data: Data) -> Any | NotCompact:
        prefix = data[UP_TO_NAME]
        known = scalars if prefix == compact else numbers if prefix == plain else {}
        action = known.get(bytes(data[HEADER_SIZE:]))
        return decode_other(data) if action is None else action

    return encode, decode


@lru_cache
def _numbers(
    scalar: type[Any] | None,
) -> tuple[list[bytes], dict[bytes, int], dict[bytes, Any]]:
    """Return the bodies of small integers; and from them, integers and values of `scalar`."""
    bodies = [_ONE_FIELD + bytes((number,)) for number in range(128)]
    numbers = {body: number for number, body in enumerate(bodies)}
    scalars = {} if scalar is None else {body: scalar(n) for body, n in numbers.items()}
    return bodies, numbers, scalars


def _array_act(space: SpaceCodec, other: _Act, largest: int) -> _Act:
    layout = _FrameLayout(Kind.ACT, _ONE_FIELD, space, 0)
    if layout.size > largest:
        return other
    prefix, lead, begin, end = layout.prefix, layout.lead, layout.begin, layout.end
    dtype, shape, fixed, ndarray = layout.dtype, layout.shape, layout.fixed, np.ndarray
    lead_end, before = layout.lead_end, lead + layout.pad
    is_flat = len(shape) < 2

    encode_other, decode_other = other

    def encode(action: Any, name: bytes) -> Frame | None:
        if (
            type(action) is ndarray
            and action.dtype == dtype
            and action.shape == shape
            and (is_flat or action.flags.c_contiguous)
        ):
            return b"".join((prefix, name, before, action.tobytes()))
        return encode_other(action, name)

    def decode(data: Data) -> Any | NotCompact:
        if len(data) != end or data[UP_TO_NAME] != prefix or data[HEADER_SIZE:lead_end] != lead:
            return decode_other(data)
        if fixed:
            # Copying the bytes instead of an array saves several microseconds of NumPy.
            return ndarray(shape, dtype, bytearray(data[begin:]))
        try:
            return copy_array(dtype, shape, memoryview(data), begin)
        except DecodingError:
            return NOT_COMPACT

    return encode, decode


def _array_percept(space: SpaceCodec, other: _Percept) -> _Percept:
    layout = _FrameLayout(Kind.PERCEPT, _FIVE_FIELDS, space, _REST.size)
    prefix, lead, begin = layout.prefix, layout.lead, layout.begin
    dtype, shape, size, pad = layout.dtype, layout.shape, layout.size, layout.pad
    small, fixed = layout.small, layout.fixed
    has_order = not small or len(shape) > 1
    lead_end, rest_at = layout.lead_end, layout.rest_at
    stays, apart = fixed and layout.n_bytes >= IN_PLACE, layout.n_bytes >= APART
    ndarray, pack, unpack = np.ndarray, _REST.pack, _REST.unpack_from
    float_type, ends, flags_of = _FLOAT, _ENDS, _FLAGS

    encode_other, decode_other = other

    def encode(step: Step, name: bytes) -> Frame | Pieces | None:
        observation, reward, terminated, truncated, info = step
        if (
            type(reward) is not float
            or type(terminated) is not bool
            or type(truncated) is not bool
            or type(info) is not dict
            or info
            or type(observation) is not ndarray
            or observation.dtype != dtype
            or observation.shape != shape
        ):
            return encode_other(step, name)
        if has_order and not observation.flags.c_contiguous:
            return encode_other(step, name)
        rest = pack(float_type, reward, ends[terminated, truncated])
        if small:
            return b"".join((prefix, name, lead, observation.tobytes(), rest))
        head = b"".join((prefix, name, lead, rest, pad))
        return Pieces([head, observation.data], size) if apart else head + observation.data

    def decode(data: Data, name: bytes) -> Step | None:
        if len(data) != size or data[:lead_end] != prefix + name + lead:
            return decode_other(data, name)
        kind, reward, last = unpack(data, rest_at)
        flags = flags_of.get(last)
        if flags is None or kind != float_type:
            return decode_other(data, name)
        observation: NDArray[Any] | None
        if fixed:
            observation = in_place(shape, dtype, data, begin) if stays else None
            if observation is None:
                observation = ndarray(shape, dtype, data, begin).copy()
        else:
            try:
                observation = copy_array(dtype, shape, memoryview(data), begin)
            except DecodingError:
                return None
        return observation, reward, flags[0], flags[1], {}

    return encode, _small_percept(layout, other[1]) if small and fixed else decode


def _raw_percept(space: SpaceCodec) -> tuple[Callable[[RawPercept, bytes], Frame], int]:
    """Return `StepCodec.encode_raw` and `raw_size`."""
    layout = _FrameLayout(Kind.PERCEPT, _FIVE_FIELDS, space, _REST.size)
    if not layout.small:
        return _no_raw_percept, 0
    prefix, lead = layout.prefix, layout.lead

    def encode(percept: RawPercept, name: bytes) -> Frame:
        return b"".join((prefix, name, lead, percept))

    return encode, layout.n_bytes + _REST.size


def _no_raw_percept(percept: RawPercept, name: bytes) -> Frame:
    raise AssertionError("The percepts of this space have no raw form.")


def _small_percept(
    layout: _FrameLayout, decode_other: Callable[[Data, bytes], Step | None]
) -> Callable[[Data, bytes], Step | None]:
    """Return the decoder of a percept whose array has a fixed size and is in the head."""
    dtype, shape, size, ndarray = layout.dtype, layout.shape, layout.size, np.ndarray
    prefix, lead, float_type, flags_of = layout.prefix, layout.lead, _FLOAT, _FLAGS
    unpack = struct.Struct(f">{layout.lead_end}s{layout.n_bytes}s{_REST.format[1:]}").unpack

    def decode(data: Data, name: bytes) -> Step | None:
        if len(data) != size:
            return decode_other(data, name)
        start, content, kind, reward, last = unpack(data)
        flags = flags_of.get(last)
        if flags is None or kind != float_type or start != prefix + name + lead:
            return decode_other(data, name)
        # Copying the bytes instead of an array saves several microseconds of NumPy.
        return ndarray(shape, dtype, bytearray(content)), reward, flags[0], flags[1], {}

    return decode


class _FrameLayout:
    """The layout of a frame with one array of a fixed size, and `rest` bytes of other fields.

    Below LARGE bytes the array is in the head, otherwise it is the whole tail. `fixed`: any bytes
    are valid values of its dtype.
    """

    def __init__(self, kind: Kind, fields: bytes, space: SpaceCodec, rest: int) -> None:
        assert space.array is not None
        self.dtype, self.shape, self.n_bytes = space.array
        self.fixed = self.dtype.kind not in "bU"
        self.small = self.n_bytes < LARGE
        self.pad = b""
        if self.small:
            n_bytes = self.n_bytes
            size = (
                b"\xc4" + n_bytes.to_bytes(1, "big")
                if n_bytes < 256
                else b"\xc5" + n_bytes.to_bytes(2, "big")
            )
            self.lead = fields + size
            head_len = len(self.lead) + n_bytes + rest
            self.begin = HEADER_SIZE + len(self.lead)
            self.end = self.rest_at = self.begin + n_bytes
            self.size = HEADER_SIZE + head_len
        else:
            self.lead = fields + b"\x00"  # the offset in the tail
            head_len = len(self.lead) + rest
            self.rest_at = HEADER_SIZE + len(self.lead)
            head_end = HEADER_SIZE + head_len
            self.begin = -(-head_end // ALIGNMENT) * ALIGNMENT
            self.end = self.size = self.begin + self.n_bytes
            self.pad = bytes(self.begin - head_end)
        self.lead_end = HEADER_SIZE + len(self.lead)
        self.prefix = _prefix(kind, COMPACT, head_len)


def _prefix(kind: Kind, flags: int, head_len: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, flags, head_len, 0, 0)[UP_TO_NAME]
