"""Fast encoding and decoding of the two frames of a step, by functions compiled from the spaces.

The bytes are the same as those of `Codec`. The code of a step runs with cold caches, because other
processes used the processor since the last step, so every instruction saved counts. Therefore all
that is constant in a session is computed once, a frame is checked by comparing its constant bytes,
and no message object is created.

The most frequent values have functions of their own:

ACT:     an array, or an integer below 128, as the whole action.
PERCEPT: an array as the observation, a float as reward, two bools and an empty info; of a vector,
         an array as the observation, float64 rewards, bool flags and an empty info.

Values that cannot be serialized and malformed frames are left to `Codec`, which explains the fault.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymwire.protocol import values
from gymwire.protocol.arrays import LARGE, copy_array
from gymwire.protocol.codec import (
    ALIGN,
    COMPACT,
    FLAGS_AT,
    HEAD_LEN,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    SEQ,
    SID,
    UP_TO_FLAGS,
    UP_TO_SID,
    Codec,
    Frame,
    Pieces,
    join,
    split,
)
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.messages import VERSION, Kind, Percept
from gymwire.protocol.space_codecs import NOT_COMPACT, NotCompact, SpaceCodec

Step = tuple[Any, Any, Any, Any, dict[str, Any]]
Data = Frame | memoryview

# Arrays of at least this many bytes stay in the memory where libzmq received them. Smaller messages
# share a block, which an array would keep alive, and may be at odd addresses.
IN_PLACE = 16 * 1024
# Arrays of at least this many bytes are not copied into the frame of a percept, but become a piece.
APART = 16 * 1024

_ONE_FIELD, _FIVE_FIELDS = b"\x91", b"\x95"
_REST = struct.Struct(">sd3s")  # a float 64, two bools and an empty map, as msgpack has them
_FLOAT = b"\xcb"
_ENDS = {
    (terminated, truncated): bytes((0xC2 + terminated, 0xC2 + truncated, 0x80))
    for terminated in (False, True)
    for truncated in (False, True)
}
_FLAGS = {end: flags for flags, end in _ENDS.items()}
_REWARD, _BOOL = np.dtype("<f8"), np.dtype(bool)


@dataclass(frozen=True, slots=True)
class StepCodec:
    """Encodes and decodes the steps of one session. After None or NOT_COMPACT, use `Codec`.

    `number` is the request number as the eight bytes of the header.

    Attributes:
        encode_act: `(action, number) -> frame`, or None.
        decode_act: `(frame) -> action`, or NOT_COMPACT. It ignores the request number.
        encode_percept: `(what Env.step returned, number) -> frame`, or None.
        decode_percept: `(frame, number) -> what Env.step returned`, fresh and writable; None if
            the frame does not answer this request of this session.
    """

    encode_act: Callable[[Any, bytes], Frame | None]
    decode_act: Callable[[Data], Any | NotCompact]
    encode_percept: Callable[[Step, bytes], Frame | Pieces | None]
    decode_percept: Callable[[Data, bytes], Step | None]


def compile_steps(
    sid: int, observation: SpaceCodec, action: SpaceCodec, num_envs: int = 0
) -> StepCodec:
    """Return the codec of session `sid`. `num_envs`: 0 for a single environment."""
    act = _any_act(sid, action)
    if action.array is not None:
        act = _array_act(sid, action, act)
    else:
        act = _number_act(sid, action.scalar, act)
    percept = _any_percept(sid, observation, num_envs)
    if observation.array is not None and num_envs:
        percept = _vector_percept(sid, observation, num_envs, percept)
    elif observation.array is not None and observation.array[2]:
        percept = _array_percept(sid, observation, percept)
    return StepCodec(*act, *percept)


_Act = tuple[Callable[[Any, bytes], Frame | None], Callable[[Data], Any | NotCompact]]
_Percept = tuple[
    Callable[[Step, bytes], Frame | Pieces | None], Callable[[Data, bytes], Step | None]
]
_Fields = tuple[
    Callable[[list[Any], bytes], Frame | None], Callable[[Data, bytes], list[Any] | None]
]


def _any_act(sid: int, space: SpaceCodec) -> _Act:
    """Return the functions for any action that can be serialized."""
    encode_fields, decode_fields = _any(sid, Kind.ACT, space, 1)

    def encode(action: Any, number: bytes) -> Frame | None:
        return encode_fields([action], number)

    def decode(data: Data) -> Any | NotCompact:
        fields = decode_fields(data, bytes(data[SEQ]))
        return NOT_COMPACT if fields is None else fields[0]

    return encode, decode


def _any_percept(sid: int, space: SpaceCodec, num_envs: int) -> _Percept:
    """Return the functions for any percept, except non-empty infos of a vector."""
    encode_fields, decode_fields = _any(sid, Kind.PERCEPT, space, 5)

    def encode(step: Step, number: bytes) -> Frame | None:
        if num_envs and (type(step[4]) is not dict or step[4]):
            return None
        return encode_fields([*step], number)

    def decode(data: Data, number: bytes) -> Step | None:
        fields = decode_fields(data, number)
        return None if fields is None else (fields[0], fields[1], fields[2], fields[3], fields[4])

    return encode, decode


def _any(sid: int, kind: Kind, space: SpaceCodec, count: int) -> _Fields:
    """Return the functions for `count` fields; the first may be a value of this space."""
    sid_bytes = sid.to_bytes(8, "little")
    starts = [bytes((MAGIC, VERSION, kind, flags)) for flags in (0, COMPACT)]

    def encode(fields: list[Any], number: bytes) -> Frame | None:
        tail = values.Tail()
        flags = 0
        try:
            form = space.encode(fields[0], tail)
            if form is not NOT_COMPACT:
                fields[0], flags = form, COMPACT
            head = values.pack(fields, tail)
        except EncodingError:
            return None
        return join(kind, flags, head, tail, sid, int.from_bytes(number, "little"))

    def decode(data: Data, number: bytes) -> list[Any] | None:
        start = bytes(data[UP_TO_FLAGS])
        if start not in starts or data[SID] != sid_bytes or data[SEQ] != number:
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


def _number_act(sid: int, scalar: type[Any] | None, other: _Act) -> _Act:
    """Return the functions for small integers, NumPy ones of a Discrete space and Python's."""
    compact, plain = _prefix(sid, Kind.ACT, COMPACT, 2), _prefix(sid, Kind.ACT, 0, 2)
    bodies = [_ONE_FIELD + bytes((number,)) for number in range(128)]
    numbers = {body: number for number, body in enumerate(bodies)}
    scalars = {} if scalar is None else {body: scalar(n) for body, n in numbers.items()}

    encode_other, decode_other = other

    def encode(action: Any, number: bytes) -> Frame | None:
        kind = type(action)
        if kind is not scalar and kind is not int:
            return encode_other(action, number)
        index = int(action)
        if not 0 <= index < 128:
            return encode_other(action, number)
        return (compact if kind is scalar else plain) + number + bodies[index]

    def decode(data: Data) -> Any | NotCompact:
        prefix = data[UP_TO_SID]
        known = scalars if prefix == compact else numbers if prefix == plain else {}
        action = known.get(bytes(data[HEADER_SIZE:]))
        return decode_other(data) if action is None else action

    return encode, decode


