"""The two frames of a step in their commonest form, without detours.

The bytes are those of `Codec`; only the way to them is shorter. A step's code runs cold: between
two of them the processor has worked for other processes, and what is not executed need not be
fetched again. Whatever is not of the common form goes through `Codec`.

ACT:     an array, or an integer below 128, as the whole action.
PERCEPT: an array as the observation, a float as reward, two bools, and an empty info; of a vector,
         an array as the observation, float64 rewards, bool flags, and an empty info.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from protocol.arrays import LARGE
from protocol.codec import ALIGN, FITS, HEADER, HEADER_SIZE, MAGIC, Codec, Frame
from protocol.messages import VERSION, Kind, Percept
from protocol.space_codecs import MISFIT, Misfit, SpaceCodec

_ONE_FIELD, _FIVE_FIELDS = b"\x91", b"\x95"
_FLOAT = struct.Struct(">sd")  # msgpack's float 64, its type byte before it
_FLOAT_TYPE = b"\xcb"
_ENDS = {
    (terminated, truncated): bytes((0xC2 + terminated, 0xC2 + truncated, 0x80))
    for terminated in (False, True)
    for truncated in (False, True)
}
_REWARD, _BOOL = np.dtype("<f8"), np.dtype(bool)
_FLAGS = {end: flags for flags, end in _ENDS.items()}
_SEQ = slice(16, HEADER_SIZE)

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class StepCodec:
    """The steps of session `sid`. None and MISFIT send the caller to `Codec`."""

    def __init__(
        self, sid: int, observation: SpaceCodec, action: SpaceCodec, num_envs: int = 0
    ) -> None:
        self._vector: _VectorPercept | None = None
        if num_envs and observation.array is not None:
            self._vector = _VectorPercept(sid, observation, num_envs)
        self._action = _Array(action, sid, Kind.ACT, _ONE_FIELD, b"")
        self._observation = _Array(
            observation, sid, Kind.PERCEPT, _FIVE_FIELDS, bytes(_FLOAT.size + 3)
        )
        self._scalar = action
        self._scalar_type = action.scalar
        self._plain_act = _prefix(sid, Kind.ACT, 0, 2)
        self._fit_act = _prefix(sid, Kind.ACT, FITS, 2)

    def encode_act(self, action: Any, seq: int) -> Frame | None:
        """The frame of ACT, or None."""
        array = self._action
        if type(action) is np.ndarray:
            return array.encode(action, seq, b"") if array.fits(action) else None
        if type(action) is int:
            prefix, number = self._plain_act, action
        elif self._scalar_type is type(action):
            prefix, number = self._fit_act, int(action)
        else:
            return None
        if not 0 <= number < 128:
            return None
        return b"%b%b\x91%c" % (prefix, seq.to_bytes(8, "little"), number)

    def decode_act(self, data: Frame | memoryview) -> Any | Misfit:
        """The action of a frame, or MISFIT."""
        if len(data) == HEADER_SIZE + 2 and data[24] == 0x91 and data[25] < 128:
            prefix = data[:16]
            if prefix == self._fit_act:
                return self._scalar.decode(data[25], None)
            if prefix == self._plain_act:
                return data[25]
            return MISFIT
        return self._action.decode(data)

    def encode_percept(self, step: Step, seq: int) -> Frame | None:
        """The frame of PERCEPT for what `Env.step` returned, or None."""
        observation, reward, terminated, truncated, info = step
        if self._vector is not None:
            return self._vector.encode(step, seq)
        if (
            type(reward) is float
            and type(terminated) is bool
            and type(truncated) is bool
            and type(info) is dict
            and not info
            and type(observation) is np.ndarray
            and self._observation.fits(observation)
        ):
            rest = _FLOAT.pack(_FLOAT_TYPE, reward) + _ENDS[terminated, truncated]
            return self._observation.encode(observation, seq, rest)
        return None

    def decode_percept(self, data: Frame | memoryview, seq: int) -> Step | None:
        """What `Env.step` returned, fresh, if this frame answers request `seq`; else None."""
        if self._vector is not None:
            return self._vector.decode(data, seq)
        array = self._observation
        if len(data) != array.size or data[_SEQ] != seq.to_bytes(8, "little"):
            return None
        observation = array.decode(data)
        if observation is MISFIT:
            return None
        at = array.rest_at
        kind, reward = _FLOAT.unpack_from(data, at)
        flags = _FLAGS.get(bytes(data[at + 9 : at + 12]))
        if kind != _FLOAT_TYPE or flags is None:
            return None
        return observation, reward, flags[0], flags[1], {}


class _Array:
    """A frame whose first field is one array of a fixed size and whose other fields are `rest`.

    Below LARGE bytes the array stands in the head; above, in the tail, which it then is alone.
    """

    def __init__(self, space: SpaceCodec, sid: int, kind: Kind, fields: bytes, rest: bytes) -> None:
        self.size = -1  # of the whole frame; no frame has this size when there is no such array
        self._decode = space.decode
        self._array = space.array
        if space.array is None:
            return
        self._dtype, self._shape, n_bytes = space.array
        self._is_small = n_bytes < LARGE
        if self._is_small:
            lead = fields + (
                b"\xc4" + n_bytes.to_bytes(1, "big")
                if n_bytes < 256
                else b"\xc5" + n_bytes.to_bytes(2, "big")
            )
            head_len = len(lead) + n_bytes + len(rest)
            self._data_at = HEADER_SIZE + len(lead)
            self._data_end = self.rest_at = self._data_at + n_bytes
            self.size = HEADER_SIZE + head_len
            self._pad = b""
        else:
            lead = fields + b"\x00"  # its offset in the tail
            head_len = len(lead) + len(rest)
            self.rest_at = HEADER_SIZE + len(lead)
            end = HEADER_SIZE + head_len
            self._data_at = -(-end // ALIGN) * ALIGN
            self._data_end = self.size = self._data_at + n_bytes
            self._pad = bytes(self._data_at - end)
        self._lead = lead
        self._prefix = _prefix(sid, kind, FITS, head_len)

    def fits(self, value: Any) -> bool:
        """Whether this ndarray has exactly the space's dtype and shape."""
        return (
            self._array is not None
            and value.dtype == self._dtype
            and value.shape == self._shape
            and value.flags.c_contiguous
        )

    def encode(self, value: Any, seq: int, rest: bytes) -> Frame:
        """The frame; the array is copied once."""
        number = seq.to_bytes(8, "little")
        if self._is_small:
            return b"".join((self._prefix, number, self._lead, value.tobytes(), rest))
        return b"".join((self._prefix, number, self._lead, rest, self._pad, value))

    def decode(self, data: Frame | memoryview) -> Any | Misfit:
        """The array, fresh and writable; MISFIT if the frame is not of this form."""
        if len(data) != self.size or data[:16] != self._prefix:
            return MISFIT
        if data[HEADER_SIZE : HEADER_SIZE + len(self._lead)] != self._lead:
            return MISFIT
        if self._is_small:
            return self._decode(bytes(data[self._data_at : self._data_end]), None)
        return self._decode(0, memoryview(data)[self._data_at :])


