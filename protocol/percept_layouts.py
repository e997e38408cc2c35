"""Fast frames for percepts whose rewards and infos look like those of an earlier step.

Most environments return infos with the same keys and types in every step. Then the frame of a
percept varies only in a few places: the request number, the observation, and the numbers and arrays
of reward, flags and info. A `_Layout` knows these places: one `struct` call writes or reads all of
them, and the bytes between them are compared at once. The bytes are the same as those of `Codec`.

A layout is made when the same structure occurs in a process for the second time, at each end on
its own: the other side knows nothing of it. The places are found by comparing frames that `Codec`
encodes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from gymwire.protocol.arrays import LARGE, SCALARS, axes_order
from gymwire.protocol.codec import SEQ, SID, Codec, Frame, Pieces
from gymwire.protocol.errors import EncodingError
from gymwire.protocol.messages import Percept
from gymwire.protocol.space_codecs import SpaceCodec

__all__ = ["APART", "IN_PLACE", "PerceptLayouts", "in_place"]

Step = tuple[Any, Any, Any, Any, dict[str, Any]]
Data = Frame | memoryview

# Arrays of at least this many bytes stay in the memory where libzmq received them. Smaller messages
# share a block, which an array would keep alive, and may be at odd addresses.
IN_PLACE = 16 * 1024
# Arrays of at least this many bytes are not copied into the frame of a percept, but become a piece.
APART = 16 * 1024

MAX_LAYOUTS = 4  # of one session
MAX_CACHED = 256  # of one process
MAX_MISSES = 64  # percepts without a layout after which no more layouts are made
MAX_VALUES = 64  # of one percept: numbers, arrays, texts and dicts
MAX_CONSTANT = 256  # characters of a text, or bytes, that a layout may contain

_INFO = 4  # its index among the five values of a step
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


def in_place(
    shape: tuple[int, ...], dtype: np.dtype[Any], data: Data, begin: int
) -> np.ndarray[Any, Any] | None:
    """Return the array in the received memory; None if that is read-only or unaligned."""
    array = np.ndarray(shape, dtype, data, begin)
    return array if array.flags.writeable and array.flags.aligned else None


# --- the values of a percept ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a number or an array is in a frame, and how it is written and read.

    Attributes:
        key: what the values of all percepts of a layout have in common here.
        size: how many bytes of the frame vary.
        examples: two such values that have no byte in common.
        write: returns these bytes; None: `struct` packs the value as a little-endian double.
        read: returns the value; raises KeyError if the bytes stand for no such value.
        fits: whether another number of the same type has the same form; None: always.
        array: dtype and shape of an array.
        is_large: whether it is an array that is read where it is.
    """

    key: object
    size: int
    examples: tuple[Any, Any]
    write: Callable[[Any], Any] | None
    read: Callable[[Any], Any]
    fits: Callable[[Any], bool] | None = None
    array: tuple[np.dtype[Any], tuple[int, ...]] | None = None
    is_large: bool = False


def _read_float(raw: bytes) -> float:
    return _FLOAT.unpack(raw)[0]  # type: ignore[no-any-return]


_SCALAR_PLACES: dict[type, _Place] = {
    float: _Place(
        float, 8, (_read_float(b"\1" * 8), _read_float(b"\2" * 8)), _FLOAT.pack, _read_float
    ),
    bool: _Place(bool, 1, (False, True), _FLAG_BYTES.__getitem__, _FLAGS.__getitem__),
    np.bool_: _Place(np.bool_, 1, (np.False_, np.True_), np.bool_.tobytes, _BOOLS.__getitem__),
}


def _scalar_place(kind: type[Any], dtype: np.dtype[Any]) -> _Place:
    one, two = (np.frombuffer(byte * dtype.itemsize, dtype)[0] for byte in (b"\1", b"\2"))
    if kind is np.float64:
        return _Place(kind, 8, (one, two), None, np.float64)

    def read(raw: bytes) -> Any:
        return np.ndarray((), dtype, raw)[()]

    return _Place(kind, dtype.itemsize, (one, two), kind.tobytes, read)


for _kind, _text in SCALARS.items():
    if _kind is not np.bool_:
        _SCALAR_PLACES[_kind] = _scalar_place(_kind, np.dtype(_text[:-1].decode()))


def _integer_place(value: int, kind: type[Any]) -> _Place | None:
    """Return the place of an integer from 0 on; `kind` is its type."""
    form = next((one for one in _INTEGERS if one[0] <= value < one[1]), None)
    if form is None:
        return None
    least, above, code = form
    packer = struct.Struct(code)
    pattern = 1 if above == 0x80 else 0x81  # of the bytes of an example
    one, two = (kind(packer.unpack(bytes((pattern + n,)) * packer.size)[0]) for n in (0, 1))

    def read(raw: bytes) -> Any:
        number = packer.unpack(raw)[0]
        if not least <= number < above:
            raise KeyError(number)
        return kind(number)

    def fits(other: Any) -> bool:
        return bool(least <= other < above)

    return _Place((kind, code, least), packer.size, (one, two), packer.pack, read, fits)