def _array_act(sid: int, space: SpaceCodec, other: _Act) -> _Act:
    layout = _FrameLayout(sid, Kind.ACT, _ONE_FIELD, space, 0)
    prefix, lead, begin, end = layout.prefix, layout.lead, layout.begin, layout.end
    dtype, shape, fixed, ndarray = layout.dtype, layout.shape, layout.fixed, np.ndarray
    lead_end, before = layout.lead_end, lead + layout.pad

    encode_other, decode_other = other

    def encode(action: Any, number: bytes) -> Frame | None:
        if type(action) is ndarray and action.dtype == dtype and action.shape == shape:
            return b"".join((prefix, number, before, action.tobytes()))
        return encode_other(action, number)

    def decode(data: Data) -> Any | NotCompact:
        if len(data) != end or data[UP_TO_SID] != prefix or data[HEADER_SIZE:lead_end] != lead:
            return decode_other(data)
        if fixed:
            return ndarray(shape, dtype, data, begin).copy()
        try:
            return copy_array(dtype, shape, memoryview(data), begin)
        except DecodingError:
            return NOT_COMPACT

    return encode, decode


def _array_percept(sid: int, space: SpaceCodec, other: _Percept) -> _Percept:
    layout = _FrameLayout(sid, Kind.PERCEPT, _FIVE_FIELDS, space, _REST.size)
    prefix, lead, begin, end = layout.prefix, layout.lead, layout.begin, layout.end
    dtype, shape, size, pad = layout.dtype, layout.shape, layout.size, layout.pad
    small, fixed = layout.small, layout.fixed
    lead_end, rest_at = layout.lead_end, layout.rest_at
    in_place, apart = fixed and layout.n_bytes >= IN_PLACE, layout.n_bytes >= APART
    ndarray, pack, unpack = np.ndarray, _REST.pack, _REST.unpack_from
    float_type, ends, flags_of = _FLOAT, _ENDS, _FLAGS

    encode_other, decode_other = other

    def encode(step: Step, number: bytes) -> Frame | Pieces | None:
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
            return encode_other(step, number)
        rest = pack(float_type, reward, ends[terminated, truncated])
        if small:
            return b"".join((prefix, number, lead, observation.tobytes(), rest))
        if not observation.flags.c_contiguous:
            return encode_other(step, number)
        head = b"".join((prefix, number, lead, rest, pad))
        return Pieces([head, observation.data], size) if apart else head + observation.data

    def decode(data: Data, number: bytes) -> Step | None:
        if len(data) != size or data[:lead_end] != prefix + number + lead:
            return decode_other(data, number)
        kind, reward, last = unpack(data, rest_at)
        flags = flags_of.get(last)
        if flags is None or kind != float_type:
            return decode_other(data, number)
        observation: NDArray[Any] | None = None
        if small and fixed:
            # Copying the bytes instead of an array saves several microseconds of NumPy.
            observation = ndarray(shape, dtype, bytearray(data[begin:end]))
        elif fixed:
            observation = _in_place(shape, dtype, data, begin) if in_place else None
            if observation is None:
                observation = ndarray(shape, dtype, data, begin).copy()
        else:
            try:
                observation = copy_array(dtype, shape, memoryview(data), begin)
            except DecodingError:
                return None
        return observation, reward, flags[0], flags[1], {}

    return encode, decode


