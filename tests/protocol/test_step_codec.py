"""The fast path makes the bytes of `Codec`, and reads only what it has checked."""

from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest

from gymwire.env_agent.interpreter.child.frames import COMPACT_END, FLAGS, FLOAT
from gymwire.protocol.arrays import LARGE
from gymwire.protocol.codec import PLAIN, Codec, Frame, Pieces, name_of, read_header
from gymwire.protocol.errors import ProtocolError
from gymwire.protocol.messages import Act, Percept
from gymwire.protocol.space_codecs import NOT_COMPACT
from gymwire.protocol.spaces import compile
from gymwire.protocol.step_codec import RawPercept, StepCodec, compile_steps
from gymwire.protocol.vector_infos import from_wire, to_wire
from tests.sameness import assert_same
from tests.sampling import thorough
from tests.space_zoo import ZOO

SID, SEQ = 77, 9
NAME, OTHER = name_of(SID, SEQ), name_of(SID, SEQ + 1)
BOX = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
PICTURE = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)
TWO = gymnasium.spaces.Discrete(2)


def codecs(
    observation: gymnasium.Space[Any], action: gymnasium.Space[Any]
) -> tuple[StepCodec, Codec]:
    forms = compile(observation), compile(action)
    return compile_steps(*forms), Codec(*forms)


@pytest.mark.parametrize("name", ZOO)
def test_frames_of_the_fast_path_have_the_bytes_of_codec(name: str) -> None:
    space = ZOO[name]
    space.seed(3)
    short, long = codecs(space, space)
    for _ in range(5):
        value = space.sample()
        act = short.encode_act(value, NAME)
        assert act is not None
        assert bytes(act) == bytes(long.encode(Act(value), SID, SEQ))
        assert_same(short.decode_act(act), value)
        step: Any = (value, -0.5, False, True, {})
        percept = short.encode_percept(step, NAME)
        assert percept is not None
        assert len(percept) == len(bytes(percept))
        assert bytes(percept) == bytes(long.encode(Percept(*step), SID, SEQ))
        assert_same(short.decode_percept(bytes(percept), NAME), step)


@pytest.mark.parametrize("space", [BOX, PICTURE])
def test_arrays_take_the_fast_path(space: gymnasium.spaces.Box) -> None:
    short, _ = codecs(space, space)
    value = space.sample()
    assert short.encode_act(value, NAME) is not None
    percept = short.encode_percept((value, 1.0, True, False, {}), NAME)
    assert percept is not None
    decoded = short.decode_percept(memoryview(bytes(percept)), NAME)
    assert decoded is not None
    assert decoded[0].flags.writeable
    assert decoded[0].flags.aligned
    assert not np.shares_memory(decoded[0], value)


FIXED = [name for name in ZOO if compile(ZOO[name]).array]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("flags", list(product((False, True), repeat=2)))
def test_the_frame_of_a_raw_percept_is_that_of_its_values(
    name: str, flags: tuple[bool, bool]
) -> None:
    space = ZOO[name]
    space.seed(3)
    short, _ = codecs(space, TWO)
    value = space.sample()
    expected = short.encode_percept((value, -0.5, *flags, {}), NAME)
    assert expected is not None
    end = COMPACT_END.pack(FLOAT, -0.5, FLAGS[flags])
    if not short.raw_size:
        assert not value.nbytes or value.nbytes >= LARGE
    else:
        raw = RawPercept(value.tobytes() + end)
        assert len(raw) == short.raw_size
        assert short.encode_raw(raw, NAME) == expected


def test_only_single_small_arrays_have_a_raw_percept() -> None:
    for space in (PICTURE, TWO, gymnasium.spaces.Dict(a=BOX)):
        assert codecs(space, TWO)[0].raw_size == 0
    assert compile_steps(compile(BOX), compile(TWO), num_envs=2).raw_size == 0
    assert codecs(BOX, TWO)[0].raw_size == 4 * 4 + COMPACT_END.size


def test_a_strided_array_is_sent_in_c_order() -> None:
    short, long = codecs(BOX, TWO)
    step: Any = (np.arange(8, dtype=np.float32)[::2], 1.0, False, False, {})
    assert short.encode_percept(step, NAME) == long.encode(Percept(*step), SID, SEQ)


@pytest.mark.parametrize("space", [BOX, gymnasium.spaces.Tuple([BOX, TWO])])
def test_an_act_that_is_too_large_is_left_to_codec(space: gymnasium.Space[Any]) -> None:
    form, value = compile(space), space.sample()
    size = len(Codec(form, form).encode(Act(value), SID, SEQ))
    assert compile_steps(form, form, 0, size).encode_act(value, NAME) is not None
    assert compile_steps(form, form, 0, size - 1).encode_act(value, NAME) is None


