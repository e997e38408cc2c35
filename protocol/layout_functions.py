"""Compile the encoder and the decoder of a layout of percepts (see `percept_layouts`).

They are functions without loops, made from source text: a loop over the places would take twice as
long as the work in it. The text consists of names and numbers that are made here. What comes from
a percept, such as the keys of its infos, is only bound to these names.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from gymwire.protocol.arrays import axes_order
from gymwire.protocol.codec import Frame, Pieces
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.percept_places import Place

__all__ = [
    "Container",
    "Data",
    "Plan",
    "Step",
    "compile_decoder",
    "compile_encoder",
    "compile_flattener",
    "in_place",
]

# Arrays of at least this many bytes stay in the memory where libzmq received them. Smaller messages
# share a block, which an array would keep alive, and may be at odd addresses. For the same reason,
# the arrays of a percept share memory only if all of them together have fewer bytes.
IN_PLACE = 16 * 1024

# The address of an array in such shared memory is a multiple of this, as that of an array of its
# own. Otherwise PyTorch adds in another order, and a training ends with other weights.
ALIGNMENT = 16

Step = tuple[Any, Any, Any, Any, dict[str, Any]]
"""What `Env.step` returns."""
Data = Frame | memoryview


class Container(NamedTuple):
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


class Plan(NamedTuple):
    """What the frames of a layout consist of: constant bytes and places in turn.

    The first place is the name: the sid and the request number, as they are in the header.

    Attributes:
        chunks: the constant bytes: before the name, between the places, and after the last one.
        places: index of a value → its place, in the order of the frame.
        begins: index of a value → where its place begins in the frame.
        constants: index of a value → the value, which is the same in all percepts.
        containers: the dicts and lists among the values.
    """

    chunks: Sequence[bytes]
    places: Mapping[int, Place]
    begins: Mapping[int, int]
    constants: Mapping[int, Any]
    containers: Sequence[Container]


def compile_flattener(
    containers: Sequence[Container], types: tuple[type, ...]
) -> Callable[[Step], Sequence[Any] | None]:
    """Return `(step) -> its values in one sequence`, or None if it has another form.

    Args:
        containers: the dicts and lists among the values.
        types: those of the values: of the five of a step, then of those of each container.
    """
    names: dict[str, Any] = {"__name__": __name__, "types": types}
    lines = ["v0, v1, v2, v3, v4 = step"]
    for one in containers:
        parts = ", ".join(f"v{i}" for i in range(one.begin, one.end))
        if one.keys is None:
            others, found = f"is not list or len(v{one.at}) != {one.end - one.begin}", f"v{one.at}"
        else:
            names[f"keys{one.at}"] = one.keys
            others = f"is not dict or (keys := tuple(v{one.at})) != keys{one.at}"
            found = f"v{one.at}.values()"
        lines += [f"if type(v{one.at}) {others}:", "    return None", f"[{parts}] = {found}"]
        if one.keys:
            # A key of another type may equal a text. Mostly, the keys are the same objects.
            keys = _keys(one)
            names.update(zip(keys, one.keys, strict=True))
            texts = [f"(k{at} is {key} or type(k{at}) is str)" for at, key in enumerate(keys)]
            lines += [
                f"[{', '.join(f'k{at}' for at in range(len(keys)))}] = keys",
                f"if not ({' and '.join(texts)}):",
                "    return None",
            ]
    values = "".join(f"v{i}, " for i in range(len(types)))
    body = "\n    ".join([*lines, f"values = {values}"])
    return _compile(
        f"""
def function(step):
    {body}
    return values if tuple(map(type, values)) == types else None
