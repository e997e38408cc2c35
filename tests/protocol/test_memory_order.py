"""Arrays keep the order of their axes in memory, as a copy with NumPy's order="K" does."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gymwire.protocol import values
from gymwire.protocol.codec import Codec, name_of
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Percept
from gymwire.protocol.space_codecs import compile as compile_space
from gymwire.protocol.step_codec import compile_steps
from tests.protocol.test_conversions import frame

SHAPES = [(3, 4), (2, 3, 4), (40, 30, 5), (3, 1, 4), (2, 3, 2, 3)]
ORDERS = [(shape, axes) for shape in SHAPES for axes in permutations(range(len(shape)))]
NAME = name_of(7, 0)


def ordered(shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """Return an array of this shape whose axes have this order in memory."""
    base = np.arange(np.prod(shape), dtype=np.float32).reshape([shape[axis] for axis in axes])
    return base.transpose([axes.index(axis) for axis in range(len(shape))])


def assert_same_memory(found: Any, array: Any) -> None:
    expected = array.copy(order="K")
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes("K") == expected.tobytes("K")
    assert found.tobytes() == expected.tobytes()
    assert found.flags.c_contiguous == expected.flags.c_contiguous
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize(("shape", "axes"), ORDERS)
def test_a_value_keeps_its_order(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    array = ordered(shape, axes)
    assert_same_memory(values.decode(values.encode([array]))[0], array)
    for part in (array[::-1], array[..., ::2], array[:, :1]):
        assert_same_memory(values.decode(values.encode(part)), part)


@pytest.mark.parametrize(("shape", "axes"), ORDERS)
@pytest.mark.parametrize("key", ["plain", "info", "dict"])
def test_a_step_keeps_its_order(shape: tuple[int, ...], axes: tuple[int, ...], key: str) -> None:
    box: Any = spaces.Box(-1, 1e6, shape, np.float32)
    array, other = ordered(shape, axes), np.zeros(shape, np.float32)
    space = compile_space(spaces.Dict(it=box) if key == "dict" else box)
    sender, receiver = (compile_steps(space, compile_space(box)) for _ in range(2))
    codec = Codec(space)
    for one in (other, array, other, array, array):  # layouts are made on the way
        observation = {"it": one} if key == "dict" else one
        info = {"array": one, "n": 1.0} if key == "info" else {}
        step = (observation, 1.0, False, False, info)
        sent = sender.encode_percept(step, NAME)
        assert sent is not None
        data = bytearray(bytes(sent))
        assert bytes(data) == bytes(codec.encode(Percept(*step), 7))
        found = receiver.decode_percept(data, NAME)
        assert found is not None
        assert_same_memory(found[0]["it"] if key == "dict" else found[0], one)
        if info:
            assert_same_memory(found[4]["array"], one)
        act = sender.encode_act(one, NAME)
        assert act is not None
        assert_same_memory(receiver.decode_act(act), one)


def test_an_earlier_release_gets_arrays_in_c_order() -> None:
    array = ordered((3, 4), (1, 0))
    box = compile_space(spaces.Box(0, 99, (3, 4), np.float32))
    for codec in (Codec(extended=False), Codec(box, extended=False)):
        percept = Codec(box).decode(codec.encode(Percept(array, 0.0, False, False, {"a": array})))
        assert type(percept) is Percept
        assert_same_memory(percept.observation, np.ascontiguousarray(array))
        assert_same_memory(percept.info["a"], np.ascontiguousarray(array))


@pytest.mark.parametrize(
    "axes", [[0, 0], [0], [0, 2], [-1, 0], [0.0, 1], ["0", 1], 3, None, [], [0, 1, 2]]
)
def test_impossible_axes_are_refused(axes: Any) -> None:
    array = values.encode(np.zeros((2, 3)))
    packed = values.encode(axes)
    with pytest.raises(DecodingError):
        values.decode(extension(b"\x92" + packed + array))


def extension(content: bytes) -> bytes:
    return b"\xc7" + bytes([len(content), 10]) + content


@pytest.mark.parametrize("content", [[[0, 1], [1, 2]], [[0, 1]], {}, 5])
def test_a_malformed_array_is_refused(content: Any) -> None:
    with pytest.raises(DecodingError):
        values.decode(frame(10, content))