def test_a_large_array_stays_where_it_was_received() -> None:
    short, _ = codecs(PICTURE, TWO)
    picture = PICTURE.sample()
    frame = short.encode_percept((picture, 1.0, True, False, {}), NAME)
    received = bytearray(bytes(frame or b""))
    decoded = short.decode_percept(memoryview(received), NAME)
    assert decoded is not None
    assert_same(decoded[0], picture)
    received[-1] ^= 1
    assert decoded[0][-1, -1, -1] != picture[-1, -1, -1]


def test_a_large_array_that_is_sent_is_not_copied() -> None:
    """The environment's own memory is what is sent; `bytes` makes a copy that lasts."""
    short, _ = codecs(PICTURE, TWO)
    picture = PICTURE.sample()
    frame = short.encode_percept((picture, 1.0, True, False, {}), NAME)
    assert isinstance(frame, Pieces)
    before = bytes(frame)
    picture[0, 0, 0] ^= 1
    assert bytes(frame) != before


@pytest.mark.parametrize("action", [0, 127, np.int64(1), np.int64(100)])
def test_a_small_number_keeps_its_type(action: Any) -> None:
    short, long = codecs(BOX, TWO)
    act = short.encode_act(action, NAME)
    assert act is not None
    assert bytes(act) == bytes(long.encode(Act(action), SID, SEQ))
    assert_same(short.decode_act(act), action)


@pytest.mark.parametrize("action", [True, -1, 128, 1.0, "1", None, np.int32(1), np.zeros(3)])
def test_any_other_action_has_the_bytes_of_codec(action: Any) -> None:
    for space in (BOX, TWO):
        short, long = codecs(BOX, space)
        act = short.encode_act(action, NAME)
        assert act is not None
        assert bytes(act) == bytes(long.encode(Act(action), SID, SEQ))
        assert_same(short.decode_act(bytes(act)), action)


@pytest.mark.parametrize("space", [BOX, PICTURE, TWO])
@pytest.mark.parametrize(
    "rest",
    [
        (np.float64(1), False, False, {}),
        (1, False, False, {}),
        (1.0, np.False_, np.True_, {}),
        (1.0, False, 0, {}),
        (1.0, False, False, {"lives": 3, "x": np.float64(0.5), "mask": np.ones(3, bool)}),
        (1.0, False, False, {"map": np.arange(2048.0)}),
        (1.0, False, False, ("no", "dict")),
    ],
)
@pytest.mark.parametrize("fits", [True, False])
def test_any_other_percept_has_the_bytes_of_codec(
    space: gymnasium.Space[Any], rest: Any, fits: bool
) -> None:
    short, long = codecs(space, TWO)
    step: Any = (space.sample() if fits else [0.0] * 4, *rest)
    percept = short.encode_percept(step, NAME)
    assert percept is not None
    assert bytes(percept) == bytes(long.encode(Percept(*step), SID, SEQ))
    assert_same(short.decode_percept(bytes(percept), NAME), step)
    assert short.decode_percept(bytes(percept), OTHER) is None


def test_unserializable_values_are_left_to_codec() -> None:
    short, _ = codecs(BOX, TWO)
    assert short.encode_act(object(), NAME) is None
    step: Any = (BOX.sample(), 1.0, False, False, {"at": object()})
    assert short.encode_percept(step, NAME) is None


@pytest.mark.parametrize("infos", [{"a": np.array([None, 1])}, {"a": {"b": np.array(["x", {}])}}])
def test_infos_of_a_vector_with_arrays_of_objects_have_the_bytes_of_codec(infos: Any) -> None:
    form = compile(BOX)
    short, long = compile_steps(form, form, 2), Codec(form, form)
    values: Any = (BOX.sample(), np.ones(2), np.ones(2, bool), np.ones(2, bool))
    form_of_infos: Any = (*values, to_wire(infos))
    percept = short.encode_percept((*values, infos), NAME)
    assert percept is not None
    assert bytes(percept) == bytes(long.encode(Percept(*form_of_infos), SID, SEQ))
    decoded = short.decode_percept(bytes(percept), NAME)
    assert decoded is not None
    assert_same(from_wire(decoded[4])[0], infos)


def test_infos_of_a_vector_that_are_no_dict_are_left_to_codec() -> None:
    form = compile(BOX)
    step: Any = (BOX.sample(), np.ones(2), np.ones(2, bool), np.ones(2, bool), [1])
    assert compile_steps(form, form, 2).encode_percept(step, NAME) is None


