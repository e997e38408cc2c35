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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gymwire.protocol.arrays import Tail
from gymwire.protocol.codec import HEADER_SIZE, SEQ, SID, Codec, Frame, Pieces
from gymwire.protocol.errors import EncodingError
from gymwire.protocol.layout_functions import (
    Container,
    Data,
    Plan,
    Step,
    compile_decoder,
    compile_encoder,
    compile_flattener,
)
from gymwire.protocol.messages import Percept
from gymwire.protocol.percept_places import Place, array_place, integer_place, is_constant, place_of
from gymwire.protocol.space_codecs import NOT_COMPACT, SpaceCodec
from gymwire.protocol.values import pack
from gymwire.protocol.vector_infos import to_wire

__all__ = ["APART", "PerceptLayouts"]

# Arrays of at least this many bytes are not copied into the frame of a percept, but become a piece.
APART = 16 * 1024

MAX_LAYOUTS = 12  # a vector has one for each number of episodes that end in a step
MAX_CACHED = 256  # in one process
MAX_MISSES = 64  # percepts without a layout after which no more layouts are made
MAX_VALUES = 64  # of one percept: numbers, arrays, texts and dicts
MAX_COMPARED = 4 * 1024**2  # bytes that are encoded to find the places of a layout

_INFO = 4  # its index among the five values of a step


# --- the structure of a percept -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """What layouts that differ only in their places and constants have in common."""

    containers: tuple[Container, ...]
    types: tuple[type, ...]


class _Structure:
    """The values of a step in one list: its five, then those of each container of the info.

    Attributes:
        key: equal for percepts of one layout; None if there cannot be a layout.
        form: the types of the values, and the info with the dicts and lists in it.
        places: index of a value → its place.
        constants: index of a value → the value, which is the same in all percepts of the layout.
    """

    def __init__(self, step: Step, observation: SpaceCodec) -> None:
        containers: list[Container] = []
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
                containers.append(Container(index, keys, begin, begin + len(value)))
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
    """Return whether all keys are texts, and so short that a layout may contain them."""
    return all(type(key) is str and is_constant(key) for key in value)


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

    def __init__(self, structure: _Structure, observation: SpaceCodec) -> None:
        frame, begins = _find_places(structure, observation)
        order = sorted(structure.places, key=begins.__getitem__)
        places = {i: structure.places[i] for i in order}
        self.size = len(frame)
        self.form = structure.form
        spans = [(SID.start, SEQ.stop), *((begins[i], begins[i] + places[i].size) for i in order)]
        starts, ends = [0, *(end for _, end in spans)], [*(begin for begin, _ in spans), self.size]
        chunks = [frame[start:end] for start, end in zip(starts, ends, strict=True)]
        plan = Plan(chunks, places, begins, structure.constants, structure.form.containers)
        is_apart = any(place.array and place.size >= APART for place in places.values())
        # (values, name) -> the frame, or None if the percept has another structure. `values`: what
        # `flatten` returned.
        self.encode = compile_encoder(plan, len(self.form.types), self.size, in_pieces=is_apart)
        # (step) -> its values in one list, or None if it has another form.
        self.flatten = KNOWN.flattener(structure.form)
        # (data, name) -> the percept in a frame of `size` bytes; None: it has another structure.
        self.decode = compile_decoder(plan)


def _find_places(structure: _Structure, observation: SpaceCodec) -> tuple[bytes, dict[int, int]]:
    """Return a frame of this structure, and where the bytes of each place begin in it.

    Large arrays are in the tail, where their examples are found by their addresses. Only the heads
    of frames are encoded once for each place.
    """
    large, small = {}, {}
    for index, place in structure.places.items():
        if place.is_large:
            assert place.array is not None
            large[index] = np.zeros(place.array[1], place.array[0])
        else:
            small[index] = place.examples()

    def percept(other: int | None) -> list[Any]:
        """Return the first examples, and for one place the other one."""
        parts: list[Any] = [None] * len(structure.form.types)
        for index, constant in [*structure.constants.items(), *large.items()]:
            parts[index] = constant
        for index, pair in small.items():
            parts[index] = pair[index == other]
        for container in reversed(structure.form.containers):
            container.build(parts)
        return parts[: _INFO + 1]

    def head_of(other: int | None) -> tuple[bytes, Tail]:
        fields, tail = percept(other), Tail()
        form = observation.encode(fields[0], tail)
        if form is not NOT_COMPACT:
            fields[0] = form
        return pack(fields, tail), tail

    base, tail = head_of(None)
    if len(small) * len(base) > MAX_COMPARED:
        raise EncodingError("The heads to compare are too large.", path="info")
    frame = bytes(Codec(observation).encode(Percept(*percept(None))))
    start = len(frame) - tail.size
    offsets = {_address(np.frombuffer(part, np.uint8)): offset for offset, part in tail.parts}
    begins = {index: start + offsets[_address(array)] for index, array in large.items()}
    for index in small:
        at = _find_difference(base, head_of(index)[0], structure.places[index])
        begins[index] = HEADER_SIZE + at
    return frame, begins