def _array_place(dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Place | None:
    """Return the place of an array; None if it has no bytes, or not any bytes are valid."""
    size = math.prod(shape) * dtype.itemsize
    if not size or dtype.kind not in "biufc":
        return None
    is_bool = dtype.kind == "b"
    examples = tuple(
        np.frombuffer(bytes((byte,)) * size, dtype).reshape(shape)
        for byte in ((0, 1) if is_bool else (1, 2))
    )

    def read(raw: bytes | memoryview) -> Any:
        if is_bool and bytes(raw).strip(b"\0\1"):
            raise KeyError(raw)
        return np.ndarray(shape, dtype, bytearray(raw))

    return _Place(
        (dtype.str, shape),
        size,
        (examples[0], examples[1]),
        np.ndarray.tobytes,
        read,
        array=(dtype, shape),
        is_large=size >= LARGE,
    )


def _place_of(value: Any) -> _Place | None:
    """Return the place of a value of the info, or of a reward or flag; None: it has none."""
    kind = type(value)
    if kind is int:
        return _integer_place(value, int)
    if kind is np.ndarray:
        return _array_place(value.dtype, value.shape)
    return _SCALAR_PLACES.get(kind)


def _is_constant(value: Any) -> bool:
    if value is None:
        return True
    return type(value) in (str, bytes) and len(value) <= MAX_CONSTANT


# --- the structure of a percept -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Dict:
    """A dict among the values: its index, its keys, and the index of its first value."""

    at: int
    keys: tuple[str, ...]
    begin: int


class _Structure:
    """The values of a step in one list: its five, then the values of each dict of the info.

    Attributes:
        key: equal for percepts of one layout; None if there cannot be a layout.
        dicts: the info and the dicts in it.
        places: index of a value → its place.
        constants: index of a value → the value, which is the same in all percepts of the layout.
    """

    def __init__(self, step: Step, observation: SpaceCodec) -> None:
        self.dicts: list[_Dict] = []
        self.places: dict[int, _Place] = {}
        self.constants: dict[int, Any] = {}
        self.key: object = None
        values: list[Any] = [*step]
        for index, value in enumerate(values):  # it grows meanwhile
            kind = type(value)
            place = _observation_place(value, observation) if not index else _place_of(value)
            if place is not None:
                self.places[index] = place
            elif index > _INFO and _is_constant(value):
                self.constants[index] = value
            elif kind is dict and index >= _INFO and all(type(key) is str for key in value):
                self.dicts.append(_Dict(index, tuple(value), len(values)))
                values += value.values()
            else:
                return
            if len(values) > MAX_VALUES:
                return
        if self.dicts and self.dicts[0].at == _INFO:
            self.types = [type(value) for value in values]
            self.key = (
                tuple(self.dicts),
                tuple((index, place.key) for index, place in self.places.items()),
                tuple(self.constants.items()),
            )


def _observation_place(value: Any, space: SpaceCodec) -> _Place | None:
    if space.array is not None:
        dtype, shape, _ = space.array
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return _array_place(dtype, shape)
    elif space.scalar is not None and type(value) is space.scalar:
        return _integer_place(int(value), space.scalar)
    return None


# --- layouts --------------------------------------------------------------------------------------


class _Layout:
    """Writes and reads the frames of percepts of one structure, of any session.

    `name` stands for the sid and the request number, as they are in the header. Raises
    EncodingError if the frames of such percepts have no layout.
    """

    def __init__(self, structure: _Structure, codec: Codec) -> None:
        places = structure.places
        frame, begins = _find_places(structure, codec)
        order = sorted(places, key=begins.__getitem__)
        ordered = [places[index] for index in order]
        self.size = len(frame)
        self._dicts = [(one.at, one.keys) for one in structure.dicts]
        self._types = structure.types
        self._arrays = [(i, *array) for i in order if (array := places[i].array) is not None]
        self._checks = [(i, fits) for i in order if (fits := places[i].fits) is not None]
        self._constants = list(structure.constants.items())
        self._in_order = itemgetter(*order)
        self._writes = [place.write for place in ordered]
        self._is_large = [place.is_large for place in ordered]
        self._is_apart = any(place.array and place.size >= APART for place in ordered)
        # The frame is constant bytes and places in turn; the first place is the name.
        spans = [(SID.start, SEQ.stop), *((begins[i], begins[i] + places[i].size) for i in order)]
        starts, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), self.size]
        constants = [frame[start:end] for start, end in zip(starts, ends, strict=True)]
        self._template: list[Any] = [b""] * (2 * len(spans) + 1)
        self._template[::2] = constants
        codes = ["16s", *("d" if one.write is None else f"{one.size}s" for one in ordered)]
        self._pack = struct.Struct("<" + _alternating(constants, codes)).pack
        # Large arrays are not unpacked: they are read where they are.
        codes = ["16s", *(f"{one.size}x" if one.is_large else code
                         for one, code in zip(ordered, codes[1:], strict=True))]  # fmt: skip
        self._unpack = struct.Struct("<" + _alternating(constants, codes)).unpack
        small = [place for place in ordered if not place.is_large]
        # Among the unpacked: which ones are constants, and which ones are fields of places.
        kinds = [True, False, True]
        for place in ordered:
            kinds += [True] if place.is_large else [False, True]
        self._constants_of = itemgetter(*(i for i, constant in enumerate(kinds) if constant))
        self._constant_bytes = tuple(constants)
        self._fields_of = itemgetter(*(i for i, constant in enumerate(kinds) if not constant))
        self._reads = [bytes, *(place.read for place in small)]
        self._large = [
            (begins[i], begins[i] + places[i].size, places[i]) for i in order if places[i].is_large
        ]
        # Where each value is among what was read: small ones, large ones, constants; dicts: None.
        found = [-1, *(i for i in order if not places[i].is_large)]
        found += [i for i in order if places[i].is_large]
        found += [index for index, _ in self._constants]
        where = {index: at for at, index in enumerate(found)}
        self._arrange = itemgetter(*(where.get(i, len(found)) for i in range(len(self._types))))
        self._rest = [*(value for _, value in self._constants), None]
        self._building = [
            (one.at, one.keys, one.begin, one.begin + len(one.keys))
            for one in reversed(structure.dicts)
        ]

    def encode(self, step: Step, name: bytes) -> Frame | Pieces | None:
        """Return the frame of this percept, or None if it has another structure."""
        values: list[Any] = [*step]
        for at, keys in self._dicts:
            found = values[at]
            if type(found) is not dict or tuple(found) != keys:
                return None
            values += found.values()
        if [*map(type, values)] != self._types:
            return None
        for index, dtype, shape in self._arrays:
            array = values[index]
            if array.dtype != dtype or array.shape != shape:
                return None
            if len(shape) > 1 and axes_order(array) is not None:
                return None
        for index, fits in self._checks:
            if not fits(values[index]):
                return None
        for index, constant in self._constants:
            if values[index] != constant:
                return None
        parts = self._template.copy()
        parts[1] = name
        if not self._large:
            parts[3::2] = [
                value if write is None else write(value)
                for write, value in zip(self._writes, self._in_order(values), strict=True)
            ]
            return self._pack(*parts)
        parts[3::2] = map(_write_part, self._is_large, self._writes, self._in_order(values))
        return Pieces(parts, self.size) if self._is_apart else b"".join(parts)

    def decode(self, data: Data, name: bytes) -> Step | None:
        """Return the percept in a frame of `size` bytes; None: it has another structure."""
        unpacked = self._unpack(data)
        if self._constants_of(unpacked) != self._constant_bytes or unpacked[1] != name:
            return None
        try:
            values = [
                read(field)
                for read, field in zip(self._reads, self._fields_of(unpacked), strict=True)
            ]
            for begin, end, place in self._large:
                values.append(_read_large(data, begin, end, place))
        except KeyError:
            return None
        values += self._rest
        values = [*self._arrange(values)]
        for at, keys, begin, end in self._building:
            values[at] = dict(zip(keys, values[begin:end], strict=True))
        return values[0], values[1], values[2], values[3], values[_INFO]