class _FrameLayout:
    """The layout of a frame with one array of a fixed size, and `rest` bytes of other fields.

    Below LARGE bytes the array is in the head, otherwise it is the whole tail. `fixed`: any bytes
    are valid values of its dtype.
    """

    def __init__(self, sid: int, kind: Kind, fields: bytes, space: SpaceCodec, rest: int) -> None:
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
            self.begin = -(-head_end // ALIGN) * ALIGN
            self.end = self.size = self.begin + self.n_bytes
            self.pad = bytes(self.begin - head_end)
        self.lead_end = HEADER_SIZE + len(self.lead)
        self.prefix = _prefix(sid, kind, COMPACT, head_len)


def _vector_percept(  # noqa: C901 - most of it is in the two functions that it returns
    sid: int, observation: SpaceCodec, num_envs: int, other: _Percept
) -> _Percept:
    """Return the functions for a frame in which only four arrays and the request number vary.

    The positions of the arrays are found by comparing frames that `Codec` encodes.
    """
    assert observation.array is not None
    dtype, shape, _ = observation.array
    kinds = [(dtype, shape), (_REWARD, (num_envs,)), *[(_BOOL, (num_envs,))] * 2]
    blank, places = _find_arrays(Codec(observation), sid, kinds)
    if not places:
        return other
    size, prefix, ndarray = len(blank), blank[UP_TO_SID], np.ndarray
    order = sorted(range(4), key=lambda index: places[index])
    constants = _constants_between(blank, [places[index] for index in order])
    # What to send, in order: the constant bytes before an array, and what the array must be.
    fields = [(before[2], i, *kinds[i]) for before, i in zip(constants, order, strict=False)]
    end_bytes = constants[-1][2]
    views = [(*place, *kind) for place, kind in zip(places, kinds, strict=True)]

    encode_other, decode_other = other

    def encode(step: Step, number: bytes) -> Frame | Pieces | None:
        info = step[4]
        if type(info) is not dict or info:
            return encode_other(step, number)
        parts: list[Any] = [prefix, number]
        apart = False
        for filling, index, dtype, shape in fields:
            value = step[index]
            if type(value) is not ndarray or value.dtype != dtype or value.shape != shape:
                return encode_other(step, number)
            large = value.nbytes >= LARGE and value.flags.c_contiguous
            apart = apart or (large and value.nbytes >= APART)
            parts += (filling, value.data if large else value.tobytes())
        parts.append(end_bytes)
        return Pieces(parts, size) if apart else b"".join(parts)

    def decode(data: Data, number: bytes) -> Step | None:
        if len(data) != size or data[UP_TO_SID] != prefix or data[SEQ] != number:
            return decode_other(data, number)
        for begin, end, constant in constants:
            if data[begin:end] != constant:
                return decode_other(data, number)
        arrays = []
        for begin, end, dtype, shape in views:
            if dtype is _BOOL and bytes(data[begin:end]).strip(b"\0\1"):
                return decode_other(data, number)
            array = None
            if end - begin >= IN_PLACE:
                array = _in_place(shape, dtype, data, begin)
            arrays.append(
                ndarray(shape, dtype, bytearray(data[begin:end])) if array is None else array
            )
        return arrays[0], arrays[1], arrays[2], arrays[3], {}

    return encode, decode


def _find_arrays(
    codec: Codec, sid: int, kinds: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]
) -> tuple[bytes, list[tuple[int, int]]]:
    """Return a percept's frame full of zeros, and the begin and end of each of its four arrays.

    The list is empty if an array has no bytes.
    """

    def frame(filled: int) -> bytes:
        """Return the frame in which the bytes of one array are 1 and those of the others 0."""
        arrays = [
            np.full(math.prod(shape) * dtype.itemsize, index == filled, np.uint8)
            .view(dtype)
            .reshape(shape)
            for index, (dtype, shape) in enumerate(kinds)
        ]
        observations, rewards, terminated, truncated = arrays
        percept = Percept(observations, rewards, terminated, truncated, {})
        return bytes(codec.encode(percept, sid, 0))

    blank = frame(-1)
    zeros = np.frombuffer(blank, np.uint8)
    places: list[tuple[int, int]] = []
    for index in range(4):
        differ = zeros != np.frombuffer(frame(index), np.uint8)
        if not differ.any():
            return blank, []
        places.append((int(differ.argmax()), len(blank) - int(differ[::-1].argmax())))
    return blank, places


def _constants_between(
    blank: bytes, places: Sequence[tuple[int, int]]
) -> list[tuple[int, int, bytes]]:
    """Return begin, end and bytes of what is before, between and after these places."""
    edges = [HEADER_SIZE, *(edge for place in places for edge in place), len(blank)]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(begin, end, blank[begin:end]) for begin, end in gaps]


def _in_place(
    shape: tuple[int, ...], dtype: np.dtype[Any], data: Data, begin: int
) -> NDArray[Any] | None:
    """Return the array in the received memory; None if that is read-only or unaligned."""
    array = np.ndarray(shape, dtype, data, begin)
    return array if array.flags.writeable and array.flags.aligned else None


def _prefix(sid: int, kind: Kind, flags: int, head_len: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, flags, head_len, sid, 0)[UP_TO_SID]
