"""Layouts change nothing: frames and values are those of Codec, whatever the infos are."""

from __future__ import annotations

import enum
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

from gymwire.protocol import percept_layouts
from gymwire.protocol.arrays import LARGE
from gymwire.protocol.codec import Codec, Frame, name_of
from gymwire.protocol.errors import DecodingError, GymwireError
from gymwire.protocol.layout_functions import ALIGNMENT, IN_PLACE, Step
from gymwire.protocol.messages import Percept
from gymwire.protocol.percept_layouts import (
    MAX_CACHED,
    MAX_LAYOUTS,
    MAX_MISSES,
    MAX_VALUES,
    PerceptLayouts,
)
from gymwire.protocol.percept_places import MAX_CONSTANT
from gymwire.protocol.space_codecs import compile
from gymwire.protocol.step_codec import compile_steps
from tests.sameness import assert_same

SID = 7
NAME = name_of(SID, 2)
PATIENCE_S = 20.0
BOX = Box(-1.0, 1.0, (3,), np.float64)
FIVE = Discrete(5)
END = (False, False)
NAN = struct.unpack("<d", bytes.fromhex("010000000000f47f"))[0]  # a signaling one, with a payload


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the other tests of this process have taught it."""
    monkeypatch.setattr(percept_layouts, "KNOWN", percept_layouts._Known())


class Other:
    """Encodes and decodes with Codec, and counts how often it has to."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.codec = Codec(compile(space))
        self.encoded = self.decoded = 0

    def encode(self, step: Step, name: bytes) -> Frame | None:
        self.encoded += 1
        return bytes(self.codec.encode(Percept(*step), SID, int.from_bytes(name[8:], "little")))

    def decode(self, data: Frame | memoryview, name: bytes) -> Step | None:
        self.decoded += 1
        percept = self.codec.decode(data)
        assert isinstance(percept, Percept)
        return (
            percept.observation,
            percept.reward,
            percept.terminated,
            percept.truncated,
            percept.info,
        )