def _alternating(constants: list[bytes], codes: list[str]) -> str:
    """Return the format of constant bytes and places in turn."""
    between = [f"{len(constant)}s" for constant in constants]
    return "".join(a + b for a, b in zip(between, [*codes, ""], strict=True))


def _write_part(is_large: bool, write: Callable[[Any], Any] | None, value: Any) -> Any:
    """Return a place's bytes, those of a large array in its own memory."""
    if is_large and value.flags.c_contiguous:
        return value.data
    return value.tobytes() if write is None else write(value)


def _read_large(data: Data, begin: int, end: int, place: _Place) -> Any:
    """Return a large array; raises KeyError if the bytes are not valid."""
    assert place.array is not None
    dtype, shape = place.array
    if end - begin >= IN_PLACE and dtype.kind != "b":
        array = in_place(shape, dtype, data, begin)
        if array is not None:
            return array
    return place.read(data[begin:end])


def _find_places(structure: _Structure, codec: Codec) -> tuple[bytes, dict[int, int]]:
    """Return a frame of this structure, and where the bytes of each place begin in it."""

    def frame(other: int | None) -> bytes:
        """Encode the first examples, and for one place the other one."""
        values: list[Any] = [None] * len(structure.types)
        for index, place in structure.places.items():
            values[index] = place.examples[index == other]
        for index, constant in structure.constants.items():
            values[index] = constant
        for one in reversed(structure.dicts):
            end = one.begin + len(one.keys)
            values[one.at] = dict(zip(one.keys, values[one.begin : end], strict=True))
        return bytes(codec.encode(Percept(*values[: _INFO + 1])))

    base = frame(None)
    known = np.frombuffer(base, np.uint8)
    begins: dict[int, int] = {}
    for index, place in structure.places.items():
        other = frame(index)
        if len(other) != len(base):
            raise EncodingError("The size of the frame varies.", path="info")
        differ = np.flatnonzero(known != np.frombuffer(other, np.uint8))
        if len(differ) != place.size or differ[-1] - differ[0] != place.size - 1:
            raise EncodingError("A value is not in one place.", path="info")
        begins[index] = int(differ[0])
    return base, begins