def _find_difference(base: bytes, other: bytes, place: Place) -> int:
    """Return where two heads, which differ in one place, begin to differ."""
    if len(other) != len(base):
        raise EncodingError("The size of the frame varies.", path="info")
    differ = np.flatnonzero(np.frombuffer(base, np.uint8) != np.frombuffer(other, np.uint8))
    is_whole = len(differ) == place.size or not place.is_dense
    if not len(differ) or differ[-1] - differ[0] != place.size - 1 or not is_whole:
        raise EncodingError("A value is not in one place.", path="info")
    return int(differ[0])


def _address(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data


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

    def flattener(self, form: _Form) -> Callable[[Step], Sequence[Any] | None]:
        """Return the same function for the layouts of a form."""
        for layout in self.recent:
            if layout.form is form:
                return layout.flatten
        return compile_flattener(form.containers, form.types)

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
            layout = _Layout(structure, observation)
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
    """The layouts of sessions with the same observation space, made from the percepts that occur.

    Several threads may use it: at worst, one of them learns what another has just learned.

    Args:
        observation: the codec of its observation space.
        encode_other: encodes a percept without a layout; None if it cannot.
        decode_other: decodes one.
        is_vector: whether `encode` converts the infos to wire form. `decode` returns that form.
    """

    def __init__(
        self,
        observation: SpaceCodec,
        encode_other: Callable[[Step, bytes], Frame | Pieces | None],
        decode_other: Callable[[Data, bytes], Step | None],
        *,
        is_vector: bool = False,
    ) -> None:
        self._observation = observation
        self._encode_other = encode_other
        self._decode_other = decode_other
        self._is_vector = is_vector
        self._layouts: list[_Layout] = []
        self._misses_left = MAX_MISSES

    def encode(
        self, step: Step, name: bytes, *, in_wire_form: bool = False
    ) -> Frame | Pieces | None:
        """Return the frame of a percept, or None if `Codec` must encode it.

        `in_wire_form`: whether the infos of a vector are.
        """
        must_convert = self._is_vector and not in_wire_form
        if must_convert and type(step[4]) is not dict:
            return None
        form = values = None
        for layout in self._layouts:
            if layout.form is not form:
                form = layout.form
                values = layout.flatten(step)
            if values is not None:
                frame = layout.encode(values, name)
                if frame is not None:
                    return frame
        if must_convert:  # not above: infos with a layout have no arrays of objects
            infos = to_wire(step[4])
            if infos is not step[4]:
                return self.encode((*step[:4], infos), name, in_wire_form=True)
        frame = self._encode_other(step, name)
        if self._misses_left > 0 and frame is not None:
            self._learn(step, name, bytes(frame))
        return frame

    def decode(self, data: Data, name: bytes) -> Step | None:
        """Return the percept in a frame, or None if `Codec` must decode it."""
        size = len(data)
        for layout in self._layouts:
            if layout.size == size:
                step = layout.decode(data, name)
                if step is not None:
                    return step
        step = self._decode_other(data, name)
        if self._misses_left > 0 and step is not None:
            self._learn(step, name, bytes(data))
        return step

    def _learn(self, step: Step, name: bytes, frame: bytes) -> None:
        """Use a layout if there is one for this percept now; `frame`: that of the percept."""
        self._misses_left -= 1
        for layout in KNOWN.recent:
            if layout not in self._layouts and self._fits(layout, step, name, frame):
                self._use(layout)
                return
        structure = _Structure(step, self._observation)
        if structure.key is None:
            return
        found = KNOWN.layout(structure, self._observation)
        if found is None or not self._fits(found, step, name, frame):
            return
        # Another thread may have learned the same meanwhile.
        if not any(self._fits(layout, step, name, frame) for layout in self._layouts):
            self._use(found)

    def _fits(self, layout: _Layout, step: Step, name: bytes, frame: bytes) -> bool:
        values = layout.flatten(step)
        made = None if values is None else layout.encode(values, name)
        return made is not None and bytes(made) == frame

    def _use(self, layout: _Layout) -> None:
        self._layouts.append(layout)
        if len(self._layouts) >= MAX_LAYOUTS:
            self._misses_left = 0

    def renew(self) -> None:
        """Learn from as many further percepts as new layouts would, for a session that begins.

        If there is no room for another layout, drop all of them: one session may have filled it.
        This process still knows them, so each that is in use comes back with its next percept.
        """
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts = []  # a new list: another thread may iterate over the old one
        self._misses_left = MAX_MISSES