class _VectorPercept:
    """A PERCEPT of a vector: a frame of which only the bytes of four arrays and the seq vary.

    Where these stand is learnt from frames that `Codec` makes.
    """

    def __init__(self, sid: int, observation: SpaceCodec, num_envs: int) -> None:
        assert observation.array is not None
        dtype, shape, _ = observation.array
        self._kinds = [(dtype, shape), (_REWARD, (num_envs,)), *[(_BOOL, (num_envs,))] * 2]
        codec = Codec(observation)

        def frame(filled: int) -> bytes:
            """The frame in which the bytes of one array are 1 and all others 0."""
            arrays = [
                np.full(math.prod(of) * kind.itemsize, index == filled, np.uint8)
                .view(kind)
                .reshape(of)
                for index, (kind, of) in enumerate(self._kinds)
            ]
            observations, rewards, terminated, truncated = arrays
            percept = Percept(observations, rewards, terminated, truncated, {})
            return bytes(codec.encode(percept, sid, 0))

        blank = frame(-1)
        self.size = len(blank)
        ends: list[tuple[int, int, int]] = []
        for index in range(4):
            differ = [
                at for at, (a, b) in enumerate(zip(blank, frame(index), strict=True)) if a != b
            ]
            if not differ:  # an array without bytes
                self.size = -1
                return
            ends.append((differ[0], differ[-1] + 1, index))
        self._places = ends
        self._constant: list[tuple[int, int, bytes]] = []
        at = HEADER_SIZE
        for begin, end, _ in sorted(ends):
            self._constant.append((at, begin, blank[at:begin]))
            at = end
        self._constant.append((at, self.size, blank[at:]))
        self._order = [index for _, _, index in sorted(ends)]
        self._prefix = blank[:16]

    def encode(self, step: Step, seq: int) -> Frame | None:
        info = step[4]
        if self.size < 0 or type(info) is not dict or info:
            return None
        for value, (dtype, shape) in zip(step, self._kinds, strict=False):
            if (
                type(value) is not np.ndarray
                or value.dtype != dtype
                or value.shape != shape
                or not value.flags.c_contiguous
            ):
                return None
        parts: list[Any] = [self._prefix, seq.to_bytes(8, "little")]
        for (_, _, constant), index in zip(self._constant, self._order, strict=False):
            parts += (constant, step[index])
        parts.append(self._constant[-1][2])
        return b"".join(parts)

    def decode(self, data: Frame | memoryview, seq: int) -> Step | None:
        if len(data) != self.size or data[:16] != self._prefix:
            return None
        if data[_SEQ] != seq.to_bytes(8, "little"):
            return None
        for begin, end, constant in self._constant:
            if data[begin:end] != constant:
                return None
        arrays = []
        for (begin, end, _), (dtype, shape) in zip(self._places, self._kinds, strict=True):
            if dtype is _BOOL and bytes(data[begin:end]).strip(b"\0\1"):
                return None
            raw = np.frombuffer(data, np.uint8, end - begin, begin).copy()
            arrays.append(raw.view(dtype).reshape(shape))
        return arrays[0], arrays[1], arrays[2], arrays[3], {}


def _prefix(sid: int, kind: Kind, flags: int, head_len: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, flags, head_len, sid, 0)[:16]