""",
        names,
    )


def compile_encoder(
    plan: Plan, count: int, size: int, *, in_pieces: bool
) -> Callable[[Sequence[Any], bytes], Frame | Pieces | None]:
    """Return `(values, name) -> frame`, or None if the percept has another structure.

    Args:
        plan: the layout.
        count: the number of values.
        size: that of the frame, in bytes.
        in_pieces: whether large arrays stay in the environment's memory.
    """
    names = _names(plan)
    has_large = any(place.is_large for place in plan.places.values())
    fits, arrays, parts = [], [], ["chunk0", "name", "chunk1"]
    for at, (i, place) in enumerate(plan.places.items(), 2):
        if place.fits is not None:
            fits.append(f"not fits{i}(v{i})")
        if place.array is not None:
            # The same dtype is mostly the same object.
            is_other = f"v{i}.dtype is not dtype{i} and v{i}.dtype != dtype{i}"
            arrays.append(f"{is_other} or v{i}.shape != shape{i}")
            if len(place.array[1]) > 1:
                arrays.append(f"not v{i}.flags.c_contiguous and axes_order(v{i}) is not None")
        part = f"v{i}.tobytes()" if place.array or has_large else f"v{i}"
        if place.write is not None and place.array is None:
            part = f"write{i}(v{i})"
        if place.is_large:
            part = f"v{i}.data if v{i}.flags.c_contiguous else {part}"
        parts += [part, f"chunk{at}"]
    others = [*fits, *arrays, *(f"v{i} != constant{i}" for i in plan.constants)]
    made = ", ".join(parts)
    frame = f"Pieces([{made}], {size})" if in_pieces else f"b''.join([{made}])"
    if not has_large:
        codes = ("d" if p.write is None else f"{p.size}s" for p in plan.places.values())
        names["pack"], frame = _struct(plan, codes).pack, f"pack({made})"
    return _compile(
        f"""
def function(values, name):
    {"".join(f"v{i}, " for i in range(count))} = values
    if {" or ".join(others) or "False"}:
        return None
    return {frame}
""",
        names,
    )


def compile_decoder(plan: Plan) -> Callable[[Data, bytes], Step | None]:
    """Return `(data, name) -> the percept` for frames of the right size.

    It returns None if the percept has another structure.
    """
    record = _record(plan.places)
    names = _names(plan)
    # Large arrays are not unpacked: they are read where they are.
    apart = {i for i, place in plan.places.items() if place.is_large and record is None}
    codes = (
        f"{p.size}x" if i in apart else "d" if p.write is None else f"{p.size}s"
        for i, p in plan.places.items()
    )
    names["unpack"] = _struct(plan, codes).unpack
    fields, flags, values = ["chunk0", "found", "chunk1"], [], {}
    for at, (i, place) in enumerate(plan.places.items(), 2):
        values[i] = f"read{i}(v{i})"
        if i in apart:
            values[i] = f"_read_large(data, {plan.begins[i]}, place{i})"
        elif place.array is not None:
            values[i] = f"ndarray(shape{i}, dtype{i}, bytearray(v{i}))"
            if place.array[0].kind == "b":  # in most steps no episode ends
                names[f"zeros{i}"] = bytes(place.size)
                flags.append(f"v{i} != zeros{i} and v{i}.translate(None, flags)")
        fields += [f"chunk{at}"] if i in apart else [f"v{i}", f"chunk{at}"]
    make_arrays = ""
    if record is not None and record.names is not None:
        arrays, pick = ", ".join(record.names), operator.itemgetter(*record.names)
        names |= {"record": record, "pick": pick, "join": bytearray().join}
        names |= {f"fill{size}": bytes(size) for size in range(1, ALIGNMENT)}
        parts = []
        for name in record.names:
            size = -record[name].itemsize % ALIGNMENT
            parts += [name, f"fill{size}"] if size else [name]
        make_arrays = f"{arrays} = pick(ndarray((), record, join(({', '.join(parts)}))))"
        values = {i: f"v{i}" for i in plan.places}
    values.update({i: f"constant{i}" for i in plan.constants})
    for one in reversed(plan.containers):  # the inner ones first
        parts = [values[i] for i in range(one.begin, one.end)]
        if one.keys is None:
            values[one.at] = f"[{', '.join(parts)}]"
        else:
            keyed = zip(_keys(one), parts, strict=True)
            values[one.at] = f"{{{', '.join(f'{key}: {part}' for key, part in keyed)}}}"
    chunks = ", ".join(f"chunk{at}" for at in range(len(plan.chunks)))
    names["chunks"] = tuple(plan.chunks)
    return _compile(
        f"""