class _Known:
    """The layouts that the sessions of this process share, so that each is learned only once.

    Attributes:
        recent: the layouts that were made last.
    """

    def __init__(self) -> None:
        self.recent: tuple[_Layout, ...] = ()
        self._layouts: dict[object, _Layout | None] = {}
        self._seen: set[object] = set()  # structures that have occurred once

    def layout(self, structure: _Structure, observation: SpaceCodec) -> _Layout | None:
        """Return the layout for this structure if it has occurred before and has one."""
        key = structure.key
        if key in self._layouts:
            return self._layouts[key]
        if key not in self._seen:
            if len(self._seen) >= MAX_CACHED:
                self._seen.clear()
            self._seen.add(key)
            return None
        try:
            layout = _Layout(structure, Codec(observation))
        except EncodingError:
            layout = None
        if len(self._layouts) >= MAX_CACHED:
            self._layouts.clear()
        self._layouts[key] = layout
        if layout is not None:
            self.recent = (layout, *self.recent[: MAX_LAYOUTS - 1])
        return layout


KNOWN = _Known()


class PerceptLayouts:
    """The layouts of one session, made from the percepts that occur.

    Args:
        sid: the session's id.
        observation: the codec of its observation space.
        encode_other: encodes a percept without a layout; None if it cannot.
        decode_other: decodes one.
    """

    def __init__(
        self,
        sid: int,
        observation: SpaceCodec,
        encode_other: Callable[[Step, bytes], Frame | Pieces | None],
        decode_other: Callable[[Data, bytes], Step | None],
    ) -> None:
        self._sid = sid.to_bytes(8, "little")
        self._observation = observation
        self._encode_other = encode_other
        self._decode_other = decode_other
        self._layouts: list[_Layout] = []
        self._misses_left = MAX_MISSES

    def encode(self, step: Step, number: bytes) -> Frame | Pieces | None:
        """Return the frame of a percept, or None if `Codec` must encode it."""
        for layout in self._layouts:
            frame = layout.encode(step, self._sid + number)
            if frame is not None:
                return frame
        frame = self._encode_other(step, number)
        if self._misses_left and frame is not None:
            self._learn(step, number, bytes(frame))
        return frame

    def decode(self, data: Data, number: bytes) -> Step | None:
        """Return the percept in a frame, or None if `Codec` must decode it."""
        size = len(data)
        for layout in self._layouts:
            if layout.size == size:
                step = layout.decode(data, self._sid + number)
                if step is not None:
                    return step
        step = self._decode_other(data, number)
        if self._misses_left and step is not None:
            self._learn(step, number, bytes(data))
        return step

    def _learn(self, step: Step, number: bytes, frame: bytes) -> None:
        """Use a layout if there is one for this percept now; `frame`: that of the percept."""
        self._misses_left -= 1
        for layout in KNOWN.recent:
            if layout not in self._layouts and self._fits(layout, step, number, frame):
                self._use(layout)
                return
        structure = _Structure(step, self._observation)
        if structure.key is None:
            return
        found = KNOWN.layout(structure, self._observation)
        if found is not None and self._fits(found, step, number, frame):
            self._use(found)

    def _fits(self, layout: _Layout, step: Step, number: bytes, frame: bytes) -> bool:
        made = layout.encode(step, self._sid + number)
        return made is not None and bytes(made) == frame

    def _use(self, layout: _Layout) -> None:
        self._layouts.append(layout)
        if len(self._layouts) == MAX_LAYOUTS:
            self._misses_left = 0
