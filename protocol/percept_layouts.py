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

import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from gymwire.protocol.arrays import axes_order
from gymwire.protocol.codec import SEQ, SID, Codec, Frame, Pieces
from gymwire.protocol.errors import EncodingError
from gymwire.protocol.messages import Percept
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.percept_places import Place, array_place, integer_place, is_constant, place_of
from gymwire.protocol.space_codecs import SpaceCodec

__all__ = ["APART", "IN_PLACE", "PerceptLayouts", "in_place"]

Step = tuple[Any, Any, Any, Any, dict[str, Any]]
Data = Frame | memoryview

# Arrays of at least this many bytes stay in the memory where libzmq received them. Smaller messages
# share a block, which an array would keep alive, and may be at odd addresses.
IN_PLACE = 16 * 1024
# Arrays of at least this many bytes are not copied into the frame of a percept, but become a piece.
APART = 16 * 1024

MAX_LAYOUTS = 12  # of one session: of a vector, one for each number of episodes that end in a step
MAX_CACHED = 256  # of one process
MAX_MISSES = 64  # percepts without a layout after which no more layouts are made
MAX_VALUES = 64  # of one percept: numbers, arrays, texts and dicts

_INFO = 4  # its index among the five values of a step


def in_place(
    shape: tuple[int, ...], dtype: np.dtype[Any], data: Data, begin: int
) -> np.ndarray[Any, Any] | None:
    """Return the array in the received memory; None if that is read-only or unaligned."""
    array = np.ndarray(shape, dtype, data, begin)
    return array if array.flags.writeable and array.flags.aligned else None


# --- the structure of a percept -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Container:
    """A dict or list among the values: its index, and those of the values in it.

    `keys` are those of a dict; None: a list.
    """

    at: int
    keys: tuple[str, ...] | None
    begin: int
    end: int

    def build(self, values: list[Any]) -> None:
        """Replace the container by one with the values at the indices."""
        found = values[self.begin : self.end]
        values[self.at] = found if self.keys is None else dict(zip(self.keys, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Form:
    """What layouts that differ only in their places and constants have in common."""

    containers: tuple[_Container, ...]
    types: tuple[type, ...]

    def flatten(self, step: Step) -> list[Any] | None:
        """Return the values of a step in one list; None if it has another form."""
        values: list[Any] = [*step]
        for one in self.containers:
            found, keys = values[one.at], one.keys
            if keys is None:
                if type(found) is not list or len(found) != one.end - one.begin:
                    return None
                values += found
            else:
                if type(found) is not dict or tuple(found) != keys:
                    return None
                values += found.values()
        return values if tuple(map(type, values)) == self.types else None


class _Structure:
    """The values of a step in one list: its five, then those of each container of the info.

    Attributes:
        key: equal for percepts of one layout; None if there cannot be a layout.
        form: the types of the values, and the info with the dicts and lists in it.
        places: index of a value → its place.
        constants: index of a value → the value, which is the same in all percepts of the layout.
    """

    def __init__(self, step: Step, observation: SpaceCodec) -> None:
        containers: list[_Container] = []
        self.places: dict[int, Place] = {}
        self.constants: dict[int, Any] = {}
        self.key: object = None
        values: list[Any] = [*step]
        for index, value in enumerate(values):  # it grows meanwhile
            kind = type(value)
            place = _observation_place(value, observation) if not index else place_of(value)
            if place is not None:
                self.places[index] = place
            elif index > _INFO and is_constant(value):
                self.constants[index] = value
            elif index >= _INFO and (kind is list or (kind is dict and _has_text_keys(value))):
                keys, parts = (None, value) if kind is list else (tuple(value), value.values())
                begin = len(values)
                containers.append(_Container(index, keys, begin, begin + len(value)))
                values += parts
            else:
                return
            if len(values) > MAX_VALUES:
                return
        if containers and containers[0].at == _INFO:
            self.form = KNOWN.form(_Form(tuple(containers), tuple(map(type, values))))
            self.key = (
                self.form,
                tuple((index, place.key) for index, place in self.places.items()),
                tuple(self.constants.items()),
            )


def _has_text_keys(value: dict[Any, Any]) -> bool:
    return all(type(key) is str for key in value)


def _observation_place(value: Any, space: SpaceCodec) -> Place | None:
    if space.array is not None:
        dtype, shape, _ = space.array
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return array_place(dtype, shape)
    elif space.scalar is not None and type(value) is space.scalar:
        return integer_place(int(value), space.scalar)
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
        self.form = structure.form
        self._inner_first = structure.form.containers[::-1]
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
        # Where each value is among what was read: small ones, large ones, constants, None, which
        # stands for the containers.
        found = [-1, *(i for i in order if not places[i].is_large)]
        found += [i for i in order if places[i].is_large]
        found += [index for index, _ in self._constants]
        where = {index: at for at, index in enumerate(found)}
        self._arrange = itemgetter(*(where.get(i, len(found)) for i in range(len(self.form.types))))
        self._rest = [*(value for _, value in self._constants), None]

    def encode(self, values: list[Any], name: bytes) -> Frame | Pieces | None:
        """Return the frame of a percept, or None if it has another structure.

        `values`: what `form.flatten` returned.
        """
        for index, fits in self._checks:
            if not fits(values[index]):
                return None
        for index, dtype, shape in self._arrays:
            array = values[index]
            if array.dtype != dtype or array.shape != shape:
                return None
            if len(shape) > 1 and axes_order(array) is not None:
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
        except KeyError as error:
            if is_from_outside(error):
                raise
            return None
        values += self._rest
        values = [*self._arrange(values)]
        for container in self._inner_first:
            container.build(values)
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


def _read_large(data: Data, begin: int, end: int, place: Place) -> Any:
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
        values: list[Any] = [None] * len(structure.form.types)
        for index, place in structure.places.items():
            values[index] = place.examples[index == other]
        for index, constant in structure.constants.items():
            values[index] = constant
        for container in reversed(structure.form.containers):
            container.build(values)
        return bytes(codec.encode(Percept(*values[: _INFO + 1])))

    base = frame(None)
    known = np.frombuffer(base, np.uint8)
    begins: dict[int, int] = {}
    for index, place in structure.places.items():
        other = frame(index)
        if len(other) != len(base):
            raise EncodingError("The size of the frame varies.", path="info")
        differ = np.flatnonzero(known != np.frombuffer(other, np.uint8))
        is_whole = len(differ) == place.size or not place.is_dense
        if not len(differ) or differ[-1] - differ[0] != place.size - 1 or not is_whole:
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
        self._forms: dict[_Form, _Form] = {}

    def form(self, form: _Form) -> _Form:
        """Return the same object for equal forms."""
        if len(self._forms) >= MAX_CACHED:
            self._forms.clear()
        return self._forms.setdefault(form, form)

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
        form = values = None
        for layout in self._layouts:
            if layout.form is not form:
                form = layout.form
                values = form.flatten(step)
            if values is not None:
                frame = layout.encode(values, self._sid + number)
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
        values = layout.form.flatten(step)
        made = None if values is None else layout.encode(values, self._sid + number)
        return made is not None and bytes(made) == frame

    def _use(self, layout: _Layout) -> None:
        self._layouts.append(layout)
        if len(self._layouts) == MAX_LAYOUTS:
            self._misses_left = 0