def function(data, name):
    {", ".join(fields)} = unpack(data)
    if found != name or ({chunks}) != chunks or {" or ".join(flags) or "False"}:
        return None
    {make_arrays}
    try:
        return {", ".join(values[i] for i in range(5))}
    except KeyError as error:
        if is_from_outside(error):
            raise
        return None
""",
        names,
    )


def _record(places: Mapping[int, Place]) -> np.dtype[Any] | None:
    """Return the dtype of a record with the arrays at these places, each of them aligned.

    It makes all arrays of a percept in one piece of memory, which takes less time than one piece
    for each. None: not all places are arrays, there is only one, or they are too large.
    """
    arrays = [(i, place.array) for i, place in places.items() if place.array is not None]
    sizes = (place.size + -place.size % ALIGNMENT for place in places.values())
    ends = [*accumulate(sizes)]
    if not 1 < len(arrays) == len(places) or ends[-1] >= IN_PLACE:
        return None
    names, formats = [f"v{i}" for i, _ in arrays], [one for _, one in arrays]
    offsets = [0, *ends[:-1]]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": ends[-1]})


def _names(plan: Plan) -> dict[str, Any]:
    """Return what the names in the text stand for."""
    names: dict[str, Any] = {
        "__name__": __name__,  # the module of the functions
        "Pieces": Pieces,
        "_read_large": _read_large,
        "axes_order": axes_order,
        "flags": b"\0\1",
        "is_from_outside": is_from_outside,
        "ndarray": np.ndarray,
    }
    names.update({f"chunk{at}": chunk for at, chunk in enumerate(plan.chunks)})
    names.update({f"constant{i}": value for i, value in plan.constants.items()})
    for one in plan.containers:
        names.update(zip(_keys(one), one.keys or (), strict=True))
    for i, place in plan.places.items():
        names |= {f"place{i}": place, f"fits{i}": place.fits}
        names |= {f"read{i}": place.read, f"write{i}": place.write}
        if place.array is not None:
            names[f"dtype{i}"], names[f"shape{i}"] = place.array
    return names


def _keys(container: Container) -> list[str]:
    """Return the names of the keys of a dict."""
    return [f"key{container.at}_{at}" for at in range(len(container.keys or ()))]


def _struct(plan: Plan, codes: Iterable[str]) -> struct.Struct:
    """Return the struct of a frame whose places have these codes."""
    chunks = [f"{len(chunk)}s" for chunk in plan.chunks]
    return struct.Struct("<" + "".join(map("".join, zip(chunks, ["16s", *codes, ""], strict=True))))


def _compile(text: str, names: dict[str, Any]) -> Callable[..., Any]:
    exec(text, names)
    function: Callable[..., Any] = names["function"]
    return function


def _read_large(data: Data, begin: int, place: Place) -> Any:
    """Return a large array; raises KeyError if the bytes are not valid."""
    assert place.array is not None
    dtype, shape = place.array
    if place.size >= IN_PLACE and dtype.kind != "b":
        array = in_place(shape, dtype, data, begin)
        if array is not None:
            return array
    return place.read(data[begin : begin + place.size])


def in_place(
    shape: tuple[int, ...], dtype: np.dtype[Any], data: Data, begin: int
) -> np.ndarray[Any, Any] | None:
    """Return the array in the received memory; None if that is read-only or unaligned."""
    array = np.ndarray(shape, dtype, data, begin)
    return array if array.flags.writeable and array.flags.aligned else None