class Ends:
    """The layouts of both ends of a session, beside Codec."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.agent, self.learner = Other(space), Other(space)
        self.encode = PerceptLayouts(compile(space), self.agent.encode, self.agent.decode).encode
        self.decode = PerceptLayouts(
            compile(space), self.learner.encode, self.learner.decode
        ).decode
        self._seq = 0

    def send(self, step: Step) -> None:
        """Send a percept, and check that it arrives as it was, in the bytes of Codec."""
        self._seq += 1
        name = name_of(SID, self._seq)
        sent = self.encode(step, name)
        assert sent is not None
        frame = bytes(sent)
        assert frame == Other.encode(Other(SPACE_OF[type(step[0])]), step, name)
        received: Any = [frame, bytearray(frame), memoryview(bytearray(frame))][self._seq % 3]
        got = self.decode(received, name)
        assert got is not None
        assert_same(got, step)
        for array in arrays_in(got):
            assert array.flags.writeable
            assert array.flags.aligned

    @property
    def missed(self) -> tuple[int, int]:
        """How often Codec had to encode, and to decode, since the last look."""
        missed = self.agent.encoded, self.learner.decoded
        self.agent.encoded = self.learner.decoded = 0
        return missed


SPACE_OF: dict[type, gymnasium.Space[Any]] = {np.ndarray: BOX, np.int64: FIVE}


def arrays_in(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [array for part in value for array in arrays_in(part)] if type(value) is tuple else []


def known(step: Step, space: gymnasium.Space[Any] = BOX) -> Ends:
    """Return ends that have a layout for percepts such as this one."""
    ends = Ends(space)
    for _ in range(2):
        ends.send(step)
    assert ends.missed == (2, 1)  # both ends are in this process
    for _ in range(3):
        ends.send(step)
    assert ends.missed == (0, 0)
    return ends


A = np.arange(3.0)
F = np.float64
MASK = np.array([True, False])
INFOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "numpy floats": ({"x": F(1), "v": F(-0.0)}, {"x": F(NAN), "v": F(np.inf)}),
    "floats": ({"prob": 1 / 3, "x": NAN}, {"prob": 0.1, "x": -0.0}),
    "flags": ({"a": True, "b": np.False_}, {"a": False, "b": np.True_}),
    "small integers": ({"n": 3, "m": 127}, {"n": 0, "m": 1}),
    "integers": ({"n": 200, "m": 70000, "k": 2**63}, {"n": 255, "m": 2**32 - 1, "k": 2**64 - 1}),
    "scalars": (
        {"a": np.float32(0.1), "b": np.int8(-1), "c": np.uint64(2**63), "d": np.complex64(1j)},
        {"a": np.float32(np.nan), "b": np.int8(7), "c": np.uint64(0), "d": np.complex64(-1)},
    ),
    "constants": (
        {"name": "left", "none": None, "x": F(1)},
        {"name": "left", "none": None, "x": F(2)},
    ),
    "arrays": (
        {"p": A, "mask": np.array([True, False]), "i": np.arange(4, dtype=np.int32)},
        {"p": -A, "mask": np.array([False, False]), "i": np.arange(4, dtype=np.int32)[::-1]},
    ),
    "large arrays": ({"map": np.arange(4096.0), "x": F(1)}, {"map": np.ones(4096), "x": F(2)}),
    "large flags": ({"map": np.ones(8192, bool)}, {"map": np.zeros(8192, bool)}),
    "matrices": ({"m": np.arange(6.0).reshape(2, 3)}, {"m": np.full((2, 3), 7.0)}),
    "dicts in dicts": (
        {"a": {"x": F(1), "b": {"y": 2}}, "c": {}, "z": F(3)},
        {"a": {"x": F(4), "b": {"y": 5}}, "c": {}, "z": F(6)},
    ),
    "lists": ({"a": [], "b": [1.5, "x", [True]]}, {"a": [], "b": [-1.5, "x", [False]]}),
    "episodes that have ended": (
        {"final_obs": [None, A, A + 1, None], "_final_obs": np.array([0, 1, 1, 0], bool)},
        {"final_obs": [A + 2, None, None, A], "_final_obs": np.array([1, 0, 0, 1], bool)},
    ),
    "flags of some": ({"f": [None, np.ones(2, bool)]}, {"f": [np.array([True, False]), None]}),
    "no info": ({}, {}),
}


KINDS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
# The least and the greatest value of each form of an integer, where a type has them.
RANGES = [
    (kind, low, min(above - 1, int(np.iinfo(kind).max)))
    for kind in KINDS
    for low, above in ((0, 2**7), (2**7, 2**8), (2**8, 2**16), (2**16, 2**32), (2**32, 2**64))
    if low <= np.iinfo(kind).max
]


@pytest.mark.parametrize(("kind", "least", "greatest"), RANGES)
def test_observations_that_are_integers_of_any_size_take_the_fast_path(
    kind: type[Any], least: int, greatest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Discrete(5, dtype=kind)
    monkeypatch.setitem(SPACE_OF, kind, space)
    ends = known((kind(least), 0.5, *END, {}), space)
    ends.send((kind(greatest), 0.5, *END, {}))
    assert ends.missed == (0, 0)


def test_an_integer_that_its_type_does_not_have_is_malformed() -> None:
    ends = known((np.int64(2**32), 0.5, *END, {}), FIVE)
    frame = bytes(Other.encode(Other(FIVE), (np.int64(2**33), 0.5, *END, {}), bytes(8)) or b"")
    at = frame.index((2**33).to_bytes(8, "big"))
    with pytest.raises(DecodingError):
        ends.decode(frame[:at] + bytes([255]) * 8 + frame[at + 8 :], bytes(8))


@pytest.mark.parametrize("infos", INFOS.values(), ids=INFOS)
@pytest.mark.parametrize(
    "reward", [(0.5, -1.0), (F(0.5), F(-1)), (1, 2), (np.float32(1), np.float32(2))]
)
def test_percepts_like_an_earlier_one_take_the_fast_path(infos: Any, reward: Any) -> None:
    ends = known((A, reward[0], *END, infos[0]))
    ends.send((A + 1, reward[1], True, True, infos[1]))
    assert ends.missed == (0, 0)


@pytest.mark.parametrize("rewards", [1.0, F(1)])
def test_a_discrete_observation_takes_the_fast_path(rewards: Any) -> None:
    ends = known((np.int64(3), rewards, *END, {"prob": 1 / 3}), FIVE)
    ends.send((np.int64(4), rewards, True, False, {"prob": 1 / 4}))
    assert ends.missed == (0, 0)


@pytest.mark.parametrize("num_envs", [1, 3, 2048])
def test_vectors_take_the_fast_path(num_envs: int) -> None:
    n = num_envs
    space = Box(-1.0, 1.0, (n, 4))
    form = compile(space)
    ours = compile_steps(form, form, n)

    def step(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        infos = {
            "env_id": rng.integers(0, 9, n).astype(np.int32),
            "players": {"env_id": rng.integers(0, 9, n).astype(np.int32)},
            "speed": rng.random(n),
            "_speed": rng.random(n) > 0.5,
        }
        ends = rng.random((2, n)) > 0.5
        return rng.random((n, 4)).astype(np.float32), rng.random(n), *ends, infos

    for seed in range(4):
        name = name_of(SID, seed)
        frame = ours.encode_percept(step(seed), name)
        assert frame is not None
        assert bytes(frame) == bytes(Codec(form).encode(Percept(*step(seed)), SID, seed))
        got = ours.decode_percept(bytearray(bytes(frame)), name)
        assert got is not None
        assert_same(got, step(seed))


CHANGES: dict[str, Callable[[dict[Any, Any]], dict[Any, Any]]] = {
    "another key": lambda info: {**info, "more": 1.0},
    "a key less": lambda info: {key: info[key] for key in list(info)[1:]},
    "another order": lambda info: {key: info[key] for key in reversed(info)},
    "another type": lambda info: {**info, "x": 1.0},
    "a larger integer": lambda info: {**info, "n": 128},
    "a negative integer": lambda info: {**info, "n": -1},
    "another text": lambda info: {**info, "name": "right"},
    "another shape": lambda info: {**info, "p": np.arange(4.0)},
    "another dtype": lambda info: {**info, "p": A.astype(np.float32)},
    "another byte order": lambda info: {**info, "p": A.astype(">f8")},
    "a list": lambda info: {**info, "p": [1.0, 2.0, 3.0]},
    "a dict": lambda info: {**info, "x": {"y": F(1)}},
    "no dict": lambda info: {**info, "d": F(1)},
    "one more array": lambda info: {**info, "o": [A, A, None]},
    "another array": lambda info: {**info, "o": [A, A[:2], None]},
    "a number among arrays": lambda info: {**info, "o": [1.0, None, None]},
    "a longer list": lambda info: {**info, "o": [*info["o"], None]},
    "a boolean": lambda info: {**info, "n": True},
    "a NumPy integer": lambda info: {**info, "n": np.int64(3)},
    "a key that is no text": lambda info: {**info, 3: F(1)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_percept_of_another_structure_is_left_to_codec(change: Any) -> None:
    info = {"x": F(1), "n": 3, "name": "left", "p": A, "d": {"y": F(2)}, "o": [A, None, None]}
    ends = known((A, F(1), *END, info))
    ends.send((A, F(1), *END, change(info)))
    assert ends.missed == (1, 1)
    ends.send((A, F(1), *END, info))
    assert ends.missed == (0, 0)


def test_the_values_are_copied_from_the_frame() -> None:
    ends = known((A, F(1), *END, {"p": A}))
    name = name_of(SID, 9)
    received = bytearray(bytes(ends.encode((A, F(1), *END, {"p": A}), name) or b""))
    got = ends.decode(received, name)
    assert got is not None
    received[:] = bytes(len(received))
    assert_same(got, (A, F(1), *END, {"p": A}))


@pytest.mark.parametrize(
    "step",
    [
        (A, F(1), *END, {"x": F(1), "b": True, "f": np.True_, "n": 3, "m": 200, "mask": MASK}),
        (A, F(1), *END, {"final_obs": [None, np.ones(2, np.int8), None, np.ones(2, np.int8)]}),
        (A, A, MASK, ~MASK, {"mask": MASK, "n": np.arange(3)}),
    ],
    ids=["values", "episodes that have ended", "arrays"],
)
def test_a_frame_with_any_byte_changed_is_decoded_as_codec_decodes_it(step: Step) -> None:
    ends = known(step)
    name = name_of(SID, 9)
    frame = bytes(ends.encode(step, name) or b"")
    for at in range(24, len(frame)):
        for value in (0, 1, 0x7F, 0x80, 0xC2, 0xC3, 0xFF):
            changed = frame[:at] + bytes((value,)) + frame[at + 1 :]
            try:
                expected: Any = ends.learner.decode(changed, name)
            except GymwireError as error:
                expected = type(error)
            ends.missed  # noqa: B018 - forget what the line above counted
            try:
                got: Any = ends.decode(changed, name)
            except GymwireError as error:
                got = type(error)
            assert_same(got, expected)


ARRAYS: Step = (
    A,
    np.array([0.5], np.float32),
    np.array([True, False]),
    np.array([False]),
    {
        "bytes": np.arange(4, dtype=np.uint8),
        "none": None,
        "players": {"id": np.arange(6, dtype=">i2").reshape(2, 3), "n": np.array(7)},
        "z": np.array([1j, 2], np.complex128),
        "more": [np.array([True]), np.array([1, 2, 3], np.int8)],
    },
)


def test_percepts_of_arrays_have_one_piece_of_memory_each() -> None:
    ends = known(ARRAYS)
    name = name_of(SID, 9)
    frame = bytes(ends.encode(ARRAYS, name) or b"")
    first, second = ends.decode(frame, name), ends.decode(frame, name)
    assert first is not None
    assert second is not None
    arrays, others = (
        arrays_in((*one[:4], *one[4].values(), *one[4]["more"])) for one in (first, second)
    )
    assert len(arrays) == 10
    places = sorted((one.ctypes.data, one.nbytes) for one in arrays)
    gaps = [at - begin - size for (begin, size), (at, _) in pairwise(places)]
    assert all(0 <= gap < ALIGNMENT for gap in gaps)  # next to each other
    assert not any(begin % ALIGNMENT for begin, _ in places)
    for one in arrays:
        one.fill(0)
    assert_same(second, ARRAYS)
    assert not any(np.shares_memory(one, other) for one in arrays for other in others)


@pytest.mark.parametrize(("total", "shared"), [(IN_PLACE - ALIGNMENT, True), (IN_PLACE, False)])
def test_a_small_array_does_not_keep_large_ones_alive(total: int, shared: bool) -> None:
    rest = np.ones(total - A.nbytes - 3 * 16 - 8, np.int8)
    step = (A, A[:1], np.ones(1, bool), np.ones(1, bool), {"p": rest})
    ends = known(step)
    name = name_of(SID, 9)
    got = ends.decode(bytes(ends.encode(step, name) or b""), name)
    assert got is not None
    assert (got[1].base is got[0].base) is shared


def test_the_answer_to_another_request_is_not_taken() -> None:
    step = (A, F(1), *END, {"x": F(1)})
    short = compile_steps(compile(BOX), compile(FIVE))
    names = [name_of(SID, n) for n in range(5)]
    frames = [bytes(short.encode_percept(step, name) or b"") for name in names]
    for name, frame in zip(names, frames, strict=True):
        assert short.decode_percept(frame, name) is not None
    assert short.decode_percept(frames[4], names[3]) is None


def test_the_layouts_of_a_session_are_bounded() -> None:
    ends = Ends(BOX)
    for n in range(2 * MAX_LAYOUTS):
        for _ in range(3):
            ends.send((A, F(1), *END, {f"key {n}": F(1)}))
    encoded, decoded = ends.missed
    assert encoded >= 2 * MAX_LAYOUTS  # those without a layout are encoded by Codec each time
    assert decoded >= 2 * MAX_LAYOUTS
    layouts = ends.encode.__self__._layouts  # type: ignore[attr-defined]
    assert len(layouts) == MAX_LAYOUTS


def test_a_session_uses_what_another_one_of_its_process_has_learned() -> None:
    step = (A, F(1), *END, {"x": F(1)})
    known(step)
    ends = Ends(BOX)
    ends.send(step)
    assert ends.missed == (1, 1)
    ends.send(step)
    assert ends.missed == (0, 0)


def test_infos_that_always_differ_are_soon_left_alone() -> None:
    ends = Ends(BOX)
    for n in range(MAX_MISSES + 10):
        ends.send((A, F(1), *END, {"text": str(n)}))
    layouts = ends.encode.__self__  # type: ignore[attr-defined]
    assert layouts._misses_left == 0
    assert len(percept_layouts.KNOWN._seen) <= MAX_CACHED


def test_another_session_that_shares_the_layouts_may_add_its_own() -> None:
    ends = Ends(BOX)
    layouts = ends.encode.__self__  # type: ignore[attr-defined]
    for n in range(MAX_MISSES + 10):
        ends.send((A, F(1), *END, {"text": str(n)}))
    layouts.renew()
    for _ in range(3):
        ends.send((A, F(1), *END, {"x": F(1)}))
    assert len(layouts._layouts) == 1
    for n in range(1, MAX_LAYOUTS):
        layouts.renew()
        for _ in range(3):
            ends.send((A, F(1), *END, {f"key {n}": F(1)}))
    assert len(layouts._layouts) == MAX_LAYOUTS


@pytest.mark.parametrize("order", [1, -1])
def test_a_session_that_fills_the_layouts_takes_none_from_later_ones(order: int) -> None:
    later: Step = (A, F(1), *END, {"x": F(1)})
    earlier: Step = (A, F(1), *END, {"key 3": F(1)})
    ends = Ends(BOX)
    both = [ends.encode.__self__, ends.decode.__self__]  # type: ignore[attr-defined]
    for n in range(MAX_LAYOUTS):
        for _ in range(3):
            ends.send((A, F(1), *END, {f"key {n}": F(1)}))
    for layouts in both:
        assert len(layouts._layouts) == MAX_LAYOUTS
        layouts.renew()
    assert ends.missed
    for step in (later, later, earlier)[::order]:
        ends.send(step)
    ends.missed  # noqa: B018 - forget what has taught the layouts
    for step in (later, earlier):
        ends.send(step)
    assert ends.missed == (0, 0)


def test_two_threads_that_learn_the_last_layout_together_exceed_no_limit() -> None:
    ends = Ends(BOX)
    layouts = ends.encode.__self__  # type: ignore[attr-defined]
    layouts._misses_left = -1  # both have found 1
    for _ in range(3):
        ends.send((A, F(1), *END, {"x": F(1)}))
    assert (layouts._misses_left, layouts._layouts) == (-1, [])
    layouts.renew()
    for _ in range(3):
        ends.send((A, F(1), *END, {"x": F(1)}))
    layouts._layouts *= MAX_LAYOUTS  # both have added one
    for _ in range(2):
        ends.send((A, F(1), *END, {"y": F(1)}))
    assert layouts._misses_left == 0


def test_threads_that_share_layouts_encode_as_one_alone() -> None:
    space, threads = compile(BOX), 8
    steps = [(A, F(n), *END, {f"key {n % 20}": F(n), "text": str(n % 9)}) for n in range(400)]
    expected = [bytes(Other(BOX).encode(step, NAME) or b"") for step in steps]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            other = Other(BOX)
            layouts = PerceptLayouts(space, other.encode, other.decode)
            together = threading.Barrier(threads)

            def play(layouts: Any = layouts, together: Any = together) -> list[bytes]:
                together.wait(PATIENCE_S)
                return [bytes(layouts.encode(step, NAME) or b"") for step in steps]

            with ThreadPoolExecutor(threads) as pool:
                assert [one.result() for one in [pool.submit(play) for _ in range(threads)]] == [
                    expected
                ] * threads
            assert layouts._misses_left <= 0
    finally:
        sys.setswitchinterval(before)


def test_an_info_with_many_values_has_no_layout() -> None:
    ends = Ends(BOX)
    for _ in range(4):
        ends.send((A, F(1), *END, {str(n): F(n) for n in range(MAX_VALUES)}))
    assert ends.missed == (4, 4)


@pytest.mark.parametrize("length", [MAX_CONSTANT, MAX_CONSTANT + 1])
def test_an_info_with_a_long_key_has_no_layout(length: int) -> None:
    ends = Ends(BOX)
    for _ in range(4):
        ends.send((A, F(1), *END, {"k" * length: F(1)}))
    assert ends.missed == ((4, 4) if length > MAX_CONSTANT else (2, 1))


@pytest.mark.parametrize("dtype", [np.float64, np.bool_])
def test_a_layout_keeps_no_arrays(dtype: type[Any]) -> None:
    size = 4 * 1024**2 // np.dtype(dtype).itemsize
    tracemalloc.start()
    try:
        known((A, F(1), *END, {"p": np.zeros(size, dtype), "q": np.zeros(3, dtype)}))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < size


def test_making_a_layout_copies_large_arrays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []

    class Counting(Codec):
        def encode(self, *args: Any) -> Frame:
            frame = super().encode(*args)
            copied.append(len(frame))
            return frame

    monkeypatch.setattr(percept_layouts, "Codec", Counting)
    info = {str(n): np.full(LARGE, n, np.uint8) for n in range(8)}
    known((A, F(1), *END, {"x": F(1), **info, "m": {"large": np.ones((2, LARGE)), "n": 3}}))
    assert len(copied) == 1


@pytest.mark.parametrize(("limit", "has_layout"), [(1000, True), (100, False)])
def test_a_percept_whose_places_take_long_to_find_has_no_layout(
    limit: int, has_layout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(percept_layouts, "MAX_COMPARED", limit)
    ends = Ends(BOX)
    for _ in range(3):
        ends.send((A, F(1), *END, {"large": np.ones(LARGE)}))
    assert ends.missed == ((2, 1) if has_layout else (3, 3))


class Key(enum.StrEnum):
    """A key that equals a text."""

    SPEED = "speed"


@pytest.mark.parametrize(
    "key", [np.str_("speed"), Key.SPEED, type("Text", (str,), {})("speed")], ids=repr
)
@pytest.mark.parametrize("is_inner", [False, True])
def test_a_key_that_equals_a_text_is_left_to_codec(key: Any, is_inner: bool) -> None:
    def step(key: Any) -> Step:
        info = {"y": F(1), key: F(2)}
        return (A, F(1), *END, {"d": info} if is_inner else info)

    layouts = known(step("speed")).encode
    assert layouts(step(str(b"speed", "ascii")), NAME) is not None  # another object
    left: list[Any] = []
    layouts.__self__._encode_other = lambda step, _: left.append(step)  # type: ignore[attr-defined]
    assert layouts(step(key), NAME) is None
    assert len(left) == 1


SCALARS = st.one_of(
    st.floats(),
    st.booleans(),
    st.none(),
    st.integers(-(2**65), 2**65),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
    st.integers(-128, 127).map(np.int8),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(st.booleans(), max_size=3).map(lambda items: np.array(items, bool)),
    st.lists(st.integers(0, 3), max_size=2),
)
VALUES = st.recursive(
    SCALARS, lambda parts: st.dictionaries(st.text(max_size=3), parts, max_size=3)
)
KEYS = st.one_of(st.text(max_size=3), st.integers(0, 5))


@given(
    info=st.dictionaries(KEYS, VALUES, max_size=4),
    others=st.lists(st.dictionaries(KEYS, VALUES, max_size=2), max_size=4),
    reward=SCALARS,
)
@settings(max_examples=3 * settings().max_examples)
def test_any_percepts_in_any_order_have_the_bytes_of_codec(
    info: Any, others: list[Any], reward: Any
) -> None:
    ends = Ends(BOX)
    for one in (info, info, *others, info, *others, *others, info):
        ends.send((A, reward, *END, one))


@pytest.mark.parametrize("key", ["'", '"""', "\\", "{x}", "}); raise SystemExit", "\n", "v0", "\0"])
def test_no_text_of_a_percept_is_executed(key: str) -> None:
    step = np.ones(3), 1.0, *END, {key: 0.5, "a": {key: [1.5, {key: key}]}}
    ends = known(step)
    assert ends.missed == (0, 0)
    ends.send(step)
    assert ends.missed == (0, 0)


def test_dicts_may_be_nested_as_deeply_as_a_layout_has_values() -> None:
    info: dict[str, Any] = {"a": 0.5}
    for _ in range(MAX_VALUES - 7):
        info = {"a": info}
    step = np.ones(3), 1.0, *END, info
    ends = known(step)
    ends.send(step)
    assert ends.missed == (0, 0)
