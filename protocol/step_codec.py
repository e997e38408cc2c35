"""The two frames of a step in their commonest form, without detours.

The bytes are those of `Codec`; only the way to them is shorter. A step's code runs cold: between
two of them the processor has worked for other processes, and what is not executed need not be
fetched again. Whatever is not of the common form goes through `Codec`.

ACT:     an array, or an integer below 128, as the whole action.
PERCEPT: an array as the observation, a float as reward, two bools, and an empty info.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from protocol.arrays import LARGE
from protocol.codec import ALIGN, FITS, HEADER, HEADER_SIZE, MAGIC, Frame
from protocol.messages import VERSION, Kind
from protocol.space_codecs import MISFIT, Misfit, SpaceCodec

_ONE_FIELD, _FIVE_FIELDS = b"\x91", b"\x95"
_FLOAT = struct.Struct(">sd")  # msgpack's float 64, its type byte before it
_FLOAT_TYPE = b"\xcb"
_ENDS = {
    (terminated, truncated): bytes((0xC2 + terminated, 0xC2 + truncated, 0x80))
    for terminated in (False, True)
    for truncated in (False, True)
}
_FLAGS = {end: flags for flags, end in _ENDS.items()}
_SEQ = slice(16, HEADER_SIZE)

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class StepCodec:
    """The steps of session `sid`. None and MISFIT send the caller to `Codec`."""

    def __init__(self, sid: int, observation: SpaceCodec, action: SpaceCodec) -> None:
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


def _prefix(sid: int, kind: Kind, flags: int, head_len: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, flags, head_len, sid, 0)[:16]