def test_a_list_like_the_wire_form_of_infos_is_not_encoded_as_infos() -> None:
    form = compile(BOX)
    short = compile_steps(form, form, 2)
    values: Any = (BOX.sample(), np.ones(2), np.ones(2, bool), np.ones(2, bool))
    infos: Any = {"name": np.array(["a", "b"], object)}
    for _ in range(3):
        assert short.encode_percept((*values, infos), NAME) is not None
    assert short.encode_percept((*values, to_wire(infos)), NAME) is None


def percept() -> Frame:
    step: Any = (np.ones(4, np.float32), 1.0, False, False, {})
    frame = codecs(BOX, TWO)[0].encode_percept(step, NAME)
    assert frame is not None
    return bytes(frame)


def test_the_answer_to_another_request_is_not_taken() -> None:
    assert codecs(BOX, TWO)[0].decode_percept(bytes(percept()), OTHER) is None


def test_the_answer_of_another_session_is_not_taken() -> None:
    other = name_of(SID + 1, SEQ)
    assert codecs(BOX, TWO)[0].decode_percept(bytes(percept()), other) is None


def test_a_frame_with_any_byte_changed_is_decoded_as_codec_decodes_it() -> None:
    short, long = codecs(BOX, TWO)
    frame = bytes(percept())
    for at in range(len(frame)):
        for value in (0, 1, 0x7F, 0xC2, 0xC3, 0xFF):
            changed = frame[:at] + bytes([value]) + frame[at + 1 :]
            step = short.decode_percept(changed, NAME)
            if step is None:
                continue
            header = read_header(changed)
            message = long.decode(changed, header)
            assert (header.sid, header.seq) == (SID, SEQ)
            assert isinstance(message, Percept)
            expected = (
                message.observation,
                message.reward,
                message.terminated,
                message.truncated,
                message.info,
            )
            assert_same(step, expected)


def test_an_act_with_any_byte_changed_is_decoded_as_codec_decodes_it() -> None:
    short, long = codecs(BOX, TWO)
    frame = bytes(short.encode_act(np.int64(1), NAME) or b"")
    for at in range(len(frame)):
        for value in range(256):
            changed = frame[:at] + bytes([value]) + frame[at + 1 :]
            action = short.decode_act(changed)
            if action is NOT_COMPACT:
                continue
            try:
                message = long.decode(changed)
            except ProtocolError as error:
                pytest.fail(f"the fast path accepted what Codec refuses: {error}")
            assert isinstance(message, Act)
            assert_same(action, message.action)


def test_a_compact_frame_is_refused_by_a_codec_without_the_space() -> None:
    with pytest.raises(ProtocolError, match="its space is unknown"):
        PLAIN.decode(bytes(percept()))


@pytest.mark.parametrize(
    ("single", "num_envs"),
    [*product([BOX, PICTURE, TWO], [1, 3]), (BOX, 600), (TWO, 600), thorough(PICTURE, 600)],
)
def test_percepts_of_vectors_have_the_bytes_of_codec(
    single: gymnasium.Space[Any], num_envs: int
) -> None:
    space = gymnasium.vector.utils.batch_space(single, num_envs)
    form = compile(space)
    short, long = compile_steps(form, form, num_envs), Codec(form, form)
    rng = np.random.default_rng(1)
    for _ in range(3):
        step: Any = (
            space.sample(),
            rng.standard_normal(num_envs),
            rng.random(num_envs) < 0.5,
            rng.random(num_envs) < 0.5,
            {},
        )
        percept = short.encode_percept(step, NAME)
        assert percept is not None
        frame = bytes(percept)
        assert frame == bytes(long.encode(Percept(*step), SID, SEQ))
        decoded = short.decode_percept(memoryview(frame), NAME)
        assert decoded is not None
        assert_same(decoded, step)
        assert all(array.flags.writeable for array in decoded[:4])
        assert short.decode_percept(frame, OTHER) is None


def test_a_vector_percept_with_any_byte_changed_is_decoded_as_codec_decodes_it() -> None:
    space = gymnasium.vector.utils.batch_space(BOX, 2)
    form = compile(space)
    short, long = compile_steps(form, form, 2), Codec(form, form)
    step: Any = (space.sample(), np.ones(2), np.array([True, False]), np.zeros(2, bool), {})
    frame = bytes(short.encode_percept(step, NAME) or b"")
    for at in range(len(frame)):
        for value in (0, 1, 2, 0x7F, 0xFF):
            changed = frame[:at] + bytes([value]) + frame[at + 1 :]
            decoded = short.decode_percept(changed, NAME)
            if decoded is None:
                continue
            message = long.decode(changed)
            assert isinstance(message, Percept)
            expected = (
                message.observation,
                message.reward,
                message.terminated,
                message.truncated,
                message.info,
            )
            assert_same(decoded, expected)
